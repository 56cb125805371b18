"""Noise level -> (alpha, sigma), the weights of signal and noise: x_t = alpha x_0 + sigma eps.

Brempong et al. (2022) use one fixed level. Their two forms take the same number, the ratio of noise
to signal sigma = 0.22, say; gamma = 1 / (1 + sigma**2) is the share of signal power.
"""

import jax
import jax.numpy as jnp


def simple_level(sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
    """x + sigma eps: (1, sigma). sigma f32[...] >= 0."""
    sigma = jnp.asarray(sigma, jnp.float32)
    return jnp.ones_like(sigma), sigma


def scaled_level(sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
    """sqrt(gamma) x + sqrt(1 - gamma) eps, of unit power when x is. sigma f32[...] >= 0."""
    sigma = jnp.asarray(sigma, jnp.float32)
    alpha = jax.lax.rsqrt(1 + jnp.square(sigma))
    return alpha, sigma * alpha


LEVELS = {"simple": simple_level, "scaled": scaled_level}


def sigma_to_gamma(sigma):
    """gamma = 1 / (1 + sigma**2): in (0, 1], 1 without noise."""
    return 1 / (1 + sigma**2)


def gamma_to_sigma(gamma):
    """sigma = sqrt((1 - gamma) / gamma): the inverse of `sigma_to_gamma`."""
    return ((1 - gamma) / gamma) ** 0.5
