"""The image files that labels belong to: their names, sizes and orientation."""

import io
import re
import unicodedata
from collections import defaultdict
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from diffseg_jax.data.files import files_below
from diffseg_jax.data.formats import image_endings, image_formats
from diffseg_jax.data.images import decode, read_file, read_image
from diffseg_jax.data.names import folded
from diffseg_jax.data.orientation import stored_orientation, stored_size, turned
from diffseg_jax.errors import UserError, shown

MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 1024  # of a file or folder, and of a path, on most systems
NO_TEXT = ("Cc", "Cs", "Zl", "Zp")  # control characters, bytes that are not UTF-8, ends of lines
DRIVE = re.compile("[A-Za-z]:")


def safe_name(name, file) -> tuple[str, bool]:
    """(a relative path with "/" that stays in its folder, whether it is the name as written).

    name  of an image as an annotation file has it. Of an absolute path, an address, and a path with
          "..", only the last part is kept
    file  the annotation file, for errors

    Raises UserError for what is no name of a file.
    """
    if not isinstance(name, str) or not name.strip():
        raise UserError(f"{file} names an image {shown(name)}, but a name of a file is text.")
    parts = name.replace("\\", "/").split("/")
    is_outside = not parts[0] or DRIVE.match(parts[0]) or ".." in parts or "://" in name
    kept = parts[-1:] if is_outside else [part for part in parts if part not in ("", ".")]
    if not kept or not kept[-1].strip(". ") or DRIVE.match(kept[-1]):
        raise UserError(f"{file} names an image {shown(name)}, which is no name of a file.")
    lengths = [len(part.encode(errors="replace")) + 1 for part in kept]
    if max(lengths) > MAX_NAME_BYTES - len(".json") or sum(lengths) > MAX_PATH_BYTES:
        raise UserError(f"{file} names an image {shown(name)}, which is too long for a file.")
    if not is_text(name):
        raise UserError(f"{file} names an image {shown(name)}, which holds control characters.")
    return "/".join(kept), not is_outside


def is_text(name: str) -> bool:
    """Whether a name is one line that UTF-8 can hold, without control characters.

    All spaces may be in it, such as those in the names of screenshots, and parts of emoji.
    """
    return not any(unicodedata.category(each) in NO_TEXT for each in name)


def stem_of(name: str) -> str:
    """The relative path of an image without its ending."""
    return str(PurePosixPath(name).with_suffix(""))


def name_of_split(file: str, split: str) -> str:
    """The name of a file of labels, of a split if there is one: tasks.json, tasks_train.json."""
    stem, ending = file.rsplit(".", 1)
    return f"{stem}_{split}.{ending}" if split else file


class Photo:
    """An image file, of which only the header is decoded.

    path     of the file, or its name in errors where `content` is given
    content  its bytes, if they are in memory already
    """

    def __init__(self, path: str | Path, content: bytes | None = None):
        self.path, self.content = path, content

    def encoded(self) -> bytes:
        """The bytes of the file; UserError if it cannot be read."""
        return read_file(self.path) if self.content is None else self.content

    @cached_property
    def _header(self):
        """((height, width) of the upright image, EXIF orientation)."""
        content = self.encoded()
        orientation = stored_orientation(content)
        try:
            with Image.open(io.BytesIO(content), formats=image_formats()) as image:
                size, is_tiff = image.size[::-1], image.format == "TIFF"
        except Exception:
            decode(self.path, content)  # says what is wrong
            raise
        if is_tiff and orientation != 1:  # Pillow turns it while it decodes
            return read_image(self.path, content).shape[:2], orientation
        return stored_size(size, orientation), orientation

    @property
    def orientation(self) -> int:
        """Its EXIF orientation, 1..8."""
        return self._header[1]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the upright image."""
        return self._header[0]

    def turns(self, size: tuple[int, int]) -> bool:
        """Whether labels drawn at a size (height, width) must be turned to lie on the image.

        Raises UserError if they fit neither the upright image nor the stored pixels.
        """
        upright, orientation = self._header
        stored = stored_size(upright, orientation)
        if size not in (upright, stored):
            raise UserError(
                f"image {self.path} is {upright[1]}x{upright[0]}, but its labels are of an image "
                f"of {size[1]}x{size[0]} (width x height). Give the images that were labelled, in "
                "their original size."
            )
        return size != upright

    def fits_both_ways(self) -> bool:
        """Whether sizes do not tell if labels were drawn on the upright image."""
        upright, orientation = self._header
        return orientation != 1 and stored_size(upright, orientation) == upright

    def upright(self, ids: np.ndarray) -> np.ndarray:
        """A label map [H,W] of the stored pixels, turned as the image is."""
        return turned(ids, self._header[1])


class Photos:
    """The image files below a folder; without a folder there are none."""

    def __init__(self, folder: Path | None = None):
        self.folder, self.files = folder, () if folder is None else self._list(folder)
        self.by_name, self.by_stem = defaultdict(list), defaultdict(list)
        self.found, self.only_by_name = {}, {}  # {file: the name, without ending, in the labels}
        for file in sorted(self.files):
            self.by_name[folded(file.rpartition("/")[2])].append(file)
            self.by_stem[folded(stem_of(file).rpartition("/")[2])].append(file)

    @staticmethod
    def _list(folder):
        if not folder.is_dir():
            raise UserError(f"--images={folder} is not a folder. Give that of the image files.")
        return frozenset(files_below(folder, image_endings()))

    def find(self, name: str) -> Photo | None:
        """The image with this relative path, or else the only one with its file name.

        Raises UserError if several have that name, and if labels of another name have that image.
        """
        named = [name] if name in self.files else self.by_name.get(folded(name.rpartition("/")[2]))
        return self._only(named, stem_of(name))

    def find_stem(self, stem: str) -> Photo | None:
        """As `find`, for a path without ending."""
        named = self.by_stem.get(folded(stem.rpartition("/")[2]), [])
        return self._only([file for file in named if stem_of(file) == stem] or named, stem)

    def _only(self, files, stem):
        if not files:
            return None
        if len(files) > 1:
            raise UserError(
                f"labels may belong to {files[0]} or to {files[1]} below {self.folder}, as only "
                "the names of these files are equal. Give --images of one of their folders."
            )
        if (before := self.found.setdefault(files[0], stem)) != stem:
            raise UserError(both_labels(before, stem, files[0], self.folder))
        if stem != stem_of(files[0]):
            self.only_by_name[files[0]] = stem
        return Photo(self.folder / files[0])

    def unused(self) -> list[str]:
        """The files that were not asked for."""
        return sorted(set(self.files) - self.found.keys())


def both_labels(one: str, other: str, file: str, folder: Path) -> str:
    """The sentence about an image that has the names of two labels."""
    return (
        f"labels of {one} and labels of {other} would both be those of {file} below {folder}, as "
        "only the name of that file is equal. Give images in the same folders as in the labels."
    )
