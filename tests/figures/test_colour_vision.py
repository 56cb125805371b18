"""Colours of classes and lines differ for every type of colour vision, measured by CIEDE2000."""

import numpy as np
import pytest

from diffseg_jax.data.palette import distinct_colours
from diffseg_jax.data.scene_street import PALETTE as SCENES
from diffseg_jax.figures.colour_vision import (
    LINES,
    VISIONS,
    as_seen,
    ciede2000,
    smallest_difference,
)
from diffseg_jax.figures.label_images import MAX_COLOURS, MIN_DISTANCE, STRIPES, WRONG
from diffseg_jax.figures.layout import BLACK, WHITE

pytestmark = pytest.mark.quick

# Pairs of colours in CIE Lab and their difference, from table 1 of Sharma, Wu and Dalal (2005).
PUBLISHED = """
50 2.6772 -79.7751 50 0 -82.7485 2.0425
50 -1.3802 -84.2814 50 0 -82.7485 1.0000
50 0 0 50 -1 2 2.3669
50 2.49 -0.001 50 -2.49 0.0009 7.1792
50 2.49 -0.001 50 -2.49 0.0011 7.2195
50 2.5 0 73 25 -18 27.1492
50 2.5 0 61 -5 29 22.8977
60.2574 -34.0099 36.2677 60.4626 -34.1751 39.4387 1.2644
2.0776 0.0795 -1.1350 0.9033 -0.0636 -0.5514 0.9082
"""


def test_differences_are_those_published():
    first, second, wanted = np.split(np.array(PUBLISHED.split(), float).reshape(-1, 7), [3, 6], 1)
    for one, other in ((first, second), (second, first)):
        np.testing.assert_allclose(ciede2000(one, other), wanted[:, 0], atol=5e-5)
    np.testing.assert_array_equal(ciede2000(first, first), 0)


def test_the_simulation_agrees_with_known_colours():
    np.testing.assert_allclose(
        as_seen([(255, 255, 255), (255, 0, 0)], "full"),
        [(100, 0, 0), (53.24, 80.09, 67.20)],
        atol=0.02,
    )
    for vision in VISIONS:  # nobody sees a colour in grey
        assert np.abs(as_seen([(90, 90, 90)], vision)[:, 1:]).max() < 0.01
    alike = {
        "protanopia": (200, 80, 60),
        "deuteranopia": (200, 80, 60),
        "tritanopia": (0, 120, 140),
    }
    for vision, colour in alike.items():
        other = (110, 125, 50) if colour[0] else (0, 130, 90)
        seen, full = (as_seen([colour, other], name) for name in (vision, "full"))
        assert ciede2000(*seen) < 0.6 * ciede2000(*full)


def test_fewer_than_two_colours_cannot_be_confused():
    assert (
        smallest_difference([])
        == smallest_difference([(1, 2, 3)])
        == 100
        > smallest_difference([BLACK, WHITE])
        > 99
    )
    assert smallest_difference([WRONG, WRONG]) == 0


@pytest.mark.parametrize("count", range(2, MAX_COLOURS + 1))
def test_generated_colours_differ_in_every_type_of_colour_vision(count):
    assert smallest_difference(distinct_colours(count)) >= 14 > MIN_DISTANCE
    assert all(smallest_difference([colour, WRONG]) > 13 for colour in distinct_colours(count))


@pytest.mark.parametrize("count, minimum", [(16, 10), (20, 8), (40, 6), (150, 3)])
def test_more_generated_colours_are_as_distinct_as_can_be(count, minimum):
    colours = distinct_colours(count)
    assert smallest_difference([*colours, BLACK, WRONG]) > minimum


def test_generated_colours_are_no_shade_of_ignored_pixels():
    for colour in distinct_colours(MAX_COLOURS):
        assert min(smallest_difference([colour, (grey,) * 3]) for grey in STRIPES) > 7


def test_fewer_generated_colours_are_a_prefix_of_more():
    assert distinct_colours(255)[:7] == distinct_colours(7) and distinct_colours(0) == ()


def test_classes_of_scenes_differ_in_every_type_of_colour_vision():
    assert smallest_difference(SCENES) > MIN_DISTANCE < smallest_difference([*SCENES, BLACK, WRONG])


def test_lines_differ_in_every_type_of_colour_vision():
    assert (
        smallest_difference([*(tuple(bytes.fromhex(line[1:])) for line in LINES), WHITE])
        > MIN_DISTANCE
    )
