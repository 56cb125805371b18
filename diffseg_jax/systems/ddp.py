"""DDP: segmentation by denoising a label map, conditioned on an image.

Ji et al., "DDP: Diffusion Model for Dense Visual Prediction" (ICCV 2023, arXiv 2303.17559).

| stage   | the noisy map in training                     | a prediction is                   |
|---|---|---|
| train   | the true labels, with noise                   | a few reverse steps               |
| align   | the network's first prediction, with noise    | the same (section 3.4)            |
| plain   | none: encoder and convolutional head          | one forward pass; for comparison  |
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from diffseg_jax.data.labels import IGNORE
from diffseg_jax.diffusion.samplers import ddim_transition, ddpm_transition
from diffseg_jax.diffusion.schedules import LOG_SNRS, add_noise, alpha_sigma, time_pairs
from diffseg_jax.errors import UserError
from diffseg_jax.layers.resize import resize_bilinear, resize_nearest
from diffseg_jax.metrics.divergence import entropy, jensen_shannon
from diffseg_jax.models.ddp_network import MIN_SIDE, DDPNetwork, DDPSettings
from diffseg_jax.models.descriptor import image_descriptor
from diffseg_jax.models.inputs import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    choose_features,
    draw_per_row,
    keys_of_images,
    scale_images,
)
from diffseg_jax.models.network import Network, stats_of
from diffseg_jax.systems.task import Task
from diffseg_jax.training.losses import losses_by_options, masked_cross_entropy

SAMPLERS = ("ddim", "ddpm")


def make_task(config, kind: str, crop: tuple[int, int], num_classes: int) -> Task:
    """The task of one stage.

    config  reads dtype, remat, seed, model, diffusion, sampling, new_head, loss
    kind    "train", "align" or "plain"
    crop    (height, width) of training images, 32 or more
    Raises UserError for settings that make no network.
    """
    settings = make_settings(config, num_classes)
    if problem := settings.problem():
        raise UserError(f"model: {problem}")
    network = make_network(settings, kind != "plain", config.dtype, config.remat)
    diffusion, sampling = config.diffusion.to_dict(), config.sampling.to_dict()
    sampling["schedule"] = diffusion["schedule"]
    meta = {
        "kind": kind,
        "model": dataclasses.asdict(settings),
        "num_classes": num_classes,
        "sampling": sampling,
        "new_head": config.new_head and kind != "align",  # align continues a trained head
        "normalisation": "(v - mean) / std",
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
    }
    features = functools.partial(named_features, network)
    loss = {
        "train": functools.partial(diffusion_loss, network, diffusion),
        "align": functools.partial(aligned_loss, network, diffusion),
        "plain": functools.partial(plain_loss, network),
    }[kind]
    losses = losses_by_options(config.get("loss", {}), num_classes, loss)
    if kind == "plain":
        predict = functools.partial(plain_maps, network)
        return Task(init=network.init, predict=predict, meta=meta, features=features, **losses)
    reverse = functools.partial(reverse_process, network, sampling)
    return Task(
        init=network.init,
        predict=functools.partial(diffused_maps, reverse, sampling, seed=config.seed),
        trace=functools.partial(labels_of_steps, reverse, seed=config.seed),
        meta=meta,
        features=features,
        recorded={"sampling": config.sampling.to_dict()},
        **losses,
    )


def make_settings(config, num_classes: int) -> DDPSettings:
    """The settings of a config's parts model and diffusion."""
    code = {key: config.diffusion[key] for key in ("code", "code_scale")}
    return settings_of_meta({"model": {**config.model, **code, "num_classes": num_classes}})


def settings_of_meta(meta: dict) -> DDPSettings:
    """The settings in the metadata of a checkpoint."""
    values = dict(meta["model"])
    for name in ("channels", "depths", "heads"):
        values[name] = tuple(values[name])
    return DDPSettings(**values)


def make_network(settings: DDPSettings, diffuses: bool, dtype: str, remat: bool) -> Network:
    """The network as pure functions; dtype "float32" or "bfloat16"."""
    options = dict(diffuses=diffuses, dtype=jnp.dtype(dtype), remat=remat)
    return Network(lambda rngs: DDPNetwork(settings, **options, rngs=rngs))


