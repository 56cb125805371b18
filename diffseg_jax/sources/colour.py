"""Colour and position of every pixel: the features that need no network, a baseline."""

import jax
import jax.numpy as jnp

from diffseg_jax.models.inputs import scale_images
from diffseg_jax.models.taps import PixelFeatures, stack
from diffseg_jax.sources.feature_source import FeatureSource


def colour_features(
    values: dict, images: jax.Array, valid: jax.Array, other_seed=None
) -> PixelFeatures:  # fmt: skip
    """Colour and position of every pixel, five numbers in [-1, 1]; needs no network.

    Positions count in the image, without its padding, in which they are 1.
    """
    image = scale_images(images, valid)
    height, width = image.shape[1:3]
    rows = jnp.minimum((2 * jnp.arange(height) + 1) / valid[:, :1] - 1, 1)
    columns = jnp.minimum((2 * jnp.arange(width) + 1) / valid[:, 1:] - 1, 1)
    shape = len(images), height, width, 1
    rows = jnp.broadcast_to(rows[:, :, None, None], shape)
    columns = jnp.broadcast_to(columns[:, None, :, None], shape)
    return stack([jnp.concatenate([image, rows, columns], -1)], (height, width))


COLOUR = FeatureSource("colour", lambda key: {"params": {}, "stats": {}}, colour_features, None)
