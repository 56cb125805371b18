"""Diffusion on unlabelled pictures: the ADM UNet whose features DDPM-Seg reads.

Training and sampling follow Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis"
(NeurIPS 2021), and Nichol and Dhariwal, "Improved Denoising Diffusion Probabilistic Models" (ICML
2021); the networks are those of Baranchuk et al., "Label-Efficient Semantic Segmentation with
Diffusion Models" (ICLR 2022).
"""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from diffseg_jax.config import Flag, Number, Several, Text, UserError, choose
from diffseg_jax.diffusion import timesteps
from diffseg_jax.diffusion.bounds import LOSSES, training_losses
from diffseg_jax.diffusion.process import (
    TARGETS,
    VARIANCES,
    Process,
    make_process,
    noising,
    reverse,
)
from diffseg_jax.diffusion.samplers import ddim_step, ddpm_step
from diffseg_jax.diffusion.schedules import BETAS
from diffseg_jax.mesh import batch_sharding
from diffseg_jax.models.adm_unet import ADMUNet, Settings
from diffseg_jax.models.plain import Network
from diffseg_jax.systems.task import Task, draw_per_row, require_same, scale_images
from diffseg_jax.weights.adm import ORDERS, load_adm
from diffseg_jax.weights.reader import read_arrays

STAGES = {"pretrain": "unlabelled"}  # kind -> data that it learns from
SAMPLERS = ("ddpm", "ddim")
START = 2**31 - 1  # folded into the key of an image for its first noise; steps fold in their number


def make_task(config, kind: str, crop: tuple[int, int], num_classes: int) -> Task:
    """The task of the stage.

    config       reads dtype, remat, model, diffusion, samples
    crop         (height, width) of training images and of samples
    num_classes  of the pictures, 0 if they have none
    Raises UserError when the network's number of classes is not that of the pictures.
    """
    diffusion, settings = config.diffusion, make_settings(config.model)
    if settings.num_classes != num_classes:
        raise UserError(
            f"model.num_classes is {settings.num_classes}, but the pictures have "
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
    return Task(
        init=lambda key: {
            **network.init(key),
            "stats": timesteps.start(diffusion.timesteps, diffusion.steps),
        },
        trainable=lambda path: True,
        loss=functools.partial(diffusion_loss, network, process, options),
        sample=functools.partial(_samples, step, sampled, crop, settings.num_classes),
        meta={
            "kind": kind,
            "model": dataclasses.asdict(settings),
            "diffusion": options,
            "size": list(crop),
            "normalisation": "v / 127.5 - 1",
        },
    )


def make_settings(model) -> Settings:
    """Settings from a mapping that may hold lists, as JSON does."""
    values = dict(model)
    for name in ("channel_mult", "attention_factors"):
        values[name] = tuple(values[name])
    return Settings(**values)


def make_network(settings: Settings, dtype: str, remat: bool) -> Network:
    """The ADM UNet as pure functions; dtype "float32" or "bfloat16", else UserError."""
    kind = choose({"float32": jnp.float32, "bfloat16": jnp.bfloat16}, dtype, "dtype")
    return Network(lambda rngs: ADMUNet(settings, dtype=kind, remat=remat, rngs=rngs))


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
    key_dropout = jax.random.fold_in(key_dropout, batch["row"][0])  # another mask in each part
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


# ---- samples -----------------------------------------------------------------------------------


def sample_images(
    step: Callable, process: Process, params: dict, *, seed: int, places: Sequence[int],
    size: tuple[int, int], classes: np.ndarray | None = None, progress: Callable = iter,
) -> np.ndarray:  # fmt: skip
    """Images u8[n, height, width, 3], each a function of the seed and its place alone.

    step      what `make_step` returned for the same process
    params    of the network; on a mesh, its devices share the images if they can evenly
    places    numbers of the images, n of them
    classes   i32[n] of a class-conditional network
    progress  wraps the iterable of steps, as a progress bar does
    """
    split, whole = _placement(params, len(places))

    def begin():
        purpose = jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"samples"))
        keys = jax.vmap(lambda i: jax.random.fold_in(purpose, i))(jnp.asarray(places))
        draw = lambda key: jax.random.normal(jax.random.fold_in(key, START), (*size, 3))
        return keys, jax.vmap(draw)(keys)

    keys, x = jax.jit(begin, out_shardings=split)()
    classes = None if classes is None else jax.device_put(np.asarray(classes, np.int32), split)
    for index in progress(range(process.steps - 1, -1, -1)):
        x = jax.block_until_ready(step(params, x, jnp.int32(index), keys, classes))
    x = np.asarray(jax.jit(lambda x: x, out_shardings=whole)(x))  # readable in every process
    return np.clip((x + 1) * 127.5, 0, 255).astype(np.uint8)


