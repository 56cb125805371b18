"""Polygons from and to pixels, exactly: filled by one stated rule, and traced so that it undoes it.

A pixel belongs to rings of corners if its centre is inside an odd number of them. A centre on an
edge belongs to the region to its right, or below a horizontal edge; so regions with a common border
share no pixel, and leave none out.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from diffseg_jax.inference.contours import Region, regions_of

MAX_COORDINATE = 1e7  # pixels; the sizes of images are below it
FILL_CHUNK = 2**22  # chunk size: pixels, or crossings of rows and edges
SAGITTA = 0.05  # pixels, the largest distance of a polygon from its ellipse
MOST_CORNERS = 2000


def fill_rings(
    rings: Sequence[np.ndarray], size: tuple[int, int]
) -> tuple[tuple[slice, slice], np.ndarray]:
    """((rows, columns), bool[h,w]) of a box with all pixels of rings f64[N,2] of (x, y).

    size  (height, width) of the image; what lies outside it is cut off
    """
    height, width = size
    edges = np.concatenate([np.stack([ring, np.roll(ring, -1, axis=0)], 1) for ring in rings])
    edges = np.take_along_axis(edges, edges[..., 1:].argsort(axis=1, kind="stable"), axis=1)
    first, last = np.clip(np.ceil(edges[..., 1] - 0.5), 0, height).astype(int).T
    crossed = first < last  # rows whose centre lies between the ends of the edge
    edges, first, last = edges[crossed], first[crossed], last[crossed]
    if not len(edges):
        return (slice(0, 0), slice(0, 0)), np.zeros((0, 0), bool)
    columns = np.ceil([edges[..., 0].min() - 0.5, edges[..., 0].max() - 0.5])
    left, right = np.clip(columns, 0, width).astype(int)
    top, bottom = int(first.min()), int(last.max())
    inside = np.empty((bottom - top, right - left), bool)
    step = max(1, FILL_CHUNK // max(len(edges), right - left + 1))
    for row in range(top, bottom, step):
        end = min(row + step, bottom)
        counts = _crossings(edges, first, last, (row, end), (left, right))
        odd = np.bitwise_xor.accumulate(counts & 1, axis=1)
        inside[row - top : end - top] = odd[:, :-1]
    return (slice(top, bottom), slice(int(left), int(right))), inside


def _crossings(edges, first, last, rows, columns):
    """int[rows, columns + 1]: how many edges pass between the centre of a pixel and the one before.

    edges  f64[E,2,2] of two (x, y) each, the upper one first;  first, last  the rows of each
    rows, columns  of the box, each (first, end)
    """
    (top, bottom), (left, right) = rows, columns
    first, last = np.clip(first, top, bottom), np.clip(last, top, bottom)
    lengths = last - first
    edge = np.repeat(np.arange(len(edges)), lengths)
    row = np.arange(len(edge)) + np.repeat(first - (np.cumsum(lengths) - lengths), lengths)
    (x, y), (x_end, y_end) = np.moveaxis(edges[edge], 0, -1)
    x = x + (row + 0.5 - y) * ((x_end - x) / (y_end - y))
    column = np.clip(np.ceil(x - 0.5), left, right).astype(int) - left
    width = right - left + 1
    counts = np.bincount((row - top) * width + column, minlength=(bottom - top) * width)
    return counts.reshape(bottom - top, width)


def fill_ellipse(centre, radii, size) -> tuple[np.ndarray, tuple[int, int]]:
    """(bool[h,w], its upper left pixel (x, y)) of the pixels whose centre is in an ellipse.

    centre, radii  (x, y);  size  (height, width) of the image, which cuts it
    """
    (x, y), (across, down) = np.asarray(centre, float), np.asarray(radii, float)
    first = np.clip(np.ceil([x - across - 0.5, y - down - 0.5]), 0, size[::-1]).astype(int)
    last = np.clip(np.floor([x + across + 0.5, y + down + 0.5]), 0, size[::-1]).astype(int)
    columns, rows = (np.arange(a, b) + 0.5 for a, b in zip(first, last))
    if not across or not down:
        return np.zeros((len(rows), len(columns)), bool), (int(first[0]), int(first[1]))
    inside = ((columns - x) / across) ** 2 + (((rows - y) / down) ** 2)[:, None] <= 1
    return inside, (int(first[0]), int(first[1]))


def smallest_box(inside: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
    """(bool[h,w], its upper left pixel (x, y)) of the smallest box with all pixels of bool[H,W]."""
    rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return np.zeros((0, 0), bool), (0, 0)
    top, left = int(rows[0]), int(columns[0])
    return inside[top : rows[-1] + 1, left : columns[-1] + 1], (left, top)


def traced(ids: np.ndarray) -> Iterator[Region]:
    """The connected regions of each class of u8[H,W], 255 = ignored; see `Region.rings`."""
    return regions_of(ids, np.zeros(ids.shape, np.float32))


def joined_ring(rings: Sequence[np.ndarray]) -> np.ndarray:
    """One ring [N,2] with the pixels of all: an outer border, and holes on bridges of no width.

    Each hole is entered and left at its corner that is nearest to the outer border. By the rule of
    `fill_rings` the two ways along a bridge cancel.
    """
    from scipy.spatial import cKDTree  # a slow import

    outer, *holes = rings
    if not holes:
        return outer
    tree, bridges = cKDTree(outer), {}
    for hole in holes:
        distances, corners = tree.query(hole)
        at = int(distances.argmin())
        way = np.concatenate([hole[at:], hole[: at + 1], outer[corners[at]][None]])
        bridges.setdefault(int(corners[at]), []).append(way)
    parts = []
    for number, corner in enumerate(outer):
        parts += [corner[None], *bridges.get(number, ())]
    return np.concatenate(parts)


# ---- shapes that are turned ---------------------------------------------------------------------
# Angles are in degrees, clockwise as seen on the image.


def rectangle(x, y, width, height, angle=0.0, about_corner=False) -> np.ndarray:
    """The corners float[4, 2] of a rectangle with the upper left corner (x, y) before it is turned.

    about_corner  whether it is turned about (x, y), as in Label Studio, and not about its centre
    """
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], float)
    pivot = np.zeros(2) if about_corner else np.array([width / 2, height / 2])
    return _turned(corners - pivot, angle) + pivot + (x, y)


def ellipse(x, y, radius_x, radius_y, angle=0.0) -> np.ndarray:
    """A polygon float[N, 2] within 0.05 pixels of an ellipse about (x, y)."""
    largest = max(abs(radius_x), abs(radius_y), SAGITTA)
    count = min(max(16, math.ceil(math.pi * math.sqrt(largest / (2 * SAGITTA)))), MOST_CORNERS)
    around = np.arange(count) * (2 * math.pi / count)
    points = np.stack([radius_x * np.cos(around), radius_y * np.sin(around)], axis=1)
    return _turned(points, angle) + (x, y)


def _turned(points, angle):
    """Points turned about the origin; with y down, the usual matrix turns clockwise."""
    radians = math.radians(angle)
    cos, sin = math.cos(radians), math.sin(radians)
    return points @ np.array([[cos, sin], [-sin, cos]])
