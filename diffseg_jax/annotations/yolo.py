"""Segmentation labels of YOLO, as Ultralytics reads them: a text file of polygons for each image.

A line is the index of a class, and x y of three corners or more, divided by the width and height of
the image. The classes are in data.yaml, or one a line in classes.txt. Text files are in folders
labels, image files at the same path in images: images/train/a.jpg and labels/train/a.txt, or
train/images/a.jpg and train/labels/a.txt; or both are side by side. Of overlapping objects, the
smaller is on top, as in Ultralytics.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import yaml

from diffseg_jax.annotations.class_tables import different_names
from diffseg_jax.annotations.entries import brief, class_name
from diffseg_jax.annotations.photos import Photo, Photos, stem_of
from diffseg_jax.annotations.polygons import joined_ring, traced
from diffseg_jax.annotations.regions import (
    LabelFormat,
    LabelledImage,
    LabelledRegion,
    LabelledSet,
    Notes,
)
from diffseg_jax.data.files import files_below
from diffseg_jax.data.formats import image_endings
from diffseg_jax.data.names import read_text
from diffseg_jax.errors import UserError, shown

LABEL_FOLDER, IMAGE_FOLDER = "labels", "images"
CLASS_FILES = ("classes.txt", "obj.names")  # a name a line
YOLO_SPLITS = ("train", "val", "test")
MAX_YAML = 10**6  # bytes
FARTHEST = 2.0  # a coordinate, above which it is in pixels, or wrong


def is_yolo(path: Path) -> bool:
    """Whether a path is a data.yaml, or a folder with one, or with classes.txt and labels."""
    return _yaml_in(path) is not None or bool(_list_in(path) and _text_files(path))


def _yaml_in(path):
    """The data.yaml of a path, or the only file of YAML with names in it; None without one."""
    files = [path] if path.is_file() else [*path.glob("*.yaml"), *path.glob("*.yml")]
    found = [file for file in files if file.suffix in (".yaml", ".yml") and _has_names(file)]
    usual = [file for file in found if file.stem == "data"]
    return (usual or found or [None])[0] if len(usual or found) < 2 else None


def _has_names(file):
    try:
        return any(line.startswith("names") for line in read_text(file).splitlines())
    except (OSError, UnicodeDecodeError):
        return False


def _list_in(path):
    return next((path / name for name in CLASS_FILES if (path / name).is_file()), None)


def read_yolo(path: Path, photos: Photos) -> LabelledSet:
    """The labels in the folder of a data.yaml; images are read for their sizes."""
    file, folder = _yaml_in(path), path if path.is_dir() else path.parent
    names = _names_in(file) if file else _lines(_list_in(folder), folder)
    texts, notes = _text_files(folder), Notes()
    if not texts:
        raise UserError(
            f"{folder} holds no .txt files of labels in a folder {LABEL_FOLDER}, nor beside "
            "images. Check --input."
        )
    images = {_stem(file): file for file in files_below(folder, image_endings())}
    stems = dict.fromkeys([_stem(text) for text in texts])
    if len(stems) < len(texts):
        raise UserError(f"{folder} holds two .txt files of labels for one image. Remove one.")
    text_of = dict(zip(stems, texts))
    unlabelled = [stem for stem in images if stem not in stems]

    def each():
        for stem in [*stems, *unlabelled]:
            photo, name = _photo(stem, images, folder, photos)
            if photo is None:
                rest = "whose image file is not found, so that its size is not known"
                notes.add("skipped", "label file", rest, text_of.get(stem, stem))
                continue
            text = text_of.get(stem)
            regions = _regions(folder / text, names, photo.size, notes) if text else ()
            yield LabelledImage(name, photo.size, regions, photo=photo)

    return LabelledSet(names, each(), notes=notes, count=len(stems) + len(unlabelled))


def _photo(stem, images, folder, photos):
    """(image file, its name) of a stem; (None, "") without one."""
    if photos.folder is not None:
        photo = photos.find_stem(stem)
        return photo, "" if photo is None else stem + Path(photo.path).suffix
    if stem not in images:
        return None, ""
    return Photo(folder / images[stem]), stem + PurePosixPath(images[stem]).suffix


def _stem(file):
    """The path of an image or of its labels, without its ending and the last of the two folders."""
    parts = list(PurePosixPath(stem_of(file)).parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] in (LABEL_FOLDER, IMAGE_FOLDER):
            del parts[index]
            break
    return "/".join(parts)


def _text_files(folder):
    """The text files below a folder that hold labels, relative to it."""
    found = files_below(folder, (".txt",))
    images = files_below(folder, image_endings())
    known = {_stem(file) for file in images}
    in_place = [
        file for file in found
        if LABEL_FOLDER in PurePosixPath(file).parts[:-1]
        and (_name_of(file) not in CLASS_FILES or _stem(file) in known)
    ]  # fmt: skip
    if in_place:
        return in_place
    beside = {stem_of(file) for file in images}
    return [file for file in found if stem_of(file) in beside and _name_of(file) not in CLASS_FILES]


def _name_of(file):
    return PurePosixPath(file).name.lower()


# ---- classes -------------------------------------------------------------------------------------


class _PlainLoader(yaml.SafeLoader):
    """Reads plain values; aliases, which can stand for more than memory holds, are refused."""

    def compose_node(self, parent, index):
        """As the base class."""
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("it holds an alias (*name), which is not read")
        return super().compose_node(parent, index)


def _names_in(file):
    """The classes in a data.yaml, in the order of their indices."""
    try:
        text = read_text(file)
        if len(text) > MAX_YAML:
            raise UserError(f"{file} is longer than {MAX_YAML} characters. Keep names and paths.")
        content = yaml.load(text, _PlainLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        line = " ".join(str(error).split())
        raise UserError(f"cannot read {file}: {line}. It must be YAML with names.") from None
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise UserError(
            f"{file}: names is {brief(names)}, but must list the classes: names: [sky, road], or "
            "names: {0: sky, 1: road}."
        )
    by_index = {_index(key): name for key, name in names.items()}
    if set(by_index) != set(range(len(names))):
        raise UserError(f"{file}: the indices of names must be 0 to {len(names) - 1}, each once.")
    return _different([_name(by_index[index], file) for index in range(len(names))], file)


def _index(key):
    return int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 5 else key


def _name(value, file):
    """A name; numbers are names too, but YAML reads yes and no as true and false."""
    if isinstance(value, bool):
        raise UserError(
            f"{file}: the name of a class is {brief(value)}, as YAML reads yes, no, on and off. "
            'Put quotes around it: "no".'
        )
    return class_name(str(value) if isinstance(value, int | float) else value, str(file))


def _lines(file, folder):
    """The classes in classes.txt."""
    if file is None:
        raise UserError(
            f"{folder} has no data.yaml with names and no {CLASS_FILES[0]}, so the classes are "
            "unknown. Write data.yaml: names: [sky, road]."
        )
    return different_names(file)


def _different(names, file):
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{file} names the class {shown(twice[0])} twice. Rename one of them.")
    return tuple(names)


def _text(file):
    try:
        return read_text(file)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {file}: {error}. It must be text in UTF-8.") from None


# ---- polygons ------------------------------------------------------------------------------------


def _regions(file, names, size, notes) -> Iterator[LabelledRegion]:
    """The polygons of a text file, in an image of (height, width)."""
    for number, line in enumerate(_text(file).splitlines(), 1):
        where, words = f"{file}, line {number}", line.split()
        if not words:
            continue
        try:
            values = np.array([float(word) for word in words])
        except ValueError:
            raise UserError(f"{where}: {shown(line)} is no line of numbers.") from None
        if not np.isfinite(values).all() or values[0] not in range(len(names)):
            raise UserError(
                f"{where}: the class is {shown(words[0])}, but {len(names)} classes are named, and "
                "all numbers must be finite."
            )
        if len(values) == 5:
            notes.add("skipped", "line", "that is a box, not a polygon", where)
            continue
        if len(values) < 7 or len(values) % 2 == 0:
            raise UserError(
                f"{where}: {len(values)} numbers, but a polygon is a class, and x y of three "
                "corners or more."
            )
        farthest = float(max(values[1:], key=abs))
        if abs(farthest) > FARTHEST:
            raise UserError(
                f"{where}: a coordinate is {shown(farthest)}, but coordinates are "
                "divided by the width or height of the image, so they lie in 0 to 1."
            )
        ring = values[1:].reshape(-1, 2) * size[::-1]
        yield LabelledRegion(names[int(values[0])], (ring,))


def write_yolo(folder, labels, maps, options):
    """Writes labels/<name>.txt, a line of every connected region, and data.yaml.

    A region with holes is one ring, with bridges of no width to its holes, as Ultralytics joins
    the parts of an object. With a split, data.yaml has the lines of all, so that it stays the same.
    """
    if options.split not in ("", *YOLO_SPLITS):
        raise UserError(
            f"split is {options.split}, but data.yaml has lines for {', '.join(YOLO_SPLITS)} only. "
            "Give --split=test, or another of them."
        )
    for each in maps:
        if wrong := {LABEL_FOLDER, IMAGE_FOLDER}.intersection(each.name.split("/")[:-1]):
            raise UserError(
                f"image {each.name} lies in a folder {wrong.pop()}, by which YOLO finds the labels "
                "of an image. Rename that folder, in the labels too."
            )
        scale = np.array(each.ids.shape[::-1], float)
        lines = []
        for region in traced(each.ids):
            ring = joined_ring(region.rings()) / scale
            numbers = " ".join(f"{value:.10g}" for value in ring.ravel().tolist())
            lines.append(f"{region.label} {numbers}\n")
        file = folder / LABEL_FOLDER / f"{stem_of(each.name)}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(lines), "utf-8")
    if options.split:
        content = {split: f"{IMAGE_FOLDER}/{split}" for split in YOLO_SPLITS}
    else:
        content = {"train": IMAGE_FOLDER, "val": IMAGE_FOLDER}
    content["names"] = dict(enumerate(labels.names))
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, "utf-8")


YOLO = LabelFormat(
    "a folder of YOLO (Ultralytics) with data.yaml, images/ and labels/ of polygons",
    is_yolo, read_yolo, write_yolo, overlap="smallest",
)  # fmt: skip
