"""MAE: a vision transformer learns to reconstruct the patches of an image that are hidden from it.

He et al., "Masked Autoencoders Are Scalable Vision Learners" (CVPR 2022); one of the baselines of
Baranchuk et al., "Label-Efficient Semantic Segmentation with Diffusion Models" (ICLR 2022).
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from diffseg_jax.errors import UserError, choose
from diffseg_jax.models.inputs import IMAGENET_MEAN, IMAGENET_STD, draw_per_row, scale_images
from diffseg_jax.models.mae import MAE, MAESettings, from_patches, mae_taps, to_patches
from diffseg_jax.models.network import COMPUTED, Network
from diffseg_jax.systems.task import Task


def mae_task(config, kind: str, crop: tuple[int, int], num_classes: int) -> Task:
    """The task of pretraining, which reads no classes.

    config  reads dtype, remat, mae (the fields of MAESettings), and masking: ratio (the share of
            patches that are hidden), normalise (whether the targets are normalised in each patch)
    crop    (height, width) of training images

    Raises UserError for values that do not go together.
    """
    settings, masking = MAESettings(**config.mae), config.masking.to_dict()
    check_mae_options(settings, masking["ratio"], crop)
    network = mae_network(settings, config.dtype, config.remat)
    return Task(
        init=network.init,
        loss=functools.partial(reconstruction_loss, network, masking),
        denoise=functools.partial(reconstruct, network, masking),
        features=functools.partial(mae_features, network),
        meta={
            "kind": kind,
            "model": dataclasses.asdict(settings),
            "masking": masking,
            "size": list(crop),
            "normalisation": "(v - mean) / std",
            "mean": list(IMAGENET_MEAN),
            "std": list(IMAGENET_STD),
        },
    )


def check_mae_options(settings: MAESettings, ratio: float, crop: tuple[int, int]):
    """Raises UserError for sizes, a share of hidden patches and a crop that do not go together."""
    if problem := settings.problem() or masking_problem(settings.patch, ratio, crop):
        raise UserError(problem)


def masking_problem(patch: int, ratio: float, crop: tuple[int, int]) -> str:
    """A sentence if no patch of a crop is kept or none is hidden, else an empty string."""
    count = (-(-crop[0] // patch)) * (-(-crop[1] // patch))
    if 0 < kept_patches(count, ratio) < count:
        return ""
    smaller = f"--config.mae.patch={max(min(crop) // 4, 1)} " if count < 4 else ""
    return (
        f"masking.ratio is {ratio}, which keeps {kept_patches(count, ratio)} of the {count} "
        f"patches in a crop of {crop[0]} x {crop[1]}, but some must be kept and some hidden. "
        f"Try {smaller}--config.masking.ratio=0.75."
    )


def mae_network(settings: MAESettings, dtype: str, remat: bool) -> Network:
    """MAE as pure functions; dtype "float32" or "bfloat16", else UserError."""
    computed = choose(COMPUTED, dtype, "dtype")
    return Network(lambda rngs: MAE(settings, dtype=computed, remat=remat, rngs=rngs))


# ---- loss --------------------------------------------------------------------------------------


def reconstruction_loss(network, masking, params, stats, batch, key):
    """The mean squared errors of hidden patches, summed; the weight is the number of patches.

    batch  image u8[B,h,w,3], valid i32[B,2], row i32[B]
    """
    model = network.bind(params, stats)
    image = whole_patches(batch["image"], batch["valid"], model.settings.patch)
    noise = patch_noise(key, batch["row"], image.shape[1:3], model.settings.patch)
    errors, hidden, _ = reconstruction_errors(model, masking, image, noise)
    return jnp.sum(errors * hidden), (jnp.sum(hidden), stats, {})


def reconstruction_errors(model: MAE, masking: dict, image: jax.Array, noise: jax.Array):
    """f32[B,N] mean squared errors of patches, f32[B,N] 1 where hidden, f32[B,N,p*p*3] outputs.

    image  f32[B,H,W,3], normalised, H and W multiples of the patch
    noise  f32[B,N]; the patches with the smallest values are kept
    """
    keep, restore = choose_patches(noise, masking["ratio"])
    hidden = (restore >= keep.shape[1]).astype(jnp.float32)
    output = model.reconstruct(image, keep, restore).astype(jnp.float32)
    patches = to_patches(image, model.settings.patch)
    return patch_errors(output, patches, masking["normalise"]), hidden, output


def patch_errors(output: jax.Array, patches: jax.Array, normalise: bool) -> jax.Array:
    """f32[B,N]: the mean squared error of each patch f32[B,N,p*p*3], normalised or not."""
    mean, deviation = _moments(patches) if normalise else (0.0, 1.0)
    return jnp.mean(jnp.square(output - (patches - mean) / deviation), -1)


def kept_patches(count: int, ratio: float) -> int:
    """How many of the patches of an image the encoder sees."""
    return int(count * (1 - ratio))


def choose_patches(noise: jax.Array, ratio: float) -> tuple[jax.Array, jax.Array]:
    """The patches that are kept i32[B,K], and for each patch its rank by the noise, i32[B,N].

    noise  f32[B,N]; those with the smallest values are kept, in their order
    """
    order = jnp.argsort(noise)
    return order[:, : kept_patches(noise.shape[1], ratio)], jnp.argsort(order)


def whole_patches(images: jax.Array, valid: jax.Array, patch: int) -> jax.Array:
    """Normalised images f32[B,H,W,3], padded with zeros to multiples of the patch."""
    rows, columns = (-side % patch for side in images.shape[1:3])
    image = scale_images(images, valid, IMAGENET_MEAN, IMAGENET_STD)
    return jnp.pad(image, ((0, 0), (0, rows), (0, columns), (0, 0)))


def patch_noise(key: jax.Array, rows: jax.Array, size: tuple[int, int], patch: int) -> jax.Array:
    """Uniform noise f32[B,N] for the patches of images of (H, W) = `size`, drawn row by row."""
    count = (size[0] // patch) * (size[1] // patch)
    return draw_per_row(lambda k: jax.random.uniform(k, (count,)), key, rows)


def _moments(patches):
    """The mean of each patch, and its deviation with the unbiased variance: f32[B,N,1] each."""
    var = jnp.var(patches, -1, keepdims=True, ddof=1)
    return jnp.mean(patches, -1, keepdims=True), jnp.sqrt(var + 1e-6)


# ---- monitoring and features -------------------------------------------------------------------


def reconstruct(network, masking, values, images, valid, key):
    """Images, the kept patches of them, and with hidden patches as reconstructed; the loss.

    out  f32[B,h,w,3] in [-1, 1] each, hidden patches in the mean colour; f32[]
    """
    model = network.bind(values["params"], values["stats"])
    patch = model.settings.patch
    image = whole_patches(images, valid, patch)
    noise = patch_noise(key, jnp.arange(len(image)), image.shape[1:3], patch)
    errors, hidden, output = reconstruction_errors(model, masking, image, noise)
    patches, is_hidden = to_patches(image, patch), hidden[..., None] > 0
    mean, deviation = _moments(patches) if masking["normalise"] else (0.0, 1.0)
    seen = [jnp.where(is_hidden, x, patches) for x in (0.0, output * deviation + mean)]
    shown = [from_patches(x, image.shape[1:3], patch) for x in seen]
    loss = jnp.sum(errors * hidden) / jnp.sum(hidden)
    return *(_in_one(x, images.shape[1:3]) for x in (image, *shown)), loss


def _in_one(image, size):
    """Normalised images with values in [-1, 1], without the padding."""
    levels = image * jnp.asarray(IMAGENET_STD) + jnp.asarray(IMAGENET_MEAN)
    return jnp.clip(levels / 127.5 - 1, -1, 1)[:, : size[0], : size[1]]


def mae_features(
    network: Network, values: dict, images: jax.Array, valid: jax.Array,
    taps: Sequence[str] | None = None, seed: int = 0,
) -> dict[str, jax.Array]:  # fmt: skip
    """Outputs of encoder blocks for images u8[B,h,w,3]: {"block0": f32[B,h',w',D], ...}.

    taps  names of `mae_taps`, None = all; UserError for others. There is no noise, so `seed` has no
          effect
    """
    model = network.bind(values["params"], values["stats"])
    image = whole_patches(images, valid, model.settings.patch)
    found = model(image, mae_taps(model.settings) if taps is None else taps)
    return {name: maps.astype(jnp.float32) for name, maps in found.items()}
