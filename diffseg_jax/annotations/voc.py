"""The layout of Pascal VOC: JPEGImages, SegmentationClass with a palette, ImageSets.

Masks are palette images of class indices, 255 = border. labelme2voc writes them too, and the names
of its classes into class_names.txt. CVAT ("Segmentation mask 1.1") writes the same folders with
colours, and labelmap.txt beside them.
"""

from collections.abc import Iterable
from pathlib import Path

from diffseg_jax.annotations.class_tables import (
    VOC_BORDER,
    VOC_NAMES,
    different_names,
    labelmap,
    read_colour_table,
    voc_colours,
)
from diffseg_jax.annotations.colour_masks import ColourIds, holds_colours, ids_of_indices
from diffseg_jax.annotations.mask_pairs import (
    indexed_image,
    indices_or_ignored,
    mask_files,
    save_masks,
)
from diffseg_jax.annotations.photos import Photos, stem_of
from diffseg_jax.annotations.regions import (
    IGNORED,
    LabelFormat,
    LabelledSet,
    LabelMap,
    Notes,
    WriteOptions,
)
from diffseg_jax.data.labels import IGNORE, Labels
from diffseg_jax.storage.paths import write_atomically

MASKS_OF_VOC, IMAGES_OF_VOC = "SegmentationClass", "JPEGImages"
LISTS_OF_VOC, TABLE_OF_VOC = "ImageSets/Segmentation", "labelmap.txt"
NAMES_OF_VOC = "class_names.txt"  # a name a line, in the order of the indices


def _recognise(path: Path) -> bool:
    return (path / MASKS_OF_VOC).is_dir()


def _read(path: Path, photos: Photos) -> LabelledSet:
    table, notes = path / TABLE_OF_VOC, Notes()
    has_table = table.is_file()
    labels = read_colour_table(table) if has_table else _labels(path, notes)
    folders = path / MASKS_OF_VOC, path / IMAGES_OF_VOC
    masks = mask_files(path, photos, folder=folders[0], images=folders[1])
    known = {rgb: index for index, rgb in enumerate(labels.palette)}
    known.setdefault(VOC_BORDER, IGNORED)
    lines = str(table) if has_table else f"{table}, with a line for each class"
    count, by_colour = len(labels.names), ColourIds(known, lines)

    def each():
        for mask in masks:
            if has_table or holds_colours(mask.path):
                ids = by_colour.read(mask.path)
            else:
                ids = ids_of_indices(mask.path)
                ids = indices_or_ignored(ids, count, IGNORE, mask.path)
            yield mask.labelled(ids)

    return LabelledSet(labels.names, each(), labels.palette, notes=notes, count=len(masks))


def _labels(path, notes):
    """The classes of a set without a table of colours: those of class_names.txt, or of VOC."""
    file = path / NAMES_OF_VOC
    names = different_names(file) if file.is_file() else tuple(VOC_NAMES.split(", "))
    if not file.is_file():
        rest = f"of Pascal VOC taken, as there is no {TABLE_OF_VOC} and no {NAMES_OF_VOC}"
        notes.add("classes", "name", rest, count=len(names))
    return Labels(names, voc_colours(len(names)))


def _write(folder: Path, labels: Labels, maps: Iterable[LabelMap], options: WriteOptions):
    """Palette PNGs, the list of their names, and labelmap.txt, since the classes are not VOC's."""
    names = []

    def listed():
        for each in maps:
            names.append(stem_of(each.name))
            yield each

    save_masks(folder / MASKS_OF_VOC, listed(), _indexed)
    text = "".join(f"{name}\n" for name in names)
    write_atomically(folder / LISTS_OF_VOC / f"{options.split or 'train'}.txt", text.encode())
    colours = voc_colours(len(labels.names))
    write_atomically(folder / TABLE_OF_VOC, labelmap(labels.names, colours).encode())


def _indexed(ids):
    return indexed_image(ids, voc_colours(256))


VOC = LabelFormat(
    "the folders of Pascal VOC: SegmentationClass (palette PNG, 255 = border) and JPEGImages",
    _recognise, _read, _write, image_folder=IMAGES_OF_VOC, lists_images=True,
)  # fmt: skip
