"""Runs the cells of a study that are not finished, and keeps what they measured."""

import os
import shlex
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from diffseg_jax.display.console import Display
from diffseg_jax.display.progress import duration
from diffseg_jax.errors import UserError, shown
from diffseg_jax.experiment.child_run import record_of_command, shell_line
from diffseg_jax.experiment.corruption_report import counts_file
from diffseg_jax.experiment.plan import check_config
from diffseg_jax.experiment.stages import read_in_evaluation
from diffseg_jax.experiment.study_cells import (
    StudyCell,
    command_of_cell,
    command_of_run,
    config_of,
    corruptions_of,
    folder_of_run,
    runs_of,
)
from diffseg_jax.experiment.study_file import Study
from diffseg_jax.experiment.study_progress import (
    file_of_cell,
    file_of_run,
    has_all_numbers,
    is_measured,
    record_of_cell,
    runs_needed,
    seconds_left,
)
from diffseg_jax.experiment.study_scores import (
    SIZES,
    averaged_corruptions,
    class_sizes,
    score_on,
)
from diffseg_jax.inference.task_report import is_of_learned
from diffseg_jax.metrics.image_counts import read_image_counts
from diffseg_jax.metrics.segmentation import to_number
from diffseg_jax.storage.json_files import read_json_object
from diffseg_jax.storage.paths import read_object, write_atomically, write_json
from diffseg_jax.storage.workdir import as_json, differing_options

AGAIN = ". Remove the run's folder, and run the study again."


def check_cells(study: Study, cells: Sequence[StudyCell]):
    """UserError that names the cell for a value that the check of its config refuses.

    An option along an evaluated axis that cannot change after training is refused as well.
    """
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
            _require_learned(study, cell, config)
        except UserError as error:
            raise UserError(f"cell {cell.name}: {error}") from None
        checked.append(options)


def _require_learned(study, cell, config):
    """UserError where a cell would be measured with options that its run has not learned with."""
    trained, measured = (
        as_json(config_of(study, {**cell.run.options, **more}).to_dict())
        for more in ({}, cell.measured)
    )
    if lines := differing_options(trained, measured, read_in_evaluation(config)):
        raise UserError(
            f"an axis in evaluated changes what its network learns, {', '.join(lines)}. Take it "
            "out of evaluated, so that each of its points trains one; those of evaluated axes set "
            "options that only predictions read."
        )


def write_commands(
    study: Study, cells: Sequence[StudyCell], workdir: Path, costs: Sequence[str]
):  # fmt: skip
    """commands.sh: the command of every run and cell, in their order, and that of the costs.

    A command that measures several cells is listed once, with their names. The first line changes
    to the folder of this study, as paths of configs and data may be relative to it.
    """
    lines, measuring = [shlex.join(["cd", os.getcwd()])], {}
    for run in runs_of(cells):
        lines += [f"# {run.name}", shell_line(command_of_run(study, run, workdir))]
    for cell in cells:
        if cell.mode != "train":
            line = shell_line(command_of_cell(study, cell, workdir))
            measuring.setdefault(line, []).append(cell.name)
    for line, names in measuring.items():
        lines += [f"# {', '.join(names)}", line]
    if study.costs:
        lines += ["# costs of a prediction", shell_line(costs)]
    write_atomically(workdir / "commands.sh", ("\n".join(lines) + "\n").encode())


# ---- running -----------------------------------------------------------------------------------


