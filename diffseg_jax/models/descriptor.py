"""Some hundred numbers by which images can be compared: averages of the features of a network."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

MAX_CHANNELS = 256


def image_descriptor(
    maps: Sequence[jax.Array], valid: jax.Array, size: tuple[int, int],
    covered: Sequence[tuple[float, float]] = (),
) -> jax.Array:  # fmt: skip
    """The means of C features over an image, and those of their squares: f32[B, 1, 1, 2 C].

    maps     f[B, h_i, w_i, C_i] each, of padded images of (height, width) `size`
    valid    i32[B, 2], (height, width) of the images without padding
    covered  as of `PixelFeatures`

    Every n-th of all channels is read, with the smallest n for which C is at most MAX_CHANNELS.
    The means of several windows can be averaged, which standard deviations could not.
    """
    every = -(-sum(values.shape[-1] for values in maps) // MAX_CHANNELS)
    start, means, squares = 0, [], []
    for values, fractions in zip(maps, covered or ((1.0, 1.0),) * len(maps), strict=True):
        rows, columns = (
            _shares(values.shape[axis], size[axis - 1] / part, valid[:, axis - 1])
            for axis, part in enumerate(fractions, 1)
        )
        weights = rows[:, :, None, None] * columns[:, None, :, None]
        read = values[..., -start % every :: every].astype(jnp.float32)
        means.append(jnp.sum(read * weights, (1, 2), keepdims=True))
        squares.append(jnp.sum(read**2 * weights, (1, 2), keepdims=True))
        start += values.shape[-1]
    return jnp.concatenate([*means, *squares], -1)


def _shares(cells, extent, valid):
    """Equal weights f32[B, cells] of those of the cells, `extent` pixels, that hold valid ones."""
    inside = (jnp.arange(cells) * (extent / cells) < valid[:, None]).astype(jnp.float32)
    return inside / inside.sum(-1, keepdims=True)
