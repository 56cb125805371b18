"""DDPM-Seg's first stage: an ADM UNet learns to denoise unlabelled images.

The second, pixel classifiers that read its features, is in `few_labels`. The method is that of
Baranchuk et al., "Label-Efficient Semantic Segmentation with Diffusion Models" (ICLR 2022).
Training and sampling of the network follow Dhariwal and Nichol, "Diffusion Models Beat GANs on
Image Synthesis" (NeurIPS 2021), and Nichol and Dhariwal, "Improved Denoising Diffusion
Probabilistic Models" (ICML 2021).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from diffseg_jax.diffusion import timesteps
from diffseg_jax.diffusion.bounds import training_losses
from diffseg_jax.diffusion.process import Process, make_process, noising
from diffseg_jax.errors import UserError
from diffseg_jax.models.inputs import draw_per_row, scale_images
from diffseg_jax.sources.diffusion import make_network, make_settings, named_features
from diffseg_jax.systems.ddpm_sampling import first_images, make_step
from diffseg_jax.systems.task import Task


def pretrain_task(config, kind: str, crop: tuple[int, int], num_classes: int) -> Task:
    """The network learns to denoise.

    Raises UserError when the network's number of classes is not that of the images.
    """
    diffusion, settings = config.diffusion, make_settings(config.model)
    if settings.num_classes != num_classes:
        raise UserError(
            f"model.num_classes is {settings.num_classes}, but the images have "
            f"{num_classes or 'no'} classes. Try --config.model.num_classes={num_classes}, or an "
            f"unlabelled source whose options name {'no' if num_classes else 'the'} classes."
        )
    network = make_network(settings, config.dtype, config.remat)
    process = make_process(
        diffusion.schedule, diffusion.steps, rescale_timesteps=diffusion.rescale_timesteps
    )
    options, samples = diffusion.to_dict(), config.samples
    sampled = make_process(
        diffusion.schedule, diffusion.steps, samples.steps, diffusion.rescale_timesteps
    )
    step = make_step(network, sampled, options, samples.sampler, samples.eta)
    images = samples.get("images", 0)  # absent from what `diffseg_jax.convert` writes
    return Task(
        init=lambda key: {
            **network.init(key),
            "stats": timesteps.start(diffusion.timesteps, diffusion.steps),
        },
        loss=functools.partial(diffusion_loss, network, process, options),
        sample=functools.partial(first_images, step, sampled, crop, settings.num_classes, images),
        passes=images * sampled.steps,
        features=functools.partial(
            named_features, network, process, {"share_noise": False, "short": 0, "draws": 1}, (),
            seed=0,
        ),
        meta={
            "kind": kind,
            "model": dataclasses.asdict(settings),
            "diffusion": options,
            "size": list(crop),
            "normalisation": "v / 127.5 - 1",
        },
    )


# ---- loss --------------------------------------------------------------------------------------


def diffusion_loss(network, process: Process, options: dict, params, stats, batch, key):
    """The loss of `training_losses` summed over images; metrics: mse and vb, where they are known.

    options  target, variance, loss (Nichol and Dhariwal, 2021, section 3)
    stats    state of the timestep sampler
    batch    image u8[B,h,w,3], valid i32[B,2], row i32[B], class i32[B] if class-conditional
    """
    key_time, key_noise, key_dropout = jax.random.split(key, 3)
    image = scale_images(batch["image"], batch["valid"])
    draw = functools.partial(timesteps.draw, stats, process.steps)
    t, weights = draw_per_row(draw, key_time, batch["row"])
    eps = draw_per_row(lambda k: jax.random.normal(k, image.shape[1:]), key_noise, batch["row"])
    noisy = noising(process, image, t, eps)
    model = network.bind(params, {})
    key_dropout = jax.random.fold_in(key_dropout, batch["row"][0])  # each part has its own mask
    classes = batch["class"] if model.settings.num_classes else None
    output, _ = model(noisy, process.network_time(t), classes, key_dropout)
    losses = training_losses(
        process, output, image, noisy, t, eps, options["target"], options["variance"],
        options["loss"],
    )  # fmt: skip
    loss = losses.pop("loss")
    stats = timesteps.update(stats, t, jax.lax.stop_gradient(loss))
    metrics = {name: jnp.sum(jax.lax.stop_gradient(values)) for name, values in losses.items()}
    return jnp.sum(weights * loss), (jnp.float32(len(loss)), stats, metrics)
