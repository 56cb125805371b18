"""Scores features by a linear probe: ridge regression on pixels, judged on other images."""

import numpy as np

from diffseg_jax.data.labels import IGNORE
from diffseg_jax.metrics.segmentation import Absent, confusion, scores

FOLDS = 5
PENALTY = 1e-3  # of ridge regression, per pixel, on features of variance 1


def draw_pixels(mask: np.ndarray, count: int, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns i32[count] of labelled pixels, drawn with the image's number as seed."""
    y, x = np.nonzero(mask != IGNORE)
    drawn = np.random.default_rng(number).integers(len(y), size=count)
    return y[drawn].astype(np.int32), x[drawn].astype(np.int32)


def folds_of_pixels(images: int, pixels: int) -> np.ndarray:
    """The fold i64[images * pixels] of each pixel, where every image has the same number of them.

    Pixels of an image share its fold.
    """
    return np.repeat(np.arange(images) % FOLDS, pixels)


def probe(x: np.ndarray, y: np.ndarray, folds: np.ndarray, num_classes: int) -> float:
    """Mean IoU of ridge regression onto classes, fitted to all folds but the one it predicts.

    x      f32[n, D]; standardised here
    y      int[n], classes
    folds  int[n]
    """
    x = (x - x.mean(0)) / np.maximum(x.std(0), 1e-6)
    x = np.concatenate([x, np.ones((len(x), 1), np.float32)], 1)
    targets = np.eye(num_classes, dtype=np.float32)[y]
    parts = [folds == fold for fold in np.unique(folds)]
    grams = [x[part].T @ x[part] for part in parts]
    sums = [x[part].T @ targets[part] for part in parts]
    gram, total, counts = sum(grams), sum(sums), 0
    for part, own, of_part in zip(parts, grams, sums, strict=True):
        penalty = PENALTY * (~part).sum() * np.eye(x.shape[1], dtype=np.float32)
        weights = np.linalg.solve(gram - own + penalty, total - of_part)
        counts = counts + confusion(y[part], np.argmax(x[part] @ weights, 1), num_classes)
    return scores(counts, absent=Absent.SKIP)["mIoU"]
