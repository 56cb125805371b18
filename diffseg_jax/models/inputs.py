"""Images as networks take them, random keys per image, and features by name."""

import zlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from diffseg_jax.errors import choose

# Means and standard deviations of ImageNet, RGB in 0..255, by which DDP scales images.
IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


def scale_images(images: jax.Array, valid: jax.Array, mean=127.5, std=127.5) -> jax.Array:
    """(v - mean) / std of u8[B,h,w,3], by default in [-1, 1]; 0 outside the valid height, width."""
    rows = jnp.arange(images.shape[1])[None, :, None, None] < valid[:, 0, None, None, None]
    columns = jnp.arange(images.shape[2])[None, None, :, None] < valid[:, 1, None, None, None]
    scaled = (images.astype(jnp.float32) - jnp.asarray(mean)) / jnp.asarray(std)
    return jnp.where(rows & columns, scaled, 0.0)


def draw_per_row(draw: Callable, key: jax.Array, rows: jax.Array) -> jax.Array:
    """`draw(key)` for every row i32[B], each with its own key: any split of a batch agrees."""
    return jax.vmap(lambda row: draw(jax.random.fold_in(key, row)))(rows)


def keys_of_images(images: jax.Array, seed: int | jax.Array, purpose: str) -> jax.Array:
    """A key per image u8[B,...], a function of the seed, i32[] or i32[B], and its bytes alone."""
    fold, code = jax.random.fold_in, zlib.crc32(purpose.encode())
    key_of = lambda seed, image: fold(fold(jax.random.key(seed), code), _checksum(image))
    return jax.vmap(key_of)(jnp.broadcast_to(seed, len(images)), images)


def _checksum(image):
    """u32[] of the bytes of an image."""
    values = image.reshape(-1).astype(jnp.uint32)
    odd = 2 * jnp.arange(values.size, dtype=jnp.uint32) + 1
    return jnp.sum(values * odd * jnp.uint32(2654435761))


def choose_features(found: dict, taps: Sequence[str] | None) -> dict[str, jax.Array]:
    """The features with the names `taps` as f32, all for None; UserError for an unknown name."""
    return {
        name: choose(found, name, "feature").astype(jnp.float32)
        for name in (found if taps is None else taps)
    }
