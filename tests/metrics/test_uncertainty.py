"""Uncertainty of images, and as a detector of wrong pixels: two routes, invariances, extremes."""

import numpy as np
import pytest

from diffseg_jax.errors import UserError
from diffseg_jax.metrics.uncertainty import (
    BINS,
    PER_OCTAVE,
    auroc,
    image_uncertainty,
    uncertainty_counts,
)

pytestmark = pytest.mark.quick


def pairwise(uncertainty, wrong):
    """AUROC from its meaning: every wrong pixel against every right one."""
    difference = uncertainty[wrong][:, None] - uncertainty[~wrong][None]
    return np.mean((difference > 0) + 0.5 * (difference == 0))


def area(uncertainty, wrong):
    """The same through the counts."""
    return auroc(uncertainty_counts(uncertainty, np.zeros(wrong.shape, int), wrong.astype(int)))


@pytest.fixture
def maps():
    """Uncertainty, labels (one in ten ignored), predictions; [4, 12, 9]."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (4, 12, 9))
    predictions = np.where(rng.random(labels.shape) < 0.7, labels, rng.integers(0, 3, labels.shape))
    uncertainty = rng.random(labels.shape) ** (1 + 2 * (labels == predictions))
    labels[rng.random(labels.shape) < 0.1] = 255
    return uncertainty.astype(np.float32), labels, predictions


# --- one number for an image ----------------------------------------------------------------------


@pytest.mark.golden
def test_recorded_image_uncertainty(golden):
    cases = [c for c in map(np.load, golden("adm/pixel_classifier_*.npz")) if "top_k" in c]
    assert cases
    for case in cases:
        for values in (case["js"], case["js"].reshape(case["size"]), case["js"][::-1]):
            assert abs(image_uncertainty(values) - case["top_k"]) < 1e-5


@pytest.mark.parametrize(("pixels", "taken"), [
    (1, 1), (9, 9), (10, 1), (19, 1), (20, 2), (65_536, 6_553),
])  # fmt: skip
def test_a_tenth_of_the_pixels_is_taken_rounded_down(pixels, taken):
    values = np.random.default_rng(pixels).permutation(pixels).astype(np.float32)
    assert image_uncertainty(values) == (2 * pixels - taken - 1) / 2


def test_an_undefined_pixel_shows():
    values = np.zeros((5, 8), np.float32)
    values[2, 3] = np.nan
    assert np.isnan(image_uncertainty(values))


def test_an_empty_image_is_refused():
    with pytest.raises(UserError, match="an image without pixels"):
        image_uncertainty(np.zeros((0, 4)))


# --- a detector of wrong pixels -------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_area_is_that_of_all_pairs(seed):
    """Exactly, ties included, where equal bins mean equal values."""
    rng = np.random.default_rng(seed)
    wrong = rng.random(200) < 0.3
    values = np.array([0, 1e-8, 3e-5, 0.01, 0.1, 0.25, 0.26, 0.5, 0.75, 0.99, 1], np.float32)
    uncertainty = values[np.clip(rng.integers(0, 8, 200) + 3 * wrong, 0, len(values) - 1)]
    assert area(uncertainty, wrong) == pytest.approx(pairwise(uncertainty, wrong), abs=1e-12)


@pytest.mark.parametrize("scale", [1, 1e-3, 1e-7])
def test_small_uncertainties_are_told_apart(scale):
    rng = np.random.default_rng(3)
    wrong = rng.random(1000) < 0.2
    uncertainty = (scale * rng.random(1000) ** (3 - 2 * wrong)).astype(np.float32)
    exact = pairwise(uncertainty, wrong)
    assert exact > 0.6 and abs(area(uncertainty, wrong) - exact) < 1e-3


def test_bins_are_in_the_order_of_the_values():
    values = np.sort(np.concatenate([np.geomspace(1e-12, 1, 9_999), [0]])).astype(np.float32)
    zeros = np.zeros(1, int)
    bins = [uncertainty_counts(v[None], zeros, zeros)[0].argmax() for v in values]
    assert (bins[0], bins[-1]) == (0, BINS - 1)
    assert np.all(np.diff(bins) >= 0)
    assert len(set(bins)) == BINS
    halved = uncertainty_counts(np.float32([0.3, 0.15]), np.zeros(2, int), np.zeros(2, int))
    assert np.ptp(np.flatnonzero(halved[0])) == PER_OCTAVE


def test_batches_add_up_to_the_whole(maps):
    whole = uncertainty_counts(*maps)
    parts = [uncertainty_counts(*rows) for rows in zip(*maps)]
    assert (whole.dtype, whole.shape) == (np.int64, (2, BINS))
    np.testing.assert_array_equal(sum(parts), whole)


def test_every_labelled_pixel_is_counted_once(maps):
    _, labels, predictions = maps
    right, wrong = uncertainty_counts(*maps).sum(axis=1)
    assert right == np.sum((labels == predictions) & (labels != 255)) > 0
    assert wrong == np.sum((labels != predictions) & (labels != 255)) > 0


@pytest.mark.parametrize("there", [0, 0.5, np.nan, -3])
def test_ignored_pixels_cannot_change_it(maps, there):
    uncertainty, labels, predictions = maps
    ignored = labels == 255
    changed = np.where(ignored, there, uncertainty), labels, np.where(ignored, 255, predictions)
    np.testing.assert_array_equal(uncertainty_counts(*changed), uncertainty_counts(*maps))
    elsewhere = uncertainty, np.where(ignored, 7, labels), predictions
    counts = uncertainty_counts(*elsewhere, ignore=7)
    np.testing.assert_array_equal(counts, uncertainty_counts(*maps))


def test_perfect_and_useless_uncertainties_have_extreme_areas():
    wrong = np.arange(100) % 7 == 0
    assert area(wrong.astype(np.float32), wrong) == 1
    assert area((~wrong).astype(np.float32), wrong) == 0
    assert area(np.full(100, 0.3, np.float32), wrong) == 0.5
    assert np.isnan(area(np.full(100, 0.3), np.zeros(100, bool)))
    assert np.isnan(area(np.full(100, 0.3), np.ones(100, bool)))
    assert np.isnan(auroc(np.zeros((2, BINS), np.int64)))


def test_reversed_order_gives_the_rest(maps):
    uncertainty, labels, predictions = (m[maps[1] != 255] for m in maps)
    steps = np.round(uncertainty * 32) / 32
    both = [auroc(uncertainty_counts(u, labels, predictions)) for u in (steps, 1 - steps)]
    assert both[0] != 0.5 and sum(both) == pytest.approx(1, abs=1e-12)


def test_large_sets_do_not_overflow(maps):
    counts = uncertainty_counts(*maps)
    assert auroc(counts * 10**14) == auroc(counts)


def test_wrong_input_is_refused(maps):
    uncertainty, labels, predictions = maps
    with pytest.raises(UserError, match=r"\(4, 12\).*\(4, 12, 9\)"):
        uncertainty_counts(uncertainty[..., 0], labels, predictions)
    for value in (1.5, -0.1, np.nan):
        with pytest.raises(UserError, match="not finite, or lies outside 0 to 1"):
            uncertainty_counts(np.full(labels.shape, value), labels, predictions)
