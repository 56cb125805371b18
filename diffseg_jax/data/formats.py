"""The image formats that are read, and how the names of their files end."""

from collections.abc import Iterable

from PIL import Image, features

# Name in Pillow -> endings. The other formats of Pillow may start programs (EPS), hold vectors
# (WMF) or measurements (FITS, GRIB). HEIF is read where the program registered pillow-heif.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "PNG": (".png", ".apng"),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "DIB": (".dib",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc"),
    "AVIF": (".avif", ".avifs"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TGA": (".tga",),
    "SGI": (".sgi",),
    "PCX": (".pcx",),
    "QOI": (".qoi",),
    "HEIF": (".heic", ".heif", ".hif"),
}
LOSSY_FORMATS = ("JPEG", "JPEG2000", "AVIF", "HEIF")  # which may change ids
PAGED_ENDINGS = (".tif", ".tiff", ".gif", ".apng", ".webp")  # of files that may hold several images
VIDEO_ENDINGS = (
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".m2ts", ".mts", ".wmv",
    ".flv", ".3gp",
)  # fmt: skip
OPTIONAL = {"WEBP": "webp", "JPEG2000": "jpg_2000", "AVIF": "avif"}  # parts of a build of Pillow


def endings_of(names: Iterable[str]) -> tuple[str, ...]:
    """The endings of the files of formats, in lower case."""
    return tuple(ending for name in names for ending in FORMATS[name])


def image_formats() -> tuple[str, ...]:
    """Those of FORMATS that the installed Pillow reads."""
    Image.init()
    return tuple(
        name
        for name in FORMATS
        if name in Image.OPEN and (name not in OPTIONAL or features.check(OPTIONAL[name]))
    )


def image_endings() -> tuple[str, ...]:
    """The endings of their files, in lower case."""
    return endings_of(image_formats())
