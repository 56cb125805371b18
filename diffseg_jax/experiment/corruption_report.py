"""The numbers of a study of corruptions as a line, a CSV file, a Markdown table and curves.

A row is a dict of JSON values, one for each cell: "type", "severity", the scores "mIoU", "mAcc",
"aAcc" and "IoU" by class, "wrong" and "expected" (shares of pixels), "AUROC", "ECE", "Brier",
"calibrated", "calibration" (these three before calibration), "image_uncertainty" and "foreign"
(share of images, None where none are judged). The row of the clean images has the type CLEAN and
severity 0. The counts of the images of a row are in `counts_file`.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from diffseg_jax.data.corruptions import DRAWN_FROST
from diffseg_jax.errors import counted
from diffseg_jax.inference.task_report import is_of_learned

OF_CORRUPTIONS = "evaluate.corruptions."  # options of --mode=corruptions
CLEAN = "clean"
STRENGTHS = {1: "weak", 3: "medium", 5: "strong"}  # the paper's names
NUMBERS = (
    "mIoU", "mAcc", "aAcc", "wrong", "expected", "AUROC", "ECE", "Brier", "image_uncertainty",
    "foreign",
)  # fmt: skip


def counts_file(workdir: Path, name: str, severity: int) -> Path:
    """Of the `ImageCounts` of a type and severity, below the workdir of its run."""
    return workdir / "corruption_counts" / f"{name}_{severity}.npz"


def cell_line(row: Mapping, clean: Mapping | None) -> str:
    """A line for the log about one cell."""
    name = row["type"] if row["type"] == CLEAN else f"{row['type']} {row['severity']}"
    drop = f" ({_drop(row, clean)})" if clean and row is not clean else ""
    return (  # 80 columns
        f"{name:>19}  mIoU {_percent(row['mIoU'])}{drop}  AUROC {_three(row['AUROC'])}  wrong "
        f"{_percent(row['wrong'])}, expected {_percent(row['expected'])} %"
    )


def short_table(rows: Sequence[Mapping]) -> str:
    """mIoU and AUROC by type and severity, in 78 columns at most."""
    clean, by_type, severities = _arranged(rows)
    area = lambda row: "-" if row["AUROC"] is None else f"{row['AUROC']:.2f}"

    def line(name, scores, areas):
        cells = (f"{cell:>6}" for cell in (*scores, *areas))
        return f"{name:>18}" + "".join(cells)

    lines = [
        f"{'':18}{'mIoU, %':>{6 * len(severities)}}{'AUROC':>{6 * len(severities)}}",
        line("severity", severities, severities),
    ]
    for name, cells in {CLEAN: [clean] * len(severities), **by_type}.items():
        scores, areas = zip(*((_percent(row["mIoU"]), area(row)) for row in cells), strict=True)
        lines.append(line(name, scores, areas))
    return "\n".join(lines)


def to_csv(rows: Sequence[Mapping]) -> str:
    """A line per cell: type, severity, the drop of mIoU, all numbers, and the IoU of each class."""
    text, clean = io.StringIO(), rows[0]
    table = csv.writer(text, lineterminator="\n")
    classes = list(clean["IoU"])
    table.writerow(["type", "severity", "drop", *NUMBERS, *(f"IoU {name}" for name in classes)])
    for row in rows:
        numbers = [row[key] for key in NUMBERS] + [row["IoU"][name] for name in classes]
        cells = ["" if value is None else f"{value:.6g}" for value in [_fall(row, clean), *numbers]]
        table.writerow([row["type"], row["severity"], *cells])
    return text.getvalue()


def markdown(rows: Sequence[Mapping], of: Mapping) -> str:
    """The table by type: mIoU and its drop, and what the uncertainty says of the strongest level.

    of  JSON values of the study: stage, step, number of images, constants, what it is measured on
    """
    clean, by_type, severities = _arranged(rows)
    titles = [f"{STRENGTHS.get(s, 'severity')} ({s})" for s in severities]
    last = f"({severities[-1]})" if severities else ""
    head = ["corruption", *(f"mIoU, {title}" for title in titles)]
    head += [f"AUROC {s}" for s in severities] + [f"wrong {last}", f"expected {last}"]
    head += [f"foreign {last}"]
    body = [_line(CLEAN, [clean] * len(severities), None)]
    body += [_line(name, cells, clean) for name, cells in by_type.items()]
    averaged = [cells for name, cells in by_type.items() if name != DRAWN_FROST]
    if len(averaged) > 1:
        means = [mean_row(level) for level in zip(*averaged, strict=True)]
        body.append(_line(f"mean of {len(averaged)} types", means, clean))
    lines = [head, ["---"] * len(head), *body]
    return f"{_caption(rows, of, by_type)}\n\n" + "".join(f"| {' | '.join(x)} |\n" for x in lines)


def _caption(rows, of, by_type):
    uncertainty = "calibrated" if rows[0]["calibrated"] else "uncalibrated"
    images = counted(of["images"], "validation image")
    if is_of_learned(of):
        images = (
            f"{counted(of['images'], 'image')} from which it learned, so that the numbers do not "
            "tell how well it does on new images"
        )
    text = (
        f"Stage {of['stage']}, step {of['step']}, on {images}; constants for {of['constants']} "
        "pixels. mIoU in percent, with its change from the clean images; AUROC of the "
        f"{uncertainty} uncertainty, which tells how well it finds wrong pixels; at the last "
        "severity the share of wrong pixels and its estimate from the uncertainty, in percent, and "
        "the share of images reported as unlike the known ones (foreign)."
    )
    if DRAWN_FROST in by_type:
        text += (
            f" {DRAWN_FROST} uses textures drawn here in place of the published photographs, and "
            "is not included in the mean."
        )
    return text


def mean_row(rows: Sequence[Mapping]) -> dict:
    """The mean over types of every number that all of them have, first taken for each type."""
    columns = {key: [row[key] for row in rows] for key in NUMBERS}
    return {
        key: None if None in values else float(np.mean(values)) for key, values in columns.items()
    }


def robustness_curves(rows: Sequence[Mapping]) -> tuple[dict, dict, Sequence[int]]:
    """(clean numbers, {type: {"mIoU", "AUROC": [by severity]}}, severities) for the plot."""
    clean, by_type, severities = _arranged(rows)
    curves = {
        name: {key: [row[key] for row in cells] for key in ("mIoU", "AUROC")}
        for name, cells in by_type.items()
    }
    return {key: clean[key] for key in ("mIoU", "AUROC")}, curves, severities


def _arranged(rows):
    """The clean row, {type: rows by severity} and the severities."""
    clean = next(row for row in rows if row["type"] == CLEAN)
    severities = sorted({row["severity"] for row in rows} - {0})
    found = {(row["type"], row["severity"]): row for row in rows}
    names = dict.fromkeys(row["type"] for row in rows if row["type"] != CLEAN)
    return clean, {name: [found[name, s] for s in severities] for name in names}, severities


def _line(name, cells, clean):
    """The cells of a line of the table; clean: None for its own line."""
    scores = [_percent(row["mIoU"]) + (f" ({_drop(row, clean)})" if clean else "") for row in cells]
    last = cells[-1]
    foreign = "-" if last["foreign"] is None else f"{100 * last['foreign']:.0f} %"
    shares = [_percent(last[key]) for key in ("wrong", "expected")]
    return [name, *scores, *(_three(row["AUROC"]) for row in cells), *shares, foreign]


def _fall(row, clean):
    return None if None in (row["mIoU"], clean["mIoU"]) else clean["mIoU"] - row["mIoU"]


def _drop(row, clean):
    fall = _fall(row, clean)
    return "-" if fall is None else f"{-100 * fall:+.1f}"


def _percent(value):
    return "-" if value is None else f"{100 * value:.1f}"


def _three(value):
    return "-" if value is None else f"{value:.3f}"