# ---- losses ------------------------------------------------------------------------------------


def diffusion_loss(
    network, options, params, stats, batch, key, mask_loss=masked_cross_entropy
):  # fmt: skip
    """Cross-entropy of the map decoder's output for a noised label map (algorithm 1).

    options    schedule; high, the latest time drawn; auxiliary, the weight of that head's loss
    batch      image u8[B,h,w,3], mask i32[B,h,w] with 255 = ignored, valid i32[B,2], row i32[B]
    mask_loss  (logits, mask) -> loss of both heads in place of cross-entropy, number of pixels

    Sums over counted pixels; the weight is the number of all pixels, ignored ones too, as in the
    original. Metrics: pixel_accuracy, auxiliary_loss.
    """
    model, x, keys = _encoded(network, params, stats, batch, key)
    labels = shrink_labels(batch["mask"], x.shape[1:3], model.settings.num_classes)
    eps = _draw_noise(model, x, batch["row"], keys["noise"])
    return _denoising_loss(model, options, x, labels, eps, batch, keys, mask_loss)


def aligned_loss(network, options, params, stats, batch, key, mask_loss=masked_cross_entropy):
    """`diffusion_loss` with the network's prediction from pure noise as the labels (section 3.4).

    The same noise is added to that prediction. Arguments and result as of `diffusion_loss`.
    """
    model, x, keys = _encoded(network, params, stats, batch, key)
    eps = _draw_noise(model, x, batch["row"], keys["noise"])
    last = LOG_SNRS[options["schedule"]](jnp.ones(len(x)))
    first = jax.lax.stop_gradient(_decode(model, x, eps, last))
    labels = jnp.argmax(first, -1)
    return _denoising_loss(model, options, x, labels, eps, batch, keys, mask_loss)


def plain_loss(network, params, stats, batch, key, mask_loss=masked_cross_entropy):
    """Cross-entropy of the convolutional head alone; arguments as of `diffusion_loss`."""
    model, x, keys = _encoded(network, params, stats, batch, key)
    logits = model.auxiliary(x, keys["dropout"])
    loss, weight, metrics = pixel_loss(logits, batch["mask"], mask_loss)
    return loss, (weight, stats_of(model), metrics)


def _encoded(network, params, stats, batch, key):
    """(model, merged features, keys by purpose; those of dropout one per image)."""
    keys = dict(zip(("time", "noise", "dropout"), jax.random.split(key, 3)))
    keys["dropout"] = jax.vmap(lambda row: jax.random.fold_in(keys["dropout"], row))(batch["row"])
    model = network.bind(params, stats)
    image = scale_images(batch["image"], batch["valid"], IMAGENET_MEAN, IMAGENET_STD)
    x, _ = model.encode(image, keys["dropout"])
    return model, x, keys


def _draw_noise(model, x, rows, key):
    shape = (*x.shape[1:3], model.settings.code_width)
    return draw_per_row(lambda k: jax.random.normal(k, shape), key, rows)


def _denoising_loss(model, options, x, labels, eps, batch, keys, mask_loss):
    """The loss of the output for noised labels i32[B,h,w], and of the auxiliary head's for x."""
    draw = lambda key: jax.random.uniform(key, maxval=options["high"])
    level = LOG_SNRS[options["schedule"]](draw_per_row(draw, keys["time"], batch["row"]))
    noisy = add_noise(model.codes()[labels], eps, *alpha_sigma(level))
    logits = _decode(model, x, noisy, level)
    loss, weight, metrics = pixel_loss(logits, batch["mask"], mask_loss)
    auxiliary, _, _ = pixel_loss(model.auxiliary(x, keys["dropout"]), batch["mask"], mask_loss)
    metrics["auxiliary_loss"] = auxiliary
    return loss + options["auxiliary"] * auxiliary, (weight, stats_of(model), metrics)


def _decode(model, x, noisy, level):
    """Class logits f32[B,h,w,K] for features, noisy maps and their log-SNRs f32[B]."""
    mixed = model.project_features(x) + model.project_codes(noisy)
    constants = model.decoder.constants(x.shape[1:3])
    return model.decode(mixed, constants, model.modulations(level))


