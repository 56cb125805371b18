"""The light decoder that denoises a label map: deformable attention and a noise level.

Ji et al., "DDP: Diffusion Model for Dense Visual Prediction" (ICCV 2023), section 3.3, with the
attention of Zhu et al., "Deformable DETR" (ICLR 2021).
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from diffseg_jax.layers.deformable import DeformableAttention
from diffseg_jax.layers.embeddings import axis_positions
from diffseg_jax.layers.mlp import Mlp, linear
from diffseg_jax.layers.norm import in_float32
from diffseg_jax.layers.pieces import Piecewise, in_pieces

XAVIER = nnx.initializers.xavier_uniform()


def _layer_norm(dim, rngs):
    return nnx.LayerNorm(dim, epsilon=1e-5, use_fast_variance=False, rngs=rngs)


class MapDecoderLayer(Piecewise):
    """Attention, feed-forward, each followed by its norm; then scaled and shifted by the level.

    query       f[B, N, E]
    constants   f32[N, 3 heads points], the positions' part of offsets and weights
    modulation  f32[B, 2E], scale and shift
    timed       whether the layer has the parameters from which they follow
    """

    def __init__(self, width, heads, points, mlp, *, timed, dtype, rngs):
        self.attention = DeformableAttention(width, heads, 1, points, dtype=dtype, rngs=rngs)
        self.norm1 = _layer_norm(width, rngs)
        self.mlp = Mlp(width, mlp, kernel_init=XAVIER, dtype=dtype, rngs=rngs)
        self.norm2 = _layer_norm(width, rngs)
        if timed:
            options = dict(kernel_init=XAVIER, dtype=jnp.float32, rngs=rngs)
            self.time = linear(4 * width, 2 * width, **options)

    def __call__(self, query, constants, modulation, reference, size):
        together = lambda query, *rest: self._rows(query, *rest, size)

        def by_image(query, constants, modulation, reference):
            one = lambda inputs: self._image(*inputs, constants, reference, size)
            return jax.lax.map(one, (query, self.attention.project(query), modulation))

        inputs = query, constants, modulation, reference
        return self.by_platform(*inputs, cpu=by_image, default=together)

    def _image(self, query, cells, modulation, constants, reference, size):
        """All rows of one image, in pieces that sample its cells."""

        def rows(query, constants, reference):
            inputs = query[None], constants, modulation[None], reference
            return self._rows(*inputs, size, cells[None])[0]

        return in_pieces(rows, query, constants, reference)

    def _rows(self, query, constants, modulation, reference, size, cells=None):
        """Some rows f[B,n,E]; without cells all rows, from which the cells are made."""
        query = query + self.attention(query, constants, reference, (size,), cells)
        query = in_float32(self.norm1, query)
        query = query + self.mlp(query)
        scale, shift = jnp.split(modulation[:, None], 2, axis=-1)
        normed = self.norm2(query.astype(jnp.float32))
        return (normed * (1 + scale) + shift).astype(query.dtype)


class MapDecoder(nnx.Module):
    """Layers over the cells of a map: f[B,h,w,E] -> f[B,h,w,E] and a dict of named features.

    Values that depend only on the size of the map (`constants`) or on the noise level
    (`modulations`) are inputs, so that a sampler computes them once for all its steps.

    timed  without it, layers do not depend on the noise level, and `modulations` are 0: the form
           of the published networks for depth and BEV
    """

    def __init__(
        self, width: int, *, layers: int, heads: int, points: int, mlp: int, timed: bool = True,
        dtype=jnp.float32, remat: bool = False, rngs: nnx.Rngs,
    ):  # fmt: skip
        for l in range(layers):
            layer = MapDecoderLayer(
                width, heads, points, mlp, timed=timed, dtype=dtype, rngs=rngs
            )
            setattr(self, f"layer{l}", layer)
        self.layers = layers
        self.width = width
        self.timed = timed
        self.remat = remat

    def constants(self, size: tuple[int, int]) -> jax.Array:
        """f32[layers, h w, 3 heads points] for a map's (height, width).

        A position is the sinusoids of its row, then those of its column (section 7 of Carion et
        al., 2020), so a linear layer of it is the sum of a row's part and a column's.
        """
        half = self.width // 2
        rows, columns = (axis_positions(length, half) for length in size)
        rows = np.concatenate([rows, np.zeros_like(rows)], -1)
        columns = np.concatenate([np.zeros_like(columns), columns], -1)

        def of_layer(attention):
            of_rows = attention.constants(rows)[:, None]
            of_columns = (attention.constants(columns) - attention.constants(0 * columns))[None]
            return (of_rows + of_columns).reshape(size[0] * size[1], -1)

        return jnp.stack([of_layer(layer.attention) for layer in self._layers()])

    def modulations(self, tau: jax.Array) -> jax.Array:
        """f32[B, layers, 2E], scale and shift of every layer, for embedded levels f32[B, 4E]."""
        if not self.timed:
            return jnp.zeros((len(tau), self.layers, 2 * self.width))
        return jnp.stack([layer.time(nnx.silu(tau)) for layer in self._layers()], 1)

    def __call__(self, x: jax.Array, constants: jax.Array, modulations: jax.Array):
        batch, height, width, _ = x.shape
        reference = jnp.asarray(reference_points((height, width)))
        features = {}
        query = x.reshape(batch, height * width, -1)
        for l, layer in enumerate(self._layers()):
            inputs = constants[l], modulations[:, l], reference
            run = lambda layer, *inputs: layer(*inputs, (height, width))
            query = (
                nnx.remat(run)(layer, query, *inputs) if self.remat else run(layer, query, *inputs)
            )
            features[f"layer{l}"] = query
        return query.reshape(x.shape), features

    def _layers(self):
        return [getattr(self, f"layer{l}") for l in range(self.layers)]


def reference_points(size: tuple[int, int]) -> np.ndarray:
    """f32[h w, 2]: the centre (x, y) of every cell, as fractions of the map's width and height."""
    y, x = ((np.arange(length, dtype=np.float32) + np.float32(0.5)) / length for length in size)
    return np.stack(np.broadcast_arrays(x[None, :], y[:, None]), -1).reshape(-1, 2)
