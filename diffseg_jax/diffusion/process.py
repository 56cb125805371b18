"""Noising, conversions between x_0, the noise and x_t, and one reverse step; no network.

`Process` is a Gaussian chain of T steps (Ho et al. 2020), t = 0 the first and least noisy. It is
made of numpy tables and closed over by jitted functions; x, t and noise may be traced. Everywhere:

    x_0, x_t, eps   f32[B, H, W, C], images in [-1, 1]
    t               i32[B] in 0..T-1, or one i32[] for the whole batch

Functions that take t raise UserError when it is known and out of range.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffseg_jax.diffusion.schedules import (
    BETAS,
    add_noise,
    kept_timesteps,
    per_image,
    respaced_betas,
)
from diffseg_jax.errors import UserError, choose

TARGETS = ("noise", "image", "velocity")  # quantity that the network predicts
VARIANCES = ("learned", "fixed_large", "fixed_small")  # variance of a reverse step


@dataclasses.dataclass(frozen=True, eq=False)
class Process:
    """T steps of noising. Tables are f64[T]; a looked-up value is rounded to float32 once.

    betas       f64[T] in (0, 1), the variance that each step adds
    timesteps   number of each step in the network's training: 0..T-1 unless steps were dropped
    time_scale  factor on that number: 1000 / (number of steps in training) with rescaling, else 1

    It compares by identity, so that it can be a static argument of jit.
    """

    betas: np.ndarray
    timesteps: tuple[int, ...]
    time_scale: float = 1.0

    @property
    def steps(self) -> int:
        """T."""
        return len(self.betas)

    @functools.cached_property
    def alphas_cumprod(self):
        """alpha_bar_t, the share of signal power in x_t."""
        return np.cumprod(1 - self.betas)

    @functools.cached_property
    def alphas_cumprod_prev(self):
        """alpha_bar of the previous step; 1 before the first."""
        return np.append(1.0, self.alphas_cumprod[:-1])

    @functools.cached_property
    def sqrt_alphas_cumprod(self):
        """Weight of x_0 in x_t."""
        return np.sqrt(self.alphas_cumprod)

    @functools.cached_property
    def sqrt_one_minus_alphas_cumprod(self):
        """Weight of the noise in x_t."""
        return np.sqrt(1 - self.alphas_cumprod)

    @functools.cached_property
    def log_one_minus_alphas_cumprod(self):
        """Log variance of x_t given x_0."""
        return np.log(1 - self.alphas_cumprod)

    @functools.cached_property
    def sqrt_recip_alphas_cumprod(self):
        """Weight of x_t in x_0 = a x_t - b eps."""
        return np.sqrt(1 / self.alphas_cumprod)

    @functools.cached_property
    def sqrt_recipm1_alphas_cumprod(self):
        """Weight b of the noise there."""
        return np.sqrt(1 / self.alphas_cumprod - 1)

    @functools.cached_property
    def posterior_variance(self):
        """Variance of x_{t-1} given x_t and x_0; 0 at t = 0. Ho et al. (2020), equation 7."""
        return self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @functools.cached_property
    def posterior_log_variance(self):
        """Its log, with the value of t = 1 at t = 0."""
        return np.log(np.append(self._second_variance, self.posterior_variance[1:]))

    @functools.cached_property
    def posterior_mean_clean(self):
        """Weight of x_0 in the mean of x_{t-1} given x_t and x_0."""
        return self.betas * np.sqrt(self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @functools.cached_property
    def posterior_mean_noisy(self):
        """Weight of x_t in that mean."""
        before = (1 - self.alphas_cumprod_prev) * np.sqrt(1 - self.betas)
        return before / (1 - self.alphas_cumprod)

    @functools.cached_property
    def fixed_large_variance(self):
        """beta_t; at t = 0, where that would blur the image, the posterior variance of t = 1."""
        return np.append(self._second_variance, self.betas[1:])

    @property
    def _second_variance(self):
        # A process of one step has no t = 1; its beta is the only variance above zero.
        return self.posterior_variance[1] if self.steps > 1 else self.betas[0]

    def network_time(self, t: jax.Array) -> jax.Array:
        """The network's time input for step t: i32[...], or f32[...] if `time_scale` is not 1."""
        t = check_timesteps(t, self.steps)
        trained = jnp.asarray(self.timesteps, jnp.int32)[t]
        return trained if self.time_scale == 1 else trained.astype(jnp.float32) * self.time_scale


