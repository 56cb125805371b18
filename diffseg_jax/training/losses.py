"""Losses as (sum, weight): sums add up over micro-batches and devices, and ratios come last."""

import jax
import jax.numpy as jnp
import optax

from diffseg_jax.data.labels import IGNORE


def masked_cross_entropy(logits: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Summed pixel cross-entropy and the number of counted pixels.

    logits  f32[B, H, W, K]
    mask    i32[B, H, W], 255 = ignored
    """
    counted = mask != IGNORE
    safe = jnp.where(counted, mask, 0)
    losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), safe)
    return jnp.sum(losses * counted), jnp.sum(counted).astype(jnp.float32)


def squared_error(prediction: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Summed squared difference and the number of elements; the mean is || f - target ||^2 / n."""
    error = prediction.astype(jnp.float32) - target.astype(jnp.float32)
    return jnp.sum(jnp.square(error)), jnp.asarray(error.size, jnp.float32)
