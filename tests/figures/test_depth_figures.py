"""Depth maps in colours: near and far differ, unmeasured pixels are striped, scales are round."""

import numpy as np
import pytest

from diffseg_jax.figures import label_images, layout, sheets
from diffseg_jax.figures.depth import (
    colour_depth,
    depth_contact_sheet,
    depth_error,
    depth_scale,
    depth_sheet,
    depth_steps_plot,
    shown_range,
)

pytestmark = pytest.mark.quick


@pytest.fixture
def maps():
    """Two images uint8[12, 16, 3], truths f32[12, 16] with a strip without measurement, depths."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 12, 16, 3)).astype(np.uint8)
    truths = rng.uniform(2, 60, (2, 12, 16)).astype(np.float32)
    depths = truths * rng.uniform(0.8, 1.2, truths.shape).astype(np.float32)
    truths[:, :3] = 0
    return images, truths, depths


def brightness(colours):
    return colours.astype(int).sum(-1)


def test_near_is_brighter_than_far_and_equal_ratios_are_equal_steps():
    depth = np.geomspace(1, 100, 201)[None]
    drawn = colour_depth(depth, 1, 100)
    assert (np.diff(brightness(drawn)[0, ::20]) < 0).all()
    table = colour_depth(np.geomspace(0.1, 10, 201)[None], 0.1, 10)
    np.testing.assert_allclose(drawn.astype(int), table, atol=4)  # a step of the table
    beyond = colour_depth(np.array([[0.5, 1, 100, 300]]), 1, 100)[0]
    assert (beyond[0] == beyond[1]).all() and (beyond[2] == beyond[3]).all()


def test_pixels_without_a_measurement_are_striped_and_others_are_not(maps):
    _, (truth, _), (depth, _) = maps
    for drawn in (colour_depth(truth, 1, 100), depth_error(truth, depth)):
        grey = (drawn == drawn[..., :1]).all(-1) & np.isin(drawn[..., 0], label_images.STRIPES)
        np.testing.assert_array_equal(grey, truth == 0)
    given = colour_depth(depth, 1, 100, measured=truth > 0)
    assert np.isin(given[:3], label_images.STRIPES).all()


@pytest.mark.parametrize(
    ("depths", "expected"),
    [([3, 40], (2, 50)), ([0.3, 4.1], (0.2, 5)), ([7, 7], (5, 10)), ([5], (5, 10)), ([], (1, 10))],
)
def test_scales_begin_and_end_with_round_numbers(depths, expected):
    assert shown_range(np.array([[*depths, 0, 0]], float)) == pytest.approx(expected)


def test_few_outliers_do_not_stretch_the_colours():
    depth = np.full((100, 100), 7.0)
    depth[0, :10] = 5000
    assert shown_range(depth) == pytest.approx((5, 10))


def test_errors_are_relative_to_the_truth():
    truth = np.array([[1.0, 10.0, 100.0]])
    drawn = depth_error(truth, 1.1 * truth)[0]
    assert (drawn == drawn[0]).all()
    assert brightness(depth_error(truth, 1.5 * truth)).min() > brightness(drawn).max()


def test_a_sheet_has_a_column_for_each_kind_of_map(maps):
    images, truths, depths = maps
    wide = depth_sheet(images, truths, depths, depths / 100, np.stack([depths, depths], 1))
    assert wide.dtype == np.uint8 and wide.shape[2] == 3
    narrow = depth_sheet(images, None, depths, None)
    column = 12 * 2 + images.shape[2] * (-(-layout.MIN_HEIGHT // 12))  # a cell with its border
    assert wide.shape[1] - column * 7 == pytest.approx(narrow.shape[1] - column * 2, abs=2 * column)
    assert wide.shape[0] > narrow.shape[0]  # the scale of relative errors


def test_a_contact_sheet_shows_depth_beside_each_image(maps):
    images, truths, _ = maps
    sheet = depth_contact_sheet(images, truths, ["a", "b"])
    low, high = shown_range(*truths)
    for truth in truths:
        colours = colour_depth(truth, low, high)[3:].reshape(-1, 3)
        found = {tuple(c) for c in sheet.reshape(-1, 3).tolist()}
        assert {tuple(c) for c in colours.tolist()} <= found


def test_the_scale_is_the_colours_of_its_depths():
    scale = depth_scale(1, 100)
    row = scale[layout.BORDER + 2, layout.BORDER : layout.BORDER + sheets.BAR]
    np.testing.assert_array_equal(
        row, colour_depth(np.geomspace(1, 100, sheets.BAR)[None], 1, 100)[0]
    )


def test_the_plot_of_steps_draws_undefined_numbers_too():
    rows = [
        dict(stage="train", steps=steps, draws=draws, abs_rel=None if steps == 1 else 0.1, rmse=2.0,
             ms=5.0 * steps)
        for steps in (1, 3) for draws in (1, 2)
    ]  # fmt: skip
    plot = depth_steps_plot(rows)
    assert plot.dtype == np.uint8 and plot.shape[2] == 3 and plot.std() > 0
