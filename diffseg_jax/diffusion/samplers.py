"""One step of a chain at a time, as pure functions: DDPM and DDIM.

Shapes and t as in `process.py`; noise is f32[B, H, W, C] from N(0, 1). No step adds noise at t = 0.

In continuous time a step goes from one log-SNR f32[] to another. All steps are linear in x_t, x_0
and the noise, so they also hold for linear transforms of them.
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffseg_jax.diffusion.process import (
    Process,
    Reverse,
    check_timesteps,
    look_up,
    noise_from_clean,
)
from diffseg_jax.diffusion.schedules import alpha_sigma
from diffseg_jax.errors import UserError


def ddpm_step(process: Process, distribution: Reverse, t: jax.Array, noise: jax.Array) -> jax.Array:
    """A sample of x_{t-1}: mean + exp(log_variance / 2) noise; at t = 0 the mean alone."""
    t = check_timesteps(t, process.steps)
    spread = jnp.exp(distribution.log_variance / 2) * noise
    return distribution.mean + look_up(np.arange(process.steps) > 0, t, noise) * spread


def ddim_step(
    process: Process,
    x_t: jax.Array,
    clean: jax.Array,
    t: jax.Array,
    eta: float = 0.0,
    noise: jax.Array | None = None,
) -> jax.Array:
    """x_{t-1} by Song et al. (2021), equation 12.

    clean   the estimate of x_0, clipped or not; the noise in x_t is computed from it
    eta     a Python number in [0, 1]: 0 is deterministic, 1 has the spread of DDPM's fixed_small
    noise   may be None at eta = 0

    Raises UserError for eta outside [0, 1] and for eta > 0 without noise.
    """
    if not 0 <= eta <= 1:
        raise UserError(f"eta is {eta}, but it must be from 0 (deterministic) to 1 (as in DDPM).")
    if eta and noise is None:
        raise UserError(f"eta is {eta}, which needs noise. Give an array of x_t's shape, or eta 0.")
    t = check_timesteps(t, process.steps)
    sigma = eta * np.sqrt(process.posterior_variance)  # 0 at t = 0
    # Rounding may leave a number just below zero where the direction vanishes.
    direction = np.sqrt(np.maximum(1 - process.alphas_cumprod_prev - sigma**2, 0))
    eps = noise_from_clean(process, x_t, clean, t)
    alpha = look_up(np.sqrt(process.alphas_cumprod_prev), t, x_t)
    moved = alpha * clean + look_up(direction, t, x_t) * eps
    return moved + look_up(sigma, t, x_t) * noise if eta else moved


def ddim_transition(x_t: jax.Array, clean: jax.Array, now: jax.Array, then: jax.Array) -> jax.Array:
    """x at the log-SNR `then`, with the same estimated noise at that level."""
    return ddim_between(x_t, clean, alpha_sigma(now), alpha_sigma(then))


def ddim_between(x_t: jax.Array, clean: jax.Array, now: tuple, then: tuple) -> jax.Array:
    """`ddim_transition` between two pairs (alpha, sigma), f32[] each, in place of log-SNRs."""
    (alpha, sigma), (alpha_then, sigma_then) = now, then
    return alpha_then * clean + (x_t - alpha * clean) / jnp.maximum(sigma, 1e-8) * sigma_then


def ddpm_transition(
    x_t: jax.Array, clean: jax.Array, now: jax.Array, then: jax.Array, noise: jax.Array
) -> jax.Array:
    """A sample of x at the log-SNR `then`; noise is from N(0, 1), or 0 for the last step."""
    (alpha, _), (alpha_then, sigma_then) = alpha_sigma(now), alpha_sigma(then)
    fresh = -jnp.expm1(now - then)
    mean = alpha_then * (x_t * (1 - fresh) / alpha + fresh * clean)
    variance = jnp.maximum(jnp.square(sigma_then) * fresh, 1e-20)
    return mean + jnp.sqrt(variance) * noise
