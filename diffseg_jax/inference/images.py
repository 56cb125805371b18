"""Images as a user has them: arrays, PIL images, files, folders, lists of these."""

import itertools
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import PurePath

import numpy as np
from PIL import Image

from diffseg_jax.data.files import ends_with, expanded, skipped_note, split_files
from diffseg_jax.data.formats import VIDEO_ENDINGS, image_endings
from diffseg_jax.data.mask_files import without_masks
from diffseg_jax.errors import UserError, counted, visible
from diffseg_jax.inference.frames import Frame, frames_in, is_video, read_each
from diffseg_jax.inference.image_objects import (
    ACCEPTED,
    from_array,
    from_file_content,
    from_pil,
    is_file_content,
)
from diffseg_jax.inference.videos import NEEDS_PYAV, reads_videos
from diffseg_jax.storage.paths import open_path, reachable
from diffseg_jax.storage.similar import similar_path

KEEP_FLAG = "To take them as images: --keep_masks=True; in Python, give a list of their paths."


def named_images(images) -> Iterator[tuple[str, np.ndarray]]:
    """(name, uint8[H,W,3]) of every image; each file is read when its turn comes.

    images  an array uint8[H,W,3] or uint8[B,H,W,3], a PIL image, a path of an image, a video or a
            folder (searched with its subfolders), a pattern such as "photos/*.jpg", the bytes of an
            image file, a file object, or an iterable of those

    The names are those of files, without ending, or 000000, 000001, ...; all names differ. Images
    are turned upright, as their EXIF orientation says. Raises UserError for anything else, and if
    there is no image.
    """
    count, taken = 0, set()
    for name, image in _images_in(images):
        yield unique_name(name or f"{count:06d}", taken), image
        count += 1
    if not count:
        raise UserError(f"no image was given. Give {ACCEPTED}.")


def _images_in(item) -> Iterator[tuple[str, np.ndarray]]:
    """(name or "", image) of every image that one object stands for."""
    if is_path(item):
        found, notes = find_images(item)
        for note in notes:
            warnings.warn(visible(note), stacklevel=2)
        for name, _, image in read_each(found):
            if isinstance(image, UserError):
                raise image
            yield name, image
    elif is_file_content(item):
        yield "", from_file_content(item)
    elif isinstance(item, Image.Image):
        yield "", from_pil(item)
    elif isinstance(item, np.ndarray) and item.dtype.kind in "OUS" and item.ndim:
        yield from _images_in(item.ravel().tolist())
    elif hasattr(item, "__array__") or isinstance(item, memoryview):
        yield from (("", image) for image in from_array(item))
    elif isinstance(item, Iterable) and not isinstance(item, Mapping):
        for each in item:
            yield from _images_in(each)
    else:
        raise UserError(f"images is a {type(item).__name__}, but must be {ACCEPTED}, or a list.")


def find_images(
    paths: str | os.PathLike | Sequence[str | os.PathLike], keep_masks: bool = False, every: int = 1
) -> tuple[list[tuple[str, str | Frame]], tuple[str, ...]]:
    """(name, source) of the images of files, patterns and folders; and sentences about the others.

    A source is the path of an image, or a frame of a video or of a file with several pages, of
    which one in `every` is taken.

    The images of a folder are sorted. The name is the path below the folder, or of the file,
    without ending; the ending is added if two names would be equal, and a number if they still are.
    The name of a frame is that of the file with the number of the frame. The sentences count the
    files of folders that do not end as images do, and those that look like masks, which are not
    among the images unless keep_masks is True. Raises UserError if a path does not exist, and for a
    folder without images.
    """
    found, notes = [], []
    for path in matching(paths):
        opened = open_path(path)
        with reachable(opened):
            if opened.is_file():
                found.append((PurePath(opened.name), path))
                continue
            if not opened.exists():
                near = similar_path(opened)
                raise UserError(f"there is no image or folder {path}. Check the path.{near}")
        files, others = split_files(opened, image_endings() + VIDEO_ENDINGS)
        notes += skipped_note(opened, others)
        files, sentences = _without_videos(opened, files)
        notes += sentences
        if not keep_masks:
            files, sentences = without_masks(opened, files, remedy=KEEP_FLAG)
            notes += sentences
        found += [(PurePath(file), f"{opened}/{file}") for file in files]
    return _with_frames(named_files(found), every), tuple(notes)


def _without_videos(folder, files):
    """The files, and a sentence about videos among them that cannot be read; UserError for none."""
    images = [file for file in files if reads_videos() or not is_video(file)]
    if len(images) == len(files):
        return files, ()
    videos = counted(len(files) - len(images), "video")
    if not images:
        raise UserError(f"{folder} holds no image but {videos}, and {NEEDS_PYAV}.")
    return images, (f"{videos} in {folder} skipped: {NEEDS_PYAV}",)


def named_files(found: Sequence[tuple[PurePath, str]]) -> list[tuple[str, str]]:
    """(name, path) of files below a folder, with their paths; names as of `find_images`."""
    stems = Counter(str(file.with_suffix("")) for file, _ in found)
    taken = {stem for stem, count in stems.items() if count == 1}
    names = []
    for file, path in found:
        stem = str(file.with_suffix(""))
        with_ending = str(file.with_name(file.name.replace(".", "_")))
        names.append((stem if stems[stem] == 1 else unique_name(with_ending, taken), path))
    return names


def _with_frames(named, every):
    """(name, source) of all images of files."""
    taken, found = {name for name, _ in named}, []
    for name, path in named:
        for source in frames_in(path, every):
            is_frame = isinstance(source, Frame)
            frame = unique_name(f"{name}_{source.number:06d}", taken) if is_frame else name
            found.append((frame, source))
    return found


def matching(
    paths: str | os.PathLike | Sequence[str | os.PathLike], endings: Sequence[str] = (),
    output: str = "",
) -> list[str]:  # fmt: skip
    """The paths, patterns replaced by what they match.

    Of a pattern's files only those with these endings are taken, () being those of images and
    videos, unless it matches nothing else. Of its folders, which are searched with their
    subfolders, none lies in another one. Patterns match nothing in the folder `output`, "" being
    none, where earlier results are.
    """
    found, endings = [], tuple(endings) or image_endings() + VIDEO_ENDINGS
    for path in [paths] if is_path(paths) else paths:
        if not os.fsdecode(path):
            raise UserError("the path of an image is empty. Give a file or a folder.")
        matches = expanded(path, output)
        folders = {each for each in matches if open_path(each).is_dir()}
        images = [each for each in matches if ends_with(each, endings) or each in folders]
        found += [each for each in images or matches if not _is_inside(each, folders)]
    return found


def _is_inside(path, folders):
    """Whether one of the folders is above a path."""
    return any(str(above) in folders for above in open_path(path).parents)


def unique_name(name: str, taken: set[str]) -> str:
    """The name, with a number after it if it is taken; adds it to `taken`."""
    numbered = (f"{name}_{number}" for number in itertools.count(2))
    unique = next(each for each in itertools.chain([name], numbered) if each not in taken)
    taken.add(unique)
    return unique


def is_path(item) -> bool:
    """Whether an object is the path of a file or folder."""
    return isinstance(item, str | os.PathLike)
