"""Cityscapes: leftImg8bit and gtFine, with label ids, train ids or colours; the 19 classes."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from diffseg_jax.annotations.colour_masks import ColourIds, ids_of_indices
from diffseg_jax.annotations.mask_pairs import mask_files, require_folder_of_masks
from diffseg_jax.annotations.photos import Photos, stem_of
from diffseg_jax.annotations.regions import (
    IGNORED,
    LabelFormat,
    LabelledSet,
    LabelMap,
    WriteOptions,
)
from diffseg_jax.data.class_ids import MaskRules, id_table
from diffseg_jax.data.files import files_below
from diffseg_jax.data.labels import IGNORE, Labels
from diffseg_jax.data.named_sets import CITYSCAPES, CITYSCAPES_CLASSES, cityscapes_table
from diffseg_jax.errors import UserError, shown

IMAGE_SUFFIX = "_leftImg8bit"
LABEL_IDS, TRAIN_IDS, COLOUR_SUFFIX = "_gtFine_labelIds", "_gtFine_labelTrainIds", "_gtFine_color"
MASK_SUFFIXES = (LABEL_IDS, TRAIN_IDS, COLOUR_SUFFIX)  # of the same labels, the best first
VOID_COLOURS = (  # of labels that are not evaluated and have a colour of their own
    (0, 0, 0), (111, 74, 0), (81, 0, 81), (250, 170, 160), (230, 150, 140), (180, 165, 180),
    (150, 100, 100), (150, 120, 90), (0, 0, 90), (0, 0, 110),
)  # fmt: skip
HINT = "The 19 classes and their ids are those of the published data set."


def _recognise(path: Path) -> bool:
    return path.is_dir() and _suffix_in(path) is not None


def _suffix_in(path):
    """The first of MASK_SUFFIXES that masks below a path have; None if there is none."""
    files = files_below(path / "gtFine" if (path / "gtFine").is_dir() else path, (".png",))
    return next(
        (end for end in MASK_SUFFIXES if any(file.endswith(f"{end}.png") for file in files)), None
    )


def _read(path: Path, photos: Photos) -> LabelledSet:
    require_folder_of_masks(path)
    suffix = _suffix_in(path)
    if suffix is None:
        raise UserError(
            f"{path} holds no mask whose name ends with {' or '.join(MASK_SUFFIXES)}.png. Give the "
            "folder that holds gtFine, or gtFine itself."
        )
    root = path / "gtFine" if (path / "gtFine").is_dir() else path
    images = path / "leftImg8bit" if root != path else path.parent / "leftImg8bit"
    masks = mask_files(path, photos, suffix, IMAGE_SUFFIX, folder=root, images=images)
    classes = _classes_of_colours() if suffix == COLOUR_SUFFIX else _classes_of_ids(suffix)
    labelled = (mask.labelled(classes(mask.path)) for mask in masks)
    return LabelledSet(CITYSCAPES.names, labelled, CITYSCAPES.palette, count=len(masks))


def _classes_of_colours():
    known = dict.fromkeys(VOID_COLOURS, IGNORED)
    known |= {rgb: index for index, rgb in enumerate(CITYSCAPES.palette)}
    return ColourIds(known, "the colours of Cityscapes").read


def _classes_of_ids(suffix):
    table = cityscapes_table() if suffix == LABEL_IDS else id_table(len(CITYSCAPES.names))
    rules = MaskRules(table, HINT)
    return lambda path: _with_ignored(rules.to_classes(ids_of_indices(path), path))


def _with_ignored(ids):
    return np.where(ids == IGNORE, IGNORED, ids.astype(np.int64))


def _write(folder: Path, labels: Labels, maps: Iterable[LabelMap], options: WriteOptions):
    """gtFine/..._gtFine_labelIds.png of label ids, as the test server takes; 255 becomes 0."""
    ids_of = {name: label_id for label_id, name, _ in CITYSCAPES_CLASSES}
    if unknown := [name for name in labels.names if name not in ids_of]:
        raise UserError(
            f"class {shown(unknown[0])} is none of the 19 of Cityscapes: {', '.join(ids_of)}. Name "
            "the classes so, or leave others out with --classes."
        )
    table = np.zeros(256, np.uint8)
    table[: len(labels.names)] = [ids_of[name] for name in labels.names]
    for each in maps:
        stem = stem_of(each.name).removesuffix(IMAGE_SUFFIX)
        file = folder / "gtFine" / f"{stem}{LABEL_IDS}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(table[each.ids]).save(file)


CITYSCAPES_FORMAT = LabelFormat(
    "gtFine of Cityscapes: label ids, train ids or colours; label ids are written",
    _recognise, _read, _write, image_folder="leftImg8bit",
)  # fmt: skip
