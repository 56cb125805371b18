"""Runs the cells of a study that are not finished, and keeps what they measured."""

import json
import os
import shlex
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from diffseg_jax.display.console import Display
from diffseg_jax.display.progress import duration
from diffseg_jax.errors import UserError
from diffseg_jax.experiment.child_run import MAXRSS_UNIT, run_watched
from diffseg_jax.experiment.plan import check_config
from diffseg_jax.experiment.study_cells import (
    StudyCell,
    command_of_cell,
    command_of_run,
    config_of,
    folder_of_run,
    runs_of,
    seconds_of_cell,
    seconds_of_run,
)
from diffseg_jax.experiment.study_file import Study
from diffseg_jax.experiment.study_scores import SIZES, class_sizes, score_on
from diffseg_jax.metrics.image_counts import read_image_counts
from diffseg_jax.metrics.segmentation import to_number
from diffseg_jax.storage.lock import require_free
from diffseg_jax.storage.paths import read_object, write_atomically, write_json
from diffseg_jax.storage.workdir import as_json, read_json_object

POLL = 2.0  # seconds between two looks at a run that an earlier study has left
STUDY_FILE = "study.json"


def claim_study(study: Study, workdir: Path):
    """Writes what is studied; UserError if the workdir holds another study.

    Points of axes and seeds may be added later.
    """
    file = workdir / STUDY_FILE
    mine = as_json({
        "base": study.base, "options": dict(study.options), "shared": dict(study.shared),
        "features": dict(study.features),
        "axes": {axis.name: dict(axis.points) for axis in study.axes},
        "seeds": dict(study.seeds.points), "evaluated": study.evaluated,
    })  # fmt: skip
    stored = read_json_object(file, ". Restore the file.") if file.exists() else mine
    whole = ("base", "options", "shared", "features", "evaluated")
    changed = [key for key in whole if stored[key] != mine[key]]
    if list(stored["axes"]) != list(mine["axes"]):
        changed.append("axes")
    pairs = [(stored["axes"].get(name, {}), points) for name, points in mine["axes"].items()]
    for before, now in (*pairs, (stored["seeds"], mine["seeds"])):
        other = [label for label in now if before.get(label, now[label]) != now[label]]
        changed += [f"options at {label}" for label in other]
    if changed:
        raise UserError(
            f"{workdir} holds a study with other {', '.join(changed)}. Take another --workdir, "
            f"such as {workdir}_2."
        )
    write_json(file, mine)


def check_cells(study: Study, cells: Sequence[StudyCell]):
    """UserError that names the cell for a value that the check of its config refuses."""
    checked = []
    for cell in cells:
        options = {**cell.run.options, **cell.measured}
        if options in checked:
            continue
        config = config_of(study, options).copy_and_resolve_references()
        chained = [stage for run in cell.run.chain if run.mode == "train" for stage in run.stages]
        config.run = tuple(chained)  # a stage may start from one of another run
        try:
            check_config(config)
        except UserError as error:
            raise UserError(f"cell {cell.name}: {error}") from None
        checked.append(options)


def write_commands(study: Study, cells: Sequence[StudyCell], workdir: Path):
    """commands.sh: the command of every run and cell, in their order."""
    lines = []
    for run in runs_of(cells):
        lines += [f"# {run.name}", _typed(command_of_run(study, run, workdir))]
    for cell in cells:
        if cell.mode != "train":
            lines += [f"# {cell.name}", _typed(command_of_cell(study, cell, workdir))]
    write_atomically(workdir / "commands.sh", ("\n".join(lines) + "\n").encode())


def _typed(command):
    return shlex.join(["python", *command])


# ---- running -----------------------------------------------------------------------------------


def run_cells_of_study(
    study: Study, cells: Sequence[StudyCell], workdir: Path, display: Display, measured: Callable
):
    """Runs what is missing; a cell that failed stops no other one.

    measured  is called after each new cell
    """
    for index, cell in enumerate(cells):
        if is_measured(record_of_cell(workdir, cell)):
            continue
        left = seconds_left(study, cells, workdir)
        what = f"{index + 1} of {len(cells)}: {cell.name}"
        display.say(f"\n{what}; about {duration(left)} left in all")
        with display.progress(what):
            record = _measure(study, cell, workdir, display.say)
        if "failed" in record:
            display.say(f"  failed, and the others go on: {record['failed']}")
        write_json(_cell_file(workdir, cell), record)
        measured()


def _measure(study, cell, workdir, say) -> dict:
    """The record of a cell: its numbers and the file of its images' counts, or why it failed."""
    for run in cell.run.chain:
        if failed := _finish_run(study, run, workdir, say):
            return {"failed": failed if run is cell.run else f"{run.name}: {failed}"}
    folder, record = folder_of_run(workdir, cell.run), {}
    if cell.mode != "train":
        command = command_of_cell(study, cell, workdir)
        record = _watched_record(command, workdir, cell.name, folder, cell.mode, say)
        if "failed" in record:
            return record
    try:
        return {**record, **_found(study, cell, folder, workdir)}
    except UserError as error:
        return {"failed": str(error)}


