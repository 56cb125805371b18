"""Files that hold several images: frames of videos, pages of TIFFs, frames of animations."""

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from diffseg_jax.data.files import ends_with
from diffseg_jax.data.formats import PAGED_ENDINGS, VIDEO_ENDINGS
from diffseg_jax.data.images import numbers_of_pages, read_image, read_pages
from diffseg_jax.errors import UserError, counted
from diffseg_jax.inference.videos import count_frames, read_frames, reads_videos

MANY_FRAMES = 1000  # after which the note about them names --every


@dataclasses.dataclass(frozen=True)
class Frame:
    """One of several images in a file: a frame of a video, or a page; `str` names it.

    path    of the file;  number  from 0
    """

    path: str
    number: int

    def __str__(self):
        return f"{self.path}#{self.number}"


def container_of(source: str | Frame) -> str:
    """The path of the file of an image."""
    return source.path if isinstance(source, Frame) else source


def is_video(path: str) -> bool:
    """Whether a file has the ending of a video."""
    return ends_with(path, VIDEO_ENDINGS)


def frames_in(path: str, every: int = 1) -> list[str | Frame]:
    """The images of a file: its path, or every N-th frame or page where it holds several.

    A video that cannot be read has one frame; reading that says why. Raises UserError where the
    package that reads videos is missing.
    """
    if is_video(path):
        try:
            numbers = range(count_frames(path))
        except UserError:
            if not reads_videos():
                raise
            numbers = [0]
        return [Frame(path, number) for number in numbers[::every] or [0]]
    numbers = numbers_of_pages(path) if ends_with(path, PAGED_ENDINGS) else [0]
    return [path] if numbers == [0] else [Frame(path, number) for number in numbers[::every]]


def frames_note(found: Sequence[tuple[str, str | Frame]], every: int) -> tuple[str, ...]:
    """A sentence about files from which several images are taken; () for none.

    found  names and sources
    """
    taken = Counter(source.path for _, source in found if isinstance(source, Frame))
    taken = {path: count for path, count in taken.items() if count > 1}
    if not taken:
        return ()
    frames, (first, *others) = sum(taken.values()), taken
    files = f"{len(taken)} files hold" if others else f"{first} holds"
    example = f"; the first is {first}" if others else ""
    few = f" --every=10 takes {counted(-(-frames // 10), 'frame')}."
    rate = f", one in {every}" if every > 1 else ""
    advice = few if frames >= MANY_FRAMES and every == 1 else ""
    return (f"{files} several images, {counted(frames, 'frame')} taken{rate}{example}.{advice}",)


def read_each(
    found: Iterable[tuple[str, str | Frame]],
) -> Iterator[tuple[str, str | Frame, np.ndarray | UserError]]:
    """Name, source and image u8[H,W,3] of every image; or the error, where it cannot be read.

    found  names and sources; frames of one file stand together
    """
    for path, group in itertools.groupby(found, key=lambda item: container_of(item[1])):
        for is_frame, items in itertools.groupby(group, key=lambda i: isinstance(i[1], Frame)):
            if is_frame:
                yield from _frames(path, list(items))
                continue
            for name, source in items:
                yield name, source, _image_or_error(source)


def _image_or_error(path):
    try:
        return read_image(path)
    except UserError as error:
        return error


def _frames(path, items):
    """As read_each, of frames of one file."""
    waiting = {}
    for name, frame in items:  # a file may be given twice
        waiting.setdefault(frame.number, []).append((name, frame))
    read, numbers = read_frames if is_video(path) else read_pages, sorted(waiting)
    error = UserError(f"{path} ends before frame {numbers[-1]}. Replace or shorten the file.")
    try:
        for number, image in read(path, numbers):
            for name, frame in waiting.pop(number):
                yield name, frame, image
    except UserError as raised:
        error = raised
    for name, frame in itertools.chain(*waiting.values()):
        yield name, frame, error
