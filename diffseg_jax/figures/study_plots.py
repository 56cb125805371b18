"""Plots of studies: lines over a row axis, groups of bars, a grid of numbers; reverse steps."""

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from diffseg_jax.figures.colour_vision import LINES
from diffseg_jax.figures.trust import pixels_of

LONG = 12.0  # ratio of the largest to the smallest value from which an axis is logarithmic
WIDTH, HEIGHT = 7.5, 4.2  # inches of a plot of lines
WIDEST = 16.0  # inches of the names along x, beyond which they are turned
# Lines, or bars, beyond the number of colours repeat the colours with the next look.
MARKERS, STYLES, HATCHES = ("o", "s", "^", "D", "v"), ("-", "--", ":", "-."), ("", "//", "..", "xx")
Values = Mapping[tuple[str, ...], Sequence[float]]  # labels of a point -> the number of each seed


def line_plot(values: Values, titles: Sequence[str], labels: Sequence, title: str) -> np.ndarray:
    """A line for each point of the first axis, over the points of the last: uint8[h, w, 3].

    titles, labels  of the axes and their points;  title  of the number

    Whiskers are one standard deviation over seeds, if there are several, dots the seeds. Axes
    between the first and the last make lines of their own; a single axis is drawn along x.
    """
    figure, panel = _panel((WIDTH, HEIGHT))
    x, numeric = _positions(labels[-1])
    x, inner = zip(*sorted(zip(x, labels[-1], strict=True)), strict=True)  # else lines turn back
    is_log = numeric and min(x) > 0 and max(x) > LONG * min(x)
    outer = list(itertools.product(*labels[:-1]))
    names = [", ".join(each) for each in outer]
    for number, (name, chosen) in enumerate(zip(names, outer, strict=True)):
        each = [values[(*chosen, label)] for label in inner]
        _draw_line(panel, _beside(x, number, len(outer), is_log), each, name, number)
    panel.set_xscale("log" if is_log else "linear")
    _name_points(panel, x, inner, most=WIDTH - 1.2 if numeric else WIDEST)
    panel.minorticks_off()
    panel.set_xlabel(titles[-1], fontsize=9)
    panel.set_title(title, fontsize=10, loc="left")
    if len(labels) > 1:
        _draw_legend(figure, names, ", ".join(titles[:-1]))
    return pixels_of(figure)


def _name_points(panel, x, names, least=0.3, most=WIDEST):
    """Names at x, for which the plot is made wider; beside each other they may take `most` inches.

    Otherwise they are turned, and the plot is made higher. least: inches between two points.
    """
    figure, inches = panel.figure, _inches_of(names)
    gaps = np.diff(panel.transScale.transform([(at, 1.0) for at in x])[:, 0])
    shares = gaps.sum() / gaps.min() if len(gaps) else 0.0  # of the axis between two points
    turned = (1 + shares) * inches > most
    wide = len(x) * least if turned else max((1 + shares) * inches, len(x) * least)
    turn = dict(rotation=45, ha="right", rotation_mode="anchor") if turned else {}
    panel.set_xticks(x, names, **turn)
    width, height = figure.get_size_inches()
    figure.set_size_inches(max(width, 1.2 + wide), height + 0.7 * inches * turned)


def _draw_legend(figure, names, title):
    """The names of lines or bars above the plot, in as many columns as its width holds."""
    width, height = figure.get_size_inches()
    columns = min(len(names), 5, max(1, int((width - 0.3) / (_inches_of(names) + 0.5))))
    figure.set_size_inches(width, height + 0.17 * (math.ceil(len(names) / columns) - 1))
    figure.legend(
        loc="outside upper left", ncols=columns, fontsize=9, frameon=False, title=title,
        title_fontsize=9, alignment="left",
    )  # fmt: skip


