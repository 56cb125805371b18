"""Turned rectangles and ellipses as polygons, in pixels: x to the right, y down, (0, 0) the corner.

Angles are in degrees, clockwise as seen on the image.
"""

import math

import numpy as np

SAGITTA = 0.05  # pixels, the largest distance of a polygon from its ellipse
MOST_CORNERS = 2000


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
