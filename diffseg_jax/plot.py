"""Curves of runs, from what they wrote to metrics.jsonl: a panel for every quantity.

python -m diffseg_jax.plot --workdir=runs/a --workdir=runs/b --output=curves.png
"""

import argparse
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffseg_jax.cli import user_errors
from diffseg_jax.errors import UserError, shortened
from diffseg_jax.figures.sheets import LINES
from diffseg_jax.storage.paths import in_bucket, open_path, reachable, write_atomically

FORMATS = {".png": "png", ".svg": "svg", ".pdf": "pdf"}
STYLES = ("-", "--", ":", "-.")
SMOOTHED_FROM = 20  # points; fewer are marked one by one
DECADE = 10.0  # what spans more is drawn with a logarithmic scale
COLUMNS, PANEL, LEGEND_LINE = 3, (4.2, 2.7), 0.24  # panels per row; inches
MOST = 2**53  # larger steps and numbers are none
NAME = 48  # characters of a curve's name

PERCENT = ("mIoU", "mAcc", "aAcc", "pixel_accuracy")  # kept as fractions
EXACT = ("mIoU", "mAcc", "aAcc", "learning_rate", "running")  # never smoothed
LOGARITHMIC = ("loss", "auxiliary_loss", "mse", "vb", "denoising_error", "grad_norm")
FIRST = (  # the order of panels; the others follow
    "loss", "mIoU", "learning_rate", "mAcc", "aAcc", "pixel_accuracy", "denoising_error", "mse",
    "vb", "auxiliary_loss", "grad_norm", "images_per_second", "steps_per_second",
)  # fmt: skip
NO_CURVES = ("stage", "step", "time", "images")
IN_TABLE = ("loss", "denoising_error", "mIoU", "images_per_second", "steps_per_second")
RATES = {"images_per_second": "images/s", "steps_per_second": "steps/s"}


@dataclass(frozen=True)
class Curve:
    """The numbers of one stage of one run.

    name    what the legend calls it
    run     the place of its workdir among those that were given, from 0; stage: of its stage
    values  {quantity: (steps i64[N], ascending; values f64[N], NaN where a number is none)}
    """

    name: str
    run: int
    stage: int
    values: dict[str, tuple[np.ndarray, np.ndarray]]


def read_curves(workdirs: Sequence[str | os.PathLike]) -> list[Curve]:
    """A curve per run and stage, in the order in which they were given and written.

    Raises UserError for a workdir that is not there, or that has no numbers.
    """
    runs = {str(workdir).rstrip("/") or "/": read_numbers(workdir) for workdir in workdirs}
    stages = list(dict.fromkeys(stage for stages in runs.values() for stage in stages))
    names = run_names(list(runs))
    return [
        Curve(_curve_name(name, stage, len(runs), len(stages)), i, stages.index(stage), values)
        for i, (name, run) in enumerate(zip(names, runs.values(), strict=True))
        for stage, values in run.items()
    ]


def read_numbers(workdir: str | os.PathLike) -> dict[str, dict[str, tuple]]:
    """{stage: {quantity: (steps, values)}} of a workdir's metrics.jsonl.

    Of a step that stands there twice, as after a resumed run, the later number holds. A line that
    is not whole, as the last one of a run that still writes, is passed over.
    """
    points = {}
    for record in _records(workdir):
        for quantity, value in record.items():
            if quantity not in NO_CURVES and type(value) in (int, float):
                curve = points.setdefault(record["stage"], {}).setdefault(quantity, {})
                curve[record["step"]] = float(value) if abs(value) < MOST else np.nan
    if not points:
        raise UserError(
            f"{workdir}/metrics.jsonl holds no numbers yet. Wait until the run has logged its "
            "first steps, or give another --workdir."
        )
    return {
        stage: {quantity: _sorted(curve) for quantity, curve in quantities.items()}
        for stage, quantities in points.items()
    }


def _records(workdir):
    """The lines of metrics.jsonl that are objects with a stage and a step."""
    folder = open_path(workdir)
    with reachable(folder):
        if not in_bucket(folder) and not folder.is_dir():
            raise UserError(f"there is no folder {workdir}. Give a --workdir that main wrote.")
        file = folder / "metrics.jsonl"
        if not file.is_file():
            raise UserError(
                f"{workdir} holds no metrics.jsonl. Give a --workdir in which main has trained."
            )
        lines = file.read_bytes().splitlines()
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if (
            isinstance(record, dict)
            and isinstance(record.get("stage"), str)
            and type(record.get("step")) is int
            and 0 <= record["step"] < MOST
        ):
            yield record


def _sorted(curve: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    steps = np.array(sorted(curve), np.int64)
    return steps, np.array([curve[step] for step in steps.tolist()])


def run_names(workdirs: Sequence[str]) -> list[str]:
    """The last part of each path, or of as many parts as it takes to tell all of them apart."""
    parts = [workdir.split("/") for workdir in workdirs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def _curve_name(run: str, stage: str, runs: int, stages: int) -> str:
    name = stage if runs == 1 else run if stages == 1 else f"{run}, {stage}"
    return shortened(name, NAME)


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


def main(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m diffseg_jax.plot", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    several = "of a run, also gs://...; may be given several times"
    add("--workdir", required=True, action="append", help=several)
    add("--output", required=True, help="the picture, which ends with .png, .svg or .pdf")
    options = parser.parse_args(arguments)
    with user_errors():
        check_output(options.output)
        curves = read_curves(options.workdir)
        save(draw(curves), options.output)
        print(last_numbers(curves))
        print(f"curves in {options.output}")


if __name__ == "__main__":
    main()
