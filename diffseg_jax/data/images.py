"""Image files, decoded; whatever is wrong with one is a UserError with its path."""

import io
import os
import shlex
import struct
import threading
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from diffseg_jax.data.formats import image_formats
from diffseg_jax.data.orientation import orientation_of, turned
from diffseg_jax.errors import UserError, counted
from diffseg_jax.storage.paths import open_path, read_bytes

MAX_PIXELS = 178_000_000  # Pillow's own limit for decompression bombs
NEW_SUBFILE_TYPE, SUBFILE_TYPE, BITS, SAMPLES = 254, 255, 258, 277  # tags of a TIFF


def read_image(path, encoded=None, as_stored=False):
    """An image as uint8[H,W,3], RGB, upright; grey is repeated, transparency dropped.

    path       of the file, or its name in errors when `encoded` is given
    encoded    the bytes of such a file, if they are in memory already
    as_stored  whether the EXIF orientation is ignored, as TFDS does

    Colours of 16 bits become 8, as viewers show them. Raises UserError for damaged or incomplete
    files, for more than 178 megapixels, and for what Pillow opens as grey with more than 8 bits or
    as floats: such images hold measurements, whose range is not known.
    """
    image = decode(path, encoded)
    return to_rgb(image, path, 1 if as_stored else orientation_of(image))


def to_rgb(image: Image.Image, name, orientation: int) -> np.ndarray:
    """The pixels of a Pillow image as uint8[H,W,3], turned; UserError for modes I and F."""
    if image.mode[0] in "IF":
        most = 65535 if image.mode.startswith("I;16") else "np.max(image)"
        scaled = f"Image.fromarray((255 * (np.asarray(image) / {most})).astype(np.uint8))"
        raise UserError(
            f"image {name} has more than 8 bits per channel (mode {image.mode}), but images are "
            f"8-bit. Scale its values, as {scaled} does, and save or give the result."
        )
    return turned(np.asarray(image if image.mode == "RGB" else image.convert("RGB")), orientation)


def require_same_size(image, mask, image_path, mask_path, what="mask"):
    """UserError with both sizes and paths unless the mask has the height and width of the image.

    what  the noun for the mask, such as depth
    """
    if image.shape[:2] == mask.shape:
        return
    (height, width), (mask_height, mask_width) = image.shape[:2], mask.shape
    advice = f"Resize the {what} with nearest neighbour."
    if (height - width) * (mask_height - mask_width) < 0:  # one is upright, the other lies
        resized = "" if (width, height) == mask.shape else " and resize it with nearest neighbour"
        advice = (
            f"Turn the {what} by 90 degrees (np.rot90), or swap its axes ({what}.T), so that it "
            f"lies on the image{resized}; or replace it, if it belongs to another image."
        )
    raise UserError(
        f"{what} {mask_path} is {mask_width}x{mask_height}, but its image {image_path} is "
        f"{width}x{height} (width x height). {advice}"
    )


def decode(path, encoded=None):
    """The file as a decoded Pillow image; every failure is a UserError."""
    content, formats = read_file(path) if encoded is None else encoded, image_formats()
    with _explained(path, formats, content):
        return _decoded(content, formats)


def read_pages(path, numbers: Iterable[int]) -> Iterator[tuple[int, np.ndarray]]:
    """(number, image as of `read_image`) of pages of a file, or frames of an animation.

    numbers  of the pages, from 0, ascending
    """
    content, formats = read_file(path), image_formats()
    with (
        _explained(path, formats, content),
        Image.open(io.BytesIO(content), formats=formats) as image,
    ):
        for number in numbers:
            with complete:
                image.seek(number)
                require_few_pixels(image)
                image.load()
            yield number, to_rgb(image, f"{path} (page {number})", orientation_of(image))


def numbers_of_pages(path) -> list[int]:
    """The numbers, from 0, of the pages of a file that are images of their own.

    Smaller copies and transparency masks, which TIFFs may hold, are none. [0] for files that cannot
    be read.
    """
    try:
        with (
            open_path(path).open("rb") as file,
            Image.open(file, formats=image_formats()) as image,
        ):
            pages = range(image.n_frames if hasattr(image, "n_frames") else 1)
            if image.format != "TIFF":
                return list(pages)
            return [number for number in pages if _is_image(image, number)] or [0]
    except Exception:  # reading it says what is wrong
        return [0]


def _is_image(tiff, number):
    """Whether a page of a TIFF is neither a smaller copy of another one nor a mask."""
    tiff.seek(number)
    return not tiff.tag_v2.get(NEW_SUBFILE_TYPE, 0) & 5 and tiff.tag_v2.get(SUBFILE_TYPE, 1) != 2


