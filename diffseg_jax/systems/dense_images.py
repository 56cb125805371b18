"""Images as the input of a `DenseTask`: scaled, padded, and maps at their size again."""

import jax
import jax.numpy as jnp

from diffseg_jax.layers.resize import resize_bilinear, resize_nearest
from diffseg_jax.models.dense_network import MIN_SIDE
from diffseg_jax.models.descriptor import image_descriptor
from diffseg_jax.models.inputs import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    keys_of_images,
    scale_images,
)


def image_of(batch: dict):
    """The images u8[B,h,w,3] of a batch, and their valid (height, width)."""
    return batch["image"], batch["valid"]


def encode_image(model, images, valid, keys=None):
    """Merged features f[B,h,w,E] of images u8[B,H,W,3], and named features."""
    return model.encode(scale_images(images, valid, IMAGENET_MEAN, IMAGENET_STD), keys)


def pad_image(images):
    """Images padded to at least 32 pixels a side."""
    padding = [(0, max(MIN_SIDE - side, 0)) for side in images.shape[1:3]]
    return jnp.pad(images, ((0, 0), *padding, (0, 0)))


def noise_keys(purpose: str, images, seed) -> jax.Array:
    """A key per image, see `keys_of_images`."""
    return keys_of_images(images, seed, purpose)


def describe_image(x, images, valid) -> dict:
    """{"descriptor"}: that of merged features, as of `image_descriptor`."""
    return {"descriptor": image_descriptor([x], valid, images.shape[1:3])}


def enlarged(maps, padded, images):
    """Maps of cells at the size of the images, bilinear: f32[B,h,w,C] -> f32[B,H,W,C]."""
    height, width = images.shape[1:3]
    return resize_bilinear(maps, padded.shape[1:3])[:, :height, :width]


def repeated(cells, padded, images):
    """The same with the nearest cells."""
    height, width = images.shape[1:3]
    return resize_nearest(cells, padded.shape[1:3])[:, :height, :width]
