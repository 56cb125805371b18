"""Which images to label next, and which regions: choices by descriptors and uncertainty.

A label teaches a network about images like its own, so those images are chosen near which most of
the expected errors lie that are far from all labelled images: greedily, each choice lowers

    sum over images i of  weight_i * (distance of i to the nearest labelled or chosen image)

the most. This is the greedy solution of weighted k-medoids, or facility location, whose sum it
lowers by at least 63 % of what the best choice could (Nemhauser et al. 1978). Compared with
k-centre it does not begin with images unlike all others.
"""

import dataclasses

import numpy as np

from diffseg_jax.data.labels import IGNORE

MAX_PAIRS = 2**25  # distances that are kept, which bounds the memory
AT_A_TIME = 1024  # images whose distances are computed at a time
BOX_PART = 4  # a box has this part of an image's height and width,
MIN_BOX = 32  # but at least so many pixels, or the whole image
SEARCHED_SIDE = 1024  # pixels, longer side of the map in which regions are looked for


@dataclasses.dataclass(frozen=True)
class Chosen:
    """A choice.

    index     of the image
    score     share of the sum above, before the first choice, by which this one lowers it
    distance  to the nearest labelled or earlier chosen image; None where there is none
    """

    index: int
    score: float
    distance: float | None


def choose_images(
    descriptors: np.ndarray, weights: np.ndarray, covered: np.ndarray, count: int
) -> list[Chosen]:  # fmt: skip
    """The images to label next, best first.

    descriptors  f32[n, C];  weights  f32[n] at least 0, the expected errors in each image
    covered      f32[m, C], descriptors of labelled images; m may be 0
    count        0..n

    Of equally good images the first is chosen. A copy of a chosen or labelled image comes last.
    """
    points, known = _standardised(descriptors, covered)
    weights = np.asarray(weights, np.float32)
    weights = weights if weights.any() else np.ones_like(weights)
    every = -(-len(points) ** 2 // MAX_PAIRS)  # images that stand for all are spread over them
    asked = slice(None, None, every)
    between = _distances(points, points[asked])
    near_known = _nearest(points, known) if len(known) else None
    far = between.max(initial=0) + 1  # than which nothing is farther
    nearest = near_known.copy() if len(known) else np.full(len(points), far, np.float32)
    weights = weights[asked] / max(float(weights[asked] @ nearest[asked]), 1e-30)
    left, chosen = np.ones(len(points), bool), []
    for _ in range(count):
        gains = np.maximum(nearest[asked] - between, 0) @ weights
        index = int(np.where(left, gains, -1).argmax())
        distance = float(nearest[index]) if len(known) or chosen else None
        chosen.append(Chosen(index, float(gains[index]), distance))
        left[index] = False
        nearest = np.minimum(nearest, _distances(points, points[index : index + 1])[:, 0])
    return chosen


def _standardised(descriptors, covered):
    """Both with a mean of 0 and a deviation of 1 over all, divided by the root of their length."""
    points = np.concatenate([descriptors, covered.reshape(-1, descriptors.shape[1])])
    points = np.nan_to_num(points.astype(np.float64))
    points = (points - points.mean(0)) / (points.std(0) + 1e-6 * np.abs(points).max(0) + 1e-30)
    points = (points / np.sqrt(points.shape[1])).astype(np.float32)
    return points[: len(descriptors)], points[len(descriptors) :]


def _nearest(points, others):
    """f32[n], the smallest of the `_distances` of each point; they are never all in memory."""
    starts = range(0, len(points), AT_A_TIME)
    return np.concatenate([_distances(points[i : i + AT_A_TIME], others).min(1) for i in starts])


def _distances(points, others):
    """f32[n, m] of points f32[n, C] and others f32[m, C]; 0 for equal ones."""
    squares = np.sum(others**2, 1)
    found = np.empty((len(points), len(others)), np.float32)
    for start in range(0, len(points), AT_A_TIME):
        rows = points[start : start + AT_A_TIME]
        products = np.sum(rows**2, 1)[:, None] + squares - 2 * rows @ others.T
        found[start : start + AT_A_TIME] = np.sqrt(np.maximum(products, 0))
    return np.where(found < 1e-2, 0, found)  # below it there are rounding errors alone


def uncertain_boxes(uncertainty: np.ndarray, most: int = 3) -> list[tuple[list[int], float]]:
    """The boxes with the most expected errors, best first: [x, y, width, height] and their mean.

    uncertainty  f32[H, W], the chance of an error

    All have one size, see BOX_PART and MIN_BOX, and do not overlap; after the first one, only those
    follow whose mean is above that of the image. None where nothing is uncertain.
    """
    size = [min(max(side // BOX_PART, MIN_BOX), side) for side in uncertainty.shape]
    sums = np.pad(uncertainty.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    height, width = size
    inside = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width]
    means = (inside + sums[:-height, :-width]) / (height * width)
    overall, found = float(uncertainty.mean(dtype=np.float64)), []
    while len(found) < most:
        y, x = np.unravel_index(means.argmax(), means.shape)
        if means[y, x] <= 0 or (found and means[y, x] <= overall):
            break
        found.append(([int(x), int(y), width, height], float(means[y, x])))
        means[max(y - height + 1, 0) : y + height, max(x - width + 1, 0) : x + width] = -1
    return found


def unpainted_regions(uncertainty: np.ndarray, ids: np.ndarray, most: int = 3) -> list[dict]:
    """The most uncertain regions of an image, best first, to paint next; JSON values.

    uncertainty  f32[H,W] in [0, 1], the chance of an error; or u8[H,W], 255 = certainly wrong
    ids          u8[H,W], 255 where nothing is painted: only there errors count
    out          {"x", "y", "width", "height"} in pixels and the mean "uncertainty" in [0, 1] each,
                 as of `uncertain_boxes` of means over blocks, where the image is large
    """
    height, width = uncertainty.shape
    factor = -(-max(height, width) // SEARCHED_SIDE)
    errors = np.where(ids == IGNORE, uncertainty, 0)
    blocks = errors[: height // factor * factor, : width // factor * factor]
    blocks = blocks.reshape(height // factor, factor, width // factor, factor)
    means = blocks.mean((1, 3), dtype=np.float32) / (255 if uncertainty.dtype == np.uint8 else 1)
    return [
        {**{key: value * factor for key, value in zip(("x", "y", "width", "height"), box)},
         "uncertainty": round(mean, 6)}
        for box, mean in uncertain_boxes(means, most)
    ]  # fmt: skip