def pixel_loss(logits, mask, mask_loss=masked_cross_entropy):
    """(summed loss at the size of the mask, number of its pixels, metrics).

    pixel_accuracy is the share of correct counted pixels in this part of the batch, as the original
    logs it, multiplied by the number of all pixels.
    """
    logits = resize_bilinear(logits, mask.shape[1:3])
    loss, counted = mask_loss(logits, mask)
    pixels = jnp.asarray(mask.size, jnp.float32)
    correct = jnp.sum(jnp.argmax(logits, -1) == mask) / jnp.maximum(counted, 1)
    return loss, pixels, {"pixel_accuracy": correct * pixels}


def shrink_labels(mask: jax.Array, size: tuple[int, int], num_classes: int) -> jax.Array:
    """The nearest labels on a smaller grid, i32[B,h,w]; the ignore label becomes K."""
    labels = resize_nearest(mask[..., None], size)[..., 0]
    return jnp.where(labels == IGNORE, num_classes, labels)


# ---- predictions -------------------------------------------------------------------------------


def plain_maps(network, values, images, valid, seed=0):
    """Maps of images u8[B,h,w,3]: "logits" f32[B,h,w,K] of the convolutional head, "descriptor"."""
    padded, valid = _padded(images, valid)
    model = network.bind_eval(values["params"], values["stats"])
    x, _ = model.encode(scale_images(padded, valid, IMAGENET_MEAN, IMAGENET_STD))
    descriptor = image_descriptor([x], valid, padded.shape[1:3])
    return {"logits": _enlarged(model.auxiliary(x), padded, images), "descriptor": descriptor}


def diffused_maps(reverse, sampling, values, images, valid, seed):
    """Scores and signals f32[B,h,w,...] of images u8[B,h,w,3], after all reverse steps.

    sampling  see OPTIONS

    "logits", or with `accumulate` "probs", which are "logits" too: the original takes a second
    softmax of them before it averages views, and its labels follow from it. "changes", how often a
    cell's label changed, as a share of T - 1 (section 3.5), for two steps or more; "spread", by how
    much draws disagree, for two or more: the Jensen-Shannon divergence by ln K. "descriptor" as of
    `image_descriptor`.
    """
    padded, valid = _padded(images, valid)
    found = reverse(values, padded, valid, seed)
    maps = {"logits": _enlarged(found.pop("scores"), padded, images)}
    maps["descriptor"] = found.pop("descriptor")
    if sampling["accumulate"]:
        maps["probs"] = maps["logits"]
    del found["labels"]
    maps |= {n: _repeated(cells[..., None], padded, images)[..., 0] for n, cells in found.items()}
    return maps


def labels_of_steps(reverse, values, images, valid, seed):
    """The labels of the first draw after every step, i32[B,T,h,w], for images u8[B,h,w,3]."""
    padded, valid = _padded(images, valid)
    labels = jnp.moveaxis(reverse(values, padded, valid, seed)["labels"], 1, -1)  # [B, cells, T]
    return jnp.moveaxis(_repeated(labels, padded, images), -1, 1)


def named_features(network, values, images, valid, taps=None, seed=0):
    """Features of the encoder's parts for images u8[B,h,w,3]: {name: f32[B,h',w',C]}."""
    padded, valid = _padded(images, valid)
    model = network.bind_eval(values["params"], values["stats"])
    _, found = model.encode(scale_images(padded, valid, IMAGENET_MEAN, IMAGENET_STD))
    return choose_features(found, taps)


def _padded(images, valid):
    """Images padded to at least 32 pixels a side, and their valid sizes."""
    padding = [(0, max(MIN_SIDE - side, 0)) for side in images.shape[1:3]]
    return jnp.pad(images, ((0, 0), *padding, (0, 0))), valid


def _enlarged(maps, padded, images):
    height, width = images.shape[1:3]
    return resize_bilinear(maps, padded.shape[1:3])[:, :height, :width]


def _repeated(cells, padded, images):
    height, width = images.shape[1:3]
    return resize_nearest(cells, padded.shape[1:3])[:, :height, :width]


