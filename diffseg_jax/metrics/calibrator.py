"""From the signals of a pixel to the estimated chance that its label is wrong.

A logistic regression on the signals, with an intercept for each class, gives a score; a monotone
curve through a few points turns it into a chance, after the manner of Platt (1999) and of Zadrozny
and Elkan (2002). Classes that a network confuses more often than others have larger intercepts,
which finds errors that no signal shows.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

SMALLEST = 1e-4  # is added to a signal and to 1 minus it, so that 0 and 1 have a logarithm
RIDGE = 0.002  # penalty on squared intercepts per pixel: those of rare classes shrink to the mean
CURVE = 16  # points: groups of equally many pixels
PRIOR = 0.5  # right and wrong pixels that are added to every group: no chance is 0 or 1


@dataclasses.dataclass(frozen=True)
class Calibrator:
    """A map from signals and the label of a pixel to the chance that the label is wrong.

    signals     names of S signals with values in [0, 1]
    weights     f64[S] of their logits, not negative: no signal makes an error less likely
    intercepts  f64[K] by label
    scores      f64[G], increasing, and
    chances     f64[G], not decreasing: the points of the curve, linear in between
    fitted_on   what it was fitted to, JSON values
    """

    signals: tuple[str, ...]
    weights: np.ndarray
    intercepts: np.ndarray
    scores: np.ndarray
    chances: np.ndarray
    fitted_on: Mapping

    def chance(self, signals: Mapping, labels, xp=np):
        """The chance of an error f32[...], for signals f32[...] by name and labels i32[...].

        xp  numpy or jax.numpy, the module of the arrays that come in and go out
        """
        score = xp.asarray(self.intercepts, np.float32)[labels]
        for name, weight in zip(self.signals, self.weights, strict=True):
            score = score + np.float32(weight) * _logit(signals[name], xp)
        points = (np.asarray(values, np.float32) for values in (self.scores, self.chances))
        return xp.interp(score, *points).astype(np.float32)

    def to_json(self) -> dict:
        """The calibrator in JSON values."""
        return {
            "signals": list(self.signals),
            **{name: [float(f"{value:.6g}") for value in getattr(self, name)] for name in ARRAYS},
            "fitted_on": dict(self.fitted_on),
        }


ARRAYS = ("weights", "intercepts", "scores", "chances")


def from_json(content: Mapping) -> Calibrator:
    """The inverse of `Calibrator.to_json`; KeyError, TypeError or ValueError for other content."""
    arrays = {name: np.asarray(content[name], np.float64) for name in ARRAYS}
    signals = tuple(content["signals"])
    if not (
        all(values.ndim == 1 and np.isfinite(values).all() for values in arrays.values())
        and arrays["weights"].shape == (len(signals),)
        and arrays["scores"].shape == arrays["chances"].shape
        and arrays["chances"].size
        and arrays["intercepts"].size
        and (np.diff(arrays["scores"]) >= 0).all()
        and ((arrays["chances"] >= 0) & (arrays["chances"] <= 1)).all()
    ):
        raise ValueError("its arrays do not fit together")
    return Calibrator(signals, **arrays, fitted_on=dict(content["fitted_on"]))


def fit_calibrator(
    signals: Mapping[str, np.ndarray], labels, wrong, num_classes: int, fitted_on: Mapping
) -> Calibrator:
    """The calibrator of n labelled pixels that the network has not learned from.

    signals  name -> f32[n] in [0, 1];  labels  i32[n], those of the network;  wrong  bool[n]

    Any pixels will do: all right, all wrong, classes without a pixel; at least one is needed.
    """
    from scipy.optimize import isotonic_regression, minimize  # slow imports

    names, labels, wrong = tuple(signals), np.asarray(labels), np.asarray(wrong, bool)
    logits = np.stack([_logit(np.asarray(signals[n], np.float64), np) for n in names], axis=-1)
    mean, deviation = logits.mean(0), logits.std(0) + SMALLEST
    scaled, count = (logits - mean) / deviation, len(names)
    penalties = np.append(np.ones(count + 1), np.full(num_classes, RIDGE * len(labels)))

    def loss_and_gradient(values):
        score = scaled @ values[:count] + values[count] + values[count + 1 :][labels]
        loss = np.logaddexp(0, score).sum() - score[wrong].sum()
        residual = np.exp(-np.logaddexp(0, -score)) - wrong
        by_class = np.bincount(labels, residual, num_classes)
        gradient = np.concatenate([scaled.T @ residual, [residual.sum()], by_class])
        return loss + penalties @ values**2 / 2, gradient + penalties * values

    start = np.zeros(len(penalties))
    bounds = [(0, None)] * count + [(None, None)] * (1 + num_classes)
    found = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    weights = found[:count] / deviation
    intercepts = found[count] + found[count + 1 :] - mean @ weights

    score = logits @ weights + intercepts[labels]
    groups = np.array_split(np.argsort(score, kind="stable"), min(CURVE, len(score)))
    means = np.float32([score[group].mean() for group in groups])
    scores, same = np.unique(means, return_inverse=True)  # groups of equal pixels become one
    errors = np.bincount(same, [wrong[group].sum() for group in groups])
    sizes = np.bincount(same, [len(group) for group in groups])
    curve = isotonic_regression((errors + PRIOR) / (sizes + 2 * PRIOR), weights=sizes)
    return Calibrator(names, weights, intercepts, scores, curve.x, fitted_on)


def _logit(values, xp):
    return xp.log((values + SMALLEST) / (1 - values + SMALLEST))
