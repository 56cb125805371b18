"""Fits the calibrator of a network to drawn pixels of its validation images, and measures it."""

import dataclasses

import numpy as np

from diffseg_jax.errors import counted
from diffseg_jax.experiment.evaluate import DrawnPixels
from diffseg_jax.metrics.calibration import (
    CHANCE_BINS,
    chance_counts,
    errors_found,
    scores_by_class,
)
from diffseg_jax.metrics.calibrator import Calibrator, fit_calibrator
from diffseg_jax.metrics.segmentation import to_number
from diffseg_jax.metrics.uncertainty import SIGNALS

REVIEWED = 0.2  # share of the pixels, the least sure, in which errors are counted


@dataclasses.dataclass(frozen=True)
class Calibrated:
    """A calibrator, and how it does on images that it was not fitted to.

    calibrator  fitted to the drawn pixels of all images
    counts      i64[K,2,CHANCE_BINS], right and wrong pixels by predicted class and chance of an
                error; the chances of one half of the images come from a calibrator that was fitted
                to the other half, which is the first or the last in the order of the split, as
                neighbours are often alike. Zeros for a single image
    """

    calibrator: Calibrator
    counts: np.ndarray

    def numbers(self, names: tuple[str, ...]) -> dict:
        """The scores of the counts in JSON values, also by predicted class."""
        found = errors_found(self.counts, REVIEWED)
        return {
            "of": "uncertainty, by a calibrator of the other half of the images",
            **self.calibrator.fitted_on,
            **scores_by_class(self.counts, names),
            "errors_in_20_percent": to_number(found),
        }


def calibrate(drawn: DrawnPixels, num_classes: int) -> Calibrated | None:
    """The calibrator of a network by drawn pixels of held-out images; None without a pixel."""
    table = drawn.table[drawn.table[:, :, 0].any(axis=1)]
    if not len(table):
        return None
    counts = np.zeros((num_classes, 2, CHANCE_BINS), int)
    halves = table[: len(table) // 2], table[len(table) // 2 :]
    if len(table) > 1:
        for fitted, measured in (halves, halves[::-1]):
            calibrator = _fitted(fitted, num_classes)
            signals, labels, wrong = _pixels(measured)
            chance = calibrator.chance(signals, labels)
            truth = np.where(wrong, (labels + 1) % num_classes, labels)
            counts += chance_counts(chance, truth, labels, num_classes)
    return Calibrated(_fitted(table, num_classes), counts)


def _fitted(table, num_classes) -> Calibrator:
    signals, labels, wrong = _pixels(table)
    given = {name: values for name, values in signals.items() if values.any()}
    fitted_on = {"images": len(table), "pixels": len(labels)}
    return fit_calibrator(given, labels, wrong, num_classes, fitted_on)


def _pixels(table):
    """(signals, labels, wrong) of the pixels in a table."""
    _, labels, wrong, *signals = table[table[:, :, 0] > 0].T
    return dict(zip(SIGNALS, signals, strict=True)), labels.astype(np.int32), wrong > 0


def describe(calibrated: Calibrated, before: dict) -> str:
    """A line for the log; before: the scores without the calibrator."""
    fitted, after = calibrated.calibrator.fitted_on, calibrated.numbers(())
    where = f"calibrated on {fitted['pixels']:,} pixels of {counted(fitted['images'], 'image')}"
    if after["ECE"] is None:
        return f"{where}, too few to measure it on others"
    changes = ", ".join(f"{key} {before[key]:.3f} -> {after[key]:.3f}" for key in ("ECE", "AUROC")
                        if None not in (before[key], after[key]))  # fmt: skip
    return f"uncertainty {where}: {changes}"
