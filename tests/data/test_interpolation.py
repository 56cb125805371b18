"""Half-pixel bilinear weights against jax's resizing and the definition."""

import jax
import numpy as np
import pytest

from diffseg_jax.data.interpolation import half_pixel_neighbours

pytestmark = pytest.mark.quick

SIZES = [(1, 1), (1, 4), (4, 1), (5, 5), (6, 24), (24, 6), (7, 10), (10, 7)]


def read(values, neighbours):
    lower, upper, weight = neighbours
    return values[lower] * (1 - weight) + values[upper] * weight


@pytest.mark.parametrize("length, count", SIZES)
def test_weights_are_those_of_jax_without_antialiasing(length, count):
    values = np.random.default_rng(0).random(length, np.float32)
    expected = jax.image.resize(values, (count,), "bilinear", antialias=False)
    found = read(values, half_pixel_neighbours(length, count))
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("length, count", SIZES)
def test_a_part_of_the_outputs_equals_that_part_of_all(length, count):
    start, stop = count // 3, count - count // 4
    part = half_pixel_neighbours(length, count, start=start, stop=stop)
    for some, all_of_them in zip(part, half_pixel_neighbours(length, count), strict=True):
        np.testing.assert_array_equal(some, all_of_them[start:stop])


def test_outputs_may_span_a_part_of_the_axis():
    part = half_pixel_neighbours(8, 6, covered=0.75)  # the first six of eight values, one to one
    np.testing.assert_array_equal(part, [np.arange(6), np.arange(1, 7), np.zeros(6)])
