"""What --mode=check says of measured depth."""

from types import SimpleNamespace

import numpy as np
import pytest

from diffseg_jax.errors import UserError
from diffseg_jax.experiment.depth_checks import count_depth, outside_range, summary_of_depth

pytestmark = pytest.mark.quick


def counted(*depths):
    source = SimpleNamespace(names=tuple("abcdef"))
    counts = {i: count_depth({"depth": depth}) for i, depth in enumerate(depths)}
    return summary_of_depth(source, counts)


def test_the_measured_share_and_the_range_are_printed():
    half = np.array([[0, 0, 2.0, 40.0]])
    (line,) = counted(half, np.full((1, 4), 10.0))
    assert line == (
        "depth: 75.0% of the pixels are measured, 2 to 40 m; medians of images 10 to 21 m, half "
        "of them below 15.5 m"
    )


def test_images_with_next_to_nothing_measured_are_named():
    sparse = np.zeros((20, 20))
    sparse[0, 0] = 5
    _, line = counted(np.ones((2, 2)), sparse, np.zeros((2, 2)))
    assert line == "note: 2 images with less than 1% measured: b, c"
    assert counted(np.zeros((2, 2))) == ["depth: no pixel is measured"]


def test_examples_without_depth_are_not_counted():
    assert count_depth({"mask": np.zeros((2, 2))}) == {}


def test_depth_in_another_unit_is_refused_and_the_remedy_named():
    millimetres = np.array([900.0, 1800.0, 4000.0])
    with pytest.raises(UserError) as error:
        outside_range("train", millimetres, 6, 0.1, 10.0)
    for part in (
        "train: all measured pixels of 6 images lie outside 0.1 to 10 metres", "median is 1800",
        "0.001 for files in millimetres", "as in --config.depth.high=5000.",
    ):  # fmt: skip
        assert part in str(error.value)
    with pytest.raises(UserError, match=r"as in --config.depth.low=0.0005\."):
        outside_range("val", millimetres / 1e6, 2, 0.1, 10.0)


def test_a_warning_where_some_depth_is_in_the_range():
    (sentence,) = outside_range("val", np.array([5.0, 90.0, 200.0]), 2, 0.1, 10.0)
    assert sentence.startswith("val: 67% of the measured pixels lie outside 0.1 to 10 metres")
    assert outside_range("val", np.array([5.0, 6.0, 200.0]), 2, 0.1, 10.0) == []
