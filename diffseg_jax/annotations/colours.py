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
from diffseg_jax.annotations.regions import (
    IGNORED,
    LabelFormat,
    LabelledSet,
    LabelMap,
    WriteOptions,
)
from diffseg_jax.data.classes_json import read_classes
from diffseg_jax.data.labels import IGNORE, Labels
from diffseg_jax.data.mask_files import COLOUR, content_of
from diffseg_jax.data.palette import distinct_colours
from diffseg_jax.errors import UserError
from diffseg_jax.storage.paths import write_atomically, write_json

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
    ids_of = {rgb: index for index, rgb in enumerate(labels.palette)}
    is_plain = table.suffix.lower() != ".json"
    if not is_plain:  # which says itself what is ignored
        rules = read_classes(table, 0)[1]
        ids_of = {rgb: rules.class_of(stored) for rgb, stored in rules.colours.items()}
        ids_of = {rgb: IGNORED if index == IGNORE else index for rgb, index in ids_of.items()}
    known = ColourIds(ids_of, str(table))
    images = (mask.labelled(known.read(mask.path)) for mask in masks)
    ignored = tuple(filter(means_nothing, labels.names)) if is_plain else ()
    return LabelledSet(labels.names, images, labels.palette, ignored=ignored, count=len(masks))


def _write(folder: Path, labels: Labels, maps: Iterable[LabelMap], options: WriteOptions):
    """RGB PNGs, labelmap.txt with a colour for ignored pixels besides, and classes.json.

    The second table says which colour is ignored, whatever names the classes have.
    """
    *palette, rest = _different((*labels.palette, (0, 0, 0)))
    if IGNORED_NAME in labels.names:
        raise UserError(f'a class is called "{IGNORED_NAME}", as ignored pixels are. Rename it.')
    table = labelmap((*labels.names, IGNORED_NAME), (*palette, rest))
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(palette)], colours[IGNORE] = palette, rest
    save_masks(folder / COLOUR_FOLDER, maps, lambda ids: Image.fromarray(colours[ids]))
    write_atomically(folder / COLOUR_TABLE, table.encode())
    content = {"names": list(labels.names), "palette": [list(rgb) for rgb in palette]}
    write_json(folder / "classes.json", content | {"ignore": [list(rest)]})


def _different(colours):
    """The colours, with another one for each that stands before."""
    free = (rgb for rgb in distinct_colours(IGNORE) if rgb not in colours)
    return [rgb if rgb not in colours[:at] else next(free) for at, rgb in enumerate(colours)]


COLOURS = LabelFormat(
    "a folder of PNGs in colours, and classes.json, labelmap.txt or a list of r,g,b,name",
    _recognise, _read, _write,
)  # fmt: skip
