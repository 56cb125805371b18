import numpy as np
import pytest
from hypothesis import given, settings, strategies
from matplotlib.path import Path as Outline

from diffseg_jax.annotations import polygons
from diffseg_jax.annotations.polygons import fill_ellipse, fill_rings, joined_ring, traced
from label_cases import MAPS

pytestmark = pytest.mark.quick

CORNERS = strategies.floats(-9, 19, allow_nan=False, width=32)
TRIANGLES = strategies.lists(strategies.tuples(CORNERS, CORNERS), min_size=3, max_size=3)


def filled(rings, size):
    """bool[H,W] of rings."""
    whole = np.zeros(size, bool)
    box, inside = fill_rings([np.array(ring, float) for ring in rings], size)
    whole[box] = inside
    return whole


def test_a_pixel_is_inside_if_its_centre_is():
    inside = filled([[(0.6, 0.4), (3.4, 0.4), (3.4, 2.6), (0.6, 2.6)]], (4, 5))
    expected = np.zeros((4, 5), bool)
    expected[0:3, 1:3] = True
    np.testing.assert_array_equal(inside, expected)


@settings(max_examples=60, deadline=None)
@given(TRIANGLES)
def test_triangles_hold_the_centres_that_matplotlib_finds_in_them(triangle):
    size, ring = (10, 9), np.array(triangle) + 0.0137  # so that no centre is on an edge
    centres = np.stack(np.meshgrid(np.arange(9), np.arange(10)), -1).reshape(-1, 2) + 0.5
    expected = Outline(ring).contains_points(centres).reshape(size)
    sides = np.roll(ring, -1, 0) - ring
    offsets = centres[:, None] - ring
    distance = np.abs(sides[:, 0] * offsets[..., 1] - sides[:, 1] * offsets[..., 0])
    near = (distance <= 1e-4 * (1 + np.abs(sides).sum(1))).any(1).reshape(size)
    np.testing.assert_array_equal(filled([ring], size)[~near], expected[~near])


def test_a_centre_on_an_edge_belongs_to_one_of_two_neighbours():
    left = [(0, 0), (2.5, 0), (2.5, 4), (0, 4)]
    right = [(2.5, 0), (6, 0), (6, 4), (2.5, 4)]
    assert (filled([left], (4, 6)) ^ filled([right], (4, 6))).all()


def test_a_ring_in_another_one_is_a_hole():
    outer = [(0, 0), (6, 0), (6, 6), (0, 6)]
    hole = [(2, 2), (4, 2), (4, 4), (2, 4)]
    assert filled([outer, hole], (6, 6)).sum() == 36 - 4


def test_what_is_outside_the_image_is_cut_off():
    assert filled([[(-99, -99), (99, -99), (99, 99), (-99, 99)]], (3, 4)).all()
    assert not filled([[(9, 9), (99, 9), (99, 99), (9, 99)]], (3, 4)).any()


@settings(max_examples=60, deadline=None)
@given(MAPS, strategies.booleans())
def test_traced_regions_fill_to_the_same_map(ids, joined):
    again = np.full(ids.shape, 255, np.uint8)
    for region in traced(ids):
        rings = [joined_ring(region.rings())] if joined else region.rings()
        box, inside = fill_rings(rings, ids.shape)
        assert (again[box][inside] == 255).all()
        again[box][inside] = region.label
    np.testing.assert_array_equal(again, ids)


def test_bands_of_rows_change_nothing(monkeypatch):
    ring = np.random.default_rng(0).normal(0, 15, (40, 2)) + 20
    whole = filled([ring], (40, 41))
    monkeypatch.setattr(polygons, "FILL_CHUNK", 50)
    np.testing.assert_array_equal(filled([ring], (40, 41)), whole)
    assert whole.any()


def test_an_ellipse_holds_the_centres_in_it():
    inside, (x, y) = fill_ellipse((3.0, 2.0), (2.0, 1.0), (9, 9))
    rows, columns = np.mgrid[:9, :9] + 0.5
    expected = ((columns - 3) / 2) ** 2 + (rows - 2) ** 2 <= 1
    whole = np.zeros((9, 9), bool)
    whole[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    np.testing.assert_array_equal(whole, expected)
    assert inside.any()