def _finish_run(study, run, workdir, say) -> str:
    """Runs a run to its end, if it has not ended; why it failed, or "" if it did not."""
    folder, file = folder_of_run(workdir, run), workdir / "runs" / f"{run.name}.json"
    record = read_object(file)
    if not is_measured(record):
        say(f"  runs {run.name}")
        command = command_of_run(study, run, workdir)
        record = _watched_record(command, workdir, run.name, folder, run.mode, say)
        write_json(file, record)
    return record.get("failed", "")


def _watched_record(command, workdir, name, folder, task, say) -> dict:
    """Runs a command: {"seconds", "command", ...}, and why it "failed", if it did."""
    logs = workdir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    while True:
        wait_until_free(folder, task, say)
        begun = time.perf_counter()
        status, usage, last = run_watched(command, logs / f"{name}.log", say)
        if not status or not _problem_of_lock(folder, task):
            break  # else another run, left by a killed study, took the lock while this one started
    record = {
        "seconds": time.perf_counter() - begun, "command": _typed(command),
        "cpu_seconds": usage.ru_utime + usage.ru_stime, "peak_bytes": usage.ru_maxrss * MAXRSS_UNIT,
    }  # fmt: skip
    if status:
        return {**record, "failed": last.removeprefix("error: ") or f"exit code {status}"}
    return record


def wait_until_free(folder: Path, task: str, say: Callable):
    """Returns once no run writes in a folder: one may outlive a study that was killed."""
    if problem := _problem_of_lock(folder, task):
        say(f"  waits for a run that goes on: {problem}")
    while _problem_of_lock(folder, task):
        time.sleep(POLL)


def _problem_of_lock(folder, task) -> str:
    """Why a run cannot write in a folder now; "" if it can."""
    try:
        require_free(folder, task, "--workdir")
    except UserError as error:
        return str(error)
    return ""


def is_measured(record: Mapping) -> bool:
    """Whether a run or a cell has come to its end; one that failed is run again."""
    return bool(record) and "failed" not in record


def _cell_file(workdir, cell):
    return workdir / "cells" / f"{cell.name}.json"


def record_of_cell(workdir: Path, cell: StudyCell) -> dict:
    """What is known of a cell; {} before it is measured."""
    return read_object(_cell_file(workdir, cell))


# ---- numbers -----------------------------------------------------------------------------------


def _found(study, cell, folder, workdir) -> dict:
    """The numbers of a cell, and the file of the counts of its images below the study's folder."""
    if cell.mode == "corruptions":
        return {"numbers": _of_corruptions(study, cell, folder)}
    suffix = "" if cell.mode == "train" else "_eval"
    results = json.loads((folder / f"results{suffix}.json").read_text())
    name = study.stage or list(results)[-1]
    if name not in results:
        known = ", ".join(results)
        raise UserError(f"the run has no results of the stage {name}. Stages with some: {known}.")
    counts = folder / f"image_counts_{name}{suffix}.npz"
    of_results = [path for path in study.collect if path not in SIZES]
    numbers = {path: number_at(results[name], path) for path in of_results}
    if len(of_results) < len(study.collect):
        of_images, sizes = read_image_counts(counts), class_sizes(workdir)
        sums = of_images.counts.sum(0)
        scores = {path: score_on(path, of_images, sums, sizes) for path in SIZES}
        numbers |= {path: to_number(scores[path]) for path in SIZES if path in study.collect}
    if suffix:  # the next evaluation of the same run writes the same file
        kept = workdir / "cells" / f"{cell.name}.npz"
        write_atomically(kept, counts.read_bytes())
        counts = kept
    return {"numbers": numbers, "image_counts": os.fspath(counts.relative_to(workdir))}


def _of_corruptions(study, cell, folder):
    """The mean over types of each number; the clean images count where they alone are measured."""
    rows = json.loads((folder / "corruptions.json").read_text())["cells"]
    options = {**cell.run.options, **cell.measured}
    severities = options.get("evaluate.corruptions.severities")
    types = options.get("evaluate.corruptions.types") or {row["type"] for row in rows} - {"clean"}
    chosen = [
        row for row in rows
        if row["type"] in types and (not severities or row["severity"] in severities)
    ]  # fmt: skip
    values = {path: [number_at(row, path) for row in chosen] for path in study.collect}
    return {
        path: statistics.mean(found) if None not in found else None
        for path, found in values.items()
    }


def number_at(result: Mapping, path: str) -> float | None:
    """The number at a path such as calibration.ECE; UserError where there is none."""
    value = result
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            known = ", ".join(key for key, each in result.items() if isinstance(each, (int, float)))
            raise UserError(f"the results have no number {path}; some that they have: {known}.")
        value = value[key]
    return value


# ---- time --------------------------------------------------------------------------------------


def seconds_left(study: Study, cells: Sequence[StudyCell], workdir: Path) -> float:
    """About how long the missing cells take, as far as the finished ones say on this machine."""
    expected, taken, left = 0.0, 0.0, 0.0
    for run in runs_of(cells):
        about = seconds_of_run(study, run)
        record = read_object(workdir / "runs" / f"{run.name}.json")
        if is_measured(record):
            expected, taken = expected + about, taken + record["seconds"]
        else:
            left += about
    for cell in cells:
        record = record_of_cell(workdir, cell)
        left += 0.0 if is_measured(record) else seconds_of_cell(study, cell)
    return left * (taken / expected if expected else 1.0)
