"""Masks in black and white: one for each image, or a folder of them for each class."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from diffseg_jax.annotations.colour_masks import inside_of_black_and_white
from diffseg_jax.annotations.entries import class_name, image_size
from diffseg_jax.annotations.mask_pairs import (
    folder_in,
    mask_files,
    require_folder_of_masks,
    some_masks,
    upright_mask,
)
from diffseg_jax.annotations.photos import Photos, stem_of
from diffseg_jax.annotations.regions import (
    LabelFormat,
    LabelledImage,
    LabelledRegion,
    LabelledSet,
    LabelMap,
    WriteOptions,
)
from diffseg_jax.data.classes_json import read_classes
from diffseg_jax.data.folder_source import SPLIT_NAMES
from diffseg_jax.data.labels import IGNORE, Labels
from diffseg_jax.data.mask_files import BLANK, GREY, content_of, is_image_folder, is_mask_folder
from diffseg_jax.data.masks import values_in
from diffseg_jax.errors import UserError
from diffseg_jax.storage.paths import write_json

BINARY_FOLDER = "binary_masks"
TWO = ("background", "object")


def _recognise(path: Path) -> bool:
    masks = some_masks(path)
    return bool(masks) and are_black_and_white(masks)


def are_black_and_white(paths: Iterable[str]) -> bool:
    """Whether masks hold 0 and 255 only, and at least one of them both."""
    seen = set()
    for path in paths:
        if content_of(path) not in (GREY, BLANK):
            return False
        try:
            seen |= values_in(path)[0].keys()
        except UserError:
            return False
    return seen == {0, IGNORE}


# ---- reading -----------------------------------------------------------------------------------


def _read(path: Path, photos: Photos) -> LabelledSet:
    require_folder_of_masks(path)
    folder = folder_in(path, is_mask_folder) or path
    folders = {name: folder / part for name, part in _folders(path, folder).items()}
    if not folders:
        masks = mask_files(path, photos)
        images = (mask.labelled(inside_of_black_and_white(mask.path) * 1) for mask in masks)
        return LabelledSet(_two_names(path), images, count=len(masks))
    found = {}
    images = folder_in(path, is_image_folder)
    for name, part in folders.items():
        if not part.is_dir():
            continue  # a class that no image shows
        for mask in mask_files(part, photos, folder=part, images=images):
            found.setdefault(mask.name, []).append((name, mask))
    sets = (_image(name, each) for name, each in sorted(found.items()))
    are_found = not (path / "classes.json").is_file()
    return LabelledSet(
        tuple(folders), sets, _colours(path, folders), are_found=are_found, count=len(found)
    )


def _folders(path, folder):
    """{class: its folder}; {} where masks lie in the folder itself, or in those of splits."""
    parts = sorted(each.name for each in folder.iterdir() if each.is_dir() and each.name[0] != ".")
    parts = [name for name in parts if not is_image_folder(name)]
    names = _listed(path).names if (path / "classes.json").is_file() else ()
    of_classes = {name: folder_of(name) for name in names}
    if set(of_classes.values()) & set(parts):
        if more := sorted({*parts} - {*of_classes.values()}):
            raise UserError(
                f"{folder / more[0]} is the folder of no class of {path}/classes.json. Add its "
                "name there, or move it away."
            )
        return of_classes
    if set(parts) <= {*SPLIT_NAMES}:
        return {}
    return {class_name(part, str(folder)): part for part in parts}


def _listed(path):
    """The classes of classes.json, in which ids have no meaning but 0 for black."""
    file = path / "classes.json"
    labels, rules = read_classes(file, 0)
    entries = {key for key in ("ids", "ignore", "zero_is_ignored") if rules.entries.get(key)}
    if len(labels.names) == 2 and (rules.entries.get("ids") or [0])[0] == 0:
        entries -= {"ids"}  # black and white, in this order
    if entries:
        raise UserError(
            f'{file} has "{sorted(entries)[0]}", but masks in black and white have no ids. Remove '
            "it; or, if the values are ids, give --from=masks or --from=palette."
        )
    return labels


def _two_names(path):
    if (path / "classes.json").is_file() and len(names := _listed(path).names) == 2:
        return names
    return TWO


def _colours(path, folders):
    if not (path / "classes.json").is_file():
        return ()
    labels = _listed(path)
    given = dict(zip(labels.names, labels.palette))
    return tuple(given[name] for name in folders)


def _image(name, masks):
    """An image whose masks of several classes are regions, the later class over the earlier."""
    sizes, regions, photo = {}, [], masks[0][1].photo
    for label, mask in masks:
        inside = upright_mask(mask, inside_of_black_and_white(mask.path))
        sizes[image_size(*inside.shape, str(mask.path))] = mask.path
        if inside.any():
            regions.append(LabelledRegion(label, mask=inside))
    if len(sizes) > 1:
        (one, path), (other, another), *_ = sizes.items()
        raise UserError(
            f"mask {path} is {one[1]}x{one[0]}, but {another}, of the same image, is "
            f"{other[1]}x{other[0]} (width x height). Masks of an image have the same size."
        )
    return LabelledImage(name, next(iter(sizes)), regions, photo=photo)


# ---- writing -----------------------------------------------------------------------------------


def folder_of(name: str) -> str:
    """The name of the folder of a class: without what file systems do not allow."""
    return re.sub(r"[^\w .()+-]", "_", name).strip(" .") or "_"


def _write(folder: Path, labels: Labels, maps: Iterable[LabelMap], options: WriteOptions):
    """A folder of 0 and 255 for each class, where it occurs, and classes.json with their order.

    Ignored pixels are in none of them.
    """
    folders = [folder_of(name) for name in labels.names]
    lower = [name.casefold() for name in folders]
    for name, part in zip(labels.names, lower):
        if lower.count(part) > 1:
            raise UserError(f'class "{name}" would have the folder of another class. Rename it.')
    for each in maps:  # an image without any class has an empty mask, so that it is known
        for label in np.unique(each.ids[each.ids != IGNORE]).tolist() or [0]:
            file = folder / BINARY_FOLDER / folders[label] / f"{stem_of(each.name)}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.where(each.ids == label, np.uint8(255), np.uint8(0))).save(file)
    palette = [list(colour) for colour in labels.palette]
    write_json(folder / "classes.json", {"names": list(labels.names), "palette": palette})


BINARY = LabelFormat(
    "black and white masks (0 and 255): one for each image, or a folder for each class",
    _recognise, _read, _write,
)  # fmt: skip
