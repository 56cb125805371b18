"""What the table of a study says of chance: paired differences along its axes, and intervals."""

import csv
import re

import numpy as np
import pytest

from diffseg_jax.experiment import study_report, study_scores
from diffseg_jax.experiment.study_report import DRAWS, Group, difference
from diffseg_jax.metrics.image_counts import ImageCounts, mean_iou, read_image_counts
from study_case import IMAGES, ONE, counts_of


def group_of(folder, name, right, seeds):
    """A group whose cells have these shares of right pixels."""
    records = {}
    for seed in seeds:
        counts = counts_of(right, seed)
        counts.save(folder / f"{name}{seed}.npz")
        score = float(mean_iou(counts.counts.sum(0), "skip"))
        numbers = {"mIoU": score, "ECE": score}
        records[str(seed)] = {"numbers": numbers, "image_counts": f"{name}{seed}.npz"}
    return Group((name,), records)


def test_an_interval_holds_the_difference_and_no_difference_holds_zero(tmp_path):
    better, worse = (group_of(tmp_path, name, r, (0, 1, 2)) for name, r in (("b", 0.8), ("w", 0.6)))
    found = difference(better, worse, "mIoU", tmp_path)
    assert 0 < found.low < found.mean < found.high and (found.seeds, found.images) == (3, IMAGES)
    same = difference(better, better, "mIoU", tmp_path)
    assert (same.low, same.mean, same.high) == (0, 0, 0)
    alone = (Group(("x",), {"0": group.records["0"]}) for group in (better, worse))
    one = difference(*alone, "mIoU", tmp_path)
    assert one.seeds == 1 and one.low < one.mean < one.high  # of images alone


def shares(rng, images, seeds, of_seeds):
    """Counts, for each seed, of two networks without a difference: each has its own luck."""
    labelled = np.full((images, 1), 1000)
    own = [rng.normal(0.7, 0.04, (images, 1)) for _ in range(2)]  # on every image
    for _ in range(seeds):
        right = [np.clip(each + rng.normal(0, of_seeds), 0, 1) for each in own]
        hits = [(labelled * each).astype(int) for each in right]
        yield [np.stack([each, labelled, each, np.zeros_like(each)], 1) for each in hits]


@pytest.mark.parametrize("seeds", (1, 2, 3))
def test_nineteen_of_twenty_intervals_hold_zero_where_there_is_no_difference(tmp_path, seeds):
    """Not many more either: an interval that is twice as wide would hold it too often."""
    rng, names, repeats, missed = np.random.default_rng(0), tuple(map(str, range(25))), 500, 0
    for _ in range(repeats):
        cache, groups = {}, ({}, {})
        for seed, pair in enumerate(shares(rng, len(names), seeds, 0.05 * (seeds > 1))):
            for which, counts in enumerate(pair):
                kept, file = ImageCounts(names, ("a",), counts, "skip"), f"{which}{seed}"
                cache["mIoU", file] = names, study_scores.resampled_scores("mIoU", kept, 200, {})
                numbers = {"mIoU": float(mean_iou(counts.sum(0), "skip"))}
                groups[which][str(seed)] = {"numbers": numbers, "image_counts": file}
        found = difference(*(Group((), each) for each in groups), "mIoU", tmp_path, cache)
        assert (found.seeds, found.images) == (seeds, len(names))
        missed += not found.low <= 0 <= found.high
    assert 0.025 < missed / repeats < 0.075


def test_a_difference_that_no_resample_defines_has_the_interval_of_its_seeds(
    tmp_path, monkeypatch
):
    better, worse = (group_of(tmp_path, name, r, (0, 1)) for name, r in (("b", 0.8), ("w", 0.6)))
    undefined = lambda path, counts, draws, sizes: np.full(draws, np.nan)
    monkeypatch.setattr(study_report, "resampled_scores", undefined)
    found = difference(better, worse, "mIoU", tmp_path)
    assert found.low < found.mean < found.high and (found.seeds, found.images) == (2, 0)
    one = [Group(each.labels, {"0": each.records["0"]}) for each in (better, worse)]
    assert difference(*one, "mIoU", tmp_path).low is None


