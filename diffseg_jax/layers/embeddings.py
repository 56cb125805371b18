"""Embeddings of noise levels and positions, and the modulation of features by them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from diffseg_jax.layers.mlp import gelu, linear


def sinusoid(t: jax.Array, width: int, max_period: float = 10_000.0) -> jax.Array:
    """f32[B] -> f32[B, width]: cosines first, then sines, of t * max_period**(-k / (width // 2)).

    Computed in float32 whatever the network's dtype; an odd width ends with a zero column.
    """
    half = width // 2
    frequencies = jnp.exp(-jnp.log(max_period) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[:, None] * frequencies[None, :]
    waves = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(waves, ((0, 0), (0, width % 2)))


class TimeModulation(nnx.Module):
    """Scales and shifts features by the noise level; the identity at initialisation.

    x     f[B, H, W, C]
    emb   f32[B, E]          one embedded noise level per image
    out   f[B, H, W, C]
    """

    def __init__(self, channels: int, emb_dim: int, *, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros_init()
        self.dense = nnx.Linear(emb_dim, 2 * channels, kernel_init=zeros, rngs=rngs)

    def __call__(self, x: jax.Array, emb: jax.Array) -> jax.Array:
        scale, shift = jnp.split(self.dense(nnx.silu(emb)), 2, axis=-1)  # each [B, C]
        return (x * (1 + scale[:, None, None]) + shift[:, None, None]).astype(x.dtype)


def axis_positions(length: int, width: int) -> np.ndarray:
    """Sinusoids of the cells along one axis, f32[length, width].

    Cell i lies at (i + 0.5) / length of 2 pi (Carion et al., 2020: DETR, with offset -0.5); sines
    and cosines alternate, one frequency per pair.
    """
    position = (np.arange(length, dtype=np.float32) + np.float32(0.5)) / np.float32(length + 1e-6)
    k = np.arange(width)
    period = np.float32(10_000) ** (np.float32(2) * (k // 2).astype(np.float32) / width)
    angles = (position * np.float32(2 * np.pi))[:, None] / period.astype(np.float32)
    return np.where(k % 2, np.cos(angles), np.sin(angles)).astype(np.float32)


class TimeEmbedding(nnx.Module):
    """Embeds a noise level by sinusoids of learned frequencies (Chen et al., 2023).

    u    f32[B], any unit: log-SNR or time
    out  f32[B, width]
    """

    def __init__(self, width: int, frequencies: int = 8, *, rngs: nnx.Rngs):
        self.weights = nnx.Param(jax.random.normal(rngs.params(), (frequencies,)))
        self.fc1 = linear(1 + 2 * frequencies, width, dtype=jnp.float32, rngs=rngs)
        self.fc2 = linear(width, width, dtype=jnp.float32, rngs=rngs)

    def __call__(self, u: jax.Array) -> jax.Array:
        phases = u[:, None] * self.weights[...] * 2 * math.pi  # order matters: phases reach 100s
        waves = jnp.concatenate([u[:, None], jnp.sin(phases), jnp.cos(phases)], -1)
        return self.fc2(gelu(self.fc1(waves)))
