"""Errors of depth maps and sparsification: recorded values, and two routes to one number."""

import json

import numpy as np
import pytest

from diffseg_jax.data.depth_sets import KITTI_PART
from diffseg_jax.errors import UserError
from diffseg_jax.metrics.depth import (
    DEPTH_CROPS,
    DEPTH_METRICS,
    NO_DEPTH,
    add_depth,
    depth_errors,
    depth_mask,
    depth_scores,
    sparsification,
)

pytestmark = pytest.mark.quick

RANGE = dict(low=0.001, high=80.0)


@pytest.fixture
def maps():
    """Two depth maps f32[2, 30, 40], a third of whose pixels are measured, and predictions."""
    rng = np.random.default_rng(0)
    truth = rng.uniform(2, 70, (2, 30, 40)).astype(np.float32)
    depth = truth * rng.uniform(0.6, 1.5, truth.shape).astype(np.float32)
    truth[rng.random(truth.shape) < 0.6] = 0
    return depth, truth


def counted(depths, truths, *uncertainties, **options):
    counts = NO_DEPTH
    for index, truth in enumerate(truths):
        given = [each[index] for each in uncertainties]
        counts = add_depth(counts, depths[index], truth, *given, **{**RANGE, **options})
    return counts


# ---- recorded values -----------------------------------------------------------------------------


