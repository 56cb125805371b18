"""Draws curves of runs: a panel for every quantity."""

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffseg_jax.errors import UserError
from diffseg_jax.figures.colour_vision import LINES
from diffseg_jax.figures.curve_data import Curve
from diffseg_jax.storage.paths import open_path, reachable, write_atomically

FIGURE_FORMATS = {".png": "png", ".svg": "svg", ".pdf": "pdf"}
STYLES = ("-", "--", ":", "-.")
MIN_SMOOTHED = 20  # points of a curve; shorter curves mark their points instead
DECADE = 10.0  # ratio of the extremes from which a scale is logarithmic
COLUMNS, PANEL, LEGEND_LINE = 3, (4.2, 2.7), 0.24  # panels per row; inches
PERCENT = ("mIoU", "mAcc", "aAcc", "pixel_accuracy", "probe_mIoU")  # fractions in metrics.jsonl
EXACT = (  # never smoothed
    "mIoU", "mAcc", "aAcc", "learning_rate", "running", "probe_mIoU", "abs_rel", "rmse", "a1",
)  # fmt: skip
LOGARITHMIC = ("loss", "auxiliary_loss", "mse", "vb", "denoising_error", "grad_norm")
PANEL_ORDER = (  # other quantities follow
    "loss", "mIoU", "abs_rel", "probe_mIoU", "learning_rate", "mAcc", "aAcc", "rmse", "a1",
    "pixel_accuracy",
    "denoising_error", "mse", "vb", "auxiliary_loss", "grad_norm", "images_per_second",
    "steps_per_second",
)  # fmt: skip
IN_TABLE = (
    "loss", "denoising_error", "mIoU", "abs_rel", "probe_mIoU", "images_per_second",
    "steps_per_second",
)  # fmt: skip
RATES = {"images_per_second": "images/s", "steps_per_second": "steps/s"}


def smoothed(values: np.ndarray) -> np.ndarray:
    """A centred moving average f64[N] over about a twentieth of the curve, skipping NaN.

    The weights are Gaussian and sum to one, also at the ends: a constant is not changed.
    """
    spread = min(max(len(values) / 50, 0.5), 200)
    reach = np.arange(-np.ceil(3 * spread), np.ceil(3 * spread) + 1)
    bell = np.exp(-0.5 * (reach / spread) ** 2)
    finite = ~np.isnan(values)
    total, weight = (
        np.convolve(np.where(finite, part, 0.0), bell)[len(bell) // 2 :][: len(values)]
        for part in (values, 1.0)
    )
    return np.where(finite, total / np.maximum(weight, 1e-9), np.nan)


def draw_curves(curves: Sequence[Curve]):
    """A matplotlib Figure with a panel per quantity, over steps, and one legend for all."""
    from matplotlib.figure import Figure  # a slow import

    quantities = panel_order({quantity for curve in curves for quantity in curve.values})
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
    """Lines and columns. Legends fill column by column: each run has a column if there is room."""
    fit = max(1, int(10 * width // (8 + max(len(curve.name) for curve in curves))))
    runs = len({curve.run for curve in curves})
    lines = -(-len(curves) // min(fit, len(curves) if runs == 1 else runs))
    return lines, -(-len(curves) // lines)


def panel_order(quantities: set[str]) -> list[str]:
    """The quantities of PANEL_ORDER in its order, then the others by name."""
    return [q for q in PANEL_ORDER if q in quantities] + sorted(quantities - set(PANEL_ORDER))


def style_of(curve: Curve, curves: Sequence[Curve]) -> dict:
    """Colour by run and line style by stage; the stages of a single run differ in both."""
    single_run = len({other.run for other in curves}) == 1
    colour = curve.stage if single_run else curve.run
    style = curve.stage if single_run else curve.stage + colour // len(LINES)
    return dict(color=LINES[colour % len(LINES)], linestyle=STYLES[style % len(STYLES)])


def _draw_panel(panel, quantity: str, curves: Sequence[Curve]):
    shown = [curve for curve in curves if quantity in curve.values]
    scale = 100 if quantity in PERCENT else 1
    points = [(steps, values * scale) for steps, values in (c.values[quantity] for c in shown)]
    logarithmic = quantity in LOGARITHMIC and _spans_a_decade([values for _, values in points])
    for curve, (steps, values) in zip(shown, points, strict=True):
        style = style_of(curve, curves)
        if len(values) < MIN_SMOOTHED:
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
        text.set(text=curve.name, parse_math=False)  # matplotlib treats "_a" and "a$b$" specially


def last_numbers(curves: Sequence[Curve]) -> str:
    """A table, one line per curve: its last step and last values."""
    shown = [q for q in IN_TABLE if any(q in curve.values for curve in curves)]
    cells = [["", "step", *(RATES.get(quantity, quantity) for quantity in shown)]]
    for curve in curves:
        last = max(steps[-1] for steps, _ in curve.values.values())
        numbers = [
            _formatted(q, curve.values[q][1][-1]) if q in curve.values else "-" for q in shown
        ]
        cells.append([curve.name, str(last), *numbers])
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in cells
    )


def _formatted(quantity: str, value: float) -> str:
    return f"{100 * value:.2f} %" if quantity in PERCENT else f"{value:.4g}"


def check_output(output: str | os.PathLike) -> str:
    """The format of the image file; UserError for an unknown ending, and for a folder."""
    ending = Path(str(output)).suffix.lower()
    if ending not in FIGURE_FORMATS:
        raise UserError(
            f"--output={output} must end with {', '.join(FIGURE_FORMATS)}. Try --output=curves.png."
        )
    path = open_path(output)
    with reachable(path):
        is_folder = path.is_dir()
    if is_folder:
        raise UserError(f"{output} is a folder. Give a file, such as --output={output}/curves.png.")
    return FIGURE_FORMATS[ending]


def save_figure(figure, output: str | os.PathLike):
    """Writes the figure atomically; the same curves give the same bytes."""
    import matplotlib

    file_format, content = check_output(output), io.BytesIO()
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with matplotlib.rc_context({"svg.hashsalt": "curves"}):
        figure.savefig(content, format=file_format, metadata=dates.get(file_format))
    path = open_path(output)
    with reachable(path):
        try:
            write_atomically(path, content.getvalue())
        except OSError as error:
            raise UserError(
                f"{output} cannot be written ({error.strerror or error}). Give another --output."
            ) from None