@pytest.mark.parametrize(("seeds", "quantile"), [(2, 12.7062), (3, 4.3027)])  # as in tables of t
def test_the_interval_joins_students_of_the_seeds_with_that_of_the_images(
    tmp_path, seeds, quantile
):
    better = group_of(tmp_path, "b", 0.8, range(seeds))
    worse = group_of(tmp_path, "w", 0.6, range(9, 9 + seeds))
    worse = Group(worse.labels, dict(zip(better.records, worse.records.values())))
    pairs = list(zip(better.values("ECE").values(), worse.values("ECE").values()))
    each = np.subtract(*np.transpose(pairs))
    reach, mean = quantile * each.std(ddof=1) / np.sqrt(seeds), each.mean()
    found = difference(better, worse, "ECE", tmp_path)
    np.testing.assert_allclose((found.low, found.high), (mean - reach, mean + reach), rtol=1e-5)

    def drawn(group):
        files = [tmp_path / record["image_counts"] for record in group.records.values()]
        counts = map(read_image_counts, files)
        return np.mean([study_scores.resampled_scores("mIoU", c, DRAWS, {}) for c in counts], 0)

    low, high = np.percentile(drawn(better) - drawn(worse), (2.5, 97.5))
    found = difference(better, worse, "mIoU", tmp_path)
    ends = mean - np.hypot(mean - low, reach), mean + np.hypot(high - mean, reach)
    np.testing.assert_allclose((found.low, found.high), ends, rtol=1e-5)


def test_every_axis_of_several_points_has_differences_and_the_note_stands_once(studied):
    _, workdir, _, stopped = studied(seeds={"seed": (0,), "data.subset_seed": (0,)})
    table = (workdir / "table.md").read_text()
    _, columns, rows = re.split("^## Difference from .*: ", table, flags=re.M)
    columns, rows = ([line.split(" | ") for line in each.splitlines()] for each in (columns, rows))
    assert not stopped and table.count("bootstrap resamples") == 1
    assert columns[0] == ["none"] and columns[4] == ["| data.count", "pretraining: DeP |"]
    assert [row[0] for row in columns[6:8]] == ["| 2", "| 4"]
    assert rows[:3] == [["2"], [""], ["| data.count", "pretraining: none", "pretraining: DeP |"]]
    values = {}
    for line in csv.DictReader((workdir / "table.csv").read_text().splitlines()):
        point = line["pretraining"], line["data.count"]
        values[point] = 100 * float(line["mIoU"])
    found = [float(shown.split(" [")[0]) for shown in rows[4][1:]]
    expected = [values[column, "4"] - values[column, "2"] for column in ("none", "DeP")]
    np.testing.assert_allclose(found, expected, atol=0.051)
    assert len(rows) == 5 and rows[4][0] == "| 4"


def test_a_point_whose_name_has_a_bar_does_not_break_its_row(studied):
    points = {"a|b": {"data.count": 2}, "c": {"data.count": 4}}
    axes = {**ONE["axes"], "x|y": points}
    _, workdir, _, _ = studied(axes=axes, seeds={"seed": (0,)})
    lines = [x for x in (workdir / "table.md").read_text().splitlines() if x.startswith("|")]
    assert sum("a\\|b" in line for line in lines) == 1 and "| x\\|y |" in lines[0]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {3}


def test_a_single_column_has_differences_between_its_rows(studied):
    axes = {**ONE["axes"], "data.count": (2, 4)}
    _, workdir, _, _ = studied(axes=axes, seeds={"seed": (0,)})
    table = (workdir / "table.md").read_text()
    assert re.findall("## Difference from (.*)", table) == ["data.count: 2"]


def test_numbers_without_counts_have_intervals_of_seeds_alone(tmp_path):
    better, worse = (group_of(tmp_path, name, r, (0, 1, 2)) for name, r in (("b", 0.8), ("w", 0.6)))
    found = difference(better, worse, "ECE", tmp_path)
    assert found.images == 0 and found.low < found.mean < found.high
    alone = (Group(("x",), {"0": group.records["0"]}) for group in (better, worse))
    found = difference(*alone, "ECE", tmp_path)
    assert (found.low, found.high, found.seeds) == (None, None, 1) and found.mean > 0
    assert difference(better, Group(("w",), {}), "ECE", tmp_path) is None