def _beside(x, number, count, is_log):
    """x of a line of several, whose whiskers would hide each other: as far apart everywhere.

    All of them stay within a third of the way to the next point.
    """
    x = np.log(x) if is_log else np.asarray(x, float)
    width = (x.max() - x.min()) / (len(x) - 1) if len(x) > 1 else 1.0
    x = x + min(0.03, 0.3 / count) * (number - (count - 1) / 2) * width
    return np.exp(x) if is_log else x


def _draw_line(panel, at, each, name, number):
    colour, marker, style = (_look_of(number, each) for each in (LINES, MARKERS, STYLES))
    mean, spread = _mean_and_spread(each)
    panel.errorbar(
        at, mean, spread, color=colour, marker=marker, markersize=5, linewidth=1.6, capsize=3,
        linestyle=style, label=name,
    )  # fmt: skip
    for position, values in zip(at, each, strict=True):
        panel.plot([position] * len(values), values, ".", color=colour, alpha=0.45, markersize=5)


def _look_of(number, choices):
    """The colour of a line or bar by its number, or another choice, which changes more slowly."""
    return choices[(number if choices is LINES else number // len(LINES)) % len(choices)]


def _mean_and_spread(each):
    """Means and standard deviations of some numbers each; NaN, which is not drawn, of too few."""
    mean = [np.mean(values) if len(values) else np.nan for values in each]
    return mean, [np.std(values, ddof=1) if len(values) > 1 else np.nan for values in each]


def _positions(labels) -> tuple[list[float], bool]:
    """Where labels stand on x, and whether that is their own value: 12, 0.5, 1e-05 or 1/8."""
    found = [_number_of(label) for label in labels]
    if len(labels) > 1 and None not in found and len(set(found)) == len(found):
        return found, True
    return list(map(float, range(len(labels)))), False


def _number_of(label):
    """The value of a label, None if it is no finite number."""
    above, _, below = label.partition("/")
    try:
        value = float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        return None
    return value if math.isfinite(value) else None


def bar_plot(values: Values, titles: Sequence[str], labels: Sequence, title: str) -> np.ndarray:
    """Groups of bars, one for each point of the row axes; in a group a bar for each column.

    Arguments as of `line_plot`. Bars of a single axis have their names below them.
    """
    if len(labels) == 1:
        return _bars_of_one_axis(values, titles[0], labels[0], title)
    columns, rows = labels[0], list(itertools.product(*labels[1:]))
    names = [", ".join(row) for row in rows]
    figure, panel = _panel((5.5, HEIGHT))
    width = 0.8 / len(columns)
    for number, column in enumerate(columns):
        each = [values[(column, *row)] for row in rows]
        at = np.arange(len(rows)) + width * (number - (len(columns) - 1) / 2)
        _draw_bars(panel, at, each, 0.92 * width, column, number)
    _name_points(panel, range(len(rows)), names, least=0.32 * (len(columns) + 1))
    panel.set_xlabel(", ".join(titles[1:]), fontsize=9)
    panel.set_title(title, fontsize=10, loc="left")
    _draw_legend(figure, columns, titles[0])
    return pixels_of(figure)


def _bars_of_one_axis(values, axis, labels, title):
    """`bar_plot` of a single axis."""
    figure, panel = _panel((5.5, HEIGHT))
    for number, label in enumerate(labels):
        _draw_bars(panel, [number], [values[(label,)]], 0.7, label, number)
    _name_points(panel, range(len(labels)), labels)
    panel.set_xlabel(axis, fontsize=9)
    panel.set_title(title, fontsize=10, loc="left")
    return pixels_of(figure)


def _draw_bars(panel, at, each, width, name, number):
    """Bars of means with standard deviations, and a dot for each seed."""
    mean, spread = _mean_and_spread(each)
    panel.bar(
        at, mean, width, yerr=spread, capsize=2.5, label=name, color=_look_of(number, LINES),
        hatch=_look_of(number, HATCHES), edgecolor="white", linewidth=0,
        error_kw=dict(linewidth=1.0, ecolor="0.25"),
    )  # fmt: skip
    for position, seeds in zip(at, each, strict=True):
        panel.plot([position] * len(seeds), seeds, ".", color="0.15", alpha=0.6, markersize=4)


def _inches_of(labels):
    """Width that the longest of some labels takes."""
    return 0.08 * max(map(len, labels)) + 0.2


def grid_plot(values: Values, titles: Sequence[str], labels: Sequence, title: str) -> np.ndarray:
    """A table of means coloured from the lowest to the highest: the columns along x.

    Arguments as of `line_plot`; of more than two axes all but the first are rows.
    """
    rows = list(itertools.product(*labels[1:]))
    table = np.array([
        [np.mean(found) if len(found := values[(column, *row)]) else np.nan for column in labels[0]]
        for row in rows
    ])  # fmt: skip
    names = [", ".join(row) for row in rows]
    figure, panel = _panel((4.5, 1.4 + 0.42 * len(rows)))
    image = panel.imshow(table, cmap="magma", aspect="auto")
    low, high = np.nanmin(table), np.nanmax(table)
    digits = 1 if max(-low, high) >= 10 else 3
    for y, x in np.ndindex(table.shape):
        if not np.isnan(table[y, x]):
            dark = table[y, x] < low + 0.6 * (high - low)
            colour = "white" if dark else "black"
            number = f"{table[y, x]:.{digits}f}"
            panel.text(x, y, number, ha="center", va="center", fontsize=8, color=colour)
    panel.set_yticks(range(len(rows)), names)
    _name_points(panel, range(len(labels[0])), labels[0], least=0.62)
    figure.set_figwidth(figure.get_figwidth() + _inches_of(names))
    panel.set_xlabel(titles[0], fontsize=9)
    panel.set_ylabel(", ".join(titles[1:]), fontsize=9)
    panel.set_title(title, fontsize=10, loc="left")
    panel.grid(False)
    figure.colorbar(image, ax=panel).ax.tick_params(labelsize=8)
    return pixels_of(figure)


def steps_plot(rows: Sequence[dict]) -> np.ndarray:
    """Mean IoU against reverse steps and time: a line per stage and number of draws.

    rows   dicts of stage, steps (0 if the network takes none), draws, mIoU in [0, 1], ms per image
    """
    from matplotlib.figure import Figure  # a slow import

    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    against_steps, against_time = figure.subplots(1, 2, sharey=True)
    groups = {}
    for row in rows:
        draws = f", {row['draws']} draws" if row["draws"] > 1 else ""
        groups.setdefault(row["stage"] + draws, []).append(row)
    for number, (name, group) in enumerate(groups.items()):
        quality = [100 * row["mIoU"] for row in group]
        colour = LINES[number % len(LINES)]
        style = dict(color=colour, marker="o", label=name)
        if group[0]["steps"]:
            against_steps.plot([row["steps"] for row in group], quality, **style)
        else:
            against_steps.axhline(quality[0], color=colour, linestyle="--", label=name)
        against_time.plot([row["ms"] for row in group], quality, **style)
    ticks = sorted({row["steps"] for row in rows if row["steps"]})
    against_steps.set(xlabel="reverse steps", ylabel="mIoU (%)", xticks=ticks)
    for row in rows:
        if row["steps"]:
            against_time.annotate(str(row["steps"]), (row["ms"], 100 * row["mIoU"]))
    against_time.set(xlabel="milliseconds per image (numbers: steps)")
    against_steps.legend()
    return pixels_of(figure)


def _panel(size):
    from matplotlib.figure import Figure  # a slow import

    figure = Figure(figsize=size, dpi=110, layout="constrained")
    panel = figure.subplots()
    panel.grid(axis="y", color="0.9", linewidth=0.6)
    panel.set_axisbelow(True)
    panel.tick_params(labelsize=9)
    panel.spines[["top", "right"]].set_visible(False)
    return figure, panel


DRAWN = {"lines": line_plot, "bars": bar_plot, "grid": grid_plot}
