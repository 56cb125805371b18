"""Image and mask files for the tests of data sets."""

import io

import numpy as np
from PIL import Image

RNG = np.random.default_rng(0)


def random_image(height=4, width=6):
    return RNG.integers(0, 256, (height, width, 3), np.uint8)


def random_ids(num_classes=3, height=4, width=6, dtype=np.uint8):
    return RNG.integers(0, num_classes, (height, width)).astype(dtype)


def save_image(path, array, mode=None):
    """Writes an array as the ending of the path says; mode "P" makes a palette PNG of ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif mode == "P":
        image = Image.fromarray(array, "L").copy()
        image.putpalette([i % 256 for i in range(768)])
        image.save(path)
    else:
        Image.fromarray(array).save(path)
    return array


def labelled_folder(path, masks, split="train", ending=".png"):
    """Images and the given masks, by name, in the layout of data set folder."""
    for name, mask in masks.items():
        save_image(path / "images" / split / f"{name}.png", random_image(*mask.shape))
        save_image(path / "masks" / split / f"{name}{ending}", mask)
    return str(path)


def png_bytes(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()
