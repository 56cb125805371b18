"""Images and label maps on disk: decoded and checked."""

import io
import os
import struct
import zlib
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from diffseg_jax.errors import UserError, shortened
from diffseg_jax.storage.paths import read_bytes

MAX_PIXELS = 178_000_000  # larger headers are taken for decompression bombs, as Pillow's own limit

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")  # Pillow's others may start programs (EPS)


def read_image(path, encoded=None, turned=False):
    """The picture as uint8[H,W,3], RGB; grey is repeated, transparency dropped.

    path     of the file, or what messages call it when `encoded` is given
    encoded  the bytes of such a file, if they are in memory already
    turned   whether the EXIF orientation is applied; it is not beside label maps, which are drawn
             on the stored pixels and would not match

    Raises UserError if the file cannot be decoded whole, has 16 bits per channel or over 178
    megapixels.
    """
    with _opened(path, encoded) as picture:
        if picture.mode[0] in "IF":
            raise UserError(
                f"image {path} has more than 8 bits per channel (mode {picture.mode}), but images "
                "are 8-bit. Save it as an 8-bit PNG or JPEG."
            )
        picture = upright(picture) if turned else picture
        return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def upright(picture: Image.Image) -> Image.Image:
    """The picture turned as its EXIF orientation says; as it is where that cannot be read."""
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # Pillow reports damaged EXIF by many types
        return picture


def read_ids(path, encoded=None):
    """Raw ids of a label map as stored, integer [H,W]: PNG (grey, palette, 16 bit) or .npy.

    path and encoded as in read_image; encoded holds no .npy.
    Raises UserError for coloured masks, non-integer or not two-dimensional arrays, unreadable
    files.
    """
    if encoded is None and path.lower().endswith(".npy"):
        return _read_array(path)
    with _opened(path, encoded) as picture:
        if len(picture.getbands()) != 1 or picture.mode == "F":
            raise UserError(
                f"mask {path} holds colours (mode {picture.mode}), but a mask holds one class id "
                "per pixel. Save it as an 8-bit grey or palette PNG, 16-bit grey PNG, or integer "
                ".npy."
            )
        ids = np.asarray(picture)
    return ids.astype(np.uint8) if ids.dtype == bool else ids


def _read_array(path):
    _require_file(path)
    try:
        ids = array_of(read_bytes(path))
    except Exception as error:  # numpy reports damage by many types
        raise UserError(
            f"cannot read mask {path}: {shortened(str(error), 200)}. "
            "Write it again with numpy.save."
        ) from None
    if ids.dtype.kind not in "biu" or ids.ndim != 2:
        raise UserError(
            f"mask {path} is {ids.dtype}{list(ids.shape)}, but a mask is an integer array [height, "
            "width]. Save it as mask.astype(numpy.uint8)."
        )
    return ids.astype(np.uint8) if ids.dtype == bool else ids


NPY_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def array_of(content: bytes) -> np.ndarray:
    """The array in the bytes of a .npy file, read-only, without memory of its own.

    Raises an error of any type for other bytes, for Python objects, and where the header does not
    tell the number of bytes that follow.
    """
    file = io.BytesIO(content)
    version = np.lib.format.read_magic(file)
    if version not in NPY_HEADERS:
        raise ValueError(f"version {version} of the format holds no plain array")
    shape, fortran, dtype = NPY_HEADERS[version](file)
    data = memoryview(content)[file.tell() :]
    if dtype.hasobject or min(shape, default=1) < 1:
        raise ValueError(f"{len(data)} bytes are no array of {dtype} {list(shape)}")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _require_file(path):
    """UserError for what is no file of bytes, such as a folder or a pipe, which would not end."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise UserError(f"{path} is not a file. Remove it.")


PNG_START = b"\x89PNG\r\n\x1a\n"

PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by type of colour

ADAM7 = (  # first column and row, steps along both, of the seven passes of an interlaced picture
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)
)  # fmt: skip


def png_parts(content: bytes) -> list[tuple[bytes, memoryview]]:
    """(kind, data) of the chunks of a PNG file; Pillow passes over damage that this does not.

    Raises ValueError or struct.error for a file that is cut, and where a checksum differs.
    """
    view, place, parts = memoryview(content), len(PNG_START), []
    while not parts or parts[-1][0] != b"IEND":
        (length,) = struct.unpack_from(">I", content, place)
        (checksum,) = struct.unpack_from(">I", content, place + 8 + length)
        named = view[place + 4 : place + 8 + length]
        if zlib.crc32(named) != checksum:
            raise ValueError(f"the checksum of its part {bytes(named[:4])} differs")
        parts.append((bytes(named[:4]), named[4:]))
        place += 12 + length
    return parts


def has_all_rows(parts: list[tuple[bytes, memoryview]]) -> bool:
    """Whether a PNG file holds all the pixels that its header tells of; Pillow leaves them zeros.

    parts  as `png_parts` gives them
    """
    width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", parts[0][1])
    bits, missing = depth * PNG_CHANNELS[colour], 0
    for left, top, across, down in ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - left) // across), -(-(height - top) // down)
        missing += rows * (1 + -(-columns * bits // 8)) if columns > 0 and rows > 0 else 0
    inflater, data = zlib.decompressobj(), b"".join(d for kind, d in parts if kind == b"IDAT")
    while missing > 0 and (block := inflater.decompress(data, 2**22)):
        missing, data = missing - len(block), inflater.unconsumed_tail
    return missing <= 0


@contextmanager
def _opened(path, encoded):
    """`with _opened(...) as picture`: a decoded Pillow image; every failure is a UserError."""
    if encoded is None:
        _require_file(path)
    try:
        content = read_bytes(path) if encoded is None else encoded
        parts = png_parts(content) if content[:8] == PNG_START else ()
        with Image.open(io.BytesIO(content), formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{width}x{height}")
            picture.load()
            # rows that are missing are zeros; so may be those of a mask, which takes a closer look
            last = np.asarray(picture.crop((0, height - 1, width, height)))
            if parts and (parts[0][1][12] or not last.any()) and not has_all_rows(parts):
                raise ValueError("it holds fewer rows of pixels than it says")
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(
            f"{path} is too large ({error}): pictures of at most {MAX_PIXELS} pixels are opened. "
            "Cut it into tiles."
        ) from None
    except UnidentifiedImageError:
        raise UserError(
            f"cannot read {path}: it is no whole picture of the kinds {', '.join(FORMATS)}. "
            "Replace or remove the file."
        ) from None
    except Exception as error:  # Pillow reports damage by many types
        error = "it is cut" if isinstance(error, struct.error) else error
        raise UserError(f"cannot read {path}: {error}. Replace or remove the file.") from None
    yield picture


def require_same_size(image, mask, image_path, mask_path):
    """UserError with both sizes and paths unless the mask has the height and width of the image."""
    if image.shape[:2] != mask.shape:
        (height, width), (mask_height, mask_width) = image.shape[:2], mask.shape
        raise UserError(
            f"mask {mask_path} is {mask_width}x{mask_height}, but its image {image_path} is "
            f"{width}x{height} (width x height). Resize the mask with nearest neighbour."
        )