def enlarged(coarse, case):
    """The map of a recorded case: cells are squares of pixels, and KITTI's part is cut out."""
    (h, w), (below, beside) = case["full_size"], KITTI_PART
    side = -(-h // coarse.shape[0])
    image = coarse[np.arange(h)[:, None] // side, np.arange(w) // side]
    left = (w - beside) // 2
    return image[h - below :, left : left + beside] if case["kb_crop"] else image


@pytest.mark.golden
def test_recorded_metrics(golden):
    for path in golden("ddp/depth_losses_metrics*.json"):
        record, arrays = json.loads(path.read_text())["meta"], np.load(path.with_suffix(".npz"))
        names = record.pop("metric_order")
        for name, case in record.items():
            crop = {("eigen", False): "nyu"}.get((case["crop"], case["kb_crop"]), case["crop"])
            given = {"low": case["min_depth"], "high": case["max_depth"], "crop": crop}
            counts = NO_DEPTH
            count = sum(key.startswith(f"{name}_gt_coarse") for key in arrays)
            assert count
            for i in range(count):
                truth, depth = (
                    enlarged(arrays[f"{name}_{part}_coarse{i}"], case) for part in ("gt", "pred")
                )
                mask = depth_mask(truth, **given)
                assert mask.sum() == arrays[f"{name}_valid_count{i}"]
                found = depth_errors(depth[mask], truth[mask])
                found = [found[metric] for metric in names]
                np.testing.assert_allclose(found, arrays[f"{name}_values{i}_f64"], rtol=1e-6)
                counts = add_depth(counts, depth, truth, **given)
            means = depth_scores(counts)
            expected = arrays[f"{name}_mean_f64"]
            np.testing.assert_allclose([means[m] for m in names], expected, rtol=1e-6)


# ---- pixels that count ---------------------------------------------------------------------------


def test_limits_are_strict_and_nothing_else_counts(maps):
    depth, truth = maps
    truth[0, :4, 0] = [0.001, 80.0, 90.0, 0.0]
    assert not depth_mask(truth[0], **RANGE)[:4, 0].any()
    wild = np.where(depth_mask(truth[0], **RANGE), depth[0], 1e6)
    assert counted([wild], truth[:1])["sums"] == pytest.approx(counted(depth, truth[:1])["sums"])


@pytest.mark.parametrize("crop", DEPTH_CROPS)
def test_crops_lie_in_the_image_and_are_smaller(crop):
    truth = np.ones((480, 640), np.float32)
    mask = depth_mask(truth, **RANGE, crop=crop)
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    assert mask.sum() == len(rows) * len(columns)  # a rectangle without gaps
    assert mask.all() == (crop == "none")
    if crop == "garg":
        assert (rows[0], rows[-1] + 1) == (int(0.40810811 * 480), int(0.99189189 * 480))


def test_bad_crops_and_sizes_are_refused(maps):
    depth, truth = maps
    with pytest.raises(UserError, match='unknown crop of a depth map "gargs".*"garg"'):
        counted(depth, truth, crop="gargs")
    with pytest.raises(UserError, match="crop nyu .* 480x640 pixels, but one has 30x40.*crop=none"):
        counted(depth, truth, crop="nyu")
    with pytest.raises(UserError, match=r"depth has shape \(29, 40\), the measured depth \(30, 40"):
        counted(depth[:, 1:], truth)
    with pytest.raises(UserError, match=r"uncertainty has shape \(30, 39\)"):
        counted(depth, truth, depth[..., 1:])
    with pytest.raises(UserError, match="the depth of an image is not finite"):
        counted(depth * np.nan, truth)


# ---- errors --------------------------------------------------------------------------------------


def test_metrics_are_those_of_a_loop(maps):
    depth, truth = (each[0] for each in maps)
    pairs = [(float(d), float(t)) for d, t in zip(depth.ravel(), truth.ravel()) if t > 0]
    n = len(pairs)
    logs = [np.log(d) - np.log(t) for d, t in pairs]
    expected = {
        "abs_rel": sum(abs(d - t) / t for d, t in pairs) / n,
        "sq_rel": sum((d - t) ** 2 / t for d, t in pairs) / n,
        "rmse": (sum((d - t) ** 2 for d, t in pairs) / n) ** 0.5,
        "rmse_log": (sum(log**2 for log in logs) / n) ** 0.5,
        "log_10": sum(abs(np.log10(d) - np.log10(t)) for d, t in pairs) / n,
        "silog": 100 * np.std(logs),
        **{f"a{k}": sum(max(d / t, t / d) < 1.25**k for d, t in pairs) / n for k in (1, 2, 3)},
    }
    found = depth_scores(counted([depth], [truth]))
    assert {name: found[name] for name in DEPTH_METRICS} == pytest.approx(expected)


def test_an_exact_prediction_has_no_error(maps):
    found = depth_scores(counted(maps[1] + (maps[1] == 0), maps[1]))
    assert [found[name] for name in DEPTH_METRICS] == [0] * 6 + [1] * 3


def test_a_wrong_unit_changes_all_but_silog(maps):
    depth, truth = maps
    one, other = (depth_scores(counted(d, truth)) for d in (depth, 1000 * depth))
    assert one["silog"] == pytest.approx(other["silog"])
    assert other["abs_rel"] > 100 * one["abs_rel"]


def test_a_depth_of_zero_counts_as_the_nearest(maps):
    depth, truth = maps
    depth[0, 0, 0], truth[0, 0, 0] = 0.0, 5.0
    assert depth_scores(counted(depth, truth))["rmse_log"] < 1e3


def test_images_without_a_measurement_are_skipped(maps):
    depth, truth = maps
    with_empty = counted([*depth, depth[0]], [*truth, 0 * truth[0]])
    assert depth_scores(with_empty) == depth_scores(counted(depth, truth))
    nothing = depth_scores(counted(depth[:1], 0 * truth[:1], depth[:1]))
    assert nothing["images"] == 0 and nothing["abs_rel"] is None
    assert set(nothing["AUSE"].values()) == {None}


def test_counts_of_processes_add_up(maps):
    depth, truth = maps
    parts = [counted(depth[i : i + 1], truth[i : i + 1], depth[i : i + 1]) for i in (0, 1)]
    both = counted(depth, truth, depth)
    for name in NO_DEPTH:
        np.testing.assert_allclose(parts[0][name] + parts[1][name], both[name])


# ---- sparsification ------------------------------------------------------------------------------


@pytest.fixture
def pixels():
    rng = np.random.default_rng(1)
    truth = rng.uniform(2, 70, 4000)
    return truth * np.exp(rng.normal(0, 0.3, 4000)), truth


def test_the_true_order_has_no_sparsification_error(pixels):
    depth, truth = pixels
    areas = sparsification(depth, truth, np.abs(depth - truth) / truth)
    assert areas["abs_rel"] == pytest.approx(0, abs=1e-12)
    assert 0 < areas["rmse"] < 0.5 * areas["rmse_random"]
    assert sparsification(depth, truth, np.abs(depth - truth))["rmse"] == pytest.approx(0, abs=1e-9)


def test_equal_uncertainties_are_a_random_order(pixels):
    depth, truth = pixels
    areas = sparsification(depth, truth, np.ones(len(truth)))
    drawn = sparsification(depth, truth, np.random.default_rng(2).random(len(truth)))
    for metric in ("abs_rel", "rmse"):
        assert areas[metric] == pytest.approx(areas[f"{metric}_random"])
        assert drawn[metric] == pytest.approx(areas[metric], rel=0.1)


def test_only_the_order_of_uncertainties_matters(pixels):
    depth, truth = pixels
    noisy = np.abs(depth - truth) + np.random.default_rng(3).normal(0, 5, len(truth))
    one, other = (sparsification(depth, truth, u) for u in (noisy, np.exp(noisy / 10)))
    assert one == pytest.approx(other)
    reversed_order = sparsification(depth, truth, -noisy)
    assert one["rmse"] < one["rmse_random"] < reversed_order["rmse"]


def test_the_area_is_that_between_two_curves_drawn_pixel_by_pixel(pixels):
    depth, truth = (each[:500] for each in pixels)
    uncertainty = np.random.default_rng(4).permutation(500).astype(float)
    errors = np.abs(depth - truth) / truth

    def area(order):
        ranked = errors[np.argsort(order)]
        curve = [ranked[: 500 - 10 * k].mean() for k in range(50)] + [0.0]
        return sum((a + b) / 2 / 50 for a, b in zip(curve, curve[1:]))

    expected = area(uncertainty) - area(errors)
    assert sparsification(depth, truth, uncertainty)["abs_rel"] == pytest.approx(expected)
