"""Segmentation as a task of DDP: label maps, coded by class (Ji et al., 2023, section 3.2)."""

import functools

import jax
import jax.numpy as jnp

from diffseg_jax.data.labels import IGNORE
from diffseg_jax.diffusion.schedules import LOG_SNRS, alpha_sigma
from diffseg_jax.layers.resize import resize_bilinear, resize_nearest
from diffseg_jax.metrics.divergence import entropy, jensen_shannon
from diffseg_jax.models.ddp_network import DDPNetwork, DDPSettings
from diffseg_jax.models.network import Network, stats_of
from diffseg_jax.systems.ddp import encoded, named_features
from diffseg_jax.systems.dense_images import (
    describe_image,
    encode_image,
    enlarged,
    image_of,
    noise_keys,
    pad_image,
    repeated,
)
from diffseg_jax.systems.dense_task import DenseTask, settings_of_meta
from diffseg_jax.systems.task import Task
from diffseg_jax.training.losses import losses_by_options, masked_cross_entropy

# ---- the network -------------------------------------------------------------------------------


def make_settings(config, num_classes: int) -> DDPSettings:
    """The settings of a config's parts model and diffusion."""
    code = {key: config.diffusion[key] for key in ("code", "code_scale")}
    model = {**config.model, **code, "num_classes": num_classes}
    return settings_of_meta(DDPSettings, {"model": model})


def make_network(settings: DDPSettings, kind: str, dtype: str, remat: bool) -> Network:
    """The network of a stage as pure functions; dtype "float32" or "bfloat16"."""
    options = dict(decodes=kind != "plain", queries=kind == "decoder", remat=remat)
    options["dtype"] = jnp.dtype(dtype)
    return Network(lambda rngs: DDPNetwork(settings, **options, rngs=rngs))


def describe_task(config, kind: str, settings: DDPSettings, crop) -> dict:
    """The entries of `Task.meta` that only segmentation has."""
    continues = kind == "align"  # a trained head
    return {
        "num_classes": settings.num_classes,
        "new_head": config.new_head and not continues,
    }


# ---- losses ------------------------------------------------------------------------------------


def code_of_mask(model, batch, size) -> jax.Array:
    """The codes f32[B,h,w,n] of the labels of a batch."""
    return model.codes()[shrink_labels(batch["mask"], size, model.settings.num_classes)]


def shrink_labels(mask: jax.Array, size: tuple[int, int], num_classes: int) -> jax.Array:
    """The nearest labels on a smaller grid, i32[B,h,w]; the ignore label becomes K."""
    labels = resize_nearest(mask[..., None], size)[..., 0]
    return jnp.where(labels == IGNORE, num_classes, labels)


def code_of_logits(model, logits) -> jax.Array:
    """The codes f32[B,h,w,n] of the likeliest classes."""
    return model.codes()[jnp.argmax(logits, -1)]


def label_loss(model, x, logits, batch, dropout, options, mask_loss=masked_cross_entropy):
    """The loss of both heads: of logits for noised labels, and of the auxiliary head for features.

    options    auxiliary, the weight of that head's loss
    mask_loss  (logits, mask) -> loss in place of cross-entropy, number of pixels

    Sums over counted pixels; the weight is the number of all pixels, ignored ones too, as in the
    original. Metrics: pixel_accuracy, auxiliary_loss.
    """
    loss, weight, metrics = pixel_loss(logits, batch["mask"], mask_loss)
    auxiliary, _, _ = pixel_loss(model.auxiliary(x, dropout), batch["mask"], mask_loss)
    metrics["auxiliary_loss"] = auxiliary
    return loss + options["auxiliary"] * auxiliary, weight, metrics


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


def label_losses(config, num_classes: int, loss) -> dict:
    """The fields "loss" and "balanced" of a Task, by the config's part loss."""
    return losses_by_options(config.get("loss", {}), num_classes, loss)


# ---- stages without noise ----------------------------------------------------------------------


def plain_task(network, config, num_classes: int, meta: dict) -> Task:
    """The task of a stage whose convolutional head predicts alone."""
    return Task(
        init=network.init,
        predict=functools.partial(plain_maps, network),
        meta=meta,
        features=functools.partial(named_features, SEGMENTATION, network),
        **label_losses(config, num_classes, functools.partial(plain_loss, network)),
    )


def plain_loss(network, params, stats, batch, key, mask_loss=masked_cross_entropy):
    """Cross-entropy of the convolutional head alone; arguments as of `ddp.diffusion_loss`."""
    model, x, keys = encoded(SEGMENTATION, network, params, stats, batch, key)
    logits = model.auxiliary(x, keys["dropout"])
    loss, weight, metrics = pixel_loss(logits, batch["mask"], mask_loss)
    return loss, (weight, stats_of(model), metrics)


