"""What a system hands to the loop and the evaluation for one of its stages."""

import dataclasses
import zlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict as flatten

from diffseg_jax.errors import UserError, choose
from diffseg_jax.systems.pixel_ensemble import PixelFit


@dataclasses.dataclass(frozen=True)
class Task:
    """One stage of a system, as pure functions of {"params", "stats"} (nested dicts).

    init       key -> network, random and jit-able
    trainable  path of a parameter -> does it learn in this stage
    meta       JSON values that `adopt` and a reader of the checkpoint need

    one of these, by which a stage learns:

    loss       (params, stats, batch, key) -> summed loss, (weight, stats, summed metrics)
    fit        how an ensemble of pixel classifiers is fitted to features; `init` is then the
               network whose features they are, and `trainable` says nothing

    and some of these, by which a stage is watched:

    predict    (network, images u8[B,h,w,3], valid i32[B,2], seed=) -> class probabilities
               f32[B,h,w,K], or a dict of maps, see `prediction.predict`; seed i32[] is that of the
               noise, if there is any, by default the config's
    trace      (network, images, valid) -> labels after every reverse step, i32[B,T,h,w]
    denoise    (network, images, valid, key) -> clean, noisy, denoised f32[B,h,w,3] in [-1, 1],
               mean squared error f32[]
    sample     (network, seed, count) -> generated images u8[count,h,w,3]; not jit-able
    features   (network, images, valid, taps, seed=) -> {name: f32[B,h,w,C]} of those taps, of all
               there are for None; padding is not cut off

    stride     pictures may come with padding to multiples of it: that changes no answer
    """

    init: Callable
    meta: dict
    trainable: Callable[[tuple[str, ...]], bool] = lambda path: True
    loss: Callable | None = None
    fit: PixelFit | None = None
    predict: Callable | None = None
    trace: Callable | None = None
    denoise: Callable | None = None
    sample: Callable | None = None
    features: Callable | None = None
    stride: int = 1


def scale_images(images: jax.Array, valid: jax.Array, mean=127.5, std=127.5) -> jax.Array:
    """(v - mean) / std of u8[B,h,w,3], by default in [-1, 1]; 0 outside the valid height, width."""
    rows = jnp.arange(images.shape[1])[None, :, None, None] < valid[:, 0, None, None, None]
    columns = jnp.arange(images.shape[2])[None, None, :, None] < valid[:, 1, None, None, None]
    scaled = (images.astype(jnp.float32) - jnp.asarray(mean)) / jnp.asarray(std)
    return jnp.where(rows & columns, scaled, 0.0)


def draw_per_row(draw: Callable, key: jax.Array, rows: jax.Array) -> jax.Array:
    """`draw(key)` for every row i32[B], each with its own key: any split of a batch agrees."""
    return jax.vmap(lambda row: draw(jax.random.fold_in(key, row)))(rows)


def keys_of_pictures(images: jax.Array, seed: int, purpose: str) -> jax.Array:
    """A key per picture u8[B,...], a function of the seed and its bytes: the same in any batch."""
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))
    return jax.vmap(lambda picture: jax.random.fold_in(key, _checksum(picture)))(images)


def _checksum(picture):
    """u32[] of the bytes of a picture."""
    values = picture.reshape(-1).astype(jnp.uint32)
    odd = 2 * jnp.arange(values.size, dtype=jnp.uint32) + 1
    return jnp.sum(values * odd * jnp.uint32(2654435761))


def choose_features(found: dict, taps: Sequence[str] | None) -> dict[str, jax.Array]:
    """The named features that were asked for, f32; UserError for a name that there is not."""
    return {
        name: choose(found, name, "feature").astype(jnp.float32)
        for name in (found if taps is None else taps)
    }


def require_same(abstract: dict, taken: dict, may_lack: str = ""):
    """Raises UserError unless `taken` has the paths and shapes of `abstract`.

    may_lack  name below "params" that may be absent from what is taken
    """
    advice = 'Use the same model settings in both, or start from "random".'
    flat, wanted = flatten(taken), flatten(abstract)
    extra = [path for path in flat if path not in wanted]
    if extra:
        raise UserError(
            f"the stage to start from has another network: {'.'.join(extra[0])} has no place here "
            f"({len(extra)} such arrays). {advice}"
        )
    for path, leaf in wanted.items():
        if path[1] == may_lack and path not in flat:
            continue
        if path not in flat or flat[path].shape != leaf.shape:
            came = flat[path].shape if path in flat else "missing"
            raise UserError(
                f"the stage to start from has another network: {'.'.join(path)} is {came} "
                f"there and {leaf.shape} here. {advice}"
            )
