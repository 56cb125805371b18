"""Curves of runs: a panel for every quantity."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffseg_jax.errors import UserError
from diffseg_jax.figures.curve_data import Curve
from diffseg_jax.figures.sheets import LINES
from diffseg_jax.storage.paths import in_bucket, open_path, reachable, write_atomically

FORMATS = {".png": "png", ".svg": "svg", ".pdf": "pdf"}
STYLES = ("-", "--", ":", "-.")
SMOOTHED_FROM = 20  # points; fewer are marked one by one
DECADE = 10.0  # what spans more is drawn with a logarithmic scale
COLUMNS, PANEL, LEGEND_LINE = 3, (4.2, 2.7), 0.24  # panels per row; inches
PERCENT = ("mIoU", "mAcc", "aAcc", "pixel_accuracy")  # kept as fractions
EXACT = ("mIoU", "mAcc", "aAcc", "learning_rate", "running")  # never smoothed
LOGARITHMIC = ("loss", "auxiliary_loss", "mse", "vb", "denoising_error", "grad_norm")
FIRST = (  # the order of panels; the others follow
    "loss", "mIoU", "learning_rate", "mAcc", "aAcc", "pixel_accuracy", "denoising_error", "mse",
    "vb", "auxiliary_loss", "grad_norm", "images_per_second", "steps_per_second",
)  # fmt: skip
IN_TABLE = ("loss", "denoising_error", "mIoU", "images_per_second", "steps_per_second")
RATES = {"images_per_second": "images/s", "steps_per_second": "steps/s"}


def smoothed(values: np.ndarray) -> np.ndarray:
    """The moving average f64[N], centred, of about a twentieth of the curve, over what is not NaN.

    Weights fall off as a bell and sum to one, also at the ends: a constant stays what it is.
    """
    spread = min(max(len(values) / 50, 0.5), 200)
    reach = np.arange(-np.ceil(3 * spread), np.ceil(3 * spread) + 1)
    bell = np.exp(-0.5 * (reach / spread) ** 2)
    there = ~np.isnan(values)
    total, weight = (
        np.convolve(np.where(there, part, 0.0), bell)[len(bell) // 2 :][: len(values)]
        for part in (values, 1.0)
    )
    return np.where(there, total / np.maximum(weight, 1e-9), np.nan)


def draw(curves: Sequence[Curve]):
    """A matplotlib Figure with a panel per quantity, over steps, and one legend for all."""
    from matplotlib.figure import Figure  # slow, and only needed here

    quantities = ordered({quantity for curve in curves for quantity in curve.values})
    columns = min(COLUMNS, len(quantities))
    rows = -(-len(quantities) // columns)
    size = (PANEL[0] * max(columns, 2), PANEL[1] * rows)
    lines, per_line = _legend_shape(curves, size[0])
    height = size[1] + LEGEND_LINE * (1 + lines)
    figure = Figure(figsize=(size[0], height), dpi=110, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels[len(quantities) :]:
        panel.axis("off")
    for panel, quantity in zip(panels, quantities, strict=False):
        _draw_panel(panel, quantity, curves)
    _draw_legend(figure, curves, per_line)
    return figure


def _legend_shape(curves: Sequence[Curve], width: float) -> tuple[int, int]:
    """Lines and columns; legends fill up column by column, so a column for every run if it can."""
    fit = max(1, int(10 * width // (8 + max(len(curve.name) for curve in curves))))
    runs = len({curve.run for curve in curves})
    lines = -(-len(curves) // min(fit, len(curves) if runs == 1 else runs))
    return lines, -(-len(curves) // lines)


def ordered(quantities: set[str]) -> list[str]:
    """The known quantities in the order of FIRST, then the others by name."""
    return [q for q in FIRST if q in quantities] + sorted(quantities - set(FIRST))


def style_of(curve: Curve, curves: Sequence[Curve]) -> dict:
    """Colour by run and line by stage; with one run alone, the stages differ in both."""
    alone = len({other.run for other in curves}) == 1
    number = curve.stage if alone else curve.run
    turn = curve.stage if alone else curve.stage + number // len(LINES)
    return dict(color=LINES[number % len(LINES)], linestyle=STYLES[turn % len(STYLES)])


def _draw_panel(panel, quantity: str, curves: Sequence[Curve]):
    shown = [curve for curve in curves if quantity in curve.values]
    scale = 100 if quantity in PERCENT else 1
    points = [(steps, values * scale) for steps, values in (c.values[quantity] for c in shown)]
    logarithmic = quantity in LOGARITHMIC and _spans_a_decade([values for _, values in points])
    for curve, (steps, values) in zip(shown, points, strict=True):
        style = style_of(curve, curves)
        if len(values) < SMOOTHED_FROM:
            panel.plot(steps, values, linewidth=1.6, marker="o", markersize=3.5, **style)
        elif quantity in EXACT:
            panel.plot(steps, values, linewidth=1.6, **style)
        else:
            smooth = np.exp(smoothed(np.log(values))) if logarithmic else smoothed(values)
            panel.plot(steps, values, color=style["color"], linewidth=0.7, alpha=0.4)
            panel.plot(steps, smooth, linewidth=1.6, **style)
    last = max(steps[-1] for curve in shown for steps, _ in curve.values.values())
    panel.set_xlim(-0.02 * last, 1.02 * max(last, 1))
    if logarithmic:
        _use_log_scale(panel)
    elif quantity in RATES:
        panel.set_ylim(bottom=0)
    title = RATES.get(quantity, quantity.replace("_", " ")) + " (%)" * (quantity in PERCENT)
    panel.set_title(title, fontsize=10, loc="left", parse_math=False)
    panel.set_xlabel("step", fontsize=8, labelpad=1)
    panel.tick_params(labelsize=8)
    panel.grid(color="0.9", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)


def _spans_a_decade(values: Sequence[np.ndarray]) -> bool:
    values = np.concatenate(values)
    values = values[~np.isnan(values)]
    return len(values) > 0 and 0 < DECADE * values.min() < values.max()


def _use_log_scale(panel):
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    panel.set_yscale("log")
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    panel.yaxis.set_minor_locator(NullLocator())


def _draw_legend(figure, curves: Sequence[Curve], columns: int):
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], linewidth=1.8, **style_of(curve, curves)) for curve in curves]
    legend = figure.legend(
        handles, ["-"] * len(handles), loc="outside upper left", ncols=columns,
        fontsize=9, frameon=False, handlelength=2.6,
    )  # fmt: skip
    for text, curve in zip(legend.get_texts(), curves, strict=True):
        text.set(text=curve.name, parse_math=False)  # "_a" and "a$b$" are names like others


def last_numbers(curves: Sequence[Curve]) -> str:
    """A table, one line per curve: its last step and the last of some of its numbers."""
    shown = [q for q in IN_TABLE if any(q in curve.values for curve in curves)]
    cells = [["", "step", *(RATES.get(quantity, quantity) for quantity in shown)]]
    for curve in curves:
        last = max(steps[-1] for steps, _ in curve.values.values())
        numbers = [_written(q, curve.values[q][1][-1]) if q in curve.values else "-" for q in shown]
        cells.append([curve.name, str(last), *numbers])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in cells
    )


def _written(quantity: str, value: float) -> str:
    return f"{100 * value:.2f} %" if quantity in PERCENT else f"{value:.4g}"


def check_output(output: str | os.PathLike) -> str:
    """The format of the picture; UserError for an ending that none has, and for a folder."""
    ending = Path(str(output)).suffix.lower()
    if ending not in FORMATS:
        raise UserError(
            f"--output={output} must end with {', '.join(FORMATS)}. Try --output=curves.png."
        )
    if not in_bucket(output) and open_path(output).is_dir():
        raise UserError(f"{output} is a folder. Give a file, such as --output={output}/curves.png.")
    return FORMATS[ending]


def save(figure, output: str | os.PathLike):
    """Writes the figure whole or not at all; the same curves give the same bytes."""
    import matplotlib

    form, content = check_output(output), io.BytesIO()
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with matplotlib.rc_context({"svg.hashsalt": "curves"}):
        figure.savefig(content, format=form, metadata=dates.get(form))
    path = open_path(output)
    with reachable(path):
        try:
            write_atomically(path, content.getvalue())
        except OSError as error:
            if in_bucket(path):
                raise
            raise UserError(
                f"{output} cannot be written ({error.strerror}). Give another --output."
            ) from None
