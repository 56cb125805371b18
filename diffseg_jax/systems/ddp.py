"""DDP: dense prediction by denoising a map, conditioned on an image.

Ji et al., "DDP: Diffusion Model for Dense Visual Prediction" (ICCV 2023, arXiv 2303.17559).

| stage   | the noisy map in training                     | a prediction is                   |
|---|---|---|
| train   | the true labels, with noise                   | a few reverse steps               |
| align   | the network's first prediction, with noise    | the same (section 3.4)            |
| plain   | none: encoder and convolutional head          | one forward pass; for comparison  |
| decoder | none: a learned vector in its place           | one forward pass; for comparison  |

What a map is (labels, depth), how it is coded and learned, is the matter of a `DenseTask`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from diffseg_jax.diffusion.samplers import ddim_between, ddpm_transition
from diffseg_jax.diffusion.schedules import add_noise, time_pairs
from diffseg_jax.errors import UserError
from diffseg_jax.models.inputs import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    choose_features,
    draw_per_row,
)
from diffseg_jax.models.network import stats_of
from diffseg_jax.systems.dense_task import DenseTask
from diffseg_jax.systems.task import Task

SAMPLERS = ("ddim", "ddpm")
UNNOISED = ("plain", "decoder")  # kinds of stages without diffusion


def make_task(
    dense: DenseTask, config, kind: str, crop: tuple[int, int], num_classes: int
) -> Task:
    """The task of one stage.

    config  reads dtype, remat, seed, diffusion, sampling, and what `dense` reads
    kind    "train", "align", or one of UNNOISED
    crop    (height, width) of training images, 32 or more
    Raises UserError for settings that make no network.
    """
    settings = dense.settings(config, num_classes)
    if problem := settings.problem():
        raise UserError(f"model: {problem}")
    network = dense.network(settings, kind, config.dtype, config.remat)
    diffusion, sampling = config.diffusion.to_dict(), config.sampling.to_dict()
    sampling["schedule"] = diffusion["schedule"]
    meta = {
        "kind": kind,
        "model": dataclasses.asdict(settings),
        **dense.meta(config, kind, settings, crop),
        "sampling": sampling,
        "normalisation": "(v - mean) / std",
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
    }
    if kind in UNNOISED:
        return dense.plain(network, config, num_classes, meta)
    loss = functools.partial(LOSSES[kind], dense, network, diffusion)
    reverse = functools.partial(reverse_process, dense, network, sampling)
    predict = functools.partial(diffused_maps, dense, reverse, sampling, seed=config.seed)
    return Task(
        init=network.init,
        predict=predict,
        traced=functools.partial(predict, traced=True),
        trace=lambda shown, images: dense.trace(shown, dense.padded(images), images),
        meta=meta,
        features=functools.partial(named_features, dense, network) if dense.named else None,
        recorded={"sampling": config.sampling.to_dict()},
        **dense.losses(config, num_classes, loss),
    )


# ---- losses ------------------------------------------------------------------------------------


def diffusion_loss(dense, network, options, params, stats, batch, key, **of_task):
    """The loss of the map decoder's output for a noised true map (algorithm 1).

    options    schedule; high, the latest time drawn; and what the loss of the task reads
    batch      what the task reads, and row i32[B]
    of_task    options of the task's loss

    Sums over the batch and the weight by which they are divided, as in the original.
    """
    model, x, keys = encoded(dense, network, params, stats, batch, key)
    clean = dense.code_of_truth(model, batch, x.shape[1:3])
    eps = _draw_noise(model, x, batch["row"], keys["noise"])
    return _denoising_loss(dense, model, options, x, clean, eps, batch, keys, of_task)


def aligned_loss(dense, network, options, params, stats, batch, key, **of_task):
    """`diffusion_loss` with the network's prediction from pure noise as the truth (section 3.4).

    The same noise is added to that prediction. Arguments and result as of `diffusion_loss`.
    """
    model, x, keys = encoded(dense, network, params, stats, batch, key)
    eps = _draw_noise(model, x, batch["row"], keys["noise"])
    last = jnp.ones(len(x))
    level = dense.level(options["schedule"], last, jnp)
    first = jax.lax.stop_gradient(decode(model, x, eps, dense.announced(last, level)))
    clean = dense.code_of_output(model, first)
    return _denoising_loss(dense, model, options, x, clean, eps, batch, keys, of_task)


LOSSES = {"train": diffusion_loss, "align": aligned_loss}


def encoded(dense, network, params, stats, batch, key):
    """(model, merged features, keys by purpose; those of dropout one per image)."""
    keys = dict(zip(("time", "noise", "dropout"), jax.random.split(key, 3)))
    keys["dropout"] = jax.vmap(lambda row: jax.random.fold_in(keys["dropout"], row))(batch["row"])
    model = network.bind(params, stats)
    x, _ = dense.encode(model, *dense.images_of(batch), keys["dropout"])
    return model, x, keys


def _draw_noise(model, x, rows, key):
    shape = (*x.shape[1:3], model.settings.code_width)
    return draw_per_row(lambda k: jax.random.normal(k, shape), key, rows)


def _denoising_loss(dense, model, options, x, clean, eps, batch, keys, of_task):
    """The loss of the output for noised codes f32[B,h,w,n]."""
    draw = lambda key: jax.random.uniform(key, maxval=options["high"])
    t = draw_per_row(draw, keys["time"], batch["row"])
    level = dense.level(options["schedule"], t, jnp)
    noisy = add_noise(clean, eps, *dense.weights(level))
    output = decode(model, x, noisy, dense.announced(t, level))
    loss, weight, metrics = dense.loss(
        model, x, output, batch, keys["dropout"], options, **of_task
    )  # fmt: skip
    return loss, (weight, stats_of(model), metrics)


def decode(model, x, noisy, announced):
    """The output for features, noisy maps f32[B,h,w,n] and what is told of their levels f32[B]."""
    mixed = model.project_features(x) + model.project_codes(noisy)
    constants = model.constants(x)
    return model.decode(mixed, constants, model.modulations(announced))


# ---- predictions -------------------------------------------------------------------------------


def diffused_maps(dense, reverse, sampling, values, images, valid, seed, traced=False):
    """Maps of images u8[B,h,w,3] after all reverse steps, as of `DenseTask.maps`.

    traced  whether the cells of the first draw after every step, [B,T,h,w], are returned too
    """
    padded = dense.padded(images)
    found = reverse(values, padded, valid, seed)
    shown = found.pop("shown")
    maps = dense.maps(found, padded, images, sampling)
    return (maps, shown) if traced else maps


def named_features(dense, network, values, images, valid, taps=None, seed=0):
    """Features of the encoder's parts for images u8[B,h,w,3]: {name: f32[B,h',w',C]}."""
    model = network.bind_eval(values["params"], values["stats"])
    _, found = dense.encode(model, dense.padded(images), valid)
    return choose_features(found, taps)


