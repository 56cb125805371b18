"""The loss of depth maps. Depths are f32[B, H, W] in metres, 0 where nothing was measured."""

import dataclasses
import math

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class ScaleInvariantLoss:
    """sqrt(var(g) + mean_weight mean(g)^2), with g = ln(prediction + eps) - ln(depth + eps).

    Eigen et al. (NIPS 2014, equation 4), with the root and weights of DDP's recipe: the spread of
    the logarithms over all measured pixels of the images at once, with N - 1 below the sum, and
    less of their mean, which a wrong unit would change.

    mean_weight  of the mean's square
    eps          metres
    max_depth    metres; pixels beyond it are not measured
    """

    mean_weight: float = 0.15
    eps: float = 0.001
    max_depth: float = math.inf

    def __call__(
        self, prediction: jax.Array, depth: jax.Array, warm: bool | jax.Array = False
    ) -> tuple[jax.Array, jax.Array]:
        """The loss times the number of images, and that number, f32[] each.

        prediction  f32[B, H, W] in metres, above 0
        warm        leaves out the spread, as some recipes do at first; may be traced

        Without a measured pixel both are 0. Its mean over parts of a batch is the mean of the
        parts' losses, which differs from the loss of all images at once.
        """
        measured = (depth > 0) & (depth <= self.max_depth)
        ratio = jnp.log(jnp.where(measured, prediction, 1.0).astype(jnp.float32) + self.eps)
        ratio -= jnp.log(jnp.where(measured, depth, 1.0) + self.eps)
        count = jnp.sum(measured)
        mean = jnp.sum(ratio * measured) / jnp.maximum(count, 1)
        spread = jnp.sum(jnp.square((ratio - mean) * measured)) / jnp.maximum(count - 1, 1)
        total = jnp.where(warm, 0.0, spread) + self.mean_weight * jnp.square(mean)
        images = jnp.where(count > 0, jnp.float32(len(depth)), 0.0)
        return _root(total) * images, images


def _root(value):
    """The square root, whose slope at 0 is 0 and not infinite."""
    positive = value > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, value, 1.0)), 0.0)
