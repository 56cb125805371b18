"""Whether the crops of stages fit their images, and which would."""

import operator
from collections.abc import Mapping

from ml_collections import ConfigDict

from diffseg_jax.config.options import FIT
from diffseg_jax.errors import UserError
from diffseg_jax.experiment.augmentation import STILL
from diffseg_jax.inference.views import Protocol
from diffseg_jax.systems.system import enlarging

COARSEST = 32  # pixels; crops of its multiples suit the networks of all methods


def check_crops(size: tuple[int, int], stages: Mapping[str, ConfigDict], padding: float):
    """Raises UserError when the first stage's crop is over `padding` times as large as one image.

    stages  name -> its options; of the first one and of others, whose crops the advice mends too
    """
    misfits = {
        name: largest
        for name, stage in stages.items()
        if any(map(operator.gt, stage.augment.crop, largest := _largest_crop(size, stage, padding)))
    }
    name = next(iter(stages))
    if name not in misfits:
        return
    height, width = _fitted_size(size, stages[name])
    crops = {misfit: _smaller_crop(size, stages[misfit]) for misfit in misfits}
    tries = []
    if min(map(min, crops.values())):
        tries.append(" ".join(f'--config.stages.{n}.augment.crop="{c}"' for n, c in crops.items()))
    if stages[name].kind != FIT:
        shorts = {n: _enlarged(stages[n], padding) for n in misfits}
        flags = " ".join(enlarging(n, stages[n].augment, short) for n, short in shorts.items())
        tries.append(f"{flags}, which enlarges the images")
    raise UserError(
        f"stages.{name}.augment.crop is {tuple(stages[name].augment.crop)}, but the images are "
        f"{height} x {width} before it and at most {misfits[name]} is allowed. "
        f"Try {', or '.join(tries)}."
    )


def _fitted_size(size, stage):
    options = stage.augment
    return Protocol(limit=tuple(options.limit), short=options.short).sizes(size)[0]


def _factor(stage, padding):
    return padding * stage.augment.get("scale", STILL["scale"])[1]


def _largest_crop(size, stage, padding):
    return tuple(int(_factor(stage, padding) * side) for side in _fitted_size(size, stage))


def _smaller_crop(size, stage):
    """A crop within an image of `size` that the network takes; of a fit the image itself."""
    fitted = _fitted_size(size, stage)
    if stage.kind == FIT:
        return fitted
    sides = zip(stage.augment.crop, fitted)
    return tuple(side if side <= image else image // COARSEST * COARSEST for side, image in sides)


def _enlarged(stage, padding):
    """A shorter side of images with which the crop is allowed."""
    side, factor = max(stage.augment.crop), _factor(stage, padding)
    return side if factor >= 1 else int(side / factor) + 1
