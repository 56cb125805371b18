"""Signals of uncertainty: one number per image, and how well they find wrong pixels.

Over a data set, right and wrong pixels are counted in bins of uncertainty; counts of batches and
hosts add up, and the ratio comes last.
"""

import numpy as np

from diffseg_jax.data.labels import IGNORE
from diffseg_jax.errors import UserError

OF_PROBABILITIES = ("least_confidence", "entropy")  # signals of every network
SIGNALS = (*OF_PROBABILITIES, "divergence", "changes", "spread")  # see `views.Maps`
BINS = 4096
PER_OCTAVE = 128  # so the bins reach 32 octaves down, to 2^-32
_DROPPED = 23 - (PER_OCTAVE - 1).bit_length()  # of float32's 23 fraction bits: all but the first 7
_FIRST = (int(np.float32(1).view(np.int32)) >> _DROPPED) - BINS


def image_uncertainty(values) -> float:
    """The uncertainty of an image: the mean of its floor(P / 10) most uncertain pixels.

    values   float[...], P pixels; below 10 of them all are taken
    out      NaN if a pixel is NaN

    Baranchuk et al. (2022) rank generated images by it. Raises UserError for an image without
    pixels.
    """
    values = np.ravel(values)
    if not values.size:
        raise UserError("an image without pixels has no uncertainty. Leave it out.")
    top = values.size // 10 or values.size
    return float(np.partition(values, -top)[-top:].mean(dtype=np.float64))


def uncertainty_counts(uncertainty, labels, predictions, ignore: int = IGNORE) -> np.ndarray:
    """How many right and how many wrong pixels fall in each bin of uncertainty.

    uncertainty          float[...] in [0, 1]
    labels, predictions  int[...] of the same shape; a pixel is wrong where they differ
    ignore               label of the pixels that are not counted, whatever the other arrays hold
    out                  int64[2, BINS]; row 0 counts right pixels, row 1 wrong ones

    Bins grow in proportion to the uncertainty, as most pixels of a good network lie near 0: 128 of
    them for each factor of two from 1 down to 2^-32. The first also takes all that is less, the
    last also 1 itself.

    Raises UserError for unequal shapes and for an uncertainty outside [0, 1].
    """
    bins, wrong, _ = binned_pixels(uncertainty, labels, predictions, ignore)
    return np.bincount(bins + BINS * wrong, minlength=2 * BINS).reshape(2, BINS)


def binned_pixels(uncertainty, labels, predictions, ignore: int = IGNORE):
    """(bin, whether it is wrong, prediction) of each pixel that `uncertainty_counts` counts."""
    uncertainty, labels, predictions = map(np.asarray, (uncertainty, labels, predictions))
    if not uncertainty.shape == labels.shape == predictions.shape:
        raise UserError(
            f"uncertainty has shape {uncertainty.shape}, predictions {predictions.shape}, labels "
            f"{labels.shape}; resize the first two to the labels before counting."
        )
    counted = labels != ignore
    values = uncertainty[counted].astype(np.float32)
    if not np.all((values >= 0) & (values <= 1)):
        raise UserError(
            "an uncertainty is not finite, or lies outside 0 to 1. Is the network's output finite?"
        )
    # The bits of positive floats are in the order of the floats: exponent, then fraction.
    bins = np.clip((values.view(np.int32) >> _DROPPED) - _FIRST, 0, BINS - 1)
    predicted = predictions[counted]
    return bins, labels[counted] != predicted, predicted


def bin_edges() -> np.ndarray:
    """The borders of the bins of `uncertainty_counts`, f64[BINS + 1] from 2^-32 to 1."""
    bits = (np.arange(BINS + 1, dtype=np.int32) + _FIRST) << _DROPPED
    return bits.view(np.float32).astype(np.float64)


def auroc(counts) -> float:
    """The chance that a wrong pixel is more uncertain than a right one, both drawn at random.

    counts   int[2, BINS], sums of `uncertainty_counts`; a pair in one bin counts one half
    out      in [0, 1], 0.5 for an uncertainty that tells nothing; NaN if no pixel is wrong or none
             is right

    This is the area under the receiver operating characteristic.
    """
    right, wrong = (row.astype(object) for row in np.asarray(counts))  # products exceed 64 bits
    pairs = right.sum() * wrong.sum()
    if not pairs:
        return float("nan")
    below = np.cumsum(right) - right
    return float((wrong * (2 * below + right)).sum() / (2 * pairs))
