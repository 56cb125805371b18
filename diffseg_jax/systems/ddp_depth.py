"""Depth as a task of DDP: one channel of normalised metres (Ji et al., 2023, section 4.3)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from diffseg_jax.diffusion.schedules import cosine_gamma
from diffseg_jax.layers.resize import resize_bilinear
from diffseg_jax.models.depth_network import DepthNetwork, DepthSettings
from diffseg_jax.models.network import Network
from diffseg_jax.systems.dense_images import (
    describe_image,
    encode_image,
    enlarged,
    image_of,
    noise_keys,
    pad_image,
)
from diffseg_jax.systems.dense_task import DenseTask, settings_of_meta
from diffseg_jax.training.depth_loss import ScaleInvariantLoss

DEPTH_SCHEDULES = {"cosine": cosine_gamma}  # the signal's share of the power at a time
NETWORK_OPTIONS = ("low", "high", "timed", "bounded")  # of config.depth


def make_depth_settings(config, num_classes: int = 0) -> DepthSettings:
    """The settings of a config's parts model, depth and diffusion."""
    depth = {key: config.depth[key] for key in NETWORK_OPTIONS}
    scale = config.diffusion["code_scale"]
    model = {**config.model, **depth, "code_scale": scale}
    return settings_of_meta(DepthSettings, {"model": model})


def make_depth_network(settings: DepthSettings, kind: str, dtype: str, remat: bool) -> Network:
    """The network as pure functions; dtype "float32" or "bfloat16"."""
    options = dict(dtype=jnp.dtype(dtype), remat=remat)
    return Network(lambda rngs: DepthNetwork(settings, **options, rngs=rngs))


# ---- noise and loss ----------------------------------------------------------------------------


def level_of_time(schedule: str, t, xp):
    """(sqrt(gamma), sqrt(1 - gamma)) of times f32[...]: the level is its weights.

    In float32 and in this order: 1 - gamma is a few roundings at t = 0, by which the last step
    divides what is left of the noise.
    """
    gamma = DEPTH_SCHEDULES[schedule](xp.asarray(t, np.float32), xp)
    return xp.sqrt(gamma), xp.sqrt(1 - gamma)


def code_of_measured(model, batch, size) -> jax.Array:
    """The normalised depth f32[B,h,w,1] of a batch.

    Pixels are mixed as they are, those without a measurement too, as in the original.
    """
    return model.normalised(resize_bilinear(batch["depth"][..., None], size))


def code_of_depth(model, depth) -> jax.Array:
    """The normalised depth f32[...,1] of an output, clipped to the range of codes."""
    scale = model.settings.code_scale
    return jnp.clip(model.normalised(depth), -scale, scale)


def depth_loss(model, x, output, batch, dropout, options, loss=None, warmup: int = 0):
    """The scale-invariant loss of depths f32[B,h,w,1] at the size of the truth.

    loss    a `ScaleInvariantLoss`
    warmup  number of first updates that see only the mean of the logarithms

    The weight is the number of images. Metric: relative_error, the mean over measured pixels of the
    batch.
    """
    depth = batch["depth"]
    predicted = resize_bilinear(output, depth.shape[1:3])[..., 0]
    warm = batch["step"][0] < warmup if warmup else False
    summed, weight = loss(predicted, depth, warm)
    measured = depth > 0
    error = jnp.abs(predicted - depth) / jnp.where(measured, depth, 1.0)
    relative = jnp.sum(error * measured) / jnp.maximum(jnp.sum(measured), 1)
    return summed, weight, {"relative_error": relative * weight}


def depth_losses(config, num_classes: int, loss) -> dict:
    """The fields "loss" and "balanced" of a Task."""
    bound = functools.partial(loss, loss=ScaleInvariantLoss(), warmup=config.depth.warmup)
    return {"loss": bound, "balanced": None}


# ---- the reverse process -----------------------------------------------------------------------


def projected_depth(model):
    """depth f32[...,1] -> (depth, its projected code f32[...,E])."""
    return lambda depth: (depth[..., 0], model.project_codes(code_of_depth(model, depth)))


def follow_no_depth(model, shape):
    """The depth before the first step, and by how much it has moved, all zero: f32[B,R,h,w]."""
    return jnp.zeros(shape), jnp.zeros(shape)


def follow_depth(followed, output, depth, number, sampling):
    """Adds up by how much the depth moves from step to step."""
    before, moved = followed
    moved += jnp.abs(depth - before) * (number > 0)
    return (depth, moved), depth[:, 0]


def finish_depth(model, followed, shown, sampling) -> dict:
    """The maps of cells after all steps.

    depth    f32[B,h,w] in metres, of the last step, the mean over draws, not clipped
    shown    f32[B,T,h,w], of the first draw
    changes  f32[B,h,w], the mean way from step to step as a share of the depth, for T > 1
    spread   f32[B,h,w], the standard deviation of draws as a share of it, for several
    """
    last, moved = followed
    depth = jnp.mean(last, 1)
    least = jnp.maximum(depth, model.settings.low)
    found = {"depth": depth, "shown": jnp.moveaxis(shown, 0, 1)}
    if sampling["steps"] > 1:
        found["changes"] = jnp.mean(moved, 1) / (sampling["steps"] - 1) / least
    if sampling["draws"] > 1:
        found["spread"] = jnp.std(last, 1) / least
    found["depth"] = jnp.clip(depth, model.settings.low, model.settings.high)
    return found


def depth_maps(found, padded, images, sampling) -> dict:
    """Maps of images u8[B,h,w,3]: "depth" f32[B,h,w,1] in metres, within low and high.

    "changes" and "spread" f32[B,h,w] as of `finish_depth`; "descriptor".
    """
    maps = {"descriptor": found.pop("descriptor")}
    for name, cells in found.items():
        maps[name] = enlarged(cells[..., None], padded, images)[..., 0]
    return maps | {"depth": maps["depth"][..., None]}


def depth_steps(shown, padded, images) -> jax.Array:
    """The depth after every step, f32[B,T,h,w] of cells, as maps of images u8[B,H,W,3]."""
    depth = jnp.moveaxis(shown, 1, -1)
    return jnp.moveaxis(enlarged(depth, padded, images), -1, 1)


DEPTH = DenseTask(
    name="depth",
    described="a decoder that denoises a depth map, conditioned on the image (DDP)",
    settings=make_depth_settings,
    settings_of=functools.partial(settings_of_meta, DepthSettings),
    network=make_depth_network,
    meta=lambda config, kind, settings, crop: {"task": "depth"},
    options={"code_scale": "diffusion.code_scale", **{n: f"depth.{n}" for n in NETWORK_OPTIONS}},
    adjustable=("low", "high"),
    images_of=image_of,
    encode=encode_image,
    padded=pad_image,
    keys=functools.partial(noise_keys, "noise of a depth map"),
    level=level_of_time,
    weights=lambda level: level,
    announced=lambda t, level: t,
    code_of_truth=code_of_measured,
    code_of_output=code_of_depth,
    loss=depth_loss,
    losses=depth_losses,
    projected=projected_depth,
    start=follow_no_depth,
    follow=follow_depth,
    finish=finish_depth,
    describe=describe_image,
    maps=depth_maps,
    trace=depth_steps,
)
