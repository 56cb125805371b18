"""Images of frost: those of a folder, and textures drawn in their place.

The published corruption lays one of five photographs over the image. They are no part of this
package: who has them names their folder. The textures drawn here make another corruption, which has
another name, and whose numbers are not those of the published one.
"""

import numpy as np
from PIL import Image

from diffseg_jax.data.corruption_weather import fog_side, plasma
from diffseg_jax.data.files import list_files
from diffseg_jax.data.formats import image_endings
from diffseg_jax.data.images import read_image
from diffseg_jax.storage.paths import open_path

NEEDLES, NEEDLE, SHARE = 7, 40, 0.006  # directions, pixels of length, share of pixels they start at
TINT = (0.86, 0.94, 1.0)  # of the brightest crystals


def read_frost(folder: str) -> tuple[np.ndarray, ...]:
    """All images of a folder as uint8[H, W, 3]; UserError if it is missing or holds none."""
    root = open_path(folder)
    return tuple(read_image(root / name) for name in list_files(root, image_endings()))


def frost_crop(frost, size: tuple[int, int], rng: np.random.Generator, shrink: float = 1.0):
    """A random crop uint8[H, W, 3] of one of the images, each as likely as the others.

    size    (height, width); an image that is not larger is enlarged to be
    shrink  factor by which the image is made smaller first
    """
    image = frost[rng.integers(len(frost))]
    sides = image.shape[:2]
    factor = max(shrink, *((side + 1) / has for side, has in zip(size, sides, strict=True)))
    if factor != 1:
        new = [max(round(factor * has), side + 1) for side, has in zip(size, sides, strict=True)]
        image = np.asarray(Image.fromarray(image).resize(new[::-1], Image.Resampling.BILINEAR))
    top, left = (
        int(rng.integers(has - side)) for side, has in zip(size, image.shape, strict=False)
    )
    return image[top : top + size[0], left : left + size[1]]


def drawn_frost(size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """A texture uint8[H, W, 3] like frost on a window: a veil, and needles in some directions."""
    from scipy.signal import fftconvolve  # a slow import

    height, width = size
    side = fog_side(height, width)
    veil = plasma(side, rng.random(side**2 - 1), 1.8)[:height, :width]
    needles = np.zeros(size)
    for angle in rng.uniform(0, np.pi, NEEDLES):
        seeds = (rng.random(size) < SHARE) * rng.uniform(0.3, 1, size)
        needles = np.maximum(needles, fftconvolve(seeds, _needle(angle), mode="same"))
    light = 0.25 + 0.35 * veil + 0.7 * np.clip(needles, 0, 1) * (0.3 + veil)
    coloured = np.clip(light, 0, 1)[..., None] ** (1 / np.array(TINT))
    return (255 * coloured).astype(np.uint8)


def _needle(angle):
    """A line through the middle that fades to both ends, f64[2 n + 1, 2 n + 1]."""
    axis = np.arange(-NEEDLE, NEEDLE + 1)
    along = axis * np.cos(angle) + axis[:, None] * np.sin(angle)
    across = axis[:, None] * np.cos(angle) - axis * np.sin(angle)
    return np.exp(-((across / 0.7) ** 2) - np.abs(along) / (0.3 * NEEDLE))
