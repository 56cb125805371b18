"""Fits the calibrator of a network to drawn pixels of its validation images, and measures it."""

import dataclasses

import numpy as np

from diffseg_jax.errors import counted
from diffseg_jax.experiment.evaluate import DrawnPixels
from diffseg_jax.inference.calibrators import UNCALIBRATED
from diffseg_jax.metrics.calibration import (
    CHANCE_BINS,
    brier,
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
    before      i64[K,2,CHANCE_BINS], right and wrong drawn pixels by predicted class and 1 - the
                highest probability
    after       the same by the chance that a calibrator of the other half of the images estimates;
                a half is the first or the last one in the order of the split, since neighbours are
                often alike
    """

    calibrator: Calibrator
    before: np.ndarray
    after: np.ndarray

    @property
    def helps(self) -> bool:
        """Whether calibration lowers the Brier score of the other half of the images."""
        return brier(self.after) < brier(self.before)

    def numbers(self, names: tuple[str, ...]) -> dict:
        """The scores of `after` in JSON values, also by predicted class."""
        return {
            "of": "uncertainty, by a calibrator of the other half of the images",
            **self.calibrator.fitted_on,
            "kept": self.helps,
            **scores_by_class(self.after, names),
            "errors_in_20_percent": to_number(errors_found(self.after, REVIEWED)),
        }


def calibrate(
    drawn: DrawnPixels, num_classes: int, by_class: bool = True, unit: str = "images"
) -> Calibrated | None:  # fmt: skip
    """The calibrator of a network by drawn pixels of held-out images; None for less than two.

    by_class  whether it tells classes apart; not where pixels are drawn evenly by class, as rare
              ones would seem more often wrong than they are in images
    unit      what the rows of the table are, as the calibrator records it
    """
    table = drawn.table[drawn.table[:, :, 0].any(axis=1)]
    if len(table) < 2:
        return None
    before, after = np.zeros((2, num_classes, 2, CHANCE_BINS), int)
    halves = table[: len(table) // 2], table[len(table) // 2 :]
    for fitted, measured in (halves, halves[::-1]):
        calibrator = _fitted(fitted, num_classes, by_class, unit)
        signals, labels, wrong = _pixels(measured)
        truth = np.where(wrong, (labels + 1) % num_classes, labels)
        before += chance_counts(signals["least_confidence"], truth, labels, num_classes)
        after += chance_counts(calibrator.chance(signals, labels), truth, labels, num_classes)
    return Calibrated(_fitted(table, num_classes, by_class, unit), before, after)


def _fitted(table, num_classes, by_class, unit) -> Calibrator:
    signals, labels, wrong = _pixels(table)
    given = {name: v for name, v in signals.items() if v.any() or name == SIGNALS[0]}
    fitted_on = {unit: len(table), "pixels": len(labels)}
    if by_class:
        return fit_calibrator(given, labels, wrong, num_classes, fitted_on)
    pooled = fit_calibrator(given, np.zeros_like(labels), wrong, 1, fitted_on)
    return dataclasses.replace(pooled, intercepts=np.repeat(pooled.intercepts, num_classes))


def _pixels(table):
    """(signals, labels, wrong) of the pixels in a table."""
    _, labels, wrong, *signals = table[table[:, :, 0] > 0].T
    return dict(zip(SIGNALS, signals, strict=True)), labels.astype(np.int32), wrong > 0


def describe_calibration(calibrated: Calibrated | None, held_out: bool) -> str:
    """A line for the log; held_out: whether the images were others than those of the training."""
    if calibrated is None:
        why = "two labelled validation images or more calibrate it"
        if not held_out:
            why = "the validation images are those of the training, which would make it too small"
        return f"{UNCALIBRATED}: {why}"
    fitted = calibrated.calibrator.fitted_on
    where = f"{fitted['pixels']:,} pixels of {counted(fitted['images'], 'image')}"
    old, new = (scores_by_class(part, ()) for part in (calibrated.before, calibrated.after))
    shown = [key for key in ("ECE", "Brier", "AUROC") if None not in (old[key], new[key])]
    changes = ", ".join(f"{key} {old[key]:.3f} -> {new[key]:.3f}" for key in shown)
    if calibrated.helps:
        return f"the uncertainty is calibrated on {where}; from half to half of them: {changes}"
    return (
        f"{UNCALIBRATED}: what {where} teach about one half of the images makes the other half "
        f"worse ({changes})"
    )
