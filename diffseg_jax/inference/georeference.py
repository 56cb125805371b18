"""The georeference of an image: where its pixels lie on a map, kept in TIFFs of the same size.

The tags of GeoTIFF 1.1 are copied as they are, so that every coordinate system is kept, also those
of control points. A GIS reads them from files that Pillow writes.
"""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin

from diffseg_jax.data.files import ends_with
from diffseg_jax.data.formats import FORMATS, image_formats
from diffseg_jax.data.orientation import orientation_of, stored_orientation
from diffseg_jax.storage.paths import in_bucket, open_path, read_bytes

SCALE, TIEPOINTS, TRANSFORMATION, KEYS, DOUBLES, TEXTS = 33550, 33922, 34264, 34735, 34736, 34737
TAG_TYPES = {  # of the tags above
    SCALE: TiffImagePlugin.TiffTags.DOUBLE,
    TIEPOINTS: TiffImagePlugin.TiffTags.DOUBLE,
    TRANSFORMATION: TiffImagePlugin.TiffTags.DOUBLE,
    KEYS: TiffImagePlugin.TiffTags.SHORT,
    DOUBLES: TiffImagePlugin.TiffTags.DOUBLE,
    TEXTS: TiffImagePlugin.TiffTags.ASCII,
}
PIXEL_IS_POINT, PROJECTED, GEOGRAPHIC = 1025, 3072, 2048  # keys in the tag KEYS
MAX_EPSG = 32766  # larger values of a key are no codes


@dataclasses.dataclass(frozen=True)
class Georeference:
    """Where the pixels of an image lie on a map.

    tags  of TAG_TYPES, those that the file has
    """

    tags: dict[int, tuple | str]

    @property
    def keys(self) -> dict[int, int]:
        """The keys of GeoTIFF whose values are whole numbers."""
        rows = np.array(self.tags.get(KEYS, ()), int)[4:]
        rows = rows[: len(rows) // 4 * 4].reshape(-1, 4)
        return {int(key): int(value) for key, place, _, value in rows if place == 0}

    @property
    def epsg(self) -> int | None:
        """The code of the coordinate system; None where it has none."""
        codes = [self.keys.get(key, 0) for key in (PROJECTED, GEOGRAPHIC)]
        return next((code for code in codes if 0 < code <= MAX_EPSG), None)

    @property
    def matrix(self) -> np.ndarray | None:
        """f64[2,3] by which (x, y, 1) in pixels becomes (x, y) on the map; None for control points.

        (0, 0) is the upper left corner of the image.
        """
        if TRANSFORMATION in self.tags:
            matrix = np.array(self.tags[TRANSFORMATION], float).reshape(4, 4)[:2, [0, 1, 3]]
        elif SCALE in self.tags and len(self.tags.get(TIEPOINTS, ())) == 6:
            (x, y, _, east, north, _), (wide, high, *_) = self.tags[TIEPOINTS], self.tags[SCALE]
            matrix = np.array([[wide, 0, east - x * wide], [0, -high, north + y * high]])
        else:
            return None
        if self.keys.get(PIXEL_IS_POINT) == 2:  # (0, 0) is the middle of the first pixel
            matrix[:, 2] -= matrix[:, :2].sum(axis=1) / 2
        return matrix

    def write_tiff(self, image: Image.Image) -> bytes:
        """A TIFF of an image of the same size with this georeference, compressed without loss."""
        directory = TiffImagePlugin.ImageFileDirectory_v2()
        for tag, value in self.tags.items():
            directory.tagtype[tag] = TAG_TYPES[tag]
            directory[tag] = value
        content = io.BytesIO()
        image.save(content, "TIFF", compression="tiff_adobe_deflate", tiffinfo=directory)
        return content.getvalue()


def georeference_of(path: str) -> Georeference | None:
    """That of an image file, from its tags or a world file beside it; None where there is none.

    None too for an image whose orientation turns it: both are of the stored pixels, and predictions
    are upright.
    """
    tags = _tags(path) if ends_with(path, FORMATS["TIFF"]) else {}
    if not tags.keys() & {TIEPOINTS, TRANSFORMATION}:
        tags = {} if in_bucket(path) else _of_world_file(Path(path))
    return Georeference(tags) if tags and _orientation(path) == 1 else None


def _orientation(path):
    """As of `orientation_of`; of a TIFF, which may be large, only the header is read."""
    if not ends_with(path, FORMATS["TIFF"]):
        return stored_orientation(read_bytes(path))
    try:
        with open_path(path).open("rb") as file, Image.open(file, formats=image_formats()) as image:
            return orientation_of(image)
    except Exception:  # reading the image says what is wrong
        return 1


def _tags(path):
    try:
        with open_path(path).open("rb") as file, Image.open(file, formats=["TIFF"]) as image:
            return {tag: image.tag_v2[tag] for tag in TAG_TYPES if tag in image.tag_v2}
    except Exception:  # reading the image says what is wrong
        return {}


def _of_world_file(path):
    """The tags that say the same as a world file, such as a.jgw or a.wld beside a.jpg."""
    kind = path.suffix[1:].lower()
    for ending in (kind[:1] + kind[-1:] + "w", kind + "w", "wld"):
        try:
            numbers = [float(line) for line in path.with_suffix(f".{ending}").read_text().split()]
            wide, turned_y, turned_x, high, east, north = numbers
        except (OSError, ValueError):
            continue
        x, y = east - (wide + turned_x) / 2, north - (turned_y + high) / 2  # of the pixel's corner
        return {TRANSFORMATION: (wide, turned_x, 0.0, x, turned_y, high, 0.0, y, *8 * (0.0,))}
    return {}


def on_map(ring: np.ndarray, matrix: np.ndarray) -> list[Sequence[float]]:
    """A ring int[N,2] of (x, y) in pixels in map coordinates, still with its interior on the left.

    matrix  that of a `Georeference`
    """
    points = ring @ matrix[:, :2].T + matrix[:, 2]
    mirrored = np.linalg.det(matrix[:, :2]) < 0
    return (points[::-1] if mirrored else points).tolist()
