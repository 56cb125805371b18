"""Noise levels: one fixed level as (alpha, sigma), and the variances of a chain of small steps.

Brempong et al. (2022) use one fixed level, x_t = alpha x_0 + sigma eps. Both of their forms take
the ratio of noise to signal, such as sigma = 0.22; gamma = 1 / (1 + sigma**2) is the share of
signal power.

Ho et al. (2020) add noise of variance beta_t in T steps; t = 0 is the first and least noisy. These
tables are numpy arrays in float64, computed once.

In continuous time, t in [0, 1] with 0 almost clean, the level is the logarithm of the ratio of
signal to noise power (Kingma et al., 2021). Those functions compute in float32 in the order
written: near t = 1 the cosine cancels, published networks were trained with its rounding, and
float64 would differ.
"""

import jax
import jax.numpy as jnp
import numpy as np

from diffseg_jax.errors import UserError


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


def linear_betas(steps: int) -> np.ndarray:
    """Evenly from 1e-4 to 0.02 at 1000 steps, scaled by 1000 / T for T steps; f64[T].

    Ho et al. (2020), with the scaling of Nichol and Dhariwal (2021), which keeps the final noise
    level. Raises UserError from 2 to 20 steps, where a variance would reach 1.
    """
    _check_steps(steps)
    scale = 1000 / steps
    betas = np.linspace(scale * 1e-4, scale * 0.02, steps, dtype=np.float64)
    if betas[-1] >= 1:
        raise UserError(
            f"a linear schedule of {steps} steps would end with a variance of {betas[-1]:.3g}, "
            f'which must stay below 1. Use 21 steps or more, "cosine", or 1000 steps of which '
            f"{steps} are kept."
        )
    return betas


def cosine_betas(steps: int) -> np.ndarray:
    """alpha_bar(u) = cos^2((u + 0.008) / 1.008 * pi / 2), no variance above 0.999; f64[T].

    Nichol and Dhariwal (2021), equation 17.
    """
    _check_steps(steps)
    edges = np.arange(steps + 1, dtype=np.float64) / steps
    alpha_bar = np.cos((edges + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


BETAS = {"linear": linear_betas, "cosine": cosine_betas}


def kept_timesteps(steps: int, spec: str) -> tuple[int, ...]:
    """The steps, in rising order, that a shorter process keeps out of `steps`.

    spec    "" keeps all of them
            "250" keeps that many, evenly spread from the first to the last
            "10,15,20" keeps these numbers in three sections of equal length
            "ddim25" keeps that many at a constant integer stride from 0, as in Song et al. (2021)

    Raises UserError for a malformed specification and for counts that `steps` does not allow.
    """
    _check_steps(steps)
    spec = str(spec).strip()
    if not spec:
        return tuple(range(steps))
    if spec.startswith("ddim"):
        return _strided(steps, _count(spec.removeprefix("ddim"), spec))
    counts = [_count(part, spec) for part in spec.split(",")]
    if not any(counts):
        raise UserError(f'the steps to keep are "{spec}", but at least one must be kept.')
    shortest, longer = divmod(steps, len(counts))
    kept, start = [], 0
    for i, count in enumerate(counts):
        size = shortest + (i < longer)
        kept += [start + step for step in _spread(size, count, spec)]
        start += size
    return tuple(kept)


def respaced_betas(betas: np.ndarray, kept: tuple[int, ...]) -> np.ndarray:
    """Variances of the process that visits only the steps `kept`, at unchanged noise levels.

    betas   f64[T]
    kept    S rising numbers in 0..T-1
    out     f64[S], 1 - alpha_bar[kept[i]] / alpha_bar[kept[i - 1]]
    """
    alpha_bar = np.cumprod(1 - betas)[list(kept)]
    return 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])


