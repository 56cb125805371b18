"""Images as a user has them: arrays, PIL images, files, folders, lists of these."""

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import PurePath

import numpy as np
from PIL import Image

from diffseg_jax.data.files import IMAGE_ENDINGS, list_files
from diffseg_jax.data.images import read_image, to_rgb
from diffseg_jax.data.orientation import orientation_of
from diffseg_jax.errors import UserError
from diffseg_jax.storage.paths import open_path, reachable

ACCEPTED = "uint8 arrays [H, W, 3] or [B, H, W, 3], PIL images, paths of images or of folders"


def named_images(images) -> Iterator[tuple[str, np.ndarray]]:
    """(name, uint8[H,W,3]) of every image; each file is read when its turn comes.

    images  an array uint8[H,W,3] or uint8[B,H,W,3], a PIL image, a path of an image or of a folder
            (searched with its subfolders), or a sequence of those

    The names are those of files, without ending, or 000000, 000001, ...; all names differ. Images
    are turned upright, as their EXIF orientation says. Raises UserError for anything else, and if
    there is no image.
    """
    if _is_path(images) or isinstance(images, Image.Image) or hasattr(images, "__array__"):
        images = [images]
    if not isinstance(images, Sequence | Iterator):
        raise UserError(f"images is a {type(images).__name__}, but must be {ACCEPTED}, or a list.")
    count, taken = 0, set()
    for item in images:
        if _is_path(item):
            found = ((name, read_image(path)) for name, path in list_images(item))
        else:
            found = (("", image) for image in _arrays(item))
        for name, image in found:
            yield _unique(name or f"{count:06d}", taken), image
            count += 1
    if not count:
        raise UserError(f"no image was given. Give {ACCEPTED}.")


def list_images(paths: str | os.PathLike | Sequence[str | os.PathLike]) -> list[tuple[str, str]]:
    """(name, path) of the images of files and folders, those of a folder sorted.

    The name is the path below the folder, or of the file, without ending; the ending is added if
    two names would be equal, and a number if they still are. Raises UserError if a path does not
    exist, and for a folder without images.
    """
    found = []
    for path in [paths] if _is_path(paths) else paths:
        if not str(path):
            raise UserError("the path of an image is empty. Give a file or a folder.")
        opened = open_path(path)
        with reachable(opened):
            if opened.is_file():
                found.append((PurePath(opened.name), str(path)))
                continue
            if not opened.exists():
                raise UserError(f"there is no image or folder {path}. Check the path.")
        found += [(PurePath(f), f"{opened}/{f}") for f in list_files(opened, IMAGE_ENDINGS)]
    stems = Counter(str(file.with_suffix("")) for file, _ in found)
    taken = {stem for stem, count in stems.items() if count == 1}
    names = []
    for file, path in found:
        stem = str(file.with_suffix(""))
        with_ending = str(file.with_name(file.name.replace(".", "_")))
        names.append((stem if stems[stem] == 1 else _unique(with_ending, taken), path))
    return names


def _unique(name: str, taken: set[str]) -> str:
    """The name, with a number after it if it is taken; adds it to `taken`."""
    numbered = (f"{name}_{number}" for number in itertools.count(2))
    unique = next(each for each in itertools.chain([name], numbered) if each not in taken)
    taken.add(unique)
    return unique


def _is_path(item):
    return isinstance(item, str | os.PathLike)


def _arrays(item) -> Iterator[np.ndarray]:
    """The images of an array or a PIL image."""
    if isinstance(item, Image.Image):
        item = to_rgb(item, "of PIL", orientation_of(item))
    array = np.asarray(item)
    has_shape = array.ndim in (3, 4) and array.shape[-1] == 3 and array.size
    if array.dtype != np.uint8 or not has_shape:
        advice = ""
        if array.dtype.kind == "f" and has_shape:
            advice = " Values in [0, 1]: np.rint(255 * image).astype(np.uint8)."
        elif array.ndim == 2:
            advice = " Grey: np.repeat(image[..., None], 3, -1)."
        elif array.ndim in (3, 4) and array.shape[-1] == 4:
            advice = " Without transparency: image[..., :3]."
        raise UserError(
            f"an image is {array.dtype}{list(array.shape)}, but images must be {ACCEPTED}.{advice}"
        )
    yield from array if array.ndim == 4 else [array]
