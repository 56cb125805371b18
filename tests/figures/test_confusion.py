"""The plot of a confusion matrix shows the shares of its rows."""

import warnings

import numpy as np
import pytest

from diffseg_jax.figures.confusion import NUMBERED, confusion_plot, row_percent

pytestmark = pytest.mark.quick


def test_each_row_adds_up_to_all_of_its_class():
    counts = np.array([[3, 1, 0], [0, 0, 0], [5, 0, 5]])
    expected = [[75, 25, 0], [np.nan] * 3, [50, 0, 50]]
    np.testing.assert_array_equal(row_percent(counts), expected)


def test_the_plot_grows_with_the_classes_and_shows_where_they_go():
    sizes = []
    for classes in (2, NUMBERED + 1):
        counts = np.diag(np.full(classes, 2**40))
        names = [f"{k} {'x' * 40}" for k in range(classes)]
        counts[0] = 0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            right = confusion_plot(counts, names)
        sizes.append(right.shape[0])
        assert right.dtype == np.uint8 and right.min() < 50
    assert sizes[1] > sizes[0] + 100
    wrong = confusion_plot(np.roll(counts, 1, axis=1), names)
    assert wrong.shape == right.shape and (wrong != right).any(-1).mean() > 0.005
