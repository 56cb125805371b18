"""Multi-head self-attention over tokens."""

import jax
import jax.numpy as jnp
from flax import nnx


class SelfAttention(nnx.Module):
    """Every token attends to all tokens; biases on all four projections (Vaswani et al., 2017).

    x    f[B, N, D]
    out  f[B, N, D] in `dtype`; the softmax runs in float32
    """

    def __init__(self, dim: int, heads: int, *, dtype, rngs: nnx.Rngs):
        def project(features_in, features_out, axis):
            return nnx.LinearGeneral(
                features_in, features_out, axis=axis, dtype=dtype,
                kernel_init=nnx.initializers.xavier_uniform(), rngs=rngs,
            )  # fmt: skip

        self.query = project(dim, (heads, dim // heads), -1)
        self.key = project(dim, (heads, dim // heads), -1)
        self.value = project(dim, (heads, dim // heads), -1)
        self.out = project((heads, dim // heads), dim, (-2, -1))

    def __call__(self, x: jax.Array) -> jax.Array:
        query, key, value = self.query(x), self.key(x), self.value(x)  # each [B, N, heads, d]
        scores = jnp.einsum("bqhd,bkhd->bhqk", query * query.shape[-1] ** -0.5, key)
        weights = jax.nn.softmax(scores.astype(jnp.float32)).astype(value.dtype)
        return self.out(jnp.einsum("bhqk,bkhd->bqhd", weights, value))
