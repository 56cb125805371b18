"""The EXIF orientation of images: how the stored pixels are turned to be upright.

Image and mask are turned one by one, by their own tags. A mask without a tag may have been drawn on
the upright image, as viewers show it, or on the stored pixels, as numpy and labelling tools load
it; `fit_mask` decides by the sizes.
"""

import io

import numpy as np
from PIL import ExifTags, Image

from diffseg_jax.data.formats import image_formats
from diffseg_jax.data.npy import is_array
from diffseg_jax.storage.paths import in_bucket, read_bytes

TURNS = {  # EXIF orientation -> stored array [H, W, ...] to upright array
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}
SWAPS_SIDES = 5  # from this orientation on, width and height change places
TAG_KEYS = {  # of Image.info, where Pillow found metadata that may hold an orientation
    "exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif",
}  # fmt: skip
LATE_TAGS = (b"eXIf", b"XML:com.adobe.xmp")  # a PNG may hold them after its pixels


def turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """The array upright, contiguous."""
    return np.ascontiguousarray(TURNS[orientation](array))


def orientation_of(image: Image.Image) -> int:
    """The orientation of a Pillow image, 1..8; 1 if it has none or its metadata are damaged.

    A TIFF that Pillow has loaded is upright already, and has none.
    """
    try:
        if image.format == "PNG" and not TAG_KEYS & image.info.keys():
            return 1  # Pillow would decode all pixels to look for one behind them
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow raises many types on damaged metadata
        return 1
    return value if isinstance(value, int) and value in TURNS else 1


def stored_orientation(content: bytes, decoded: bool = False) -> int:
    """The orientation of an image file, by which its upright pixels differ from the stored ones.

    decoded  whether the pixels that Pillow decodes are meant, which turns a TIFF by itself
    """
    try:
        with Image.open(io.BytesIO(content), formats=image_formats()) as image:
            is_late = image.format == "PNG" and any(tag in content for tag in LATE_TAGS)
            if is_late or (decoded and image.format == "TIFF"):
                image.load()
            return orientation_of(image)
    except Exception:
        return 1


def stored_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(height, width) as stored, of an image of the upright size."""
    return size[::-1] if orientation >= SWAPS_SIDES else size


def fit_mask(
    ids: np.ndarray, orientation: int, size: tuple[int, int], image_orientation: int
) -> np.ndarray:
    """The mask of an upright image; unchanged if it does not fit.

    ids                as stored, [H,W];  orientation  of the tag of the mask itself
    size               (height, width) of the upright image
    image_orientation  of the tag of the image

    The first of these that has the size of the image: the mask turned by its own tag; the mask as
    stored, where a tool copied a tag to a mask that was upright; the mask turned like the image.
    """
    if (mask := turned(ids, orientation)).shape == size:
        return mask
    if ids.shape == stored_size(size, image_orientation) != size:
        return turned(ids, image_orientation)
    return ids


def fits_both_ways(image_path: str, mask_path: str) -> bool:
    """Whether a mask without a tag may belong to the turned image as well as to the stored one.

    Only the headers of local files are read; False for files that cannot be read.
    """
    (height, width), orientation = _header(image_path)
    if orientation == 1 or stored_size((height, width), orientation) != (height, width):
        return False
    return is_array(mask_path) or _header(mask_path)[1] == 1


def _header(path):
    """((height, width), orientation) of an image file."""
    try:
        file = io.BytesIO(read_bytes(path)) if in_bucket(path) else path
        with Image.open(file, formats=image_formats()) as image:
            return image.size[::-1], orientation_of(image)
    except Exception:
        return (0, 0), 1
