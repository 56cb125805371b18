"""The random changes of training images, by the options of a stage."""

import functools
from collections.abc import Callable, Mapping

import numpy as np

from diffseg_jax.data.transforms import augment

STILL = dict(scale=(1.0, 1.0), max_class_share=1.0, flip=False, photometric=False)  # for a fit


def blank_image(options: Mapping) -> dict:
    """A black example of the size of a stage's crops; options: of the stage."""
    height, width = options["augment"]["crop"]
    return {"image": np.zeros((height, width, 3), np.uint8), "name": "blank"}


def blank_map(options: Mapping, dtype) -> np.ndarray:
    """The truth beside a `blank_image`: zeros."""
    return np.zeros(tuple(options["augment"]["crop"]), dtype)


def augmentation(options: Mapping, labelled: bool) -> Callable:
    """(image, mask, rng) -> example; unlabelled stages never see a mask."""
    changes = {key: value for key, value in options.items() if key != "variants"}
    change = functools.partial(augment, **{**STILL, **changes})
    return change if labelled else functools.partial(_without_mask, change)


def _without_mask(change, image, mask, rng):
    return change(image, None, rng)
