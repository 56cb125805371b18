"""The chance of an error: counts against the same numbers of every pixel, sums, extremes."""

import numpy as np
import pytest

from diffseg_jax.metrics.calibration import (
    CHANCE_BINS,
    EQUAL_MASS_BINS,
    aurc,
    chance_counts,
    chance_scores,
    ece,
    errors_found,
    reliability,
    risk_coverage,
)
from diffseg_jax.metrics.uncertainty import bin_edges

pytestmark = pytest.mark.quick


def counted(chance, wrong, classes=1):
    """Counts of pixels in one class, or in classes by turns."""
    predictions = np.arange(len(chance)) % classes
    labels = np.where(wrong, classes, predictions)
    return chance_counts(np.float32(chance), labels, predictions, classes)


def of_pixels(chance, wrong):
    """The scores from all pixels, one by one; those of equal chance are mixed evenly."""
    order = np.argsort(chance, kind="stable")
    p, w = chance[order].astype(float), wrong[order].astype(float)
    values, which, size = np.unique(p, return_inverse=True, return_counts=True)
    mixed = (np.bincount(which, w) / size)[which]
    n = len(p)
    borders = np.linspace(0, n, EQUAL_MASS_BINS + 1)
    gap = np.interp(borders, np.arange(n + 1), np.append(0, np.cumsum(mixed - p)))
    pairs = chance[wrong][:, None] - chance[~wrong][None]
    precision = np.cumsum(mixed[::-1]) / np.arange(1, n + 1)
    nan = float("nan")
    rate = w.mean()
    best = rate + (1 - rate) * np.log(1 - rate) if rate < 1 else 1.0
    area = np.mean(np.cumsum(mixed) / np.arange(1, n + 1))
    return {
        "ECE": np.abs(np.diff(gap)).sum() / n,
        "Brier": np.mean((p - w) ** 2),
        "AUROC": np.mean((pairs > 0) + 0.5 * (pairs == 0)) if pairs.size else nan,
        "AUPR": np.sum(precision * mixed[::-1]) / w.sum() if w.any() else nan,
        "AURC": area,
        "excess_AURC": area - best,
    }


def draws(case):
    rng = np.random.default_rng(1)
    chance = (rng.random(4000) ** 3).astype(np.float32)
    wrong = rng.random(4000) < chance**1.5
    if case == "ties":
        chance = np.float32([0, 1e-3, 0.125, 0.5, 0.9])[(5 * chance**0.5).astype(int)]
    return {
        "random": (chance, wrong),
        "ties": (chance, wrong),
        "one value": (np.full_like(chance, 0.3), wrong),
        "all right": (chance, wrong & False),
        "all wrong": (chance, wrong | True),
        "a right pixel": (chance[:1], np.array([False])),
        "a wrong pixel": (chance[:1], np.array([True])),
        "certain": (np.zeros_like(chance), wrong),
    }[case]


@pytest.mark.parametrize("case", [
    "random", "ties", "one value", "all right", "all wrong", "a right pixel", "a wrong pixel",
    "certain",
])  # fmt: skip
def test_counts_give_the_scores_of_all_pixels(case):
    chance, wrong = draws(case)
    found, exact = chance_scores(counted(chance, wrong)), of_pixels(chance, wrong)
    mean = float(chance.mean())
    most = {"ECE": mean / 64 + 0.001, "Brier": mean / 32}
    for name, value in exact.items():
        limit = most.get(name, 0.002) + 1e-9
        assert found[name] == pytest.approx(value, abs=limit, nan_ok=True), name


def test_no_pixels_have_no_scores():
    scored = chance_scores(np.zeros((3, 2, CHANCE_BINS), int))
    assert len(scored) == 6 and all(np.isnan(value) for value in scored.values())


def test_a_middle_is_within_a_64th_of_every_value_of_its_bin():
    edges = bin_edges()[::4]
    assert len(edges) == CHANCE_BINS + 1 and edges[-1] == 1 and edges[0] == 2.0**-32
    assert np.all(np.diff(edges) / 2 <= edges[:-1] / 64 * (1 + 1e-12))
    for value, edge in ((0.5, 0.5), (0.51, 0.5), (0.999, edges[-2])):
        (where,) = np.flatnonzero(counted([value], np.array([False]))[0, 0])
        assert edges[where] == edge


def test_parts_and_classes_add_up():
    chance, wrong = draws("random")
    whole = counted(chance, wrong, classes=4)
    assert (whole.dtype, whole.shape) == (np.int64, (4, 2, CHANCE_BINS))
    parts = [counted(chance[s], wrong[s], classes=4) for s in (np.s_[:1000], np.s_[1000:])]
    np.testing.assert_array_equal(sum(parts), whole)
    np.testing.assert_array_equal(whole.sum(axis=0), counted(chance, wrong)[0])
    assert chance_scores(whole) == chance_scores(counted(chance, wrong))
    assert whole[2].sum() == 1000
    assert whole[2, 1].sum() == wrong[2::4].sum()


def test_ignored_pixels_do_not_count():
    chance, wrong = draws("random")
    labels = np.where(np.arange(4000) < 1000, 255, wrong)
    rest = chance_counts(np.where(labels == 255, np.nan, chance), labels, 0 * labels, 2)
    np.testing.assert_array_equal(rest[0], counted(chance[1000:], wrong[1000:])[0])


def test_the_right_chance_is_calibrated_and_half_of_it_is_not():
    rng = np.random.default_rng(0)
    chance = rng.random(200_000)
    wrong = rng.random(200_000) < chance
    assert ece(counted(chance, wrong)) < 0.01
    assert ece(counted(chance / 2, wrong)) == pytest.approx(0.25, abs=0.01)
    predicted, observed = reliability(counted(chance, wrong))
    np.testing.assert_allclose(predicted, (np.arange(15) + 0.5) / 15, atol=0.01)
    np.testing.assert_allclose(observed, predicted, atol=0.02)


def test_the_best_order_has_no_excess_and_one_value_has_the_rate_of_errors():
    wrong = np.arange(1000) % 5 == 0
    assert chance_scores(counted(wrong * 0.9, wrong))["excess_AURC"] == pytest.approx(0, abs=1e-12)
    assert aurc(counted(np.full(1000, 0.4), wrong)) == pytest.approx(0.2)
    coverage, risk = risk_coverage(counted(wrong * 0.9, wrong))
    assert (coverage.tolist(), risk.tolist()) == ([0.8, 1.0], [0.0, 0.2])


def test_errors_are_found_among_the_least_sure_pixels():
    chance, wrong = draws("random")
    for share in (0.05, 0.2, 0.7, 1):
        least_sure = np.argsort(-chance)[: int(share * 4000)]
        found = errors_found(counted(chance, wrong, classes=3), share)
        assert found == pytest.approx(wrong[least_sure].sum() / wrong.sum(), abs=0.005)
    assert np.isnan(errors_found(counted(chance, wrong & False), 0.2))


def test_large_sets_do_not_overflow():
    counts = counted(*draws("random"))
    assert chance_scores(counts * 10**13) == pytest.approx(chance_scores(counts))
