"""Connected regions of a label map as polygons, in GeoJSON and in the format of COCO.

Coordinates are those of the borders of pixels: x to the right, y down, (0, 0) the upper left
corner of the image, so that a pixel has area 1. In the GeoJSON of a georeferenced image they are
those of its map. Regions are connected over the sides of pixels;
ignored pixels, 255, belong to none.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from contourpy import contour_generator

from diffseg_jax.data.labels import IGNORE
from diffseg_jax.inference.georeference import Georeference, on_map

UNITS = "pixels: x to the right, y down, (0, 0) is the upper left corner of the image"
MAP_UNITS = "map coordinates of the image"


@dataclasses.dataclass(frozen=True)
class Region:
    """A connected region of one class.

    label        its class
    rows, columns  slices of the smallest box around it;  inside  bool[h,w], its pixels there
    uncertainty  the mean over its pixels
    """

    label: int
    rows: slice
    columns: slice
    inside: np.ndarray
    uncertainty: float

    @property
    def area(self) -> int:
        """The number of its pixels."""
        return int(self.inside.sum())

    def rings(self) -> list[np.ndarray]:
        """Its outer border and then those of its holes, each int[N, 2] of (x, y), N corners.

        They pass no corner twice. The outer one has a positive area, with x before y, holes a
        negative one.
        """
        corner = self.columns.start, self.rows.start
        return [ring + corner for ring in _rings(self.inside)]


def regions_of(labels: np.ndarray, uncertainty: np.ndarray) -> Iterator[Region]:
    """The regions of each class in class order, from the top of the image to its bottom.

    labels  int[H,W], 255 = ignored;  uncertainty  float[H,W]
    """
    from scipy import ndimage  # a slow import

    for label in np.unique(labels):
        if label == IGNORE:
            continue
        numbered, _ = ndimage.label(labels == label)
        for number, box in enumerate(ndimage.find_objects(numbered), 1):
            inside = numbered[box] == number
            mean = float(uncertainty[box][inside].mean(dtype=np.float64))
            yield Region(int(label), *box, inside, mean)


def _rings(inside: np.ndarray) -> list[np.ndarray]:
    """The borders of a region bool[h,w] that is connected over the sides of pixels.

    contourpy joins the centres of the pixels' sides, at their whole and half coordinates; the
    corner between two successive sides takes their whole coordinates, or the middle of both. At a
    level below 1/2, pixels that touch at a corner are joined there, so no ring meets itself.
    """
    padded = np.pad(inside, 1).astype(float)
    generator = contour_generator(z=padded, fill_type="OuterOffset")
    (points,), (offsets,) = generator.filled(0.4, 2)
    sides = np.rint(2 * points).astype(int) - 1  # twice the coordinates of the region's pixels
    rings = []
    for start, end in zip(offsets[:-1], offsets[1:]):
        before, after = sides[start : end - 1], sides[start + 1 : end]
        whole = np.where(after % 2, (before + after) // 2, after)
        rings.append(_turns(np.where(before % 2, whole, before) // 2))
    return rings


def _turns(corners: np.ndarray) -> np.ndarray:
    """The corners int[N,2] of a closed line at which it changes its direction."""
    steps = corners - np.roll(corners, 1, axis=0)
    return corners[(steps != np.roll(steps, -1, axis=0)).any(axis=1)]


def geojson(
    name: str, regions: Sequence[Region], size, classes: Sequence[str],
    place: Georeference | None = None,
) -> dict:  # fmt: skip
    """The regions of an image as a FeatureCollection of polygons with properties.

    size     (height, width) of the image;  classes  K names
    place    of the image; None, or one of control points: coordinates are pixels
    """
    matrix = None if place is None else place.matrix
    return {
        "type": "FeatureCollection",
        "image": name,
        "size": list(size),
        **({"units": UNITS} if matrix is None else _map_of(place)),
        "features": [
            {
                "type": "Feature",
                "properties": {
                    "class": classes[region.label],
                    "id": region.label,
                    "area": region.area,
                    "uncertainty": round(region.uncertainty, 6),
                },
                "geometry": {
                    "type": "Polygon",
                    "coordinates": [[*ring, ring[0]] for ring in _lists(region, matrix)],
                },
            }
            for region in regions
        ],
    }


def _map_of(place):
    """The entries about coordinates on a map; `crs` as GIS read it, though RFC 7946 dropped it."""
    if place.epsg is None:
        return {"units": MAP_UNITS}
    crs = {"type": "name", "properties": {"name": f"urn:ogc:def:crs:EPSG::{place.epsg}"}}
    return {"units": f"{MAP_UNITS}, EPSG:{place.epsg}", "crs": crs}


def coco(
    name: str, regions: Sequence[Region], size, classes: Sequence[str],
    place: Georeference | None = None,
) -> dict:  # fmt: skip
    """The regions of one image as a data set of COCO; category ids are those of label maps.

    place  is not used: the format has pixels only

    A region without holes is a polygon. One with holes is an uncompressed run-length encoding,
    since a polygon of COCO has no holes.
    """
    height, width = size
    annotations = []
    for region in regions:
        (outer, *holes) = _lists(region)
        box = [region.columns.start, region.rows.start, *region.inside.shape[::-1]]
        polygon = [[value for corner in outer for value in corner]]
        annotations.append({
            "id": len(annotations) + 1,
            "image_id": 1,
            "category_id": region.label,
            "segmentation": run_lengths(region, size) if holes else polygon,
            "area": region.area,
            "bbox": box,
            "iscrowd": 0,
            "uncertainty": round(region.uncertainty, 6),
        })  # fmt: skip
    return {
        "images": [{"id": 1, "file_name": name, "height": height, "width": width}],
        "annotations": annotations,
        "categories": [{"id": k, "name": name} for k, name in enumerate(classes)],
    }


def run_lengths(region: Region, size) -> dict:
    """An uncompressed run-length encoding of COCO: columns first, beginning with zeros."""
    height, width = size
    columns = np.zeros((region.inside.shape[1], height), bool)
    columns[:, region.rows] = region.inside.T
    changes = np.flatnonzero(np.diff(columns.ravel(), prepend=False, append=False))
    counts = np.diff(height * region.columns.start + changes, prepend=0, append=height * width)
    return {"size": list(size), "counts": counts[: len(counts) - (counts[-1] == 0)].tolist()}


def merged_coco(parts: Mapping[str, dict]) -> dict:
    """One data set of COCO, with new ids, of those of several images.

    parts  name of an image's file -> the result of `coco` for it, at least one
    """
    images, annotations = [], []
    for number, (file, part) in enumerate(parts.items(), 1):
        images += [image | {"id": number, "file_name": file} for image in part["images"]]
        for annotation in part["annotations"]:
            ids = {"id": len(annotations) + 1, "image_id": number}
            annotations.append(annotation | ids)
    categories = next(iter(parts.values()))["categories"]
    return {"images": images, "annotations": annotations, "categories": categories}


def _lists(region, matrix=None):
    return [ring.tolist() if matrix is None else on_map(ring, matrix) for ring in region.rings()]


CONTOURS = {"geojson": geojson, "coco": coco}
