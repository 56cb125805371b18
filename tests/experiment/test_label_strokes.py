"""Strokes in sparse masks, and how pixels are drawn from them."""

import numpy as np
import pytest

from diffseg_jax.data.transforms import resize_mask
from diffseg_jax.experiment.label_strokes import (
    chances,
    draw_evenly,
    find_strokes,
    joined_strokes,
    shown_labels,
)

pytestmark = pytest.mark.quick


def test_strokes_are_connected_parts_of_one_class():
    mask = np.full((8, 10), 255, np.uint8)
    mask[1, 1:4] = 0
    mask[2, 4] = 0  # touches a corner
    mask[1, 6:9] = 0  # apart
    mask[3, 4:6] = 1  # touches, of another class
    strokes = find_strokes(mask)
    assert strokes.count == 3
    np.testing.assert_array_equal(mask.ravel()[strokes.pixels], strokes.labels)
    numbers = np.full(mask.shape, -1)
    numbers.ravel()[strokes.pixels] = strokes.numbers
    assert len(set(numbers[1, 1:4]) | {numbers[2, 4]}) == 1
    assert len({numbers[1, 1], numbers[1, 6], numbers[3, 4]}) == 3
    assert find_strokes(np.full((4, 4), 255, np.uint8)).count == 0


def test_images_joined_keep_their_strokes_apart():
    mask = np.full((4, 4), 255, np.uint8)
    mask[1] = 2
    empty = np.full((4, 4), 255, np.uint8)
    images, strokes = joined_strokes([find_strokes(m) for m in (mask, empty, mask)])
    np.testing.assert_array_equal(images, [0] * 4 + [2] * 4)
    np.testing.assert_array_equal(strokes.numbers, [0] * 4 + [1] * 4)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_classes_have_equal_chances_and_strokes_by_their_size(power):
    strokes = np.repeat([0, 1, 2], [100, 4, 10])
    labels = np.repeat([0, 0, 1], [100, 4, 10])
    chance = chances(labels, strokes, power)
    np.testing.assert_allclose(np.bincount(labels, chance), [0.5, 0.5])
    large, small = np.bincount(strokes, chance)[:2]
    np.testing.assert_allclose(large / small, 25**power)


def test_draws_are_as_even_as_chances_allow():
    chance = np.random.default_rng(0).dirichlet(np.ones(50))
    counts = np.bincount(draw_evenly(chance, 1000, np.random.default_rng(1)), minlength=50)
    assert np.abs(counts - 1000 * chance).max() <= 1 and counts.sum() == 1000


def test_a_thin_stroke_stays_when_an_image_is_shown_smaller():
    ids = np.full((120, 160), 255, np.uint8)
    ids[61, 20:100] = 3
    shown = shown_labels(ids, (12, 16))
    np.testing.assert_array_equal(np.argwhere(shown == 3), [[6, x] for x in range(2, 10)])
    assert (resize_mask(ids, (12, 16)) == 255).all()


def test_most_pixels_decide_and_the_smallest_of_equals():
    ids = np.full((4, 8), 255, np.uint8)
    ids[0, 0], ids[1:3, 1] = 1, 5  # one against two
    ids[0, 4], ids[1, 5] = 6, 2  # one against one
    np.testing.assert_array_equal(shown_labels(ids, (1, 2)), [[5, 2]])


def test_enlarged_strokes_stay_whole():
    ids = np.full((6, 8), 255, np.uint8)
    ids[2, 1:6] = 1
    assert find_strokes(shown_labels(ids, (18, 24))).count == 1
    assert shown_labels(ids, (6, 8)) is ids
