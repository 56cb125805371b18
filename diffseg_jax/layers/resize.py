"""Resizing of feature maps with the conventions of the original programs."""

import jax
import jax.numpy as jnp
import numpy as np

CUBIC = -0.75  # the free parameter of the cubic kernel


def upsample2_aligned(x: jax.Array) -> jax.Array:
    """Doubles a map bilinearly with aligned corners: f[B,H,W,C] -> f[B,2H,2W,C].

    Output i reads the source coordinate i (n-1) / (2n-1), so output 2j mixes inputs j-1 and j, and
    output 2j+1 mixes j and j+1: two shifted sums per axis, cheap forwards and backwards.
    """
    return _double(_double(x, 1), 2)


def _double(x, axis):
    n = x.shape[axis]
    shape = [1] * x.ndim
    shape[axis] = n
    j = np.arange(n, dtype=np.float64)
    left = jnp.asarray((j / (2 * n - 1)).reshape(shape), x.dtype)
    right = jnp.asarray(((n - 1 - j) / (2 * n - 1)).reshape(shape), x.dtype)
    first = jax.lax.slice_in_dim(x, 0, 1, axis=axis)
    last = jax.lax.slice_in_dim(x, n - 1, n, axis=axis)
    before = jnp.concatenate([first, jax.lax.slice_in_dim(x, 0, n - 1, axis=axis)], axis)
    after = jnp.concatenate([jax.lax.slice_in_dim(x, 1, n, axis=axis), last], axis)
    even = x + left * (before - x)
    odd = x + right * (after - x)
    doubled = jnp.stack([even, odd], axis + 1)
    return doubled.reshape(x.shape[:axis] + (2 * n,) + x.shape[axis + 1 :])


def aligned_matrix(source: int, target: int) -> np.ndarray:
    """f64[target, source]: bilinear weights with aligned corners along one axis.

    Output i reads the coordinate i (source-1) / (target-1). A single input is repeated; a single
    output is the first input.
    """
    if source == 1 or target == 1:
        matrix = np.zeros((target, source))
        matrix[:, 0] = 1
        return matrix
    coordinate = np.arange(target) * (source - 1) / (target - 1)
    return np.maximum(0, 1 - np.abs(coordinate[:, None] - np.arange(source)[None, :]))


def resize_aligned(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Bilinear with aligned corners to any size: f[B,H,W,C] -> f[B,h,w,C]; for small maps."""
    if x.shape[1:3] == tuple(size):
        return x
    rows = jnp.asarray(aligned_matrix(x.shape[1], size[0]), x.dtype)
    columns = jnp.asarray(aligned_matrix(x.shape[2], size[1]), x.dtype)
    return jnp.einsum("yh,bhwc,xw->byxc", rows, x, columns, precision="highest")


def resize_bilinear(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Bilinear with half-pixel centres, without antialiasing: f[B,H,W,C] -> f[B,h,w,C]."""
    if x.shape[1:3] == tuple(size):
        return x
    shape = (x.shape[0], *size, x.shape[3])
    return jax.image.resize(x, shape, "bilinear", antialias=False)


def cubic_matrix(source: int, target: int, offset: float = 0.0) -> np.ndarray:
    """f64[target, source]: cubic convolution (Keys, 1981) along one axis, the border repeated.

    The free parameter of the kernel is -0.75, as in PyTorch without antialiasing. Output i reads
    the coordinate (i + 0.5) source / (target + offset) - 0.5.
    """
    centre = (np.arange(target) + 0.5) * source / (target + offset) - 0.5
    taps = np.floor(centre)[:, None] + np.arange(-1, 3)
    d = np.abs(centre[:, None] - taps)
    near = (CUBIC + 2) * d**3 - (CUBIC + 3) * d**2 + 1
    far = CUBIC * (d**3 - 5 * d**2 + 8 * d - 4)
    weights = np.where(d <= 1, near, far)
    matrix = np.zeros((target, source))
    columns = np.clip(taps, 0, source - 1).astype(int)
    np.add.at(matrix, (np.arange(target)[:, None], columns), weights)
    return matrix


def resize_nearest(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """PyTorch's "nearest": f or i[B,H,W,C] -> [B,h,w,C]; output i reads input floor(i * H / h)."""
    for axis, target in ((1, size[0]), (2, size[1])):
        x = _nearest(x, axis, target)
    return x


def _nearest(x, axis, target):
    source = x.shape[axis]
    if target % source == 0:
        return x if target == source else jnp.repeat(x, target // source, axis)
    if source % target == 0:
        return jax.lax.slice_in_dim(x, 0, source, source // target, axis)
    return jnp.take(x, nearest_indices(source, target), axis)


def nearest_indices(source: int, target: int) -> np.ndarray:
    """i32[target]: the input index of each output; product in float32, as PyTorch rounds it."""
    scale = np.float32(source) / np.float32(target)
    indices = np.floor(np.arange(target, dtype=np.float32) * scale)
    return np.minimum(indices.astype(np.int32), source - 1)
