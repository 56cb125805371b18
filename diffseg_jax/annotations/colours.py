"""Folders of masks in the colours of a classes.json, a labelmap.txt, or lines of r,g,b,name."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from diffseg_jax.annotations.class_tables import (
    TABLE_NAMES,
    find_colour_table,
    labelmap,
    means_nothing,
    read_colour_table,
)
from diffseg_jax.annotations.colour_masks import ColourIds
from diffseg_jax.annotations.mask_pairs import (
    mask_files,
    require_folder_of_masks,
    save_masks,
    some_masks,
)
from diffseg_jax.annotations.photos import Photos
from diffseg_jax.annotations.regions import LabelFormat, LabelledSet, LabelMap, WriteOptions
from diffseg_jax.data.labels import IGNORE, Labels
from diffseg_jax.data.mask_files import COLOUR, content_of
from diffseg_jax.data.palette import distinct_colours
from diffseg_jax.errors import UserError
from diffseg_jax.storage.paths import write_atomically

COLOUR_FOLDER, COLOUR_TABLE = "colour_masks", "labelmap.txt"
IGNORED_NAME = "ignored"


def _recognise(path: Path) -> bool:
    masks = some_masks(path)
    return bool(masks and find_colour_table(path)) and any(content_of(m) == COLOUR for m in masks)


def _read(path: Path, photos: Photos) -> LabelledSet:
    require_folder_of_masks(path)
    table = find_colour_table(path)
    if table is None:
        raise UserError(
            f"{path} holds no table of colours. Write {path}/{COLOUR_TABLE} with a line "
            f"name:r,g,b:: for each class, or one of {', '.join(TABLE_NAMES)}."
        )
    labels, masks = read_colour_table(table), mask_files(path, photos)
    known = ColourIds({rgb: index for index, rgb in enumerate(labels.palette)}, str(table))
    images = (mask.labelled(known.read(mask.path).astype(int)) for mask in masks)
    ignored = tuple(filter(means_nothing, labels.names))
    return LabelledSet(labels.names, images, labels.palette, ignored=ignored, count=len(masks))


def _write(folder: Path, labels: Labels, maps: Iterable[LabelMap], options: WriteOptions):
    """RGB PNGs, and labelmap.txt, which has a colour for ignored pixels besides."""
    free = [(0, 0, 0), *distinct_colours(IGNORE)]
    rest = next(rgb for rgb in free if rgb not in labels.palette)
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(labels.names)], palette[IGNORE] = labels.palette, rest
    save_masks(folder / COLOUR_FOLDER, maps, lambda ids: Image.fromarray(palette[ids]))
    names, colours = (*labels.names, IGNORED_NAME), (*labels.palette, rest)
    if IGNORED_NAME in labels.names:
        raise UserError(f'a class is called "{IGNORED_NAME}", as ignored pixels are. Rename it.')
    write_atomically(folder / COLOUR_TABLE, labelmap(names, colours).encode())


COLOURS = LabelFormat(
    "a folder of PNGs in colours, and classes.json, labelmap.txt or a list of r,g,b,name",
    _recognise, _read, _write,
)  # fmt: skip
