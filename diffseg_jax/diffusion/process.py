"""Noising, and conversions between x_0, the noise and x_t; no network."""

import jax


def add_noise(x: jax.Array, eps: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """x_t = alpha x_0 + sigma eps; x, eps f32[B, ...], alpha, sigma f32[B]. Nothing is clipped."""
    return _per_image(alpha, x) * x + _per_image(sigma, x) * eps


def predict_clean(x_t: jax.Array, eps: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """x_0 = (x_t - sigma eps) / alpha: the inverse of `add_noise` for the same noise."""
    return (x_t - _per_image(sigma, x_t) * eps) / _per_image(alpha, x_t)


def _per_image(value, x):
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim))