def reverse_process(network, sampling, values, images, valid, seed) -> dict:
    """The result of T reverse steps from noise, for images u8[B,H,W,3]; each has its own noise.

    scores   f32[B,h,w,K]: logits of the last step averaged over draws, or, with `accumulate`,
             probabilities averaged over steps and draws
    labels   i32[B,T,h,w], of the first draw
    changes  f32[B,h,w] in [0, 1], for T > 1;  spread f32[B,h,w] in [0, 1], for several draws
    descriptor  of the merged features, as of `image_descriptor`
    """
    model = network.bind_eval(values["params"], values["stats"])
    x, _ = model.encode(scale_images(images, valid, IMAGENET_MEAN, IMAGENET_STD))
    shape = (*x.shape[1:3], model.settings.code_width)
    keys = keys_of_images(images, seed, "noise of a label map")
    draws = jnp.arange(sampling["draws"])
    keys = jax.vmap(lambda key: jax.vmap(lambda r: jax.random.fold_in(key, r))(draws))(keys)
    start = jax.vmap(jax.vmap(lambda key: jax.random.normal(key, shape)))(keys)

    def fresh(step):
        draw = lambda key: jax.random.normal(jax.random.fold_in(key, step), shape)
        return jax.vmap(jax.vmap(draw))(keys)

    found = denoise_map(model, x, start, sampling, fresh)
    return found | {"descriptor": image_descriptor([x], valid, images.shape[1:3])}


def denoise_map(model, x, noise, sampling, fresh) -> dict:
    """The reverse process for merged features f[B,h,w,E] from noise f32[B,R,h,w,n], R draws.

    fresh  step -> noise f32[B,R,h,w,n], for the sampler "ddpm"

    Steps run in the space after the 1x1 transform, which is linear: codes are projected once, and
    noisy maps are never formed. Result as of `reverse_process`.
    """
    batch, draws, height, width, _ = noise.shape
    steps, classes = sampling["steps"], model.settings.num_classes
    pairs = time_pairs(steps, sampling["time_difference"], sampling["start"])
    levels = LOG_SNRS[sampling["schedule"]](pairs, np)
    features = model.project_features(x)[:, None]
    codes = model.project_codes(model.codes()[:classes])
    constants = model.decoder.constants((height, width))
    folded = lambda maps: maps.reshape(batch * draws, *maps.shape[2:])

    def step(carry, inputs):
        state, before, scores, changes = carry
        number, (now, then), last, modulations = inputs
        modulations = jnp.broadcast_to(modulations, (batch * draws, *modulations.shape))
        logits = model.decode(folded(features + state), constants, modulations)
        logits = logits.reshape(batch, draws, height, width, classes)
        labels = jnp.argmax(logits, -1)
        changes += (labels != before) & (number > 0)
        if sampling["accumulate"]:
            scores += jax.nn.softmax(logits) / steps
        else:
            scores = logits
        clean = codes[labels]
        if sampling["sampler"] == "ddim":
            state = ddim_transition(state, clean, now, then)
        else:
            noise = model.project_codes(fresh(number)) * ~last
            state = ddpm_transition(state, clean, now, then, noise)
        return (state, labels, scores, changes), labels[:, 0]

    inputs = (
        jnp.arange(steps), jnp.asarray(levels), jnp.asarray(pairs[:, 1] <= 0),
        model.modulations(jnp.asarray(levels[:, 0])),
    )  # fmt: skip
    empty = jnp.zeros((batch, draws, height, width), jnp.int32)
    scores = jnp.zeros((*empty.shape, classes))
    carry = (model.project_codes(noise), empty, scores, empty)
    (_, _, scores, changes), labels = jax.lax.scan(step, carry, inputs)
    found = {"scores": jnp.mean(scores, 1), "labels": jnp.moveaxis(labels, 0, 1)}
    if steps > 1:
        found["changes"] = jnp.mean(changes, 1) / (steps - 1)
    if draws > 1:
        probs = scores if sampling["accumulate"] else jax.nn.softmax(scores)
        mixture = entropy(jnp.mean(probs, 1))
        found["spread"] = jensen_shannon(mixture, entropy(probs), classes, axis=1)
    return found