def plain_maps(network, values, images, valid, seed=0):
    """Maps of images u8[B,h,w,3]: "logits" f32[B,h,w,K] of the convolutional head, "descriptor"."""
    padded = pad_image(images)
    model = network.bind_eval(values["params"], values["stats"])
    x, _ = encode_image(model, padded, valid)
    logits = enlarged(model.auxiliary(x), padded, images)
    return {"logits": logits, **describe_image(x, padded, valid)}


# ---- the reverse process -----------------------------------------------------------------------


def projected_labels(model):
    """logits f32[...,K] -> (labels i32[...], projected codes f32[...,E]), looked up in a table."""
    codes = model.project_codes(model.codes()[: model.settings.num_classes])

    def project(logits):
        labels = jnp.argmax(logits, -1)
        return labels, codes[labels]

    return project


def follow_none(model, shape):
    """Labels before the first step, scores and numbers of changes, all zero."""
    empty = jnp.zeros(shape, jnp.int32)
    return empty, jnp.zeros((*shape, model.settings.num_classes)), empty


def follow_labels(followed, logits, labels, number, sampling):
    """Counts the changes of labels; the scores are the last logits, or probabilities added up."""
    before, scores, changes = followed
    changes += (labels != before) & (number > 0)
    if sampling["accumulate"]:
        scores += jax.nn.softmax(logits) / sampling["steps"]
    else:
        scores = logits
    return (labels, scores, changes), labels[:, 0]


def finish_labels(model, followed, shown, sampling) -> dict:
    """The maps of cells after all steps.

    scores   f32[B,h,w,K]: logits of the last step averaged over draws, or, with `accumulate`,
             probabilities averaged over steps and draws
    shown    i32[B,T,h,w], labels of the first draw
    changes  f32[B,h,w] in [0, 1], for T > 1;  spread f32[B,h,w] in [0, 1], for several draws
    """
    _, scores, changes = followed
    found = {"scores": jnp.mean(scores, 1), "shown": jnp.moveaxis(shown, 0, 1)}
    if sampling["steps"] > 1:
        found["changes"] = jnp.mean(changes, 1) / (sampling["steps"] - 1)
    if sampling["draws"] > 1:
        probs = scores if sampling["accumulate"] else jax.nn.softmax(scores)
        mixture = entropy(jnp.mean(probs, 1))
        classes = model.settings.num_classes
        found["spread"] = jensen_shannon(mixture, entropy(probs), classes, axis=1)
    return found


def label_maps(found, padded, images, sampling) -> dict:
    """Scores and signals f32[B,h,w,...] of images u8[B,h,w,3].

    "logits", or with `accumulate` "probs", which are "logits" too: the original takes a second
    softmax of them before it averages views, and its labels follow from it. "changes", how often a
    cell's label changed, as a share of T - 1 (section 3.5), for two steps or more; "spread", by how
    much draws disagree, for two or more: the Jensen-Shannon divergence by ln K. "descriptor" as of
    `image_descriptor`.
    """
    maps = {"logits": enlarged(found.pop("scores"), padded, images)}
    maps["descriptor"] = found.pop("descriptor")
    if sampling["accumulate"]:
        maps["probs"] = maps["logits"]
    maps |= {n: repeated(cells[..., None], padded, images)[..., 0] for n, cells in found.items()}
    return maps


def label_steps(shown, padded, images) -> jax.Array:
    """The labels after every step, i32[B,T,h,w] of cells, as maps of images u8[B,H,W,3]."""
    labels = jnp.moveaxis(shown, 1, -1)  # [B, cells, T]
    return jnp.moveaxis(repeated(labels, padded, images), -1, 1)


SEGMENTATION = DenseTask(
    name="segmentation",
    described="a decoder that denoises a label map, conditioned on the image (DDP)",
    settings=make_settings,
    settings_of=functools.partial(settings_of_meta, DDPSettings),
    network=make_network,
    meta=describe_task,
    options={"code": "diffusion.code", "code_scale": "diffusion.code_scale"},
    images_of=image_of,
    encode=encode_image,
    padded=pad_image,
    keys=functools.partial(noise_keys, "noise of a label map"),
    level=lambda schedule, t, xp: LOG_SNRS[schedule](t, xp),
    weights=alpha_sigma,
    announced=lambda t, level: level,
    code_of_truth=code_of_mask,
    code_of_output=code_of_logits,
    loss=label_loss,
    losses=label_losses,
    projected=projected_labels,
    start=follow_none,
    follow=follow_labels,
    finish=finish_labels,
    describe=describe_image,
    maps=label_maps,
    trace=label_steps,
    plain=plain_task,
)
