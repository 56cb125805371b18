"""Pictures as a user has them: arrays, PIL images, files, folders, lists of these."""

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePath

import numpy as np
from PIL import Image

from diffseg_jax.data.files import IMAGE_ENDINGS, list_files
from diffseg_jax.data.images import read_image, upright
from diffseg_jax.errors import UserError
from diffseg_jax.storage.paths import open_path, reachable

KINDS = "uint8 arrays [H, W, 3] or [B, H, W, 3], PIL images, paths of pictures or of folders"


def named_pictures(images) -> Iterator[tuple[str, np.ndarray]]:
    """(name, uint8[H,W,3]) of every picture; files are read when it is their turn.

    images  an array uint8[H,W,3] or uint8[B,H,W,3], a PIL image, a path of a picture or of a folder
            (searched with its subfolders), or a sequence of those

    Names are of files, without ending, or 000000, 000001, ...; no two are alike. Pictures are
    turned upright, as their EXIF orientation says. Raises UserError for anything else, and when
    nothing is there.
    """
    if _is_path(images) or isinstance(images, Image.Image) or hasattr(images, "__array__"):
        images = [images]
    if not isinstance(images, Sequence | Iterator):
        raise UserError(f"images is a {type(images).__name__}, but must be {KINDS}, or a list.")
    count, taken = 0, set()
    for item in images:
        if _is_path(item):
            found = ((name, read_upright(path)) for name, path in list_pictures(item))
        else:
            found = (("", picture) for picture in _arrays(item))
        for name, picture in found:
            yield _free(name or f"{count:06d}", taken), picture
            count += 1
    if not count:
        raise UserError(f"no picture was given. Give {KINDS}.")


def list_pictures(
    paths: str | os.PathLike | Sequence[str | os.PathLike],
) -> list[tuple[str, str]]:
    """(name, path) of the pictures of files and folders, those of a folder sorted.

    The name is the path below the folder, or of the file, without ending; with it where two would
    be alike, and with a number where they still are. Raises UserError when there is nothing, or no
    picture.
    """
    found = []
    for path in [paths] if _is_path(paths) else paths:
        if not str(path):
            raise UserError("the path of a picture is empty. Give a file or a folder.")
        place = open_path(path)
        with reachable(place):
            if place.is_file():
                found.append((PurePath(place.name), str(path)))
                continue
            if not place.exists():
                raise UserError(f"there is no picture or folder {path}. Check the path.")
        found += [(PurePath(f), f"{place}/{f}") for f in list_files(place, IMAGE_ENDINGS)]
    stems = Counter(str(file.with_suffix("")) for file, _ in found)
    taken = {stem for stem, count in stems.items() if count == 1}
    names = []
    for file, path in found:
        stem = str(file.with_suffix(""))
        long = str(file.with_name(file.name.replace(".", "_")))
        names.append((stem if stems[stem] == 1 else _free(long, taken), path))
    return names


def _free(name: str, taken: set[str]) -> str:
    """The name, or with a number after it where it is taken; notes that it is now."""
    numbered = (f"{name}_{number}" for number in itertools.count(2))
    free = next(each for each in itertools.chain([name], numbered) if each not in taken)
    taken.add(free)
    return free


def read_upright(path: str) -> np.ndarray:
    """A file as uint8[H,W,3], turned as its EXIF orientation says; UserError when it cannot be."""
    return read_image(path, apply_orientation=True)


def _is_path(item):
    return isinstance(item, str | os.PathLike)


def _arrays(item) -> Iterator[np.ndarray]:
    """The pictures of an array or a PIL image."""
    if isinstance(item, Image.Image):
        item = np.asarray(upright(item).convert("RGB"))
    array = np.asarray(item)
    is_pictures = array.ndim in (3, 4) and array.shape[-1] == 3 and array.size
    if array.dtype != np.uint8 or not is_pictures:
        advice = ""
        if array.dtype.kind == "f" and is_pictures:
            advice = " Values in [0, 1]: np.rint(255 * image).astype(np.uint8)."
        elif array.ndim == 2:
            advice = " Grey: np.repeat(image[..., None], 3, -1)."
        elif array.ndim in (3, 4) and array.shape[-1] == 4:
            advice = " Without transparency: image[..., :3]."
        raise UserError(
            f"a picture is {array.dtype}{list(array.shape)}, but pictures must be {KINDS}.{advice}"
        )
    yield from array if array.ndim == 4 else [array]
