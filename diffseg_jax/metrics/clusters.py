"""k-means with k-means++ starts, and the matching of two clusterings."""

from collections.abc import Sequence

import numpy as np

from diffseg_jax.errors import UserError, counted

ITERATIONS = 100  # of Lloyd's algorithm, at most
DRAWN_VECTORS = 20_000  # vectors from which centres are found; all are assigned


def kmeans(x: np.ndarray, k: int, restarts: int = 10, seed: int = 0) -> np.ndarray:
    """The cluster of every vector f[n,D], i32[n] in 0..k-1, of the best of several starts.

    Starts are drawn by k-means++ (Arthur and Vassilvitskii, 2007) with a generator of the seed; the
    best has the smallest sum of squared distances. Centres are found from DRAWN_VECTORS
    at most. Raises UserError for fewer different vectors than clusters.
    """
    x = np.asarray(x, np.float32)
    rng = np.random.default_rng(seed)
    sample = x[rng.choice(len(x), DRAWN_VECTORS, replace=False)] if len(x) > DRAWN_VECTORS else x
    different = _different(x, 100 * k + 1000, k)
    if different < k:
        fewer = f"--config.clusters.k={different}, " if different > 1 else ""
        raise UserError(
            f"clusters.k is {k}, but the features hold {counted(different, 'different vector')}. "
            f"Try {fewer}larger images, or a finer block."
        )
    found = [_lloyd(sample, _plus_plus(sample, k, rng)) for _ in range(restarts)]
    _, centres = min(found, key=lambda pair: pair[0])
    return _nearest(x, centres)[0]


def _different(x, some, k):
    """The number of different vectors of about `some` of them, or of all where that is below k."""
    found = len(np.unique(x[:: max(len(x) // some, 1)], axis=0))
    return found if found >= k else len(np.unique(x, axis=0))


def _plus_plus(x, k, rng):
    """Centres f32[k,D], each drawn by its squared distance from those before."""
    centres = [x[rng.integers(len(x))]]
    distance = np.full(len(x), np.inf)
    for _ in range(k - 1):
        distance = np.minimum(distance, ((x - centres[-1]) ** 2).sum(1))
        total = distance.sum()
        chance = distance / total if total > 0 else None
        centres.append(x[rng.choice(len(x), p=chance)])
    return np.stack(centres)


def _lloyd(x, centres) -> tuple[float, np.ndarray]:
    """(sum of squared distances, centres) once nothing changes."""
    before = None
    for _ in range(ITERATIONS):
        labels, distance = _nearest(x, centres)
        if before is not None and (labels == before).all():
            break
        before = labels
        counts = np.bincount(labels, minlength=len(centres))
        sums = np.zeros_like(centres)
        np.add.at(sums, labels, x)
        kept = counts > 0  # an empty cluster stays where it was
        centres = np.where(kept[:, None], sums / np.maximum(counts, 1)[:, None], centres)
    return float(distance.sum()), centres.astype(np.float32)


def _nearest(x, centres):
    """The nearest centre of every vector i32[n], and its squared distance f32[n]."""
    distance = (centres**2).sum(1) - 2 * x @ centres.T
    labels = distance.argmin(1).astype(np.int32)
    rest = np.take_along_axis(distance, labels[:, None], 1)[:, 0] + (x**2).sum(1)
    return labels, np.maximum(rest, 0)


def matched(labels: np.ndarray, reference: np.ndarray, k: int) -> np.ndarray:
    """The clusters i32[...] renamed so that they overlap most with those of a reference i[...].

    The names are a permutation of 0..k-1: that of the largest total overlap.
    """
    from scipy.optimize import linear_sum_assignment  # a slow import

    pairs = k * np.asarray(labels).ravel() + np.asarray(reference).ravel()
    overlap = np.bincount(pairs, minlength=k * k).reshape(k, k)
    ours, theirs = linear_sum_assignment(-overlap)
    names = np.zeros(k, np.int32)
    names[ours] = theirs
    return names[labels]


def enlarged_labels(labels: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """A map of labels i[..., h, w] at another size by the nearest value, i[..., H, W]."""
    rows, columns = (
        ((np.arange(side) + 0.5) * have / side).astype(int)
        for side, have in zip(size, labels.shape[-2:], strict=True)
    )
    return labels[..., rows[:, None], columns]
