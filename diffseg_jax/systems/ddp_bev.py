"""Maps seen from above as a task of DDP: several cameras, and layers of classes over a grid.

Ji et al., "DDP: Diffusion Model for Dense Visual Prediction" (ICCV 2023), section 4.4.
"""

import functools

import jax
import jax.numpy as jnp

from diffseg_jax.diffusion.schedules import LOG_SNRS, alpha_sigma
from diffseg_jax.layers.resize import resize_nearest
from diffseg_jax.models.bev_network import (
    BEVNetwork,
    BEVSettings,
    codes_of_layers,
    combinations,
)
from diffseg_jax.models.inputs import IMAGENET_MEAN, IMAGENET_STD, keys_of_images
from diffseg_jax.models.network import Network
from diffseg_jax.systems.dense_task import DenseTask, settings_of_meta
from diffseg_jax.training.layer_loss import layer_focal_losses

GROUND_OPTIONS = ("x", "y", "z", "depth", "output", "timed")  # of config.bev
RIG_ENTRIES = ("images", "cameras", "lidar_bev")  # of a batch, the last one for fusion only
DECIDED = 0.5  # the probability above which a cell has a class between two steps


def make_bev_settings(config, num_classes: int) -> BEVSettings:
    """The settings of a config's parts model, bev and diffusion."""
    ground = {key: config.bev[key] for key in GROUND_OPTIONS}
    values = {**config.model, **ground, "code_scale": config.diffusion["code_scale"]}
    return settings_of_meta(BEVSettings, {"model": {**values, "num_classes": num_classes}})


def make_bev_network(settings: BEVSettings, kind: str, dtype: str, remat: bool) -> Network:
    """The network as pure functions; dtype "float32" or "bfloat16"."""
    options = dict(dtype=jnp.dtype(dtype), remat=remat)
    return Network(lambda rngs: BEVNetwork(settings, **options, rngs=rngs))


# ---- images, codes and loss --------------------------------------------------------------------


def rig_of(batch: dict):
    """({"images" u8[B,N,h,w,3], "cameras" f32[B,N,2,3,4]}, valid) of a batch.

    With features of a LiDAR also "lidar_bev" f32[B,X,Y,C].
    """
    return {name: batch[name] for name in RIG_ENTRIES if name in batch}, batch["valid"]


def encode_rig(model, rig, valid, keys=None):
    """Features f[B,h,w,C] on the ground, and named features."""
    images = rig["images"].astype(jnp.float32)
    images = (images - jnp.asarray(IMAGENET_MEAN)) / jnp.asarray(IMAGENET_STD)
    lidar = [rig["lidar_bev"]] if "lidar_bev" in rig else []
    return model.encode(images, rig["cameras"], keys, *lidar)


def layers_of(batch: dict) -> jax.Array:
    """The true layers u8[B,n,n,K] of a batch's "bev" u8[B,K,n,n]."""
    return jnp.moveaxis(batch["bev"], 1, -1)


def code_of_layers(model, layers, size) -> jax.Array:
    """The codes f32[B,h,w,n] of layers [B,n,n,K], by the nearest index, whatever the ground."""
    small = resize_nearest(layers, size)
    return codes_of_layers(small, model.embedding.table[...], model.settings.code_scale)


def code_of_logits(model, logits) -> jax.Array:
    """The codes f32[B,h,w,n] of what an output f32[B,n,n,K] decides."""
    return code_of_layers(model, decided_layers(logits), model.settings.noisy)


def decided_layers(logits) -> jax.Array:
    """u8[...,K]: whether a cell has a class."""
    return (jax.nn.sigmoid(logits) > DECIDED).astype(jnp.uint8)


def bev_loss(model, x, output, batch, dropout, options):
    """The sum over classes of binary focal losses of logits f32[B,n,n,K].

    The weight is the number of image sets. Metric: cell_accuracy, over cells and classes.
    """
    truth = layers_of(batch)
    weight = jnp.asarray(len(truth), jnp.float32)
    correct = jnp.mean(decided_layers(output) == truth)
    loss = jnp.sum(layer_focal_losses(output, truth))
    return loss * weight, weight, {"cell_accuracy": correct * weight}


# ---- the reverse process -----------------------------------------------------------------------


def projected_layers(model):
    """output f32[B,R,n,n,K] -> (decided u8[B,R,n,n,K], projected codes f32[B,R,h,w,E]).

    There are 2^K codes, which are projected once; a cell looks its own up.
    """
    table, size = model.project_codes(model.codes()), model.settings.noisy

    def project(output):
        decided = decided_layers(output)
        numbers = combinations(decided)[..., None]
        small = resize_nearest(numbers.reshape(-1, *numbers.shape[2:]), size)
        return decided, table[small[..., 0]].reshape(*output.shape[:2], *size, -1)

    return project


def follow_no_layers(model, shape):
    """Before the first step: probabilities and decisions of no class, and no change."""
    settings = model.settings
    empty = jnp.zeros((*shape[:2], settings.side, settings.side, settings.num_classes))
    return empty, empty.astype(jnp.uint8), empty[..., 0]


def follow_layers(followed, output, decided, number, sampling):
    """Adds up probabilities, and how many of a cell's classes changed since the last step."""
    summed, before, changes = followed
    probs = jax.nn.sigmoid(output)
    changes += jnp.mean(decided != before, -1) * (number > 0)
    return (summed + probs, decided, changes), probs[:, 0]


def finish_layers(model, followed, shown, sampling) -> dict:
    """The maps of cells after all steps.

    probs    f32[B,n,n,K], the mean over steps and draws
    shown    f32[B,T,n,n,K], probabilities of the first draw
    changes  f32[B,n,n] in [0, 1], how often a class of a cell changed, for T > 1
    spread   f32[B,n,n] in [0, 1], twice the standard deviation over draws, for several
    """
    steps = sampling["steps"]
    summed, _, changes = followed
    found = {"probs": jnp.mean(summed, 1) / steps, "shown": jnp.moveaxis(shown, 0, 1)}
    if steps > 1:
        found["changes"] = jnp.mean(changes, 1) / (steps - 1)
    if sampling["draws"] > 1:
        found["spread"] = 2 * jnp.mean(jnp.std(summed / steps, 1), -1)
    return found


BEV = DenseTask(
    name="bev",
    described="a decoder that denoises a map seen from above, conditioned on the images of "
    "several cameras (DDP)",
    settings=make_bev_settings,
    settings_of=functools.partial(settings_of_meta, BEVSettings),
    network=make_bev_network,
    meta=lambda config, kind, settings, crop: {
        "task": "bev", "size": list(crop), "resize": config.bev.resize,
    },
    options={
        "code_scale": "diffusion.code_scale", **{name: f"bev.{name}" for name in GROUND_OPTIONS},
    },
    images_of=rig_of,
    encode=encode_rig,
    padded=lambda images: images,
    keys=lambda images, seed: keys_of_images(images["images"], seed, "noise of a BEV map"),
    level=lambda schedule, t, xp: LOG_SNRS[schedule](t, xp),
    weights=alpha_sigma,
    announced=lambda t, level: level,
    code_of_truth=lambda model, batch, size: code_of_layers(model, layers_of(batch), size),
    code_of_output=code_of_logits,
    loss=bev_loss,
    losses=lambda config, num_classes, loss: {"loss": loss, "balanced": None},
    projected=projected_layers,
    start=follow_no_layers,
    follow=follow_layers,
    finish=finish_layers,
    describe=lambda x, images, valid: {},
    maps=lambda found, padded, images, sampling: found,
    trace=lambda shown, padded, images: shown,
    named=False,
)  # fmt: skip