def run_cells_of_study(
    study: Study, cells: Sequence[StudyCell], workdir: Path, display: Display, measured: Callable
):
    """Runs what is missing; a cell that failed stops no other one.

    measured  is called after each new cell
    """
    failed, ran = {}, {}
    for index, cell in enumerate(cells):
        before = record_of_cell(workdir, cell)
        if has_all_numbers(study, before):
            continue
        left = seconds_left(study, cells, workdir)
        what = f"{index + 1} of {len(cells)}: {cell.name}"
        display.say(f"\n{what}; about {duration(left)} left in all")
        with display.progress(what):
            record = _measured(study, cell, workdir, failed, ran, display.say)
        if "failed" in record:
            display.say(f"  failed, and the others go on: {record['failed']}")
            record = {**before, **record}  # with what was measured before
        if cell.mode == "train" or "failed" in record:  # numbers that are not collected now stay
            numbers = before.get("numbers", {}) | record.get("numbers", {})
            record |= {"numbers": numbers} if numbers else {}
        write_json(file_of_cell(workdir, cell), {**record, "mode": cell.mode})
        measured()


def _measured(study, cell, workdir, failed, ran, say) -> dict:
    """The record of a cell: its numbers and the file of its images' counts, or why it failed."""
    try:
        return _measure(study, cell, workdir, failed, ran, say)
    except UserError as error:
        return {"failed": str(error)}


def _measure(study, cell, workdir, failed, ran, say) -> dict:
    """`_measured`; raises UserError for a folder out of reach and for numbers that are missing.

    failed  name of a run -> why it failed since the start of the study; those are not tried again
    ran     folder -> the command that measured there last, the name of its cell, and its record;
            that of the next cell is the same if one of both is of clean images
    """
    for run in runs_needed(cell, workdir):
        reason = failed.get(run.name) or _finish_run(study, run, workdir, say)
        if reason:
            failed[run.name] = reason
            return {"failed": reason if run is cell.run else f"{run.name}: {reason}"}
    folder, record = folder_of_run(workdir, cell.run), {}
    if cell.mode != "train":
        command = command_of_cell(study, cell, workdir)
        log = workdir / "logs" / f"{cell.name}.log"
        if folder not in ran or ran[folder][0] != command:
            record = record_of_command(command, log, folder, cell.mode, say)
            ran[folder] = command, cell.name, record
        _, measured_by, record = ran[folder]
        if measured_by != cell.name:  # which has the seconds and the log
            why = {"failed": record["failed"]} if "failed" in record else {}
            record = {"measured_by": measured_by, **why}
        if "failed" in record:
            return record
    return {**record, **_found(study, cell, folder, workdir)}


def _finish_run(study, run, workdir, say) -> str:
    """Runs a run to its end; why it failed, or "" if it did not."""
    folder, file = folder_of_run(workdir, run), file_of_run(workdir, run)
    record = read_object(file)
    say(f"  runs {run.name}")
    command, begun = command_of_run(study, run, workdir), time.perf_counter()
    # of starts that did not come to the end
    earlier = 0.0 if is_measured(record) else record.get("seconds", 0.0)
    try:
        log = workdir / "logs" / f"{run.name}.log"
        record = record_of_command(command, log, folder, run.mode, say)
    except BaseException:
        seconds = earlier + time.perf_counter() - begun
        write_json(file, {"failed": "was stopped", "seconds": seconds})
        raise
    record["seconds"] += earlier
    write_json(file, record)
    return record.get("failed", "")


# ---- numbers -----------------------------------------------------------------------------------


def _found(study, cell, folder, workdir) -> dict:
    """The numbers of a cell, and the file of the counts of its images below the study's folder.

    There is none of runs of other outputs than labels; for corruptions, there is one of each type
    and severity. "failed" says why one number could not be collected; the others are there;
    "held_out" is False where the run learned from the images. Raises UserError for results that are
    missing.
    """
    if cell.mode == "corruptions":
        return _of_corruptions(study, cell, folder, workdir)
    suffix = "" if cell.mode == "train" else "_eval"
    results = read_json_object(_present(folder / f"results{suffix}.json"), AGAIN)
    name = measured_stage(study, results)
    counts = folder / f"image_counts_{name}{suffix}.npz"
    of_results = [path for path in study.collect if path not in SIZES]
    numbers, more = _numbers_at([results[name]], of_results)
    more |= {"held_out": False} if is_of_learned(results[name]) else {}
    if len(of_results) < len(study.collect):
        of_images, sizes = read_image_counts(_present(counts)), class_sizes(workdir)
        sums = of_images.counts.sum(0)
        scores = {path: score_on(path, of_images, sums, sizes) for path in SIZES}
        numbers |= {path: to_number(scores[path]) for path in SIZES if path in study.collect}
    if not counts.exists():
        return {"numbers": numbers, **more}
    # a copy: the next evaluation of the run writes the same file, and its folder may be removed
    kept = workdir / "cells" / f"{cell.name}.npz"
    write_atomically(kept, counts.read_bytes())
    return {"numbers": numbers, "image_counts": os.fspath(kept.relative_to(workdir)), **more}


