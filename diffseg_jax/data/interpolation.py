"""Bilinear weights at half-pixel centres, the convention of OpenCV, PyTorch and this package."""

import numpy as np


def half_pixel_neighbours(
    length: int, count: int, *, covered: float = 1.0, start: int = 0, stop: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What outputs `start` to `stop` of `count` read along an axis of `length` values.

    covered  share of the axis, in (0, 1], that the `count` outputs span
    out      lower neighbour i32, upper neighbour i32, weight of the upper f32 in [0, 1)

    Edges are repeated: before the first centre the weight is 0, after the last one both neighbours
    are the last value.
    """
    outputs = np.arange(start, count if stop is None else stop)
    coordinate = np.maximum((outputs + 0.5) * (length * covered / count) - 0.5, 0)
    lower = np.minimum(coordinate.astype(np.int32), length - 1)
    upper = np.minimum(lower + 1, length - 1)
    return lower, upper, (coordinate - lower).astype(np.float32)