def _strided(steps, count):
    lengths = {-(-steps // stride) for stride in range(1, steps + 1)}
    if count not in lengths:
        nearest = min(lengths, key=lambda length: (abs(length - count), length))
        raise UserError(
            f"ddim{count} is not possible: no integer stride keeps {count} of {steps} steps. "
            f'The nearest possible is ddim{nearest}; "{max(1, min(count, steps))}" always works.'
        )
    # The smallest of several strides: ceil(steps / stride) falls as the stride grows.
    stride = next(s for s in range(1, steps + 1) if -(-steps // s) == count)
    return tuple(range(0, steps, stride))


def _spread(size, count, spec):
    if count > size:
        raise UserError(
            f'the steps to keep are "{spec}", which asks for {count} of a section of {size}. '
            f"Ask for at most {size} there."
        )
    stride = (size - 1) / (count - 1) if count > 1 else 1.0
    position, kept = 0.0, []
    for _ in range(count):
        kept.append(round(position))  # half to even
        position += stride  # added up, not multiplied, to round as published processes do
    return kept


def _count(text, spec):
    if not text.strip().isdecimal():
        raise UserError(
            f'the steps to keep are "{spec}", which cannot be parsed. Type a count such as "250", '
            f'counts of sections such as "10,15,20", "ddim25", or "" for all.'
        )
    return int(text)


def _check_steps(steps):
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 1:
        raise UserError(f"the number of diffusion steps is {steps!r}; type a whole number from 1.")


def cosine_log_snr(t, xp=jnp):
    """-log(cos^-2((t + s) / (1 + 5/4 s) pi/2) - 1), s = 0.0002; f32[...] from 11.5 to -18.9.

    Nichol and Dhariwal (2021) in continuous time, as Ji et al. (2023: DDP) use it. t f32[...]; `xp`
    is jax.numpy, or numpy for tables.
    """
    cosine = xp.cos((t + 0.0002) / 1.00025 * np.pi * 0.5)
    return -xp.log(xp.maximum(1 / (cosine * cosine) - 1, 1e-5))


def linear_log_snr(t, xp=jnp):
    """-log(expm1(1e-4 + 10 t^2)); f32[...] from 9.2 to -10. Arguments as in `cosine_log_snr`."""
    return -xp.log(xp.expm1(1e-4 + 10 * t * t))


LOG_SNRS = {"cosine": cosine_log_snr, "linear": linear_log_snr}


def cosine_gamma(t, xp=jnp):
    """cos^2((t + s) / (1 + 5/4 s) pi/2), s = 0.0002: the signal's share of power, f32[...].

    The sigmoid of `cosine_log_snr` without its limit near t = 0, as DDP for depth computes it.
    """
    cosine = xp.cos((t + 0.0002) / 1.00025 * np.pi * 0.5)
    return cosine * cosine


def alpha_sigma(log_snr: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Weights of signal and noise, f32[...] each: sqrt(sigmoid(l)), sqrt(sigmoid(-l)).

    log_snr   l, f32[...]; the squares of the two weights add up to 1
    """
    return jnp.sqrt(jax.nn.sigmoid(log_snr)), jnp.sqrt(jax.nn.sigmoid(-log_snr))


def time_pairs(steps: int, difference: int = 1, start: float = 0.0) -> np.ndarray:
    """Times (now, next) of every reverse step from t = 1 on, f32[T, 2].

    difference  number of extra grid steps to `next`: the asymmetric intervals of Chen et al. (2023:
                Bit Diffusion) and Ji et al. (2023: DDP)
    start       time at which the last step arrives

    Raises UserError for fewer than one step.
    """
    if steps < 1:
        raise UserError(f"the number of reverse steps is {steps}, but it must be 1 or more. Try 3.")
    i = np.arange(steps)
    now = 1 - i / steps * (1 - start)
    then = np.maximum(1 - (i + 1 + difference) / steps * (1 - start), start)
    return np.stack([now, then], -1).astype(np.float32)


# ---- applying a noise level --------------------------------------------------------------------


def add_noise(x: jax.Array, eps: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """x_t = alpha x_0 + sigma eps; x, eps f32[B, ...], alpha, sigma f32[B]. Nothing is clipped."""
    return per_image(alpha, x) * x + per_image(sigma, x) * eps


def predict_clean(x_t: jax.Array, eps: jax.Array, alpha: jax.Array, sigma: jax.Array) -> jax.Array:
    """x_0 = (x_t - sigma eps) / alpha: the inverse of `add_noise` for the same noise."""
    return (x_t - per_image(sigma, x_t) * eps) / per_image(alpha, x_t)


def per_image(value: jax.Array, x: jax.Array) -> jax.Array:
    """value f[B] or f[] with axes of one appended, so that it multiplies x f[B, ...]."""
    return value.reshape(value.shape + (1,) * (x.ndim - value.ndim))
