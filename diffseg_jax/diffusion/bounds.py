"""Training losses and the variational bound, in bits per dimension; no network.

Shapes and t as in `process.py`. Every loss is one number per image, f32[B], a mean over H, W, C.
"""

import math

import jax
import jax.numpy as jnp

from diffseg_jax.diffusion.process import (
    Process,
    check_timesteps,
    noised,
    posterior,
    reverse,
    split_output,
    velocity,
)
from diffseg_jax.errors import UserError, choose, require_known

LOSSES = ("simple", "hybrid", "hybrid_rescaled", "kl")


def normal_kl(
    mean: jax.Array, log_variance: jax.Array, other_mean: jax.Array, other_log_variance: jax.Array
) -> jax.Array:
    """KL(N(mean, .) || N(other_mean, .)) in nats, element by element; shapes broadcast."""
    squared = jnp.square(mean - other_mean) * jnp.exp(-other_log_variance)
    # Summed from left to right as published: for nearly equal normals the sum is mostly rounding.
    ratio = jnp.exp(log_variance - other_log_variance)
    return (-1 + other_log_variance - log_variance + ratio + squared) / 2


def discretised_normal_log_likelihood(
    x: jax.Array, mean: jax.Array, log_scale: jax.Array
) -> jax.Array:
    """Log probability in nats that N(mean, exp(log_scale)^2) falls in the bin of x, elementwise.

    x   one of 256 values k / 127.5 - 1; its bin reaches 1 / 255 to both sides, those of -1 and 1 to
        infinity. Ho et al. (2020), equation 13. Probabilities below 1e-12 count as 1e-12.
    """
    offset, inverse_scale = x - mean, jnp.exp(-log_scale)
    upper = _normal_cdf((offset + 1 / 255) * inverse_scale)
    lower = _normal_cdf((offset - 1 / 255) * inverse_scale)
    inside = jnp.where(x > 0.999, 1 - lower, upper - lower)
    return jnp.log(jnp.maximum(jnp.where(x < -0.999, upper, inside), 1e-12))


def variational_bound(
    process: Process,
    output: jax.Array,
    x_0: jax.Array,
    x_t: jax.Array,
    t: jax.Array,
    target: str,
    variance: str,
    clip: bool = False,
) -> jax.Array:
    """One term of the bound, in bits per dimension, f32[B].

    For t > 0 KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)); for t = 0 minus the log likelihood of
    the 256 levels of x_0. The sum over all t and `prior_bits` is the whole bound. `output`,
    `target`, `variance` and `clip` as in `reverse`.
    """
    t = check_timesteps(t, process.steps)
    true_mean, _, true_log_variance = posterior(process, x_0, x_t, t)
    model = reverse(process, output, x_t, t, target, variance, clip)
    kl = normal_kl(true_mean, true_log_variance, model.mean, model.log_variance)
    decoded = discretised_normal_log_likelihood(x_0, model.mean, model.log_variance / 2)
    return jnp.where(t == 0, -_image_mean(decoded), _image_mean(kl)) / math.log(2)


def prior_bits(process: Process, x_0: jax.Array) -> jax.Array:
    """KL(q(x_{T-1} | x_0) || N(0, 1)) in bits per dimension, f32[B]: the signal that is left."""
    mean, _, log_variance = noised(process, x_0, process.steps - 1)
    return _image_mean(normal_kl(mean, log_variance, 0.0, 0.0)) / math.log(2)


def training_losses(
    process: Process,
    output: jax.Array,
    x_0: jax.Array,
    x_t: jax.Array,
    t: jax.Array,
    eps: jax.Array,
    target: str,
    variance: str,
    kind: str,
) -> dict[str, jax.Array]:
    """Losses of an output for x_t = noising(x_0, t, eps): f32[B] under "loss", "mse" and "vb".

    simple            mse of the mean half; a learned variance is then not trained
    hybrid            mse + vb, where vb trains only the learned variance: Nichol and Dhariwal
                      (2021), section 3.1
    hybrid_rescaled   the same with vb T / 1000, which is also the value of "vb"
    kl                vb T, which trains mean and variance

    Raises UserError for an unknown loss, target or variance, for a wrong number of channels, and
    for a hybrid loss without a learned variance.
    """
    require_known(kind, LOSSES, "loss")
    t = check_timesteps(t, process.steps)
    if kind == "kl":
        vb = variational_bound(process, output, x_0, x_t, t, target, variance)
        return {"loss": vb * process.steps, "vb": vb}
    mean_half, v = split_output(output, x_t.shape[-1], variance)
    mse = _image_mean(jnp.square(_goal(process, x_0, t, eps, target) - mean_half))
    if kind == "simple":
        return {"loss": mse, "mse": mse}
    if v is None:
        raise UserError(
            f'loss "{kind}" trains a learned variance, but variance is "{variance}". '
            f'Use loss "simple" or "kl", or variance "learned".'
        )
    frozen = jnp.concatenate([jax.lax.stop_gradient(mean_half), v], axis=-1)
    vb = variational_bound(process, frozen, x_0, x_t, t, target, variance)
    vb = vb * (process.steps / 1000) if kind == "hybrid_rescaled" else vb
    return {"loss": mse + vb, "mse": mse, "vb": vb}


def _goal(process, x_0, t, eps, target):
    goals = {
        "noise": lambda: eps,
        "image": lambda: x_0,
        "velocity": lambda: velocity(process, x_0, eps, t),
    }
    return choose(goals, target, "target")()


def _normal_cdf(z):
    # This approximation was used for the published losses. Beyond 10 it is exactly 0 or 1; without
    # the clip an overflowing cube would make the gradient 0 * inf.
    z = jnp.clip(z, -10, 10)
    return (1 + jnp.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))) / 2


def _image_mean(x):
    return jnp.mean(x, axis=tuple(range(1, x.ndim)))
