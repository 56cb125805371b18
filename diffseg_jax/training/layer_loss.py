"""The loss of maps whose cells may have several classes."""

import jax
import jax.numpy as jnp


def layer_focal_losses(logits: jax.Array, truth: jax.Array, gamma: float = 2.0) -> jax.Array:
    """f32[K]: the binary focal loss of every class, the mean over images and cells.

    logits  f32[B, H, W, K];  truth  [B, H, W, K], 1 where a cell has the class

    -(1 - p)^gamma log p, where p is the probability of the truth (Lin et al., "Focal Loss", ICCV
    2017, without alpha).
    """
    signed = jnp.where(truth.astype(bool), logits, -logits).astype(jnp.float32)
    missed = jax.nn.sigmoid(-signed)
    return jnp.mean(missed**gamma * jax.nn.softplus(-signed), (0, 1, 2))