@contextmanager
def _explained(path, formats, content):
    """Within it, every failure of Pillow is a UserError."""
    try:
        yield
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{path} is too large ({error}): images have at most {MAX_PIXELS} pixels. Cut it into "
            f"tiles{_tiling(path, content)}."
        ) from None
    except UnidentifiedImageError:
        if bands := _bands(content):
            raise UserError(
                f"cannot read {path}: it has {bands}, but images have 1, 3 or 4 bands of 8 bits. "
                f"Try {_to_rgb_of_bytes(path, bands)}, which keeps the georeference."
            ) from None
        raise UserError(
            f"cannot read {path}: it is not a complete image in one of the formats "
            f"{', '.join(formats)}. Replace or remove the file."
        ) from None
    except Exception as error:  # Pillow raises many types on damaged files
        raise UserError(f"cannot read {path}: {error}. Replace or remove the file.") from None


def _decoded(content, formats):
    with complete, Image.open(io.BytesIO(content), formats=formats) as image:
        size = image.size
        require_few_pixels(image)
        # load() skips the checksums of a PNG's pixel data: of all single-bit errors in small
        # masks and images, up to 11 % changed pixels without an exception.
        image.verify()
    # After verify() the image must be opened again.
    with complete, Image.open(io.BytesIO(content), formats=formats) as image:
        image.load()
    if image.format == "PNG" and _may_lack_rows(image) and not has_all_rows(content, size):
        raise ValueError("it has fewer rows of pixels than its header declares")
    return image


def require_few_pixels(image: Image.Image):
    """Raises Pillow's error for an image that is too large."""
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError(f"{image.width}x{image.height}")


def _bands(content):
    """Bands and bits of a TIFF, such as "13 bands of 16 bits"; "" for other files."""
    header = 16 if content[2:3] == b"+" else 8  # of a BigTIFF, or of the usual kind
    try:
        directory = TiffImagePlugin.ImageFileDirectory_v2(content[:header])
        file = io.BytesIO(content)
        file.seek(directory.next)
        directory.load(file)
        samples, bits = directory.get(SAMPLES, 1), directory[BITS][0]
    except Exception:  # no TIFF, or a damaged one
        return ""
    return f"{counted(samples, 'band')} of {bits} bits"


def _tiling(path, content):
    """The command of GDAL that cuts a TIFF into tiles, after a comma; "" for other files."""
    if not _bands(content):
        return ""
    file = shlex.quote(str(path))
    return f", such as by mkdir tiles && gdal_retile.py -ps 8192 8192 -targetDir tiles {file}"


def _to_rgb_of_bytes(path, bands):
    """The command of GDAL that makes an image of the first bands, scaled to their range."""
    numbers = (1, 2, 3) if int(bands.partition(" ")[0]) >= 3 else (1,)
    chosen = " ".join(f"-b {number}" for number in numbers)
    return f"gdal_translate -ot Byte -scale {chosen} {shlex.quote(str(path))} rgb.tif"


class _Completeness:
    """Within it Pillow refuses cut files, also where the program lets it fill them up elsewhere."""

    def __init__(self):
        self.lock, self.readers, self.before = threading.Lock(), 0, False

    def __enter__(self):
        with self.lock:
            if self.readers == 0:
                self.before = ImageFile.LOAD_TRUNCATED_IMAGES
                ImageFile.LOAD_TRUNCATED_IMAGES = False
            self.readers += 1

    def __exit__(self, *_):
        with self.lock:
            self.readers -= 1
            if self.readers == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES = self.before


complete = _Completeness()  # a setting of Pillow that all threads share


def read_file(path) -> bytes:
    """The bytes of a file; UserError if it is none or cannot be read."""
    require_file(path)
    try:
        return read_bytes(path)
    except UserError:
        raise
    except Exception as error:  # buckets raise many types
        raise UserError(f"cannot read {path}: {error}. Replace or remove the file.") from None


def require_file(path):
    """UserError for a folder, and for a pipe, which a read would wait for."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{path} is not a file. Remove it.")


# ---- missing rows of a PNG, which Pillow fills with zeros ----------------------------------------

PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
ADAM7 = (  # the passes of an interlaced PNG: first column, first row, step right, step down
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)
)  # fmt: skip


def _may_lack_rows(image):
    """Whether the last row is zero, as a complete mask's may be too, or rows come interlaced."""
    width, height = image.size
    last_row = np.asarray(image.crop((0, height - 1, width, height)))
    return bool(image.info.get("interlace")) or not last_row.any()


def has_all_rows(content: bytes, size: tuple[int, int]) -> bool:
    """Whether a PNG, whose checksums hold, has data for all pixels of its (width, height)."""
    (width, height), (header, data) = size, _png_data(content)
    depth, colour, _, _, interlaced = header[8:13]
    bits, missing = depth * PNG_CHANNELS[colour], 0
    for left, top, across, down in ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        missing += rows * (1 + -(-columns * bits // 8)) if columns > 0 and rows > 0 else 0
    inflater = zlib.decompressobj()
    while missing > 0 and (block := inflater.decompress(data, 2**22)):
        missing, data = missing - len(block), inflater.unconsumed_tail
    return missing <= 0


def _png_data(content):
    """(header, compressed pixels) of a PNG whose checksums hold."""
    chunks, start, kind = defaultdict(list), 8, b""
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", content, start)
        chunks[kind].append(content[start + 8 : start + 8 + length])
        start += 12 + length
    return chunks[b"IHDR"][0], b"".join(chunks[b"IDAT"])
