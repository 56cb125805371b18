"""Plots of studies: labels that are numbers stand at their values, and what is missing is not 0."""

import numpy as np
import pytest

from diffseg_jax.figures import study_plots

pytestmark = pytest.mark.quick


@pytest.fixture
def panel(monkeypatch):
    """A function that draws a plot of two columns and rows: its axes in matplotlib."""
    monkeypatch.setattr(study_plots, "pixels_of", lambda figure: figure)

    def draw(plot, numbers):
        rows, columns = ("1e-05", "0.001"), ("a", "b")
        values = {(c, r): v for (c, r), v in numbers.items()}
        return study_plots.DRAWN[plot](values, ["of", "rate"], [columns, rows], "ECE").axes[0]

    return draw


@pytest.mark.parametrize(
    ("labels", "positions"),
    [
        (("12", "0.5"), [12, 0.5]), (("1/8", "1"), [0.125, 1]), (("1e-05", "0.001"), [1e-5, 1e-3]),
        (("-1", "2"), [-1, 2]),
    ],
)  # fmt: skip
def test_numbers_stand_at_their_values(labels, positions):
    assert study_plots._positions(labels) == (positions, True)


@pytest.mark.parametrize("label", ["1.2.3", "1/0", "inf", "1e999", "nan", "fixed", "", "1.0"])
def test_other_labels_stand_side_by_side(label):
    assert study_plots._positions(("1", label)) == ([0.0, 1.0], False)


NUMBERS = {("a", "1e-05"): [0.04], ("a", "0.001"): [0.02, 0.03], ("b", "1e-05"): [0.012]}


def test_a_missing_cell_has_no_bar(panel):
    heights = [bar.get_height() for bar in panel("bars", {**NUMBERS, ("b", "0.001"): []}).patches]
    np.testing.assert_allclose(heights, [0.04, 0.025, 0.012, np.nan])


def test_bars_of_a_single_axis_have_their_names_below_them(monkeypatch):
    monkeypatch.setattr(study_plots, "pixels_of", lambda figure: figure)
    columns = ("0.22", "uniform 0.2 to 0.3", "none")
    figure = study_plots.bar_plot({(c,): [0.5] for c in columns}, ["noise"], [columns], "mIoU")
    axes = figure.axes[0]
    assert tuple(text.get_text() for text in axes.get_xticklabels()) == columns
    middles = [bar.get_x() + bar.get_width() / 2 for bar in axes.patches]
    np.testing.assert_allclose(axes.get_xticks(), middles)
    assert axes.get_xlabel() == "noise" and not figure.legends


def test_a_grid_of_small_numbers_shows_their_digits(panel):
    numbers = {**NUMBERS, ("b", "0.001"): [0.1]}
    shown = lambda factor: [
        text.get_text()
        for text in panel("grid", {k: np.multiply(v, factor) for k, v in numbers.items()}).texts
    ]
    assert shown(1) == ["0.040", "0.012", "0.025", "0.100"]
    assert shown(1000) == ["40.0", "12.0", "25.0", "100.0"]


@pytest.mark.parametrize("plot", ("bars", "lines"))
def test_a_single_seed_has_no_whiskers(panel, plot):
    axes = panel(plot, {**NUMBERS, ("b", "0.001"): [0.1]})
    whiskers = [collection.get_segments() for collection in axes.collections]
    drawn = [s for segments in whiskers for s in segments if len(s) and np.isfinite(s).all()]
    assert len(drawn) == 1  # of the only point with two seeds


def test_lines_lie_side_by_side_on_a_logarithmic_axis(panel):
    axes = panel("lines", {**NUMBERS, ("b", "0.001"): [0.1]})
    left, right = (bars.lines[0].get_xdata() for bars in axes.containers)
    factors = right / left
    np.testing.assert_allclose(factors, factors[0])
    assert 1 < factors[0] < 1.3
    np.testing.assert_allclose(np.sqrt(left * right), [1e-5, 1e-3])


def test_lines_over_small_rates_are_drawn_at_their_values(panel):
    axes = panel("lines", {**NUMBERS, ("b", "0.001"): [0.1]})
    assert axes.get_xscale() == "log" and sorted(axes.get_xticks()) == [1e-5, 1e-3]