def _placement(params, count):
    """Where `count` images live during sampling, and where every process can read them."""
    where = getattr(next(iter(jax.tree.leaves(params)), None), "sharding", None)
    if not isinstance(where, NamedSharding):
        return where, where
    whole = NamedSharding(where.mesh, PartitionSpec())
    return whole if count % where.mesh.size else batch_sharding(where.mesh), whole


def make_step(network, process: Process, options: dict, sampler: str, eta: float) -> Callable:
    """Compiled (params, x_t, index i32[], keys[B], classes i32[B] or None) -> x_{t-1}.

    The result is placed on devices as x_t was.

    options  target and variance of the network's output
    sampler  "ddpm", or "ddim" with eta in [0, 1]

    Raises UserError for an unknown sampler, and for an eta that the sampler does not read.
    """
    choose(dict.fromkeys(SAMPLERS), sampler, "sampler")
    if eta and sampler == "ddpm":
        raise UserError(f"eta is {eta}, which only ddim reads. Set it to 0, or sampler to ddim.")

    def step(params, x, index, keys, classes):
        t = jnp.full(len(x), index)
        output, _ = network.bind(params, {})(x, process.network_time(t), classes)
        past = reverse(process, output, x, t, options["target"], options["variance"])
        draw = lambda key: jax.random.normal(jax.random.fold_in(key, index), x.shape[1:])
        noise = jax.vmap(draw)(keys)
        if sampler == "ddpm":
            return ddpm_step(process, past, t, noise)
        return ddim_step(process, x, past.clean, t, eta, noise)

    @functools.cache
    def compiled(placement):
        return jax.jit(step, donate_argnums=1, out_shardings=placement)

    @functools.wraps(step)
    def placed(params, x, *rest):
        return compiled(x.sharding)(params, x, *rest)

    return placed


def _samples(step, process, size, num_classes, values, seed, count):
    """The first `count` images of a seed; the classes take turns."""
    classes = np.arange(count) % num_classes if num_classes else None
    return sample_images(
        step, process, values["params"], seed=seed, places=range(count), size=size, classes=classes
    )


# ---- where a stage starts ----------------------------------------------------------------------


def start_of(config, kind: str, start: str) -> str:
    """Where a stage starts: "random", "weights", the name of a stage, or a stage's directory."""
    return start


def skips_stage(config, kind: str) -> bool:
    """No choice of this system leaves a stage out."""
    return False


def adopt(abstract: dict, task: Task, previous: dict, meta: dict) -> dict:
    """What a stage takes over from another one's network: its parameters.

    abstract  shapes of this stage's network
    previous  {"params", "stats"} of arrays, meta its `Task.meta`
    Raises UserError when the networks differ.
    """
    taken = {"params": previous["params"]}
    require_same({"params": abstract["params"]}, taken)
    return taken


def load_weights(config, abstract: dict, task: Task) -> dict:
    """What an official guided-diffusion checkpoint gives a stage: all parameters.

    Raises UserError for anything missing, extra or of another shape.
    """
    arrays = read_arrays(config.weights)
    settings = make_settings(task.meta["model"])
    return {"params": load_adm(arrays, settings, config.weights_order, config.weights)}


