"""A stage of DDPM-Seg: a copy of the diffusion model learns to do without noise.

Stracke et al., "CleanDIFT: Diffusion Features without Noise" (CVPR 2025, arXiv 2412.03439). The
student reads the clean image. Small heads, which know the noise level, map its features to those
that the frozen teacher computes for the noised image; both start as the pretrained network.

| | CleanDIFT | here |
|---|---|---|
| network | Stable Diffusion | ADM UNet |
| time of the student | a learned timestep, at first 261 | t = 0, whose embedding is trained |
| heads | gated, RMS norm | GELU, layer norm |
| noise levels of an image in a batch | one in each third of the range | one |
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from diffseg_jax.diffusion.process import Process, make_process, noising
from diffseg_jax.models.clean_unet import AgreementHeads
from diffseg_jax.models.inputs import draw_per_row, scale_images
from diffseg_jax.models.network import Network
from diffseg_jax.sources.clean import clean_features, clean_network, output_names
from diffseg_jax.sources.diffusion import make_network, make_settings
from diffseg_jax.systems.task import Task


def clean_task(config, kind: str, crop: tuple[int, int], num_classes: int) -> Task:
    """A student learns to agree with the frozen diffusion model at config.clean.blocks.

    The network's tree is {"params": {"student", "teacher", "heads"}, "stats": {}}.
    """
    settings, diffusion = make_settings(config.model), config.diffusion
    process = make_process(
        diffusion.schedule, diffusion.steps, rescale_timesteps=diffusion.rescale_timesteps
    )
    teacher = make_network(settings, config.dtype, config.remat)
    student = clean_network(settings, config.dtype, config.remat)
    blocks = clean_blocks(config)
    taps = output_names(blocks)
    channels = {tap: settings.output_widths[int(tap.rpartition("_")[2])] for tap in taps}
    heads = Network(lambda rngs: AgreementHeads(channels, dtype=jnp.dtype(config.dtype), rngs=rngs))

    def init(key):
        key_unet, key_heads = jax.random.split(key)
        unet = teacher.init(key_unet)["params"]
        params = {
            "student": unet,
            "teacher": jax.tree.map(jnp.copy, unet),
            "heads": heads.init(key_heads)["params"],
        }
        return {"params": params, "stats": {}}

    def features(values, images, valid, taps=None, seed=0):
        chosen = output_names(blocks) if taps is None else taps
        return clean_features(student, 0, values["params"]["student"], images, valid, chosen)

    networks = {"student": student, "teacher": teacher, "heads": heads}
    return Task(
        init=init,
        trainable=lambda path: path[0] != "teacher",
        loss=functools.partial(disagreement, networks, process, tuple(config.clean.steps), taps),
        features=features,
        meta={
            "kind": kind,
            "model": dataclasses.asdict(settings),
            "diffusion": diffusion.to_dict(),
            "clean": {"blocks": sorted(blocks), "steps": list(config.clean.steps)},
            "size": list(crop),
            "normalisation": "v / 127.5 - 1",
        },
    )


def clean_blocks(config) -> tuple[int, ...]:
    """The output blocks at which the student learns: by default those of the fit."""
    return tuple(config.clean.blocks or config.get("features", {}).get("blocks", ()))


def disagreement(
    networks: dict[str, Network], process: Process, steps: tuple[int, int], taps: list[str],
    params: dict, stats: dict, batch: dict, key: jax.Array,
):  # fmt: skip
    """1 - cosine of student and teacher, averaged over pixels and taps and summed over images.

    steps    the lowest and the highest noise level of the teacher, one drawn for each image
    batch    image u8[B,h,w,3], valid i32[B,2], row i32[B]
    Metrics are the cosines of the taps, such as agreement_output_5.
    """
    key_time, key_noise = jax.random.split(key)
    image = scale_images(batch["image"], batch["valid"])
    draw = lambda k: jax.random.randint(k, (), steps[0], steps[1] + 1)
    t = draw_per_row(draw, key_time, batch["row"])
    eps = draw_per_row(lambda k: jax.random.normal(k, image.shape[1:]), key_noise, batch["row"])
    noisy = noising(process, image, t, eps)
    teacher, student, heads = (
        networks[name].bind(params[name], {}) for name in ("teacher", "student", "heads")
    )
    _, wanted = teacher(noisy, process.network_time(t), until=taps[-1])
    found = heads(student(image, taps), t / process.steps)
    agreements = {tap: _mean_cosine(found[tap], wanted[tap]) for tap in taps}
    loss = jnp.sum(1 - jnp.mean(jnp.stack(list(agreements.values())), 0))
    metrics = {
        f"agreement_{tap}": jnp.sum(jax.lax.stop_gradient(value))
        for tap, value in agreements.items()
    }
    return loss, (jnp.float32(len(image)), stats, metrics)


def _mean_cosine(one, other):
    """The cosines of two maps f[B,h,w,C], averaged over pixels: f32[B]."""
    one, other = one.astype(jnp.float32), other.astype(jnp.float32)
    product = jnp.sum(one * other, -1)
    squares = jnp.sum(jnp.square(one), -1) * jnp.sum(jnp.square(other), -1)
    return jnp.mean(product * jax.lax.rsqrt(squares + 1e-12), (1, 2))
