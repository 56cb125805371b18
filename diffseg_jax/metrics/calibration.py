"""How far to trust the estimated chance that a pixel is wrong: calibration, ranking, selection.

Over a data set, right and wrong pixels are counted in bins of that chance, for each predicted
class; counts of batches and hosts add up, and every number is taken from them at the end. Counts
int[..., 2, CHANCE_BINS] are summed over the leading axes first: pass one class or all.

Bins grow in proportion to the chance p, 32 of them for each factor of two, and a pixel counts with
the middle of its bin, which is within p / 64 of p. The order of pixels in one bin is unknown: they
count as evenly mixed, as pixels of equal p should.
"""

from collections.abc import Sequence

import numpy as np

from diffseg_jax.data.labels import IGNORE
from diffseg_jax.metrics.segmentation import to_number
from diffseg_jax.metrics.uncertainty import BINS, auroc, bin_edges, binned_pixels

MERGED = 4  # bins of `uncertainty_counts` per bin here, as there is a histogram for each class
CHANCE_BINS = BINS // MERGED
EQUAL_MASS_BINS = 15


def chance_counts(chance, labels, predictions, num_classes: int, ignore: int = IGNORE):
    """How many right and how many wrong pixels fall in each bin of the chance of an error.

    chance               float[...] in [0, 1]
    labels, predictions  int[...] of the same shape; a pixel is wrong where they differ
    out                  int64[K, 2, CHANCE_BINS] by predicted class; right pixels, wrong ones

    Pixels with the label `ignore` are not counted. Raises UserError as `uncertainty_counts`.
    """
    bins, wrong, predicted = binned_pixels(chance, labels, predictions, ignore)
    cells = bins // MERGED + CHANCE_BINS * (wrong + 2 * predicted.astype(np.int64))
    counts = np.bincount(cells, minlength=2 * num_classes * CHANCE_BINS)
    return counts.reshape(num_classes, 2, CHANCE_BINS)


def chance_scores(counts) -> dict[str, float]:
    """Every number that this module takes from counts; NaN where it is undefined.

    ECE, Brier   of the chance as a probability: 0 is perfect
    AUROC, AUPR  of the chance as a detector of wrong pixels: 1 is perfect
    AURC         the area under the risk-coverage curve, and excess_AURC, by how much it exceeds
                 that of the best order of the same pixels: 0 is perfect
    """
    right, wrong = total = _summed(counts)
    best = np.zeros_like(total)
    best[0, 0], best[1, -1] = right.sum(), wrong.sum()
    return {
        "ECE": ece(total),
        "Brier": brier(total),
        "AUROC": auroc(total),
        "AUPR": aupr(total),
        "AURC": aurc(total),
        "excess_AURC": aurc(total) - aurc(best),
    }


def scores_by_class(counts, names: Sequence[str]) -> dict:
    """`chance_scores` of all classes, and some of each predicted class by its name; JSON values.

    counts   int[K, 2, CHANCE_BINS];  names  of the K classes, or none for no scores by class
    """
    of = lambda part: {key: to_number(value) for key, value in chance_scores(part).items()}
    by_class = {name: of(part) for name, part in zip(names, counts, strict=bool(names))}
    return of(counts) | {
        f"{key}_of_predicted": {name: scores[key] for name, scores in by_class.items()}
        for key in ("ECE", "Brier", "AUROC") if names
    }  # fmt: skip


def reliability(counts, groups: int = EQUAL_MASS_BINS) -> tuple[np.ndarray, np.ndarray]:
    """Mean chance and share of wrong pixels f64[groups] in groups of equally many pixels.

    Groups run from the surest pixels to the least sure ones. A bin across the border of two groups
    is divided between them in proportion.
    """
    right, wrong = _summed(counts)
    pixels = right + wrong
    mass = np.append(0, np.cumsum(pixels))
    borders = np.linspace(0, mass[-1], groups + 1)
    shares = [
        np.diff(np.interp(borders, mass, np.append(0, np.cumsum(part))))
        for part in (pixels * _middles(), wrong)
    ]
    size = mass[-1] / groups if mass[-1] else np.nan
    return shares[0] / size, shares[1] / size


def ece(counts, groups: int = EQUAL_MASS_BINS) -> float:
    """The expected calibration error |mean chance - share wrong|, over groups of equal mass.

    It differs from that of the pixels themselves by at most 1/64 of the mean chance, and twice the
    share of pixels in bins that a border of two groups divides. The latter error is 0 for pixels
    of one value.
    """
    predicted, observed = reliability(counts, groups)
    return float(np.mean(np.abs(predicted - observed)))


def brier(counts) -> float:
    """The mean of (chance - 1)^2 over wrong pixels and chance^2 over right ones.

    It differs from that of the pixels themselves by at most 1/32 of the mean chance.
    """
    right, wrong = _summed(counts)
    squares = right @ _middles() ** 2 + wrong @ (1 - _middles()) ** 2
    return _share(squares, right.sum() + wrong.sum())


def aupr(counts) -> float:
    """The area under precision against recall of wrong pixels, the least sure first.

    For pixels that all differ, this is the average precision. An order that tells nothing has the
    share of wrong pixels.
    """
    right, wrong = (part[::-1] for part in _summed(counts))
    precisions = wrong / np.maximum(right + wrong, 1) * _sums_of_shares(right, wrong)
    return _share(precisions.sum(), wrong.sum())


def risk_coverage(counts) -> tuple[np.ndarray, np.ndarray]:
    """Share of pixels kept, the surest first, and the share of wrong ones among them.

    out   coverage, risk  f64[N], after each bin that holds pixels
    """
    right, wrong = _summed(counts)
    kept = np.cumsum(right + wrong)[right + wrong > 0]
    return kept / kept[-1:], np.cumsum(wrong)[right + wrong > 0] / kept


def aurc(counts) -> float:
    """The area under the risk-coverage curve: the mean risk over all coverages."""
    right, wrong = _summed(counts)
    return _share(_sums_of_shares(right, wrong).sum(), right.sum() + wrong.sum())


def errors_found(counts, share: float) -> float:
    """The share of the wrong pixels that lie among the given share of pixels, the least sure."""
    right, wrong = (part[::-1] for part in _summed(counts))
    pixels = np.append(0, np.cumsum(right + wrong))
    found = np.interp(share * pixels[-1], pixels, np.append(0, np.cumsum(wrong)))
    return _share(found, wrong.sum())


def _sums_of_shares(right: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """The share of wrong pixels up to each pixel, summed over the pixels of each bin.

    Of n pixels in a bin a share q is wrong, and W of the M pixels before it. After x of its pixels
    the share is (W + q x) / (M + x), whose integral from 0 to n is q n + (W - q M) ln(1 + n / M).
    """
    pixels = right + wrong
    before, errors = np.cumsum(pixels) - pixels, np.cumsum(wrong) - wrong
    share = wrong / np.maximum(pixels, 1)
    return wrong + (errors - share * before) * np.log1p(pixels / np.maximum(before, 1))


def _summed(counts) -> np.ndarray:
    """f64[2, CHANCE_BINS]; products of counts of a large data set exceed 64 bits."""
    counts = np.asarray(counts)
    return counts.reshape(-1, *counts.shape[-2:]).sum(axis=0).astype(np.float64)


def _middles() -> np.ndarray:
    edges = bin_edges()[::MERGED]
    return (edges[:-1] + edges[1:]) / 2


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else float("nan")
