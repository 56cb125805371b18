"""What the table of a study says of chance: paired differences and their intervals."""

import numpy as np

from diffseg_jax.experiment import study_report
from diffseg_jax.experiment.study_report import Group, difference
from diffseg_jax.metrics.image_counts import mean_iou
from study_case import IMAGES, counts_of


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


def test_intervals_are_as_wide_as_chance_makes_differences(tmp_path):
    """Nineteen of twenty pairs of equal networks, on other images, differ by less than it says."""
    outside = 0
    for seed in range(40):
        a, b = (group_of(tmp_path, n, 0.7, (seed + shift,)) for n, shift in (("a", 0), ("b", 100)))
        b = Group(b.labels, {str(seed): next(iter(b.records.values()))})
        found = difference(a, b, "mIoU", tmp_path)
        outside += not found.low <= 0 <= found.high
    assert outside <= 6


def test_a_difference_that_no_resample_defines_has_no_interval(tmp_path, monkeypatch):
    better, worse = (group_of(tmp_path, name, r, (0, 1)) for name, r in (("b", 0.8), ("w", 0.6)))
    undefined = lambda path, counts, weights, sizes: np.full((len(weights), len(counts)), np.nan)
    monkeypatch.setattr(study_report, "resampled_scores", undefined)
    found = difference(better, worse, "mIoU", tmp_path)
    assert found.mean > 0 and (found.low, found.high) == (None, None)


def test_numbers_without_counts_are_resampled_over_seeds_alone(tmp_path):
    better, worse = (group_of(tmp_path, name, r, (0, 1, 2)) for name, r in (("b", 0.8), ("w", 0.6)))
    found = difference(better, worse, "ECE", tmp_path)
    assert found.images == 0 and found.low <= found.mean <= found.high
    assert difference(better, Group(("w",), {}), "ECE", tmp_path) is None
