"""Confusion counts and ratios: agreement of both routes, invariances, recorded values."""

import json

import numpy as np
import pytest

from diffseg_jax.errors import UserError
from diffseg_jax.metrics.segmentation import (
    CONVENTIONS,
    Absent,
    boundary_band,
    boundary_confusion,
    confusion,
    format_table,
    scores,
    to_json,
)

pytestmark = pytest.mark.quick

K = 5


@pytest.fixture
def maps():
    """Labels (one in ten ignored) and half-right predictions, int32[4, 12, 9]."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, K, (4, 12, 9)).astype(np.int32)
    predictions = np.where(rng.random(labels.shape) < 0.5, labels, rng.integers(0, K, labels.shape))
    labels[rng.random(labels.shape) < 0.1] = 255
    return labels, predictions.astype(np.int32) % K


def counted_one_by_one(labels, predictions, ignored_row):
    counts = np.zeros((K + ignored_row, K), np.int64)
    for label, prediction in zip(labels.ravel(), predictions.ravel(), strict=True):
        if label != 255:
            counts[label, prediction] += 1
        elif ignored_row:
            counts[K, prediction] += 1
    return counts


@pytest.mark.parametrize("ignored_row", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_the_confusion_matrix_is_that_of_a_loop(maps, ignored_row, dtype):
    labels, predictions = (m.astype(dtype) for m in maps)
    expected = counted_one_by_one(labels, predictions, ignored_row)
    counts = confusion(labels, predictions, K, ignored_row=ignored_row)
    assert counts.dtype == np.int64
    np.testing.assert_array_equal(counts, expected)


def test_small_integer_types_do_not_wrap():
    label = np.full(3, 149, np.uint8)  # 149 * 150 + 149 needs 15 bits
    assert confusion(label, label, 150)[149, 149] == 3


def test_ignored_pixels_cannot_change_any_score():
    mask = np.array([0, 1, 255])
    for guess in (0, 1, 77, -3):
        counts = confusion(mask, np.array([0, 1, guess]), 2)
        assert counts.sum() == 2
        assert scores(counts, absent="skip")["mIoU"] == 1.0


def test_batches_add_up_to_the_whole(maps):
    labels, predictions = maps
    whole = confusion(labels, predictions, K)
    parts = [confusion(a, b, K) for a, b in zip(labels, predictions, strict=True)]
    np.testing.assert_array_equal(sum(parts), whole)
    assert scores(sum(parts), absent="skip")["mIoU"] == scores(whole, absent="skip")["mIoU"]


def test_padded_rows_change_nothing(maps):
    labels, predictions = maps
    pad = ((0, 3), (0, 2), (0, 1))
    padded = np.pad(labels, pad, constant_values=255), np.pad(predictions, pad, constant_values=2)
    np.testing.assert_array_equal(confusion(*padded, K), confusion(labels, predictions, K))


@pytest.mark.parametrize("absent", Absent)
def test_renaming_classes_permutes_the_ratios(maps, absent):
    labels, predictions = maps
    order = np.array([3, 0, 4, 1, 2])
    names = np.full(256, 255)
    names[:K] = order
    before = scores(confusion(labels, predictions, K), absent=absent)
    after = scores(confusion(names[labels], order[predictions], K), absent=absent)
    np.testing.assert_allclose(after["IoU"][order], before["IoU"], rtol=0)
    np.testing.assert_allclose(after["Acc"][order], before["Acc"], rtol=0)
    assert after["mIoU"] == pytest.approx(before["mIoU"], rel=1e-15)
    assert after["aAcc"] == before["aAcc"]


def test_absent_classes_have_no_score_and_merely_predicted_ones_have_zero():
    labels, predictions = np.array([0, 0, 0, 1]), np.array([0, 0, 2, 1])  # 2 is only predicted
    counts = confusion(labels, predictions, 4)
    skip, zero = scores(counts, absent=Absent.SKIP), scores(counts, absent=Absent.ZERO)
    np.testing.assert_array_equal(skip["IoU"], [2 / 3, 1, 0, np.nan])
    np.testing.assert_array_equal(skip["Acc"], [2 / 3, 1, np.nan, np.nan])
    np.testing.assert_array_equal(zero["IoU"], [2 / 3, 1, 0, 0])
    assert skip["mIoU"] == pytest.approx(5 / 9) and skip["mAcc"] == pytest.approx(5 / 6)
    assert zero["mIoU"] == pytest.approx(5 / 12) and zero["mAcc"] == pytest.approx(5 / 12)
    assert skip["aAcc"] == zero["aAcc"] == 0.75


def test_predictions_on_ignored_pixels_enlarge_unions_and_nothing_else():
    labels, predictions = np.array([0, 1, 255]), np.array([0, 1, 1])
    masked = scores(confusion(labels, predictions, 2), absent="zero")
    counted = scores(confusion(labels, predictions, 2, ignored_row=True), absent="zero")
    np.testing.assert_array_equal(masked["IoU"], [1, 1])
    np.testing.assert_array_equal(counted["IoU"], [1, 0.5])
    np.testing.assert_array_equal(counted["Acc"], masked["Acc"])
    assert counted["aAcc"] == masked["aAcc"] == 1


@pytest.mark.filterwarnings("error")
def test_nothing_counted_gives_nan_without_a_warning():
    empty = scores(confusion(np.full(4, 255), np.zeros(4, int), 3), absent="skip")
    assert all(np.isnan(empty[mean]) for mean in ("mIoU", "mAcc", "aAcc"))


@pytest.mark.parametrize("wrong", [-1, 2, 254])
def test_an_unknown_class_is_named(wrong):
    with pytest.raises(UserError, match=f"prediction {wrong} .* 0..1"):
        confusion(np.array([0, 1]), np.array([0, wrong]), 2)
    with pytest.raises(UserError, match=f"label {wrong} .* 0..1"):
        confusion(np.array([0, wrong]), np.array([0, 1]), 2)


def test_unequal_shapes_are_refused():
    with pytest.raises(UserError, match=r"\(4,\).*\(2, 2\)"):
        confusion(np.zeros((2, 2), int), np.zeros(4, int), 2)


def test_table_has_a_column_per_run_and_a_dash_for_undefined():
    good = scores(np.diag([3, 1, 0]), absent="skip")
    bad = scores(np.array([[1, 2, 0], [0, 1, 0], [0, 0, 0]]), absent="skip")
    names = ["road", "sky", "car"]
    columns = {"with pretraining": to_json(good, names), "without": to_json(bad, names)}
    table = format_table(columns)
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert [line.split() for line in lines if line.startswith(("road", "car", "mIoU"))] == [
        ["road", "100.00", "33.33"],
        ["car", "-", "-"],
        ["mIoU", "100.00", "33.33"],
    ]
    assert [line.split() for line in lines[:2]] == [
        ["with"],
        ["IoU", "(%)", "pretraining", "without"],
    ]


def test_a_table_of_a_fit_its_probe_and_a_papers_count_fits_into_80_columns():
    plain = to_json(scores(np.diag([3, 1]), absent="skip"), ["road", "sky"])
    more = {**plain, "calibration": {"ECE": 0.01}, "calibrated": {"ECE": 0.01}}
    headings = "fit (from weights)", "fit, linear probe", "fit, counted as published", "untrained"
    table = format_table(dict.fromkeys(headings, more))
    assert max(map(len, table.splitlines())) <= 80


def test_the_table_has_more_rows_where_a_run_has_more_numbers():
    plain = to_json(scores(np.diag([3, 1]), absent="skip"), ["road", "sky"])
    more = {**plain, "boundary": {"mIoU": 0.5}, "calibration": {"ECE": None}}
    lines = format_table({"old": plain, "new": more}).splitlines()
    assert [line.split()[-2:] for line in lines[-2:]] == [["-", "50.00"], ["-", "-"]]
    assert "ECE" not in format_table({"old": plain})


def test_json_is_strict_and_complete():
    scored = scores(np.diag([3, 1, 0]), absent="skip")
    plain = to_json(scored, ["road", "sky", "car"])
    assert json.loads(json.dumps(plain, allow_nan=False)) == {
        "mIoU": 1.0,
        "mAcc": 1.0,
        "aAcc": 1.0,
        "IoU": {"road": 1.0, "sky": 1.0, "car": None},
        "Acc": {"road": 1.0, "sky": 1.0, "car": None},
    }


@pytest.mark.golden
def test_recorded_ddep_metrics(golden):
    for path in golden("ddep/metrics*.json"):
        record, case = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))
        labels = case["labels"].astype(np.int32)
        if record["reduce_zero_label"]:
            labels = np.where(labels == 0, 256, labels) - 1
        counts = confusion(labels, case["predictions"], record["num_classes"])
        np.testing.assert_array_equal(counts, case["confusion"])
        skip, zero = (scores(counts, absent=absent) for absent in ("skip", "zero"))
        for ours, theirs in {"IoU": "iou", "Acc": "acc", "mIoU": "mIoU"}.items():
            np.testing.assert_allclose(skip[ours], case[theirs], rtol=0, atol=1e-12)
        for name in ("mAcc", "aAcc"):
            np.testing.assert_allclose(skip[name], case[name], rtol=0, atol=1e-12)
        np.testing.assert_allclose(zero["mIoU"], case["mIoU_absent_as_zero"], rtol=0, atol=1e-12)


@pytest.mark.golden
def test_recorded_ddp_metrics(golden):
    for path in golden("ddp/seg_metrics*.json"):
        num_classes = json.loads(path.read_text())["num_classes"]
        case = np.load(path.with_suffix(".npz"))
        pairs = [key.removeprefix("pred") for key in case if key.startswith("pred")]
        assert pairs
        for labels, prefix in (("gt", ""), ("gt_rawzero", "rz_")):
            counts = np.zeros((num_classes, num_classes), np.int64)
            for i in pairs:
                truth = case[f"{labels}{i}"].astype(np.int32)
                if prefix:  # stored 0 = ignored, 1..K = classes, 255 = ignored
                    truth = np.where((truth == 0) | (truth == 255), 256, truth) - 1
                counts += confusion(truth, case[f"pred{i}"], num_classes)
            scored = scores(counts, absent=CONVENTIONS["mmseg"].absent)
            for name, ours in scored.items():
                np.testing.assert_allclose(ours, case[f"{prefix}{name}_f64"], rtol=1e-6)


@pytest.mark.golden
def test_recorded_ddpm_seg_metrics(golden):
    convention = CONVENTIONS["ddpm_seg"]
    for path in golden("adm/metrics*.npz"):
        case = np.load(path)
        names = sorted(key.split("__")[0] for key in case if key.endswith("__gts"))
        assert names
        for name in names:
            labels, predictions, num_classes, ignore, classes = (
                case[f"{name}__{key}"]
                for key in ("gts", "preds", "number_class", "ignore_label", "class_ids")
            )
            counts = confusion(
                labels, predictions, int(num_classes), int(ignore),
                ignored_row=convention.ignored_row,
            )  # fmt: skip
            left_out = sorted(set(range(int(num_classes))) - set(classes.tolist()))
            scored = scores(counts, absent=convention.absent, left_out=left_out)
            np.testing.assert_allclose(scored["IoU"][classes], case[f"{name}__iou"], atol=1e-9)
            np.testing.assert_allclose(scored["mIoU"], case[f"{name}__miou"], atol=1e-9)


# --- near boundaries ------------------------------------------------------------------------------


def test_the_band_is_where_another_label_is_near():
    labels = np.random.default_rng(2).integers(0, 9, (11, 17)) // 7 * 100
    for radius in (1, 2, 30):
        slow = np.zeros(labels.shape, bool)
        for y, x in np.ndindex(labels.shape):
            area = labels[max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1]
            slow[y, x] = np.any(area != labels[y, x])
        np.testing.assert_array_equal(boundary_band(labels, radius), slow)


def test_only_pixels_near_a_boundary_count():
    labels = np.zeros((60, 80), int)
    labels[:, 40:] = 1
    predictions = labels.copy()
    predictions[:, 60:] = 0  # far from the boundary
    near = boundary_confusion(labels, predictions, 2)
    assert scores(near, absent="skip")["mIoU"] == 1.0 and near.sum() == 60 * 2
    predictions[:, 39] = 1
    assert boundary_confusion(labels, predictions, 2).tolist() == [[0, 60], [0, 60]]
    labels[:, 38:42] = 255  # now the boundary is that of the ignored area
    assert boundary_confusion(labels, predictions, 2).tolist() == [[60, 0], [0, 60]]


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (5, 5)])
def test_one_class_has_no_boundary(shape):
    assert boundary_confusion(np.zeros(shape, int), np.zeros(shape, int), 3).sum() == 0
