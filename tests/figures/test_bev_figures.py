"""Drawings of maps seen from above."""

import numpy as np
import pytest

from diffseg_jax.data.labels import Labels
from diffseg_jax.figures.bev import (
    GROUND,
    bev_sheet,
    camera_grid,
    colour_layers,
    layer_errors,
    layer_uncertainty,
)

pytestmark = pytest.mark.quick

LABELS = Labels(("road", "line"), ((10, 20, 30), (200, 100, 0)))


def test_ahead_is_the_top_and_left_is_the_left():
    layers = np.zeros((2, 20, 20))
    layers[0, 19] = 1  # farthest ahead
    layers[1, :, 19] = 0.9  # farthest left, which covers the road
    drawn = colour_layers(layers, LABELS.palette)
    assert (drawn[0, 1:] == LABELS.palette[0]).all() and (drawn[:, 0] == LABELS.palette[1]).all()
    assert (drawn[5, 3] == GROUND).all() and not (drawn[10, 10] == GROUND).all()


def test_uncertainty_is_highest_between_yes_and_no():
    probs = np.stack([np.full((2, 2), 0.5), np.full((2, 2), 0.0)])
    np.testing.assert_allclose(layer_uncertainty(probs), 0.5, atol=1e-4)
    assert layer_uncertainty(np.stack([probs] * 3)).shape == (3, 2, 2)


def test_errors_are_the_share_of_wrong_classes():
    truth = np.zeros((2, 4, 4))
    probs = truth.copy()
    probs[0, 0, 0] = 0.9
    drawn = layer_errors(truth, probs)
    assert (drawn[3, 3] != drawn[0, 0]).any()
    assert (drawn[:3] == drawn[0, 0]).all()


def test_six_cameras_stand_as_they_look():
    images = np.stack([np.full((2, 3, 3), n, np.uint8) for n in range(6)])
    shown = camera_grid(images)[::2, ::3, 0]
    np.testing.assert_array_equal(shown, [[1, 0, 5], [2, 3, 4]])
    assert camera_grid(images[:4]).shape == (4, 9, 3)


def test_a_sheet_has_a_row_per_example_and_a_column_per_step():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (6, 16, 24, 3), np.uint8)] * 2
    probs = [rng.random((2, 12, 12))] * 2
    truths = [(probs[0] > 0.5).astype(np.uint8)] * 2
    plain = bev_sheet(images, None, probs, LABELS)
    with_truth = bev_sheet(images, truths, probs, LABELS)
    with_steps = bev_sheet(images, truths, probs, LABELS, [np.stack([probs[0]] * 3)] * 2)
    assert plain.shape[1] < with_truth.shape[1] < with_steps.shape[1]
    assert plain.dtype == np.uint8
    assert plain.shape[0] > bev_sheet(images[:1], None, probs[:1], LABELS).shape[0]