def make_process(
    schedule: str = "linear", steps: int = 1000, keep: str = "", rescale_timesteps: bool = False
) -> Process:
    """The process of a named schedule, with all of `steps` or those that `keep` selects.

    keep                as in `kept_timesteps`
    rescale_timesteps   the network receives t * 1000 / steps

    Raises UserError for an unknown schedule and for steps that cannot be kept.
    """
    betas = choose(BETAS, schedule, "schedule")(steps)
    kept = kept_timesteps(steps, keep)
    scale = 1000 / steps if rescale_timesteps else 1.0
    return Process(respaced_betas(betas, kept) if len(kept) < steps else betas, kept, scale)


def check_timesteps(t: jax.Array, steps: int) -> jax.Array:
    """t as an array of integers; raises UserError unless it is in 0..steps-1 or traced."""
    if not isinstance(t, jax.core.Tracer):
        known = np.asarray(t)
        if wrong := [value for value in known.ravel().tolist() if not 0 <= value < steps]:
            raise UserError(
                f"t is {wrong[0]}, but the process has {steps} steps. "
                f"Give a whole number from 0 to {steps - 1}."
            )
    t = jnp.asarray(t)
    if not jnp.issubdtype(t.dtype, jnp.integer):
        raise UserError(f"t has dtype {t.dtype}, but steps are counted. Give whole numbers, int32.")
    return t


def noising(process: Process, x_0: jax.Array, t: jax.Array, eps: jax.Array) -> jax.Array:
    """x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps, f32[B, H, W, C]."""
    t = check_timesteps(t, process.steps)
    alpha = _table(process.sqrt_alphas_cumprod, t)
    return add_noise(x_0, eps, alpha, _table(process.sqrt_one_minus_alphas_cumprod, t))


def noised(process: Process, x_0: jax.Array, t: jax.Array) -> tuple[jax.Array, ...]:
    """(mean, variance, log variance) of x_t given x_0; the last two f32[B or 1, 1, 1, 1]."""
    t = check_timesteps(t, process.steps)
    mean = look_up(process.sqrt_alphas_cumprod, t, x_0) * x_0
    variance = look_up(1 - process.alphas_cumprod, t, x_0)
    return mean, variance, look_up(process.log_one_minus_alphas_cumprod, t, x_0)


def posterior(
    process: Process, x_0: jax.Array, x_t: jax.Array, t: jax.Array
) -> tuple[jax.Array, ...]:
    """(mean, variance, log variance) of x_{t-1} given x_t and x_0.

    The mean is f32[B, H, W, C], the others f32[B or 1, 1, 1, 1]. At t = 0 the variance is 0 and the
    log variance that of t = 1.
    """
    t = check_timesteps(t, process.steps)
    clean = look_up(process.posterior_mean_clean, t, x_t)
    noisy = look_up(process.posterior_mean_noisy, t, x_t)
    variance = look_up(process.posterior_variance, t, x_t)
    return clean * x_0 + noisy * x_t, variance, look_up(process.posterior_log_variance, t, x_t)


