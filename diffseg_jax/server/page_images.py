"""The images of a page: found once, named by their index, read and encoded when they are shown."""

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from diffseg_jax.data.files import ends_with
from diffseg_jax.data.formats import VIDEO_ENDINGS, image_formats
from diffseg_jax.data.images import complete, read_file, read_image, to_rgb
from diffseg_jax.data.orientation import orientation_of, stored_orientation, stored_size
from diffseg_jax.errors import UserError, visible
from diffseg_jax.inference.frames import Frame, container_of, frames_note, read_each
from diffseg_jax.inference.images import find_images, matching

BROWSER_FORMATS = {"JPEG": "image/jpeg", "PNG": "image/png"}
QUALITY, SMALL_QUALITY = 92, 80  # of JPEGs that are made for the browser, and of thumbnails
MAX_SIDE = 2048  # pixels of a thumbnail
KEY_DIGITS = 12  # of a SHA-256 in the names by which images are told apart


@dataclass(frozen=True)
class PageImage:
    """One image.

    name    below the folder of the images, without ending; differs from all others
    source  its path, or a frame of a file
    height, width  upright, pixels
    sha256  of the bytes of the file; of a frame, of its pixels and its number
    stamp   what tells without reading it that a file is the one of before, see `_stamp_of`
    """

    name: str
    source: str | Frame
    height: int
    width: int
    sha256: str
    stamp: str

    @property
    def key(self) -> str:
        """The first digits of its SHA-256: the same in another folder and under another name."""
        return key_of(self.sha256)

    def read(self) -> np.ndarray:
        """The upright pixels, u8[H,W,3]; UserError if they cannot be read or have another size."""
        ((_, _, image),) = read_each([(self.name, self.source)])
        if isinstance(image, UserError):
            raise image
        if image.shape[:2] != (self.height, self.width):
            raise UserError(
                f"{visible(str(self.source))} was {self.width}x{self.height} when the page was "
                f"opened and is {image.shape[1]}x{image.shape[0]} now. Start the command again."
            )
        return image


def list_images(
    paths: Sequence[str], known: Mapping[str, Mapping] | None = None, every: int = 1
) -> tuple[list[PageImage], list[str]]:
    """The images of files, folders and patterns, in their order; and sentences about the others.

    known  name -> {"stamp", "sha256", "height", "width"} of an earlier call; files that have not
           changed since are not read
    every  one in so many frames of a video, or pages of a file, is taken

    Raises UserError as `find_images` does, and if none of the images can be read.
    """
    found, notes = find_images(matching(paths), every=every)
    looked = {name: _look_at(name, source, (known or {}).get(name, {})) for name, source in found}
    frames = [(name, source) for name, source in found if looked[name] is None]
    for name, source, pixels in read_each(frames):  # each file is opened once
        looked[name] = _look_at_frame(name, source, pixels)
    images = [each for each in looked.values() if isinstance(each, PageImage)]
    unread = [f"not read: {each}" for each in looked.values() if isinstance(each, UserError)]
    if not images:
        raise UserError(f"none of {len(found)} images can be read. The first: {unread[0][10:]}")
    return images, [*notes, *frames_note(found, every), *unread]


def key_of(sha256: str) -> str:
    """The digits by which an image is named to the browser and in files."""
    return sha256[:KEY_DIGITS]


def _look_at(name, source, known) -> PageImage | UserError | None:
    """The PageImage of a source, or why its header cannot be read; None for a frame to be read."""
    stamp = _stamp_of(container_of(source))
    if stamp and known.get("stamp") == stamp:
        height, width, sha256 = (known[key] for key in ("height", "width", "sha256"))
        return PageImage(name, source, height, width, sha256, stamp)
    if isinstance(source, Frame):
        return None
    try:
        content = read_file(source)
        height, width = _upright_size(source, content)
    except UserError as error:
        return error
    return PageImage(name, source, height, width, hashlib.sha256(content).hexdigest(), stamp)


def _look_at_frame(name, frame, pixels) -> PageImage | UserError:
    """The PageImage of a frame; pixels: u8[H,W,3], or why they cannot be read."""
    if isinstance(pixels, UserError):
        return pixels
    digest = hashlib.sha256(f"{frame.number} ".encode())  # frames of a still scene are equal
    digest.update(np.ascontiguousarray(pixels))
    stamp = _stamp_of(frame.path)
    return PageImage(name, frame, *pixels.shape[:2], digest.hexdigest(), stamp)


def _stamp_of(path):
    """Size, times and number of a file; "" if they are not known, as in a bucket.

    The number tells two files apart that change their names and are equally old and large.
    """
    try:
        found = os.stat(path)
    except OSError:
        return ""
    return f"{found.st_size} {found.st_mtime_ns} {found.st_ctime_ns} {found.st_ino}"


def _upright_size(path, content):
    """(height, width) of the upright image, from its header."""
    try:
        with Image.open(io.BytesIO(content), formats=image_formats()) as image:
            size, is_measurement = image.size[::-1], image.mode[0] in "IF"
    except Exception:
        is_measurement = True
    if is_measurement:
        return read_image(path, content).shape[:2]  # raises UserError that says what is wrong
    return stored_size(size, stored_orientation(content))


# ---- for the browser -----------------------------------------------------------------------------


def encoded_image(image: PageImage) -> tuple[bytes, str]:
    """(content, media type) of the upright image; the file itself if browsers show it so."""
    if isinstance(image.source, str) and not ends_with(image.source, VIDEO_ENDINGS):
        content = read_file(image.source)
        if media := _shown_as_stored(content):
            return content, media
    return _jpeg(image.read(), QUALITY), "image/jpeg"


def _shown_as_stored(content):
    """The media type of a file that browsers show with the pixels that `read_image` returns."""
    with Image.open(io.BytesIO(content), formats=image_formats()) as image:
        media = BROWSER_FORMATS.get(image.format, "")
        is_plain = image.mode in ("RGB", "L") and "transparency" not in image.info
    return media if is_plain and stored_orientation(content) == 1 else ""


def thumbnail(image: PageImage, side: int) -> bytes:
    """A JPEG of the upright image whose longer side has at most `side` pixels."""
    small = _drafted(image, side)
    if small is None:
        small = Image.fromarray(image.read())
    small.thumbnail((side, side), Image.Resampling.BOX, reducing_gap=2.0)
    return _jpeg(small, SMALL_QUALITY)


def _drafted(image, side):
    """A JPEG decoded at a fraction of its size, at least `side`; None for other files."""
    if isinstance(image.source, Frame):
        return None
    content = read_file(image.source)
    try:
        with complete, Image.open(io.BytesIO(content), formats=("JPEG",)) as opened:
            opened.draft("RGB", (2 * side, 2 * side))
            return Image.fromarray(to_rgb(opened, image.source, orientation_of(opened)))
    except Exception:  # another format, or damaged, which reading it in full explains
        return None


def _jpeg(image, quality):
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()
