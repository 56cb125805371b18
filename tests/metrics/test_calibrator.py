"""The map from signals to the chance of an error: pixels with a known chance, and odd ones."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffseg_jax.metrics.calibration import chance_counts, chance_scores
from diffseg_jax.metrics.calibrator import fit_calibrator, from_json

pytestmark = pytest.mark.quick

FITTED_ON = {"images": 2, "pixels": 20_000}
OFFSETS = np.array([-1.0, 0.5, 3.0])  # of the logit of an error, by class


def pixels(seed, count=20_000):
    """(signals, labels, wrong): an overconfident network that confuses its last class most."""
    rng = np.random.default_rng(seed)
    labels, doubt = rng.integers(0, 3, count), rng.beta(0.6, 3, count)
    score = 0.5 * np.log((doubt + 1e-4) / (1 - doubt + 1e-4)) + OFFSETS[labels]
    wrong = rng.random(count) < 1 / (1 + np.exp(-score))
    signals = {"least_confidence": doubt, "noise": rng.random(count)}
    return {name: v.astype(np.float32) for name, v in signals.items()}, labels, wrong


def scored(chance, labels, wrong):
    return chance_scores(chance_counts(chance, np.where(wrong, 9, labels), labels, 3))


def test_pixels_of_other_images_are_calibrated():
    """The scores approach those of the chance itself, from far away."""
    calibrator = fit_calibrator(*pixels(0), 3, FITTED_ON)
    signals, labels, wrong = pixels(1)
    before = scored(signals["least_confidence"], labels, wrong)
    after = scored(calibrator.chance(signals, labels), labels, wrong)
    score = 0.5 * np.log(signals["least_confidence"] / (1 - signals["least_confidence"]))
    best = scored(1 / (1 + np.exp(-score - OFFSETS[labels])), labels, wrong)
    assert before["ECE"] > 0.1 and after["ECE"] < 0.015
    assert best["AUROC"] - 0.003 < after["AUROC"] and before["AUROC"] < best["AUROC"] - 0.1
    assert abs(calibrator.weights[1]) < 0.1 < calibrator.weights[0]
    np.testing.assert_allclose(np.diff(calibrator.intercepts), np.diff(OFFSETS), atol=0.2)


def test_a_surer_network_is_less_likely_wrong():
    signals, labels, wrong = pixels(0)
    signals["opposite"] = 1 - signals["least_confidence"]
    calibrator = fit_calibrator(signals, labels, wrong, 3, FITTED_ON)
    rising, zero = np.linspace(0, 1, 50, dtype=np.float32), np.zeros(50, np.float32)
    rising = {"least_confidence": rising, "noise": zero, "opposite": zero}
    for label in range(3):
        chance = calibrator.chance(rising, np.full(50, label))
        assert chance.dtype == np.float32 and (np.diff(chance) >= 0).all()
        assert 0 < chance[0] < chance[-1] < 1


def test_numpy_and_jax_agree():
    calibrator = fit_calibrator(*pixels(0), 3, FITTED_ON)
    signals, labels, _ = pixels(1, 500)
    traced = jax.jit(lambda *inputs: calibrator.chance(*inputs, jnp))(signals, labels)
    np.testing.assert_allclose(traced, calibrator.chance(signals, labels), atol=1e-6)


def test_it_is_kept_as_json():
    calibrator = fit_calibrator(*pixels(0), 3, FITTED_ON)
    signals, labels, _ = pixels(1, 500)
    back = from_json(json.loads(json.dumps(calibrator.to_json())))
    assert back.fitted_on == FITTED_ON
    np.testing.assert_allclose(
        back.chance(signals, labels), calibrator.chance(signals, labels), atol=1e-4
    )


@pytest.mark.parametrize("all_wrong", [False, True])
def test_pixels_that_are_all_right_or_all_wrong(all_wrong):
    signals, labels, _ = pixels(0, 2_000)
    calibrator = fit_calibrator(signals, labels, np.full(2_000, all_wrong), 3, FITTED_ON)
    chance = calibrator.chance(signals, labels)
    assert np.isfinite(chance).all()
    assert chance.min() > 0.95 if all_wrong else chance.max() < 0.05


def test_a_class_that_was_never_seen_has_the_chance_of_all():
    signals, labels, wrong = pixels(0)
    seen = labels < 2
    signals, labels = {name: values[seen] for name, values in signals.items()}, labels[seen]
    calibrator = fit_calibrator(signals, labels, wrong[seen], 4, FITTED_ON)
    few = {name: values[:100] for name, values in signals.items()}
    first, second, unseen = (calibrator.chance(few, np.full(100, k)) for k in (0, 1, 3))
    assert (first <= unseen).all() and (unseen <= second).all()


def test_equal_pixels_have_the_share_of_errors_among_them():
    """Of surely predicted pixels those of the last images are wrong more often."""
    rng, count = np.random.default_rng(0), 20_000
    doubt = np.where(rng.random(count) < 0.7, 0, rng.random(count))
    late = np.arange(count) > count / 2
    wrong = rng.random(count) < np.where(doubt > 0, 0.3, 0.2 * late)
    labels = np.zeros(count, int)
    calibrator = fit_calibrator({"entropy": doubt}, labels, wrong, 2, FITTED_ON)
    assert calibrator.chance({"entropy": np.float32(0)}, 0) == pytest.approx(0.1, abs=0.01)
    assert (np.diff(calibrator.scores) > 0).all() and (np.diff(calibrator.chances) >= 0).all()


def test_one_pixel_is_enough():
    calibrator = fit_calibrator({"entropy": np.array([0.5])}, [1], [True], 2, FITTED_ON)
    assert 0.5 < calibrator.chance({"entropy": np.float32(0.5)}, 1) < 1


@pytest.mark.parametrize(
    "change",
    [
        {"weights": [1.0]}, {"scores": [2.0, 1.0], "chances": [0.1, 0.2]}, {"chances": []},
        {"intercepts": ["x"]}, {"scores": None}, {"chances": [float("nan")] * 32},
        {"scores": [0.0], "chances": [1.5]}, {"intercepts": []},
    ],
)  # fmt: skip
def test_damaged_json_is_noticed(change):
    content = fit_calibrator(*pixels(0, 500), 3, FITTED_ON).to_json()
    with pytest.raises((KeyError, TypeError, ValueError)):
        from_json({**content, **change})