def measured_stage(study: Study, results: Mapping) -> str:
    """The stage of some results whose numbers a study collects; UserError if it has none."""
    name = study.stage or next(reversed(results), "")
    if name not in results:
        known = ", ".join(results)
        raise UserError(f"the run has no results of the stage {name}. Stages with some: {known}.")
    return name


def _present(file: Path) -> Path:
    """The file; UserError if the run did not write it."""
    if not file.exists():
        raise UserError(
            f"the run left no {file.name} in {file.parent}. Take a base config whose run is "
            "evaluated, or collect other numbers."
        )
    return file


def _numbers_at(results, paths) -> tuple[dict, dict]:
    """The numbers at these paths, means over several results, and {"failed": why one is not there}.

    A mean is None where one of its numbers is.
    """
    numbers, failed = {}, {}
    for path in paths:
        try:
            found = [number_at(result, path) for result in results]
            numbers[path] = statistics.mean(found) if None not in found else None
        except UserError as error:
            failed.setdefault("failed", str(error))
    return numbers, failed


def _of_corruptions(study, cell, folder, workdir) -> dict:
    """`_found` of a cell of corruptions: means over its types and severities."""
    content = read_json_object(_present(folder / "corruptions.json"), AGAIN)
    rows = {(row["type"], row["severity"]): row for row in content["cells"]}
    wanted = corruptions_of(study, cell)
    if missing := [
        f"{name} {severity}" for name, severity in wanted if (name, severity) not in rows
    ]:
        raise UserError(f"corruptions.json of {folder} holds no {', '.join(missing)}.")
    counted = averaged_corruptions(wanted)
    numbers, more = _numbers_at([_as_result(rows[each]) for each in counted], study.collect)
    of_learned = any(map(is_of_learned, read_object(folder / "results.json").values()))
    more |= {"held_out": False} if of_learned else {}
    files = [counts_file(folder, *each) for each in counted]
    if not all(file.exists() for file in files):  # of an earlier version
        return {"numbers": numbers, **more}
    kept = [workdir / "cells" / cell.name / file.name for file in files]
    for file, copy in zip(files, kept, strict=True):  # the next cell may measure other images
        write_atomically(copy, file.read_bytes())
    names = [os.fspath(copy.relative_to(workdir)) for copy in kept]
    return {"numbers": numbers, "image_counts": names, **more}


def _as_result(row):
    """A row of corruptions.json with the scores of the uncertainty where results.json has them."""
    scores = {key: row[key] for key in ("AUROC", "ECE", "Brier") if key in row}
    if row.get("calibrated"):
        return {**row, "calibrated": scores}
    return {**row, "calibrated": {}, "calibration": scores}


def number_at(result: Mapping, path: str) -> float | None:
    """The number at a path such as calibration.ECE; UserError where there is none."""
    value = result
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            known = ", ".join(key for key, each in result.items() if isinstance(each, (int, float)))
            raise UserError(f"the results have no number {path}; some that they have: {known}.")
        value = value[key]
    if value is not None and not isinstance(value, (int, float)):
        below = next(iter(value), "") if isinstance(value, Mapping) else ""
        advice = f"{path}.{below}" if below else "mIoU"
        raise UserError(
            f"{path} of the results is {shown(value)}, but a study collects numbers, such as "
            f"{advice}."
        )
    return value
