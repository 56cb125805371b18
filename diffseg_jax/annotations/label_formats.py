"""All formats of labels, by name."""

from pathlib import Path

from diffseg_jax.annotations.black_white import BINARY
from diffseg_jax.annotations.cityscapes import CITYSCAPES_FORMAT
from diffseg_jax.annotations.coco import COCO_INSTANCES
from diffseg_jax.annotations.coco_panoptic import COCO_PANOPTIC
from diffseg_jax.annotations.colours import COLOURS
from diffseg_jax.annotations.cvat import CVAT
from diffseg_jax.annotations.indexed import INDEXED
from diffseg_jax.annotations.label_studio import LABEL_STUDIO
from diffseg_jax.annotations.labelme import LABELME
from diffseg_jax.annotations.mask_folder import MASKS
from diffseg_jax.annotations.predicted import PREDICTIONS
from diffseg_jax.annotations.voc import VOC
from diffseg_jax.annotations.yolo import YOLO
from diffseg_jax.errors import UserError

LABEL_FORMATS = {
    "masks": MASKS,
    "coco": COCO_INSTANCES,
    "coco_panoptic": COCO_PANOPTIC,
    "yolo": YOLO,
    "labelme": LABELME,
    "cvat": CVAT,
    "label_studio": LABEL_STUDIO,
    "voc": VOC,
    "colours": COLOURS,
    "binary": BINARY,
    "palette": INDEXED,
    "cityscapes": CITYSCAPES_FORMAT,
    "predictions": PREDICTIONS,
}


def recognised(path: Path) -> str:
    """The name of the format of a file or folder; UserError unless it is just one."""
    found = [name for name, each in LABEL_FORMATS.items() if each.recognise(path)]
    if len(found) == 1:
        return found[0]
    known = " or ".join(found) if found else ", ".join(LABEL_FORMATS)
    which = "may be of several formats" if found else "is of no format that is recognised"
    raise UserError(f"{path} {which}. Name it: --from={known}.")