def clean_from_noise(process: Process, x_t: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
    """x_0 = sqrt(1 / alpha_bar) x_t - sqrt(1 / alpha_bar - 1) eps."""
    t = check_timesteps(t, process.steps)
    scaled = look_up(process.sqrt_recip_alphas_cumprod, t, x_t) * x_t
    return scaled - look_up(process.sqrt_recipm1_alphas_cumprod, t, x_t) * eps


def noise_from_clean(process: Process, x_t: jax.Array, x_0: jax.Array, t: jax.Array) -> jax.Array:
    """eps = (sqrt(1 / alpha_bar) x_t - x_0) / sqrt(1 / alpha_bar - 1)."""
    t = check_timesteps(t, process.steps)
    scaled = look_up(process.sqrt_recip_alphas_cumprod, t, x_t) * x_t
    return (scaled - x_0) / look_up(process.sqrt_recipm1_alphas_cumprod, t, x_t)


def velocity(process: Process, x_0: jax.Array, eps: jax.Array, t: jax.Array) -> jax.Array:
    """v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0; Salimans and Ho (2022), section 4."""
    alpha, sigma = _weights(process, t, x_0)
    return alpha * eps - sigma * x_0


def clean_from_velocity(process: Process, x_t: jax.Array, v: jax.Array, t: jax.Array) -> jax.Array:
    """x_0 = sqrt(alpha_bar) x_t - sqrt(1 - alpha_bar) v."""
    alpha, sigma = _weights(process, t, x_t)
    return alpha * x_t - sigma * v


class Reverse(NamedTuple):
    """The normal distribution of x_{t-1} given by a network's output; all f32[B, H, W, C].

    `clean` is the estimate of x_0. For "fixed_small" the variance at t = 0 is 0, and its logarithm
    that of t = 1.
    """

    mean: jax.Array
    variance: jax.Array
    log_variance: jax.Array
    clean: jax.Array


def reverse(
    process: Process,
    output: jax.Array,
    x_t: jax.Array,
    t: jax.Array,
    target: str,
    variance: str,
    clip: bool = True,
) -> Reverse:
    """One reverse step, as a distribution: the posterior at the network's estimate of x_0.

    output      f32[B, H, W, C], with 2C channels if the variance is learned, the mean half first
    target      quantity that the mean half predicts, one of TARGETS
    variance    one of VARIANCES
    clip        whether the estimate of x_0 is clipped to [-1, 1], as in sampling

    Raises UserError for an unknown target or variance and for a wrong number of channels.
    """
    t = check_timesteps(t, process.steps)
    prediction, interpolation = split_output(output, x_t.shape[-1], variance)
    clean = _clean(process, prediction, x_t, t, target)
    clean = jnp.clip(clean, -1, 1) if clip else clean
    mean, small, log_small = posterior(process, clean, x_t, t)
    if variance == "learned":
        # Nichol and Dhariwal (2021), equation 15; v outside [-1, 1] is not clipped
        weight = (interpolation + 1) / 2
        log_large = look_up(np.log(process.betas), t, x_t)
        log_variance = weight * log_large + (1 - weight) * log_small
        return Reverse(mean, jnp.exp(log_variance), log_variance, clean)
    if variance == "fixed_large":
        small = look_up(process.fixed_large_variance, t, x_t)
        log_small = look_up(np.log(process.fixed_large_variance), t, x_t)
    expand = lambda value: jnp.broadcast_to(value, mean.shape)
    return Reverse(mean, expand(small), expand(log_small), clean)


def split_output(output: jax.Array, channels: int, variance: str):
    """A network's output as float32: (prediction, v), where v is None if the variance is fixed.

    Raises UserError unless it has 2 * channels channels with "learned" and else `channels`.
    """
    learned = choose({name: name == "learned" for name in VARIANCES}, variance, "variance")
    expected, found = (2 if learned else 1) * channels, output.shape[-1]
    if found != expected:
        other = "fixed_large" if learned else "learned"
        fits = found == (1 if learned else 2) * channels
        raise UserError(
            f"the network gives {found} channels for images of {channels}, "
            f'but variance "{variance}" needs {expected}. '
            + (f'Use variance "{other}".' if fits else "Change the network's output channels.")
        )
    output = jnp.asarray(output, jnp.float32)
    return (output[..., :channels], output[..., channels:]) if learned else (output, None)


def look_up(table: np.ndarray, t: jax.Array, x: jax.Array) -> jax.Array:
    """table[t] in float32, with axes of one behind the batch so that it multiplies x."""
    return per_image(_table(table, t), x)


def _clean(process, prediction, x_t, t, target):
    convert = {
        "noise": clean_from_noise,
        "image": lambda process, x_t, prediction, t: prediction,
        "velocity": clean_from_velocity,
    }
    return choose(convert, target, "target")(process, x_t, prediction, t)


def _weights(process, t, x):
    t = check_timesteps(t, process.steps)
    sigma = look_up(process.sqrt_one_minus_alphas_cumprod, t, x)
    return look_up(process.sqrt_alphas_cumprod, t, x), sigma


def _table(table, t):
    return jnp.asarray(table, jnp.float32)[t]
