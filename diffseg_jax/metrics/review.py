"""Which pixels to check, and which not to trust, by the estimated chance that each is wrong.

The sum of these chances over pixels is the expected number of errors among them.
"""

import numpy as np

from diffseg_jax.data.labels import IGNORE


def pixels_to_review(uncertainty: np.ndarray, missed: float) -> np.ndarray:
    """The smallest set of pixels that holds all expected errors but a share `missed`, bool[...].

    uncertainty  float[...] in [0, 1]: the chance that a pixel is wrong
    missed       in (0, 1)

    Where several pixels have one chance, the first ones are taken. Without any expected error the
    set is empty.
    """
    chances = np.ravel(uncertainty).astype(np.float64)
    order = np.argsort(-chances, kind="stable")
    found = np.concatenate([[0.0], np.cumsum(chances[order])])
    count = np.searchsorted(found, (1 - missed) * found[-1])
    chosen = np.zeros(chances.size, bool)
    chosen[order[:count]] = True
    return chosen.reshape(np.shape(uncertainty))


def without_unsure(labels: np.ndarray, uncertainty: np.ndarray, chance: float) -> np.ndarray:
    """The labels int[...], with 255 where the chance that they are wrong is above `chance`."""
    return np.where(uncertainty > chance, np.asarray(labels).dtype.type(IGNORE), labels)


def expected_accuracy(labels: np.ndarray, uncertainty: np.ndarray, num_classes: int):
    """The expected share of right pixels: of all labels that are not 255, and of each class.

    out  float, f64[K]; NaN where there is no such pixel
    """
    kept = labels != IGNORE
    of_class = labels[kept]
    pixels = np.bincount(of_class, minlength=num_classes)
    errors = np.bincount(of_class, np.ravel(uncertainty[kept]), minlength=num_classes)
    with np.errstate(invalid="ignore"):
        return float(1 - errors.sum() / pixels.sum()), 1 - errors / pixels
