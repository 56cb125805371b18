"""The layout of Pascal VOC: JPEGImages, SegmentationClass with a palette, ImageSets.

Masks are palette images of class indices, 255 = border; CVAT ("Segmentation mask 1.1") writes the
same folders with colours, and labelmap.txt beside them.
"""

from collections.abc import Iterable
from pathlib import Path

from diffseg_jax.annotations.class_tables import (
    VOC_BORDER,
    VOC_NAMES,
    labelmap,
    read_colour_table,
    voc_colours,
)
from diffseg_jax.annotations.colour_masks import ColourIds, ids_of_indices, palette_colours
from diffseg_jax.annotations.mask_pairs import (
    indexed_image,
    indices_or_ignored,
    mask_files,
    save_masks,
)
from diffseg_jax.annotations.photos import Photos, stem_of
from diffseg_jax.annotations.regions import (
    LabelFormat,
    LabelledSet,
    LabelMap,
    WriteOptions,
)
from diffseg_jax.data.labels import IGNORE, Labels
from diffseg_jax.storage.paths import write_atomically

MASKS_OF_VOC, IMAGES_OF_VOC = "SegmentationClass", "JPEGImages"
LIST_OF_VOC, TABLE_OF_VOC = "ImageSets/Segmentation/train.txt", "labelmap.txt"


def _recognise(path: Path) -> bool:
    return (path / MASKS_OF_VOC).is_dir()


def _read(path: Path, photos: Photos) -> LabelledSet:
    names = tuple(VOC_NAMES.split(", "))
    labels, table = Labels(names, voc_colours(len(names))), path / TABLE_OF_VOC
    if table.is_file():
        labels = read_colour_table(table)
    folders = path / MASKS_OF_VOC, path / IMAGES_OF_VOC
    masks = mask_files(path, photos, folder=folders[0], images=folders[1])
    known = {rgb: index for index, rgb in enumerate(labels.palette)}
    known.setdefault(VOC_BORDER, IGNORE)
    count, by_colour = len(labels.names), ColourIds(known, str(table))

    def each():
        for mask in masks:
            ids = _ids(mask.path, by_colour)
            yield mask.labelled(indices_or_ignored(ids, count, IGNORE, mask.path))

    return LabelledSet(labels.names, each(), labels.palette, count=len(masks))


def _ids(path, by_colour):
    """The ids of a mask: by its colours where all of them are known, else its indices.

    So a palette that is not VOC's does not make ids of colours, and colours need no palette.
    """
    used = palette_colours(path)
    shown = [by_colour.colours.get(rgb) for rgb in used.values()]
    if used and (None in shown or shown == [*used]):
        return ids_of_indices(path)
    return by_colour.read(path)


def _write(folder: Path, labels: Labels, maps: Iterable[LabelMap], options: WriteOptions):
    """Palette PNGs, the list of their names, and labelmap.txt, since the classes are not VOC's."""
    names = []

    def listed():
        for each in maps:
            names.append(stem_of(each.name))
            yield each

    save_masks(folder / MASKS_OF_VOC, listed(), _indexed)
    text = "".join(f"{name}\n" for name in names)
    write_atomically(folder / LIST_OF_VOC, text.encode())
    colours = voc_colours(len(labels.names))
    write_atomically(folder / TABLE_OF_VOC, labelmap(labels.names, colours).encode())


def _indexed(ids):
    return indexed_image(ids, voc_colours(256))


VOC = LabelFormat(
    "the folders of Pascal VOC: SegmentationClass (palette PNG, 255 = border) and JPEGImages",
    _recognise, _read, _write, image_folder=IMAGES_OF_VOC,
)  # fmt: skip
