"""The table of a comparison, its sheet of predictions, and the command to go on with."""

import shlex
import statistics
from collections.abc import Sequence

import numpy as np

from diffseg_jax.display.progress import COMPILES, duration
from diffseg_jax.errors import UserError, size
from diffseg_jax.experiment.comparison import (
    FOREST,
    METHODS,
    Cell,
    Comparison,
    Images,
    announcement,
    available_methods,
    cells_of,
    claim,
    images_of_sheet,
    is_done,
    record_of,
    run_cells,
    sizes_that_fill,
)
from diffseg_jax.figures import layout, sheets
from diffseg_jax.inference.segmenter import load
from diffseg_jax.storage.paths import write_atomically, write_json
from diffseg_jax.storage.workdir import make_workdir

FAIR = 240.0  # minutes from which on networks from scratch can be compared, on two cores


def compare_methods(comparison: Comparison, methods: Sequence[str]) -> list[dict]:
    """Runs the cells that are missing; leaves table.md, results.json and sheet.png in the workdir.

    Returns the rows of the table, the best first. Raises UserError for data that cannot be read,
    and when no method has a result.
    """
    make_workdir(comparison.workdir)
    with comparison.display.progress("opens the data"):
        images = comparison.images(0)
        comparison.require_unlabelled(methods)
        claim(comparison)
        methods = available_methods(methods, comparison.display.say)
    cells = cells_of(methods, comparison.folds, comparison.minutes)
    dropped = [name for name in methods if name not in {cell.method for cell in cells}]
    comparison.display.say(announcement(comparison, images, cells, dropped))
    run_cells(comparison, cells)
    rows = table_rows(comparison, cells)
    if not any("mIoU" in row for row in rows):
        failed = next((row["without_numbers"] for row in rows), "nothing was run")
        raise UserError(f"no method has a result ({failed})")
    write_json(comparison.workdir / "results.json", {"rows": rows})
    table, note = table_text(rows), note_of_networks(comparison.minutes, rows)
    text = "\n\n".join(filter(None, (table, note)))
    write_atomically(comparison.workdir / "table.md", f"{text}\n".encode())
    comparison.display.say("\n" + "\n".join(filter(None, (lines_of_methods(rows), note))))
    draw_sheet(comparison, cells, images)
    return rows


def table_rows(comparison: Comparison, cells: Sequence[Cell]) -> list[dict]:
    """A row for each method, the best mean IoU first, and those that failed last."""
    rows = [_row(comparison, name, cells) for name in dict.fromkeys(cell.method for cell in cells)]
    return sorted(rows, key=lambda row: -row.get("mIoU", -1.0))


def _row(comparison, name, cells):
    mine = [cell for cell in cells if cell.method == name]
    records = [record_of(comparison, cell) for cell in mine if cell.fold is not None]
    before = [record_of(comparison, cell) for cell in mine if cell.fold is None]
    done = [record for record in records if record.get("mIoU") is not None]
    row = {"method": name, "title": METHODS[name].title, "folds": len(done)}
    if not done:
        why = (f"failed: {each['failed']}" for each in (*before, *records) if "failed" in each)
        measured = any("mIoU" in record for record in records)
        unmeasured = "not measured: no held-out pixel is labelled"
        other = unmeasured if measured else "skipped: the minutes were too few"
        return {**row, "without_numbers": next(why, other)}
    peaks = [record["peak_bytes"] for record in (*before, *done) if "peak_bytes" in record]
    keys = ("mIoU", "AUROC", "ECE", "linear_probe", "seconds")
    numbers = {key: _mean_of(key, done) for key in keys}
    return {
        **row, **numbers, "mIoU_of_folds": [record["mIoU"] for record in done],
        "unlabelled_seconds": sum(record.get("seconds", 0.0) for record in before),
        "peak_bytes": max(peaks, default=0),
    }  # fmt: skip


def _mean_of(key, records):
    """The mean over the records that have a number; None where none has one."""
    values = [record[key] for record in records if record.get(key) is not None]
    return statistics.mean(values) if values else None


