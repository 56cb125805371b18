"""Scores of maps with several classes per cell: IoU at thresholds, from counts of a data set.

As BEVFusion (Liu et al., ICRA 2023) counts: a class takes the threshold at which its IoU over the
whole data set is highest.
"""

from collections.abc import Sequence

import numpy as np

THRESHOLDS = np.float32([0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65])


def layer_counts(probs: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """i64[7, 3, K]: true positives, false positives, false negatives at every threshold.

    probs  f32[..., K] in [0, 1];  truth  bool or u8[..., K], 1 where a cell has the class
    """
    classes = probs.shape[-1]
    probs, truth = probs.reshape(-1, classes), truth.reshape(-1, classes).astype(bool)
    found = probs[None] >= THRESHOLDS[:, None, None]  # [7, cells, K]
    hits = (found & truth).sum(1)
    return np.stack([hits, found.sum(1) - hits, truth.sum(0) - hits], 1).astype(np.int64)


def layer_ious(counts: np.ndarray) -> np.ndarray:
    """f64[7, K]: tp / (tp + fp + fn + 1e-7) of counts i64[7, 3, K]."""
    counts = np.asarray(counts, np.float64)
    return counts[:, 0] / (counts.sum(1) + 1e-7)


def layer_scores(counts: np.ndarray, names: Sequence[str]) -> dict:
    """Numbers for JSON: "mIoU", the mean of the classes' best IoU, and per class its best "IoU".

    "threshold" is that of the best IoU, "IoU at 0.5" the one without a choice.
    """
    ious = layer_ious(counts)
    best = ious.argmax(0)
    middle = ious[len(THRESHOLDS) // 2]
    by_name = lambda values: dict(zip(names, map(float, values), strict=True))
    return {
        "mIoU": float(ious.max(0).mean()),
        "mIoU at 0.5": float(middle.mean()),
        "IoU": by_name(ious.max(0)),
        "IoU at 0.5": by_name(middle),
        "threshold": by_name(np.round(THRESHOLDS[best].astype(np.float64), 2)),
    }


def constant_ious(positive: np.ndarray, cells: int) -> np.ndarray:
    """f64[K]: the IoU of the best constant map of every class, which has the class everywhere.

    positive  cells of a data set that have each class;  cells  all of them
    """
    return np.asarray(positive, np.float64) / max(cells, 1)
