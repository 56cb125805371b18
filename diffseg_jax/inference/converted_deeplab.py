"""Writes a DeepLabV3 of torchvision as a directory that `load` opens."""

import os

from ml_collections import ConfigDict

from diffseg_jax.data.palette import distinct_colours
from diffseg_jax.devices.settings import own_settings
from diffseg_jax.inference.converted import (
    CONFIG,
    WHOLE_IMAGES,
    classes_meta,
    require_unused,
    save_converted,
)
from diffseg_jax.models.deeplab import DeepLabSettings
from diffseg_jax.storage.workdir import as_json
from diffseg_jax.systems.methods import SYSTEMS
from diffseg_jax.weights.deeplab import deeplab_settings, load_deeplab
from diffseg_jax.weights.formats import read_arrays

VOC_CLASSES = (
    "background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, "
    "dog, horse, motorbike, person, pottedplant, sheep, sofa, train, tvmonitor"
)
VOC_SHORT = 520  # pixels, of images in torchvision's evaluation of its released weights
TRAINED_SIDE = 256  # of images for a checkpoint that does not tell its crop; the paper's


@own_settings()
def convert_deeplab(
    path: str | os.PathLike, output: str | os.PathLike, part: str = "", short: int | None = None
) -> int:
    """Writes a DeepLabV3 in torchvision's names as a directory with one checkpoint.

    part   of the file, as of `read_arrays`
    short  shorter side to which images are resized, 0 = as they are; None = 520 for the 21 classes
           of torchvision's released weights, which have an auxiliary classifier, else 0

    Returns the number of parameters. Raises UserError for a file that cannot be read or holds
    another network, and for an output that exists.
    """
    require_unused(output)
    arrays, source = read_arrays(path, part), str(path)
    settings = deeplab_settings(arrays, source)
    classes, released = settings.num_classes, settings.auxiliary and settings.num_classes == 21
    short = short if short is not None else VOC_SHORT if released else 0
    config = {
        **CONFIG, "system": "deeplab", "new_head": False, "model": _model(settings),
        "evaluate": {**WHOLE_IMAGES, "short": short},
    }  # fmt: skip
    task = SYSTEMS["deeplab"].make_task(
        ConfigDict(config), "train", (TRAINED_SIDE, TRAINED_SIDE), classes
    )
    depths = "-".join(map(str, settings.depths))
    shown = f"a shorter side of {short}" if short else "their own size"
    print(
        f"{source}: a ResNet of depths {depths} and {settings.resnet.channels[-1]} channels, "
        f"{classes} classes, {'an' if settings.auxiliary else 'no'} auxiliary classifier; not in "
        f"the file, taken as published: output stride {settings.output_stride}, rates "
        f"{', '.join(map(str, settings.rates))}, images at {shown} (--short)"
    )
    named = classes_meta(classes)
    if released:
        names = VOC_CLASSES.split(", ")
        named = {"classes": names, "palette": [list(c) for c in distinct_colours(len(names))]}
    values = load_deeplab(arrays, settings, source)
    meta = {**as_json(task.meta), "size": [TRAINED_SIDE] * 2}
    return save_converted(output, values, path, config, meta, **named)


def _model(settings: DeepLabSettings) -> dict:
    """The part `model` of a config; torchvision weighs the auxiliary loss by 0.5."""
    return {
        "width": settings.width, "depths": settings.depths,
        "output_stride": settings.output_stride, "rates": settings.rates,
        "channels": settings.channels, "dropout": settings.dropout,
        "auxiliary": 0.5 if settings.auxiliary else 0.0,
    }  # fmt: skip
