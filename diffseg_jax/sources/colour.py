"""Colour and position of every pixel: the features that need no network, a baseline."""

import jax
import jax.numpy as jnp

from diffseg_jax.models.inputs import scale_images
from diffseg_jax.models.taps import PixelFeatures, stack
from diffseg_jax.sources.feature_source import FeatureSource


def colour_features(
    values: dict, images: jax.Array, valid: jax.Array, other_seed=None
) -> PixelFeatures:  # fmt: skip
    """Colour and position of every pixel, five numbers in [-1, 1]; needs no network."""
    image = scale_images(images, valid)
    rows, columns = ((2 * jnp.arange(side) + 1) / side - 1 for side in image.shape[1:3])
    grid = jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), -1)
    maps = jnp.concatenate([image, jnp.broadcast_to(grid, (*image.shape[:3], 2))], -1)
    return stack([maps], image.shape[1:3])


COLOUR = FeatureSource("colour", lambda key: {"params": {}, "stats": {}}, colour_features, None)
