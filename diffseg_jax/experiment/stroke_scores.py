"""How well classifiers do on strokes that they have not learned from, and their calibrator."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from diffseg_jax.experiment.calibrate import Calibrated, calibrate
from diffseg_jax.experiment.evaluate import DrawnPixels
from diffseg_jax.metrics.divergence import entropy, normalised
from diffseg_jax.metrics.segmentation import confusion
from diffseg_jax.metrics.uncertainty import SIGNALS

MAX_FOLDS = 5  # at most; fewer images or strokes make fewer


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """What classifiers say of pixels of strokes that were held out of their fit.

    per_class   IoU in [0, 1] of each class; None where no stroke of it could be held out while
                others of it were learned from
    miou        the mean of those that are there; None if none is
    calibrated  None for too few strokes
    """

    per_class: tuple[float | None, ...]
    miou: float | None
    calibrated: Calibrated | None


def fold_numbers(images: np.ndarray, labels: np.ndarray, strokes: np.ndarray) -> np.ndarray:
    """The fold i64[n] in which each of n pixels is held out.

    images, labels, strokes  int[n]; a stroke is of one image and one class

    Whole images are held out where several are painted, neighbours together, since frames of a
    video are often alike; else strokes: those of each class in turn.
    """
    names, of = np.unique(images, return_inverse=True)
    if len(names) > 1:
        return of * min(MAX_FOLDS, len(names)) // len(names)
    names, first, of = np.unique(strokes, return_index=True, return_inverse=True)
    order = np.argsort(labels[first], kind="stable")  # strokes of one class are neighbours
    turns = np.empty(len(names), np.int64)
    turns[order] = np.arange(len(names)) % min(MAX_FOLDS, len(names))
    return turns[of]


def expected_signals(
    probs: np.ndarray, divergence: np.ndarray, members: int, wanted: int
) -> dict[str, np.ndarray]:  # fmt: skip
    """The signals f32[n] that `wanted` members would show, judged by what `members` say.

    probs  f32[n,K], means over members;  divergence  f32[n], of at least two members

    The divergence, entropy of the mean less mean entropy, is about half the variance between
    members, of which M members show the share 1 - 1 / M; the mean entropy does not depend on M.
    """
    more = divergence * ((1 - 1 / wanted) / (1 - 1 / members) - 1)
    return {
        "least_confidence": 1 - probs.max(-1),
        "entropy": np.clip(normalised(entropy(probs, np), probs.shape[1], np) + more, 0, 1),
        "divergence": np.clip(divergence + more, 0, 1),
    }


def score_held_out(
    probs: np.ndarray, signals: Mapping[str, np.ndarray], labels: np.ndarray, folds: np.ndarray,
    units: np.ndarray, pixels: np.ndarray, unit: str = "images",
) -> HeldOut:  # fmt: skip
    """The scores of n drawn pixels, by classifiers that learned from the other folds.

    probs    f32[n,K], means over members;  signals  name -> f32[n] in [0, 1]
    labels   int[n], painted classes;  folds  int[n]
    units    int[n], images or strokes: the halves between which calibration is tried;  unit  which
    pixels   int[n], numbers of painted pixels: one that is drawn several times calibrates once
    """
    num_classes = probs.shape[1]
    pairs = np.unique(np.stack([labels, folds]), axis=1)[0]
    several = np.bincount(pairs, minlength=num_classes) > 1
    counted = several[labels]
    predicted = probs.argmax(-1).astype(np.int32)
    counts = confusion(labels[counted].astype(np.int32), predicted[counted], num_classes)
    right, rows = np.diag(counts), counts.sum(1)
    union = rows + counts.sum(0) - right
    per_class = tuple(
        float(r / u) if number else None for r, u, number in zip(right, union, rows, strict=True)
    )
    scored = [value for value in per_class if value is not None]
    miou = float(np.mean(scored)) if scored else None
    once = np.unique(pixels, return_index=True)[1]
    once = once[counted[once]]
    drawn = _table(predicted, predicted != labels, units, signals, once)
    return HeldOut(per_class, miou, calibrate(drawn, num_classes, by_class=False, unit=unit))


def _table(predicted, wrong, units, signals, rows) -> DrawnPixels:
    """Some of the pixels as of `DrawnPixels`, a row of the table for each unit."""
    _, of, sizes = np.unique(units[rows], return_inverse=True, return_counts=True)
    table = np.zeros((len(sizes), sizes.max(initial=0), 3 + len(SIGNALS)), np.float32)
    order = np.argsort(of, kind="stable")
    within = np.arange(len(of)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    zeros = np.zeros(len(of))
    columns = [np.ones(len(of)), predicted[rows], wrong[rows]]
    columns += [np.clip(signals[n][rows], 0, 1) if n in signals else zeros for n in SIGNALS]
    table[of[order], within] = np.stack(columns, -1)[order]
    return DrawnPixels(table, {})
