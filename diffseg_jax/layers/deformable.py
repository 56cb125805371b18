"""Deformable attention: every token attends to a few points that it selects (Zhu et al., 2021)."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from diffseg_jax.layers.mlp import by_rows

CHUNK = 128  # queries per chunk of the backward pass on a CPU
CORNERS = ((0, 0), (0, 1), (1, 0), (1, 1))  # (row, column) within a window
WINDOW = lax.GatherDimensionNumbers(
    offset_dims=(3, 4, 5), collapsed_slice_dims=(2,), start_index_map=(0, 1, 2)
)
ADDED = lax.ScatterDimensionNumbers(
    update_window_dims=(3, 4, 5), inserted_window_dims=(2,), scatter_dims_to_operand_dims=(0, 1, 2)
)


def sample_points(values, shapes, locations, weights) -> jax.Array:
    """Weighted sums of bilinear samples, Deformable DETR, equation 3 without its projections.

    values     f[B, S, heads, d], the cells of all levels concatenated, each row by row
    shapes     (h, w) of every level; S is the sum of h w
    locations  f32[B, N, heads, levels, P, 2], (x, y) in [0, 1] over each level; cell (i, j) has its
               centre at ((j + 0.5) / w, (i + 0.5) / h); values beyond the border are zero
    weights    f32[B, N, heads, levels, P]
    out        f[B, N, heads d] in the dtype of values; sums and gradients in float32

    Raises ValueError unless the values fill the levels.
    """
    ends = np.cumsum([h * w for h, w in shapes]).tolist()
    if values.shape[1] != ends[-1]:
        raise ValueError(f"{values.shape[1]} values do not fill levels of {shapes}: {ends[-1]}.")
    out = 0
    for level, (h, w) in enumerate(shapes):
        cells = values[:, ends[level] - h * w : ends[level]]
        maps = cells.reshape(len(values), h, w, *values.shape[2:])
        out = out + _sample(maps, locations[:, :, :, level], weights[:, :, :, level])
    return out.reshape(*out.shape[:2], -1).astype(values.dtype)


@jax.custom_vjp
def _sample(maps, locations, weights):
    """One level: f[B,h,w,heads,d], f32[B,N,heads,P,2], f32[B,N,heads,P] -> f32[B,N,heads,d].

    On CPUs the backward pass goes through the queries in chunks, whose 2x2 windows stay in the
    cache: each is read once for the gradients of locations and weights, and updated as one block of
    the map. The gradient of the gathers below adds corner by corner instead
    (`bench_forms.py --form=sample`).
    """
    return _by_batch(maps, locations, weights)


def _sample_backward(saved, dy):
    plain = lambda *inputs: jax.vjp(bilinear_sums, *inputs[:3])[1](inputs[3])
    return lax.platform_dependent(*saved, dy, cpu=_in_chunks, default=plain)


_sample.defvjp(lambda *inputs: (_sample(*inputs), inputs), _sample_backward)


@jax.custom_batching.custom_vmap
def _by_batch(maps, locations, weights):
    """`bilinear_sums`; merges the axis of vmap into the batch, so that ONNX has one GridSample."""
    return bilinear_sums(maps, locations, weights)


@_by_batch.def_vmap
def _by_batches(count, mapped, *inputs):
    fill = lambda x, is_mapped: x if is_mapped else jnp.broadcast_to(x, (count, *x.shape))
    repeated = list(map(fill, inputs, mapped))
    out = _by_batch(*(x.reshape(-1, *x.shape[2:]) for x in repeated))
    return out.reshape(*repeated[0].shape[:2], *out.shape[1:]), True


@jax.jit
def bilinear_sums(maps, locations, weights):
    """The samples corner by corner, for all heads and queries together; as of `_sample`."""
    batch, h, w, heads, d = maps.shape
    (rows, down), (columns, right) = _windows(locations, h, w)
    first = (rows * (w + 2) + columns) * heads + jnp.arange(heads)[:, None]
    table = _framed(maps).reshape(batch, -1, d)
    out = 0
    for p in range(first.shape[-1]):
        shares = _shares(weights[..., p], down[..., p], right[..., p])
        for share, (i, j) in zip(shares, CORNERS):
            index = (first[..., p] + (i * (w + 2) + j) * heads).reshape(batch, -1, 1)
            taken = jnp.take_along_axis(table, index, 1, mode="clip").astype(jnp.float32)
            out = out + share[..., None] * taken.reshape(*share.shape, d)
    return out


def _framed(maps):
    """The maps with a border of zeros, so that every window of 2x2 cells lies inside."""
    return jnp.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0), (0, 0)))


def _windows(locations, h, w):
    """For y, then x, of f32[..., 2]: first cell of the surrounding window, weight of the second.

    Cells are those of the framed map. Locations beyond the frame are clipped to it and have zero
    gradients.
    """
    return _window(locations[..., 1], h), _window(locations[..., 0], w)


def _window(location, size):
    coordinate = jnp.clip(location * size - 0.5, -1, size)
    first = jnp.minimum(jnp.floor(lax.stop_gradient(coordinate)), size - 1)
    return first.astype(jnp.int32) + 1, coordinate - first


def _shares(weights, down, right):
    """The weights of the four corners of each window, in the order of CORNERS."""
    mix = lambda share, second: share if second else 1 - share
    return [weights * mix(down, i) * mix(right, j) for i, j in CORNERS]


def _in_chunks(maps, locations, weights, dy):
    """The gradients of `bilinear_sums`, window by window."""
    _, h, w, heads, _ = maps.shape

    def locate(locations, weights):
        (rows, down), (columns, right) = _windows(locations, h, w)
        head = jnp.broadcast_to(jnp.arange(heads)[:, None], rows.shape)
        shares = jnp.stack(_shares(weights, down, right), -1)
        return shares, jnp.stack([rows, columns, head], -1)

    shares, pull, index = jax.vjp(locate, locations, weights, has_aux=True)
    framed = _framed(maps).astype(jnp.float32)
    dmaps, dshares = jax.vmap(_add_windows)(framed, index, shares, dy)
    return dmaps[:, 1:-1, 1:-1].astype(maps.dtype), *pull(dshares)


def _add_windows(framed, index, shares, dy):
    """The gradients of one image: of its framed map and of the shares.

    framed f32[h+2,w+2,heads,d], index i32[N,heads,P,3], shares f32[N,heads,P,4], dy f32[N,heads,d]
    """
    count = len(dy)
    chunk = min(CHUNK, count)
    padding = -count % chunk  # additional queries with shares of zero
    fill = lambda x: jnp.pad(x, ((0, padding), *[(0, 0)] * (x.ndim - 1)))
    chunks = [fill(x).reshape(-1, chunk, *x.shape[1:]) for x in (index, shares, dy)]
    size = (2, 2, 1, framed.shape[-1])

    def add(total, chunk):
        index, shares, dy = chunk
        windows = lax.gather(framed, index, WINDOW, size, mode="clip")  # [chunk,heads,P,2,2,d]
        dots = jnp.einsum("nhpyxd,nhd->nhpyx", windows, dy, precision="highest")
        update = shares.reshape(dots.shape)[..., None] * dy[:, :, None, None, None]
        return lax.scatter_add(total, index, update, ADDED, mode="clip"), dots

    total, dots = lax.scan(add, jnp.zeros_like(framed), chunks)
    return total, dots.reshape(-1, *shares.shape[1:])[:count]


class DeformableAttention(nnx.Module):
    """Multi-head attention to `points` locations per head and level, predicted from the query.

    query      f[B, N, E]
    constants  f32[N, 3 heads levels points] of `constants`
    reference  f32[N, 2] or f32[N, levels, 2], (x, y) in [0, 1]; offsets count cells from there
    shapes     (h, w) of every level
    cells      f[B, S, E] from `project`, levels concatenated as in `sample_points`; None: those of
               the query, as one level, S = N
    out        f[B, N, E] in `dtype`, without the residual. Softmax and locations in float32

    Outputs of `offsets` are ordered (head, level, point, (x, y)), those of `weights` (head, level,
    point). At initialisation all points have equal weights and each head points in one direction.
    """

    def __init__(self, dim, heads, levels=1, points=4, *, dtype, rngs: nnx.Rngs):
        self.sizes = (heads, levels, points)
        self.dtype = dtype
        count = heads * levels * points
        zeros, xavier = nnx.initializers.zeros, nnx.initializers.xavier_uniform()

        def linear(features, kernel_init, bias_init=zeros):
            options = dict(kernel_init=kernel_init, bias_init=bias_init, dtype=dtype, rngs=rngs)
            return nnx.Linear(dim, features, dot_general=by_rows, **options)

        self.value = linear(dim, xavier)
        start = lambda key, shape, dtype: jnp.asarray(first_offsets(*self.sizes), dtype).ravel()
        self.offsets = linear(2 * count, zeros, start)
        self.weights = linear(count, zeros)
        self.out = linear(dim, xavier)

    def constants(self, positions: jax.Array) -> jax.Array:
        """The part of offsets and weights that depends on encoded positions f32[N,E] and biases."""
        kernel = self._kernel(self.offsets, self.weights).astype(jnp.float32)
        bias = jnp.concatenate([self.offsets.bias[...], self.weights.bias[...]])
        return positions.astype(jnp.float32) @ kernel + bias

    def project(self, values: jax.Array) -> jax.Array:
        """The values to sample, f[B,S,E] -> the same shape in `dtype`."""
        return self.value(values)

    def __call__(self, query, constants, reference, shapes, cells=None) -> jax.Array:
        query = query.astype(self.dtype)
        if cells is None:  # one product reads the query once
            dim = query.shape[-1]
            made = by_rows(query, self._kernel(self.value, self.offsets, self.weights))
            cells = made[..., :dim] + self.value.bias[...].astype(self.dtype)
            made = made[..., dim:]
        else:
            made = by_rows(query, self._kernel(self.offsets, self.weights))
        offsets, weights = self._split(made.astype(jnp.float32) + constants)
        scale = np.float32([(w, h) for h, w in shapes])[:, None]
        reference = reference if reference.ndim == 3 else reference[:, None]
        locations = reference[:, None, :, None] + offsets / scale
        cells = cells.reshape(*cells.shape[:2], self.sizes[0], -1)
        return self.out(sample_points(cells, shapes, locations, weights))

    def _kernel(self, *layers):
        return jnp.concatenate([layer.kernel[...] for layer in layers], -1).astype(self.dtype)

    def _split(self, made):
        """f32[B,N,3 count] -> f32[B,N,heads,levels,P,2], and f32[B,N,heads,levels,P] of sum 1."""
        heads, levels, points = self.sizes
        count = math.prod(self.sizes)
        offsets = made[..., : 2 * count].reshape(*made.shape[:2], heads, levels, points, 2)
        weights = made[..., 2 * count :].reshape(*made.shape[:2], heads, levels * points)
        return offsets, jax.nn.softmax(weights).reshape(offsets.shape[:-1])


@functools.cache
def first_offsets(heads: int, levels: int, points: int) -> np.ndarray:
    """f32[heads, levels, points, 2], (x, y): point k of a head lies on the square k cells away."""
    angles = np.arange(heads) * (2 * math.pi / heads)
    direction = np.stack([np.cos(angles), np.sin(angles)], -1)
    direction /= np.abs(direction).max(-1, keepdims=True)
    steps = direction[:, None, None] * np.arange(1, points + 1)[:, None]
    return np.broadcast_to(steps, (heads, levels, points, 2)).astype(np.float32)