def table_text(rows: Sequence[dict]) -> str:
    """The rows as a table in Markdown; times are those of one fold, evaluation included."""
    lines = [
        "| method | mIoU, % | folds | worst fold | AUROC of errors | ECE | time of a fold "
        "| peak memory |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = f"{row['method']}: {row['title']}"
        if "mIoU" not in row:
            lines.append(f"| {name} | {row['without_numbers']} | | | | | | |")
            continue
        *numbers, seconds, peak = _numbers(row)
        before = row["unlabelled_seconds"]
        seconds = f"{duration(before)} once + {seconds}" if before else seconds
        lines.append(f"| {' | '.join([name, *numbers, seconds, peak])} |")
        if row["linear_probe"] is not None:
            probe = f"{100 * row['linear_probe']:.1f}"
            lines.append(f"| {row['method']}, linear probe, same features | {probe} | | | | | | |")
    return "\n".join(lines)


def _numbers(row):
    """mIoU, folds, the worst of them, AUROC, ECE, time of a fold, and memory, as text."""
    scores = [100 * score for score in row["mIoU_of_folds"]]
    deviation = f" ± {statistics.stdev(scores):.1f}" if len(scores) > 1 else ""
    return [
        f"{100 * row['mIoU']:.1f}{deviation}", str(row["folds"]), f"{min(scores):.1f}",
        _three_digits(row["AUROC"]), _three_digits(row["ECE"]), duration(row["seconds"]),
        size(row["peak_bytes"]) if row["peak_bytes"] else "",
    ]  # fmt: skip


def lines_of_methods(rows: Sequence[dict]) -> str:
    """The rows in 80 columns, for a terminal."""
    line = lambda name, score, folds, worst, area, ece, seconds, peak: (
        f"{name:<10}{score:>13}{folds:>6}{worst:>7}{area:>7}{ece:>7}{peak:>9}  {seconds}"
    )
    titles = ("method", "mIoU, %", "folds", "worst", "AUROC", "ECE", "time of a fold", "memory")
    lines = [line(*titles)]
    for row in rows:
        if "mIoU" not in row:
            lines.append(f"{row['method']:<12}  {row['without_numbers']}")
            continue
        lines.append(line(row["method"], *_numbers(row)))
        if row["linear_probe"] is not None:
            lines.append(f"{'':10}{100 * row['linear_probe']:>13.1f}  by a linear probe")
        if row["unlabelled_seconds"]:
            before = duration(row["unlabelled_seconds"])
            lines.append(f"{'':25}after {before} without labels, once for all folds")
    return "\n".join(lines)


def note_of_networks(minutes: float, rows: Sequence[dict]) -> str:
    """A sentence about networks that had little time, or ""."""
    trained = [
        row["method"] for row in rows if "mIoU" in row and max(METHODS[row["method"]].weight) > 1
    ]
    if not trained or minutes >= FAIR:
        return ""
    return (
        f"{', '.join(trained)}: trained in the minutes that were left, which are a small part of "
        f"what their recipes take; --minutes={FAIR:g} in another --workdir compares them fairly."
    )


def _three_digits(value):
    return "" if value is None else f"{value:.3f}"


def next_step(comparison: Comparison, rows: Sequence[dict]) -> str:
    """A sentence that says what to type to go on with the best method."""
    best = rows[0]["method"]
    if best == FOREST:
        return (
            "the random forest is the best so far, a baseline that cannot be saved: give more "
            "--minutes, or more labelled images, in another --workdir"
        )
    options = {key: value for key, value in comparison.overrides(best, 0).items()
               if key in ("data.path", "unlabelled.path")}  # fmt: skip
    options |= sizes_that_fill(comparison, best)
    words = [
        "python", "-m", "diffseg_jax.main", f"--config={comparison.config_file(best)}",
        f"--workdir={comparison.workdir}_{best}",
        *(f"--config.{key}={value}" for key, value in options.items()),
    ]  # fmt: skip
    if METHODS[best].weight[1] > 1.0:
        words.append(f"--minutes={max(30, round(comparison.minutes)):g}")
    return f"go on with the best one:\n  {shlex.join(words)}"


def draw_sheet(comparison: Comparison, cells: Sequence[Cell], images: Images):
    """sheet.png: held-out images of fold 0, their truth, and the labels of every method."""
    shown, labels = images_of_sheet(images), images.source.labels
    examples = [images.validation.source[index] for index in shown]
    predicted = {}
    for cell in cells:
        if cell.fold != 0 or not is_done(record_of(comparison, cell)):
            continue
        if cell.method == FOREST:
            with np.load(comparison.workdir / f"{FOREST}_labels.npz") as stored:
                predicted[cell.method] = [stored[str(index)] for index in shown]
            continue
        what = f"draws predictions of {cell.method}"
        with comparison.display.progress(what, len(examples), first=COMPILES) as progress:
            segmenter = load(comparison.workdir / cell.name)
            predicted[cell.method] = [
                np.asarray(segmenter.predict(example["image"]).labels[0])
                for example in progress.each_of(examples)
            ]
    columns = ([example[key] for example in examples] for key in ("image", "mask"))
    sheet = sheets.comparison_sheet(*columns, predicted, labels)
    layout.save_png(comparison.workdir / "sheet.png", sheet)
