"""Whether images that look unlike known ones are told from those that look like them."""

import numpy as np
import pytest

from diffseg_jax.metrics.familiarity import FLOOR, MIN_KNOWN, ROUNDING, KnownImages, known_images

pytestmark = pytest.mark.quick

CHANNELS = 96
MIX = np.random.default_rng(0).normal(size=(4, CHANNELS))  # channels depend on each other


def draw(seed, count, shift=0.0):
    """Descriptors of 4 causes and a little noise; shift: of all channels."""
    rng = np.random.default_rng(seed)
    causes = rng.normal(size=(count, 4))
    return causes @ MIX + rng.normal(0, 0.2, (count, CHANNELS)) + 3 + shift


def test_images_of_the_same_kind_are_familiar_and_others_foreign():
    known = KnownImages(draw(1, 300))
    familiarity, foreign = known.judge(draw(2, 1000))
    assert np.mean(foreign) < 0.01
    levels = np.quantile(familiarity, [0.1, 0.5, 0.9])  # uniform, as of the known images
    np.testing.assert_allclose(levels, [0.1, 0.5, 0.9], atol=0.07)
    familiarity, foreign = known.judge(draw(3, 100, shift=2.0))
    assert foreign.all() and np.allclose(familiarity, 1 / 301)


def test_what_never_goes_together_is_foreign_though_each_channel_is_usual():
    known, usual = KnownImages(draw(1, 300)), draw(2, 300)
    mixed = np.stack([np.roll(usual[:, c], c) for c in range(CHANNELS)], -1)
    assert known.judge(mixed)[1].mean() > 0.9


def test_a_known_image_is_scored_as_if_it_were_not_known():
    descriptors = draw(1, 40).astype(np.float16).astype(np.float64)
    count, deviation = len(descriptors), descriptors.std(0)
    floors = FLOOR * np.median(deviation), ROUNDING * descriptors.mean(0)
    scaled = descriptors / np.sqrt(deviation**2 + floors[0] ** 2 + floors[1] ** 2)
    expected = []
    for i in range(count):
        others = np.delete(scaled, i, 0)
        centred = others - others.mean(0)
        matrix = centred.T @ centred / count + np.eye(CHANNELS)
        gap = scaled[i] - others.mean(0)
        expected.append(np.sqrt(gap @ np.linalg.solve(matrix, gap)))
    np.testing.assert_allclose(KnownImages(descriptors).scores, expected, rtol=1e-6)


def test_more_channels_than_images_are_no_trouble():
    wide = np.random.default_rng(0).normal(size=(130, 500))
    known = KnownImages(wide[:30])
    assert not known.judge(wide[30:])[1].any() and known.judge(wide[30:] + 1)[1].all()


def test_stored_in_half_precision_a_known_image_stays_familiar():
    same = np.full((MIN_KNOWN, 3), [0.1234567, -777.7, 1e6])  # no channel varies
    known = known_images(same)
    assert not known.judge(same)[1].any()
    assert known.judge(same * [1.02, 1, 1])[1].all() and known.judge(-same)[1].all()


def test_a_channel_that_is_dead_in_known_images_may_wake_a_little():
    descriptors = draw(1, 100)
    descriptors[:, 0] = 0
    woken = draw(2, 100)
    woken[:, 0] = 0.05
    assert KnownImages(descriptors).judge(woken)[1].mean() < 0.03
    woken[:, 0] = 50
    assert KnownImages(descriptors).judge(woken)[1].all()


def test_numbers_that_are_not_finite_are_foreign_and_never_known():
    descriptors = draw(1, 2 * MIN_KNOWN)
    descriptors[:MIN_KNOWN, 0], descriptors[0, 1] = np.nan, np.inf
    known = known_images(descriptors)
    assert len(known.scores) == MIN_KNOWN
    familiarity, foreign = known.judge(descriptors)
    assert foreign[:MIN_KNOWN].all() and not foreign[MIN_KNOWN:].any()
    np.testing.assert_allclose(familiarity[:MIN_KNOWN], 1 / (MIN_KNOWN + 1))


@pytest.mark.parametrize("count", [1, MIN_KNOWN - 1])
def test_few_images_judge_nothing(count):
    assert known_images(draw(1, count)) is None and known_images(draw(1, MIN_KNOWN)) is not None