def reverse_process(dense, network, sampling, values, images, valid, seed) -> dict:
    """The result of T reverse steps from noise, for images; each has its own noise.

    Maps as of `DenseTask.finish` and `DenseTask.describe`.
    """
    model = network.bind_eval(values["params"], values["stats"])
    x, _ = dense.encode(model, images, valid)
    shape = (*x.shape[1:3], model.settings.code_width)
    keys = dense.keys(images, seed)
    draws = jnp.arange(sampling["draws"])
    keys = jax.vmap(lambda key: jax.vmap(lambda r: jax.random.fold_in(key, r))(draws))(keys)
    start = jax.vmap(jax.vmap(lambda key: jax.random.normal(key, shape)))(keys)

    def fresh(step):
        draw = lambda key: jax.random.normal(jax.random.fold_in(key, step), shape)
        return jax.vmap(jax.vmap(draw))(keys)

    found = denoise_map(dense, model, x, start, sampling, fresh)
    return found | dense.describe(x, images, valid)


def denoise_map(dense, model, x, noise, sampling, fresh) -> dict:
    """The reverse process for merged features f[B,h,w,E] from noise f32[B,R,h,w,n], R draws.

    fresh  step -> noise f32[B,R,h,w,n], for the sampler "ddpm"

    Steps run in the space after the 1x1 transform, which is linear: codes are projected, and noisy
    maps are never formed. Result as of `DenseTask.finish`.
    """
    batch, draws, height, width, _ = noise.shape
    steps = sampling["steps"]
    pairs = time_pairs(steps, sampling["time_difference"], sampling["start"])
    levels = dense.level(sampling["schedule"], pairs, np)
    now_of = lambda level: jax.tree.map(lambda each: each[..., 0], level)
    then_of = lambda level: jax.tree.map(lambda each: each[..., 1], level)
    features = model.project_features(x)[:, None]
    projected = dense.projected(model)
    constants = model.constants(x)
    folded = lambda maps: maps.reshape(batch * draws, *maps.shape[2:])

    def step(carry, inputs):
        state, followed = carry
        number, level, last, modulations = inputs
        modulations = jnp.broadcast_to(modulations, (batch * draws, *modulations.shape))
        output = model.decode(folded(features + state), constants, modulations)
        output = output.reshape(batch, draws, *output.shape[1:])
        decided, clean = projected(output)
        followed, shown = dense.follow(followed, output, decided, number, sampling)
        now, then = now_of(level), then_of(level)
        if sampling["sampler"] == "ddim":
            state = ddim_between(state, clean, dense.weights(now), dense.weights(then))
        else:
            noise = model.project_codes(fresh(number)) * ~last
            state = ddpm_transition(state, clean, now, then, noise)
        return (state, followed), shown

    told = jnp.asarray(dense.announced(pairs[:, 0], now_of(levels)))
    inputs = (
        jnp.arange(steps), jax.tree.map(jnp.asarray, levels), jnp.asarray(pairs[:, 1] <= 0),
        model.modulations(told),
    )  # fmt: skip
    carry = model.project_codes(noise), dense.start(model, (batch, draws, height, width))
    (_, followed), shown = jax.lax.scan(step, carry, inputs)
    return dense.finish(model, followed, shown, sampling)
