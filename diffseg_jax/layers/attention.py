"""Softmax attention, and multi-head self-attention over tokens."""

import jax
import jax.numpy as jnp
from flax import nnx

from diffseg_jax.layers.mlp import by_rows


def attend(query, key, value, bias=None, *, heads_first: bool = False) -> jax.Array:
    """softmax(query key^T + bias) value for every head (Vaswani et al., 2017); no scaling.

    query, key, value  f[..., N, heads, d], or f[..., heads, N, d] with `heads_first`
    bias               f32[..., heads, N, N] or None; scores are then float32 from the product on
    out                the shape and dtype of value; the softmax runs in float32

    Not `jax.nn.dot_product_attention`: it scales scores rather than queries, so last digits differ,
    and has no heads-first layout (`bench_forms.py --form=attend,attend_windows`). Its fused kernels
    must be asked for, and take 16-bit types only.
    """
    tokens = "...h{}d" if heads_first else "...{}hd"
    queries, keys = tokens.format("q"), tokens.format("k")
    dtype = None if bias is None else jnp.float32
    scores = jnp.einsum(f"{queries},{keys}->...hqk", query, key, preferred_element_type=dtype)
    scores = scores if bias is None else scores + bias
    weights = jax.nn.softmax(scores.astype(jnp.float32)).astype(value.dtype)
    return jnp.einsum(f"...hqk,{keys}->{queries}", weights, value)


class SelfAttention(nnx.Module):
    """Every token attends to all tokens; biases on all four projections (Vaswani et al., 2017).

    x    f[B, N, D]
    out  f[B, N, D] in `dtype`; the softmax runs in float32
    """

    def __init__(self, dim: int, heads: int, *, dtype, rngs: nnx.Rngs):
        def project(features_in, features_out, axis):
            return nnx.LinearGeneral(
                features_in, features_out, axis=axis, dtype=dtype,
                kernel_init=nnx.initializers.xavier_uniform(), dot_general=by_rows, rngs=rngs,
            )  # fmt: skip

        self.query = project(dim, (heads, dim // heads), -1)
        self.key = project(dim, (heads, dim // heads), -1)
        self.value = project(dim, (heads, dim // heads), -1)
        self.out = project((heads, dim // heads), dim, (-2, -1))

    def __call__(self, x: jax.Array) -> jax.Array:
        query, key, value = self.query(x), self.key(x), self.value(x)  # each [B, N, heads, d]
        return self.out(attend(query * query.shape[-1] ** -0.5, key, value))
