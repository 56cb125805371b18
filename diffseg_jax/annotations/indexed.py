"""Folders of palette or grey PNGs whose stored values are the ids, whatever colours they show."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from diffseg_jax.annotations.class_tables import find_colour_table, read_colour_table
from diffseg_jax.annotations.colour_masks import ids_of_indices, palette_colours
from diffseg_jax.annotations.mask_pairs import (
    indexed_image,
    indices_or_ignored,
    mask_files,
    save_masks,
    some_masks,
)
from diffseg_jax.annotations.photos import Photos
from diffseg_jax.annotations.regions import LabelFormat, LabelledSet, LabelMap, WriteOptions
from diffseg_jax.data.classes_json import read_classes
from diffseg_jax.data.labels import IGNORE, Labels
from diffseg_jax.data.palette import numbered_labels
from diffseg_jax.errors import UserError
from diffseg_jax.storage.paths import write_json

INDEX_FOLDER = "index_masks"


def _recognise(path: Path) -> bool:
    try:
        return any(len(palette_colours(mask)) > 1 for mask in some_masks(path))
    except UserError:
        return False


def _read(path: Path, photos: Photos) -> LabelledSet:
    masks = mask_files(path, photos)
    labels, rules = _classes(path, masks)
    count = len(labels.names)

    def each():
        for mask in masks:
            ids = ids_of_indices(mask.path)
            ids = ids if rules is None else rules.to_classes(ids, mask.path)
            yield mask.labelled(indices_or_ignored(ids, count, IGNORE, mask.path))

    return LabelledSet(labels.names, each(), labels.palette, count=len(masks))


def _classes(path, masks):
    """(classes, MaskRules or None) of classes.json, or of a table, in its order.

    Without either they are class_0 to that of the largest id.
    """
    if (path / "classes.json").is_file():
        return read_classes(path / "classes.json", 0)
    if (table := find_colour_table(path)) is not None:
        if table.suffix == ".json":
            return read_classes(table, 0)
        return read_colour_table(table), None
    largest = 0
    for mask in masks:
        ids = ids_of_indices(mask.path)
        largest = max(largest, int(ids[ids != IGNORE].max(initial=0)))
        if largest > IGNORE:
            raise UserError(
                f"mask {mask.path} has id {largest}, but label maps hold 255 classes. Number the "
                "classes from 0, or name them and their ids in classes.json and give --from=masks."
            )
    return numbered_labels(largest + 1), None


def _write(folder: Path, labels: Labels, maps: Iterable[LabelMap], options: WriteOptions):
    """Palette PNGs in the colours of the classes, and classes.json."""
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(labels.names)], colours[IGNORE] = labels.palette, (255, 255, 255)
    save_masks(folder / INDEX_FOLDER, maps, lambda ids: indexed_image(ids, colours))
    palette = [list(colour) for colour in labels.palette]
    write_json(folder / "classes.json", {"names": list(labels.names), "palette": palette})


INDEXED = LabelFormat(
    "a folder of PNGs whose indices, or grey values, are the ids",
    _recognise, _read, _write,
)  # fmt: skip