# ---- what can be wrong with a config -----------------------------------------------------------


OPTIONS = {
    "weights": Text(),
    "weights_order": Text(ORDERS),
    "model": {
        "channels": Number(int, 32),
        "channel_mult": Several(Number(float, 0.1), least=1),
        "res_blocks": Number(int, 1),
        "attention_factors": Several(Number(int, 1)),
        "heads": Number(int, 1),
        "heads_up": Number(int, -1),
        "head_channels": Number(int, -1),
        "resample_in_blocks": Flag(),
        "scale_shift": Flag(),
        "num_classes": Number(int, 0),
        "learn_sigma": Flag(),
        "dropout": Number(float, 0, 0.99),
    },
    "diffusion": {
        "schedule": Text(tuple(BETAS)),
        "steps": Number(int, 1),
        "rescale_timesteps": Flag(),
        "target": Text(TARGETS),
        "variance": Text(VARIANCES),
        "loss": Text(LOSSES),
        "timesteps": Text(timesteps.SAMPLERS),
    },
    "samples": {
        "images": Number(int, 1, 64),
        "sampler": Text(SAMPLERS),
        "steps": Text(),
        "eta": Number(float, 0, 1),
    },
}


def check(config):
    """Raises UserError for values that go with no network, beyond what OPTIONS says of each."""
    settings, diffusion = make_settings(config.model), config.diffusion
    if problem := settings.problem():
        raise UserError(f"model: {problem}")
    if settings.learn_sigma != (diffusion.variance == "learned"):
        wanted = "learned" if settings.learn_sigma else "fixed_large"
        raise UserError(
            f"model.learn_sigma is {settings.learn_sigma}, which does not go with "
            f"diffusion.variance {diffusion.variance}. Try --config.diffusion.variance={wanted}."
        )
    if diffusion.loss.startswith("hybrid") and not settings.learn_sigma:
        raise UserError(
            f"diffusion.loss is {diffusion.loss}, which trains a learned variance, but "
            "model.learn_sigma is False. Try --config.diffusion.loss=simple."
        )
    make_process(diffusion.schedule, diffusion.steps, config.samples.steps)
    if config.samples.eta and config.samples.sampler == "ddpm":
        raise UserError(
            f"samples.eta is {config.samples.eta}, which only ddim reads. "
            "Try --config.samples.sampler=ddim."
        )
    square = config.unlabelled.options.get("square", 0)
    for name in config.run:
        stage = config.stages[name]
        check_size(tuple(stage.augment.crop), settings, f"stages.{name}.augment.crop")
        if square and max(stage.augment.crop) > square:
            raise UserError(
                f"stages.{name}.augment.crop is {tuple(stage.augment.crop)}, but pictures are "
                f"squares of {square}; the rest would be padding. "
                f"Try --config.unlabelled.options.square={max(stage.augment.crop)}."
            )
        if stage.start == "weights" and not config.weights:
            raise UserError(
                f"stages.{name}.start is weights, but no file is given. "
                "Try --config.weights=lsun_bedroom.pt."
            )


def check_size(size: tuple[int, int], settings: Settings, what: str):
    """Raises UserError unless height and width are multiples of the network's stride."""
    stride = settings.stride
    if len(size) != 2:
        raise UserError(
            f"{what} is {tuple(size)}, but it is a height and a width. Try --size=64,64."
        )
    if any(side < 1 or side % stride for side in size):
        near = tuple(max(stride, round(side / stride) * stride) for side in size)
        raise UserError(
            f"{what} is {tuple(size)}, but a network of {settings.levels} levels makes images "
            f"whose sides are multiples of {stride}. Try {near}."
        )


def note(config, kind: str, start: str) -> str:
    """What a user should know before a stage with that `start` runs, or an empty string."""
    return ""
