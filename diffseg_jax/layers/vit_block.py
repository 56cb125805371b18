"""The block of plain vision transformers, with the options of those that followed ViT.

Dosovitskiy et al., "An Image is Worth 16x16 Words" (2021); layer scale by Touvron et al., "Going
Deeper with Image Transformers" (2021); gated feed-forward by Shazeer, "GLU Variants Improve
Transformer" (2020). N tokens of D channels.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from diffseg_jax.layers.attention import attend
from diffseg_jax.layers.mlp import Mlp, by_rows, linear
from diffseg_jax.layers.norm import in_float32

_INITIAL = dict(
    kernel_init=nnx.initializers.xavier_uniform(), bias_init=nnx.initializers.zeros_init()
)


def layer_norm(dim: int, epsilon: float, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A layer norm over f[..., D], its variance from centred values."""
    return nnx.LayerNorm(dim, epsilon=epsilon, use_fast_variance=False, rngs=rngs)


class VitAttention(nnx.Module):
    """Every token attends to all tokens; one product gives all queries, keys and values.

    x       f[B, N, D]
    rotate  f[B, N, heads, D / heads] -> the same, applied to queries and keys, or None
    out     f[B, N, D] in `dtype`; the softmax runs in float32

    The outputs of `qkv` are ordered by (query, key, value), head and channel, as in the published
    files of DINOv2 and DINOv3; those of TransUNet have three kernels (`SelfAttention`).
    """

    def __init__(self, dim: int, heads: int, *, bias: bool = True, dtype, rngs: nnx.Rngs):
        options = dict(dtype=dtype, dot_general=by_rows, rngs=rngs, **_INITIAL)
        self.qkv = nnx.Linear(dim, 3 * dim, use_bias=bias, **options)
        self.out = nnx.Linear(dim, dim, **options)
        self.heads = heads

    def __call__(self, x: jax.Array, rotate: Callable | None = None) -> jax.Array:
        split = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1)
        query, key, value = (split[:, :, i] for i in range(3))  # each [B, N, heads, d]
        if rotate is not None:
            query, key = rotate(query), rotate(key)
        attended = attend(query * query.shape[-1] ** -0.5, key, value)
        return self.out(attended.reshape(x.shape))


class GatedMlp(nnx.Module):
    """SwiGLU: f[..., D] -> f[..., D]; `hidden` values in between, each the product of two.

    The first half of the outputs of `fc1` is the gate, the second half is what it multiplies.
    """

    def __init__(self, dim: int, hidden: int, *, dtype, rngs: nnx.Rngs):
        self.fc1 = linear(dim, 2 * hidden, dtype=dtype, rngs=rngs, **_INITIAL)
        self.fc2 = linear(hidden, dim, dtype=dtype, rngs=rngs, **_INITIAL)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate, value = jnp.split(self.fc1(x), 2, axis=-1)
        return self.fc2(nnx.silu(gate) * value)


class VitBlock(nnx.Module):
    """Attention and a feed-forward part, each on the normalised tokens and added to them.

    x       f[B, N, D]
    rotate  see `VitAttention`
    out     f[B, N, D]

    hidden       channels within the feed-forward part
    gated        SwiGLU instead of two linear layers with the exact GELU between
    layer_scale  each part is multiplied by a learned factor per channel before it is added
    """

    def __init__(
        self, dim: int, heads: int, hidden: int, *, epsilon: float = 1e-6, gated: bool = False,
        layer_scale: bool = False, qkv_bias: bool = True, dtype=jnp.float32, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.norm1 = layer_norm(dim, epsilon, rngs)
        self.attention = VitAttention(dim, heads, bias=qkv_bias, dtype=dtype, rngs=rngs)
        self.norm2 = layer_norm(dim, epsilon, rngs)
        if gated:
            self.mlp = GatedMlp(dim, hidden, dtype=dtype, rngs=rngs)
        else:
            self.mlp = Mlp(dim, hidden, dtype=dtype, rngs=rngs, **_INITIAL)
        self.scale1, self.scale2 = (
            nnx.Param(jnp.ones(dim)) if layer_scale else None for _ in range(2)
        )

    def __call__(self, x: jax.Array, rotate: Callable | None = None) -> jax.Array:
        attended = self.attention(in_float32(self.norm1, x), rotate)
        x = x + _scaled(attended, self.scale1)
        return x + _scaled(self.mlp(in_float32(self.norm2, x)), self.scale2)


def _scaled(x, scale):
    return x if scale is None else x * scale[...].astype(x.dtype)
