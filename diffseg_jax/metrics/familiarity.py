"""How much an image looks like known ones, from descriptors of their features.

The distance of a descriptor to the known ones is that of Mahalanobis, with a ridge that keeps it
finite in directions in which the known images do not vary, after the manner of Lee et al., "A
Simple Unified Framework for Detecting Out-of-Distribution Samples" (2018). A known image is scored
as if it were not among them.
"""

import numpy as np

MIN_KNOWN = 10  # images; fewer show too little of what is usual
MARGIN = 1.1  # a foreign image is so many times as far as the farthest known one
FLOOR = 0.1  # of a channel's deviation, as a share of the median channel's
ROUNDING = 1e-3  # of float16, in which descriptors are stored, relative to their size


class KnownImages:
    """Descriptors f16[n, C] of images by which others are judged; n at least MIN_KNOWN.

    scores  f64[n], the distance of each of them to the others
    """

    def __init__(self, descriptors: np.ndarray):
        self.descriptors = np.asarray(descriptors, np.float16)
        known, count = self.descriptors.astype(np.float64), len(descriptors)
        self._mean, deviation = known.mean(0), known.std(0)
        self._scale = np.sqrt(
            deviation**2 + (FLOOR * np.median(deviation)) ** 2 + (ROUNDING * self._mean) ** 2
            + np.finfo(np.float16).tiny ** 2
        )  # fmt: skip
        _, found, self._axes = np.linalg.svd(self._standardised(known), full_matrices=False)
        self._weights = found**2 / (found**2 + count)
        # Without an image the mean moves, and the matrix of products loses that of the image, so
        # that its distance follows from the one to all (Sherman and Morrison).
        ratio, squared = count / (count - 1), self._squared(known) / count
        self.scores = np.sqrt(count * ratio**2 * squared / (1 - ratio * squared))

    def judge(self, descriptors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(familiarity f32[B], whether each is foreign bool[B]) of images by descriptors f[B, C].

        The familiarity is the share of the known images, and of the image itself, that look at
        least as strange: from 1/(n+1) to 1. Foreign are those that look stranger than all known
        images, by MARGIN; and those whose descriptors are not finite.
        """
        rounded = in_float16(descriptors).astype(np.float64)
        scores = np.sqrt(self._squared(rounded))
        stranger = (self.scores >= scores[:, None]).sum(1)
        foreign = ~(scores <= MARGIN * self.scores.max())
        return ((stranger + 1) / (len(self.scores) + 1)).astype(np.float32), foreign

    def _standardised(self, values):
        return (values - self._mean) / self._scale

    def _squared(self, values):
        """Squared distances z (Z'Z / n + I)^-1 z' of rows, Z being the known ones."""
        rows = self._standardised(values)
        squares = np.sum(rows**2, 1) - (rows @ self._axes.T) ** 2 @ self._weights
        return np.maximum(squares, 0)


def known_images(descriptors: np.ndarray) -> KnownImages | None:
    """Those of descriptors f[n, C] that are finite; None if they are too few."""
    finite = descriptors[np.isfinite(descriptors).all(1)]
    return KnownImages(in_float16(finite)) if len(finite) >= MIN_KNOWN else None


def in_float16(values: np.ndarray) -> np.ndarray:
    """The values as float16; those beyond its range become the nearest ones in it, NaN stays."""
    largest = np.finfo(np.float16).max
    return np.clip(values, -largest, largest).astype(np.float16)
