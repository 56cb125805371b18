"""Numbers as vectors: sinusoids, and the modulation of features by an embedded noise level."""

import jax
import jax.numpy as jnp
from flax import nnx


def sinusoid(t: jax.Array, width: int, max_period: float = 10_000.0) -> jax.Array:
    """f32[B] -> f32[B, width]: cosines first, then sines, of t * max_period**(-k / (width // 2)).

    Computed in float32 whatever the network runs in; an odd width ends with a zero column.
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
