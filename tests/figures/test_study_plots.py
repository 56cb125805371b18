"""Plots of studies: labels that are numbers stand at their values, and what is missing is not 0."""

import numpy as np
import pytest

from diffseg_jax.figures import study_plots

pytestmark = pytest.mark.quick


@pytest.fixture
def figures(monkeypatch):
    """Plots are the figures of matplotlib."""
    monkeypatch.setattr(study_plots, "pixels_of", lambda figure: figure)


@pytest.fixture
def panel(figures):
    """A function that draws a plot of two columns and rows: its axes in matplotlib."""

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


def test_bars_of_a_single_axis_have_their_names_below_them(figures):
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


def test_a_line_goes_from_left_to_right_whatever_the_order_of_its_points(figures):
    """The first point of an axis is the one that others are compared with, not the smallest."""
    labels, means = ("0.22", "0.05", "0.4"), (2.0, 1.0, 3.0)
    values = {(label,): [mean] for label, mean in zip(labels, means, strict=True)}
    axes = study_plots.line_plot(values, ["noise"], [labels], "mIoU").axes[0]
    (line,) = (bars.lines[0] for bars in axes.containers)
    assert list(line.get_xdata()) == [0.05, 0.22, 0.4]
    assert list(line.get_ydata()) == [1, 2, 3]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0.05", "0.22", "0.4"]


def test_thirty_lines_and_twenty_bars_all_look_different(figures):
    columns, rows = [f"column {i}" for i in range(30)], ("1", "3")
    values = {(column, row): [0.5] for column in columns for row in rows}
    draw = lambda plot, count: study_plots.DRAWN[plot](
        values, ["of", "steps"], [columns[:count], rows], "mIoU"
    )
    drawn = [bars.lines[0] for bars in draw("lines", 30).axes[0].containers]
    looks = {(each.get_color(), each.get_marker(), each.get_linestyle()) for each in drawn}
    assert len(looks) == len(drawn) == 30
    first, last = (each.get_xdata()[0] for each in (drawn[0], drawn[-1]))
    assert last - first < (3 - 1) / 3  # nearer to each other than to those of the next point
    drawn = draw("bars", 20).axes[0].patches
    assert len({(each.get_facecolor(), each.get_hatch()) for each in drawn}) == 20


NAMES = ("diffusion model", "EfficientNet-Lite0", "colour and position", "DINO ViT-B/16", "random")


@pytest.mark.parametrize("plot", study_plots.DRAWN)
@pytest.mark.parametrize("more", ("", ", with many more words behind it than a plot has room for"))
def test_names_of_points_do_not_overlap(figures, plot, more):
    names = [f"{name}{more}" for name in NAMES]
    values = {(column, row): [0.5] for column in names for row in names}
    figure = study_plots.DRAWN[plot](values, ["source", "target"], [names, names], "mIoU")
    figure.draw_without_rendering()
    texts = figure.axes[0].get_xticklabels()
    turned = [text.get_rotation() for text in texts]
    assert [text.get_text() for text in texts] == names and turned == [45 if more else 0] * 5
    assert figure.get_figwidth() < 2 * study_plots.WIDEST
    boxes = [text.get_window_extent() for text in texts]
    if more:  # lines of text at 45 degrees are this far apart where they do not touch
        gaps = np.diff([box.x1 for box in boxes])
        assert min(gaps) > 9 / 72 * figure.dpi * 2**0.5
    else:
        assert all(left.x1 < right.x0 for left, right in zip(boxes, boxes[1:]))
    assert min(box.x0 for box in boxes) >= 0 and min(box.y0 for box in boxes) >= 0


def test_values_close_to_each_other_have_turned_names(figures):
    labels = ("0.05", "0.2", "0.22", "0.4")
    plot = lambda labels: study_plots.line_plot(
        {(label,): [0.5] for label in labels}, ["noise"], [labels], "mIoU"
    )
    for shown, turn in ((labels, 45), (labels[:2], 0)):
        figure = plot(shown)
        assert {text.get_rotation() for text in figure.axes[0].get_xticklabels()} == {turn}
        assert figure.get_figwidth() == study_plots.WIDTH
