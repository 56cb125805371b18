"""What a system hands to the loop and the evaluation for one of its stages."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Task:
    """One stage of a system, as pure functions of {"params", "stats"} (nested dicts).

    init       key -> network, random and jit-able
    trainable  path of a parameter -> does it learn in this stage
    loss       (params, stats, batch, key) -> summed loss, (weight, stats, summed metrics)
    predict    (network, images u8[B,h,w,3], valid i32[B,2]) -> class probabilities f32[B,h,w,K];
               or None
    denoise    (network, images, valid, key) -> clean, noisy, denoised f32[B,h,w,3] in [-1, 1],
               mean squared error f32[]; or None
    meta       JSON values that `adopt` and a reader of the checkpoint need
    """

    init: Callable
    trainable: Callable[[tuple[str, ...]], bool]
    loss: Callable
    predict: Callable | None
    denoise: Callable | None
    meta: dict


def scale_images(images: jax.Array, valid: jax.Array) -> jax.Array:
    """u8[B,h,w,3] -> f32 in [-1, 1] by (v - 127.5) / 127.5; 0 outside the valid height, width."""
    rows = jnp.arange(images.shape[1])[None, :, None, None] < valid[:, 0, None, None, None]
    columns = jnp.arange(images.shape[2])[None, None, :, None] < valid[:, 1, None, None, None]
    return jnp.where(rows & columns, (images.astype(jnp.float32) - 127.5) / 127.5, 0.0)


def draw_per_row(draw: Callable, key: jax.Array, rows: jax.Array) -> jax.Array:
    """`draw(key)` for every row i32[B], each with its own key: any split of a batch agrees."""
    return jax.vmap(lambda row: draw(jax.random.fold_in(key, row)))(rows)
