"""Dropout of values, branches and channels in training."""

import zlib

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes each value with probability `rate` and divides the others by 1 - rate.

    x     f[...], of any shape
    key   of the draw; None: the output is x itself
    """
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def drop_path(x: jax.Array, rate: float, keys: jax.Array | None, name: str) -> jax.Array:
    """Zeroes the branch of an image with probability `rate` and rescales the others.

    x      f[B, ...], a residual branch (Huang et al., 2016: stochastic depth)
    keys   one per image [B], so that a draw does not depend on how a batch is split; None: x itself
    name   name of the layer, which makes its draws independent of those of other layers
    """
    return x if keys is None or rate == 0 else _keep(x, rate, keys, name, ())


def drop_channels(x: jax.Array, rate: float, keys: jax.Array | None, name: str) -> jax.Array:
    """Zeroes channels of an image, f[B,H,W,C], as `drop_path` does branches."""
    return x if keys is None or rate == 0 else _keep(x, rate, keys, name, x.shape[-1:])


def _keep(x, rate, keys, name, shape):
    layer = zlib.crc32(name.encode())
    draw = lambda key: jax.random.bernoulli(jax.random.fold_in(key, layer), 1 - rate, shape)
    keep = jax.vmap(draw)(keys)
    keep = keep.reshape(len(x), *[1] * (x.ndim - 1 - len(shape)), *shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)
