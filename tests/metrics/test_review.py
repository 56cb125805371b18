"""Which pixels to check and which not to trust, for chances that are known."""

import numpy as np
import pytest

from diffseg_jax.metrics.review import expected_accuracy, pixels_to_review, without_unsure

pytestmark = pytest.mark.quick

RNG = np.random.default_rng(3)
MAPS = {
    "random": RNG.random((7, 9)) ** 4,
    "float32 with ties": RNG.integers(0, 4, (8, 8)).astype(np.float32) / 7,
    "few": np.eye(5) * 0.3,
    "equal": np.full((4, 6), 0.01, np.float32),
    "one pixel": np.array([[0.7]]),
    "all wrong": np.ones((3, 3)),
}


@pytest.mark.parametrize("chances", MAPS.values(), ids=MAPS)
@pytest.mark.parametrize("missed", [0.001, 0.2, 0.5, 0.999])
def test_no_smaller_set_holds_as_many_expected_errors(chances, missed):
    chosen = pixels_to_review(chances, missed)
    assert chosen.dtype == bool and chosen.shape == chances.shape
    inside = np.sort(chances[chosen].astype(np.float64))
    wanted = (1 - missed) * chances.sum(dtype=np.float64)
    assert inside.sum() > wanted - 1e-9 and inside[1:].sum() < wanted
    assert chosen.all() or inside[0] >= chances[~chosen].max()


def test_without_expected_errors_there_is_nothing_to_review():
    assert not pixels_to_review(np.zeros((4, 5)), 0.2).any()


def test_a_share_of_the_errors_is_missed_if_the_chances_are_right():
    chances = RNG.random((300, 300)) ** 5
    wrong = RNG.random(chances.shape) < chances
    chosen = pixels_to_review(chances, 0.2)
    assert np.mean(chosen[wrong]) == pytest.approx(0.8, abs=0.02) and chosen.mean() < 0.4


def test_kept_labels_are_the_sure_ones():
    labels = RNG.integers(0, 3, (6, 7), dtype=np.int32)
    chances = RNG.random((6, 7), dtype=np.float32)
    for chance in (0.05, 0.5, 0.999, float(chances[0, 0])):
        kept = without_unsure(labels, chances, chance)
        assert kept.dtype == np.int32
        np.testing.assert_array_equal(kept == 255, chances > chance)
        np.testing.assert_array_equal(kept[kept != 255], labels[chances <= chance])


def test_expected_accuracy_is_that_of_labels_drawn_so():
    labels = RNG.integers(0, 3, (200, 200))
    chances = RNG.random(labels.shape) * (labels + 1) / 4
    right = RNG.random(labels.shape) >= chances
    shown = np.where(labels == 2, 255, labels)
    whole, of_class = expected_accuracy(shown, chances, 4)
    assert whole == pytest.approx(right[labels < 2].mean(), abs=0.01)
    for k in range(2):
        assert of_class[k] == pytest.approx(right[labels == k].mean(), abs=0.015)
    assert np.isnan(of_class[2:]).all()
    assert np.isnan(expected_accuracy(np.full((2, 2), 255), np.zeros((2, 2)), 1)[0])
