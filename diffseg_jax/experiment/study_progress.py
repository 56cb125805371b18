"""What of a study is measured already, and about how long its runs take."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from diffseg_jax.display.progress import duration
from diffseg_jax.errors import counted, size
from diffseg_jax.experiment.study_cells import (
    Run,
    StudyCell,
    config_of,
    corruptions_of,
    folder_of_run,
    name_of_labels,
    runs_of,
)
from diffseg_jax.experiment.study_file import Study
from diffseg_jax.storage.paths import read_object

COSTS_FILE = "costs.json"
ASSUMED_START, ASSUMED_STEP = 20.0, 0.5  # seconds, of a study that states none
ASSUMED_COST = 10.0  # seconds, of the costs at a point, most of it compilation


def is_measured(record: Mapping) -> bool:
    """Whether a run or a cell has come to its end; one that failed is run again."""
    return bool(record) and "failed" not in record


def has_all_numbers(study: Study, record: Mapping) -> bool:
    """Whether a cell is measured with all numbers that the study collects, also those added."""
    return is_measured(record) and set(study.collect) <= set(record.get("numbers", ()))


def runs_needed(cell: StudyCell, workdir: Path) -> list[Run]:
    """The runs that have to come to their end before a cell can be measured, in their order.

    The record of a run counts while its folder is there. What an ended run started from is not
    needed any more, but the files of features are that its network reads in an evaluation.
    """
    needed = []
    for run in reversed(cell.run.chain):
        ended = is_measured(read_object(file_of_run(workdir, run)))
        if not (ended and folder_of_run(workdir, run).is_dir()):
            needed.insert(0, run)
        elif cell.mode == "train" or not run.before or run.before.mode != "features":
            break
    return needed


def file_of_run(workdir: Path, run: Run) -> Path:
    """Of the record of a run, in the folder that it shares, so that both are removed at once."""
    return workdir / "runs" / run.shared / f"{run.name}.json"


def file_of_cell(workdir: Path, cell: StudyCell) -> Path:
    """Of the record of a cell."""
    return workdir / "cells" / f"{cell.name}.json"


def record_of_cell(workdir: Path, cell: StudyCell) -> dict:
    """What is known of a cell; {} before it is measured as it is now.

    Records of earlier versions lack the mode. Their numbers of a cell of corruptions do not count:
    those of clean images were of the run itself, and others of drawn frost too.
    """
    record = read_object(file_of_cell(workdir, cell))
    unknown = "" if cell.mode == "corruptions" else cell.mode
    return record if record.get("mode", unknown) == cell.mode else {}


def costs_of_study(workdir: Path) -> dict[str, Mapping]:
    """`name_of_labels` of each point -> `cost_of_prediction`, or {} where no network is run."""
    return read_object(workdir / COSTS_FILE)


def points_without_costs(
    cells: Sequence[StudyCell], workdir: Path
) -> dict[tuple[str, ...], list[StudyCell]]:
    """Labels of each point whose costs are missing -> its cells."""
    known, found = costs_of_study(workdir), {}
    for cell in cells:
        if name_of_labels(cell.labels) not in known:
            found.setdefault(cell.labels, []).append(cell)
    return found


# ---- time --------------------------------------------------------------------------------------


def seconds_of_run(study: Study, run: Run) -> float:
    """About how long a run takes on the study's device."""
    config, given = config_of(study, run.options), study.seconds
    total = given.get("start", ASSUMED_START)
    if run.mode == "features":
        return total + given.get("features", ASSUMED_START)
    for name in run.stages:
        options = config.stages[name]
        steps = options.get("steps", 1)
        total += steps * given.get(name, ASSUMED_STEP if "steps" in options else ASSUMED_START)
    return total + seconds_of_images(study)


def seconds_of_images(study: Study) -> float:
    """About how long the evaluation of all images takes."""
    return study.seconds.get("image", 0.0) * study.seconds.get("images", 0)


def seconds_of_cell(study: Study, cell: StudyCell) -> float:
    """About how long it takes to measure a cell once more; 0 where another command measures it."""
    if cell.mode == "train" or cell.is_clean:
        return 0.0
    times = 1  # of all images
    if cell.mode == "corruptions":
        times += len(corruptions_of(study, cell))
    return study.seconds.get("start", ASSUMED_START) + times * seconds_of_images(study)


def seconds_of_costs(study: Study, points: int) -> float:
    """About how long it takes to measure the costs of a prediction at so many points."""
    start = study.seconds.get("start", ASSUMED_START)
    return start + points * ASSUMED_COST if points else 0.0


def seconds_left(study: Study, cells: Sequence[StudyCell], workdir: Path) -> float:
    """About how long the missing cells take, as far as the finished ones say on this machine."""
    expected, taken = 0.0, 0.0
    for run in runs_of(cells):
        record = read_object(file_of_run(workdir, run))
        if is_measured(record):
            expected, taken = expected + seconds_of_run(study, run), taken + record["seconds"]
    runs, missing = _missing(study, cells, workdir)
    left = sum(seconds_of_run(study, run) for run in runs)
    left += sum(seconds_of_cell(study, cell) for cell in missing)
    if study.costs:
        left += seconds_of_costs(study, len(points_without_costs(cells, workdir)))
    return left * (taken / expected if expected else 1.0)


def _missing(study, cells, workdir) -> tuple[list[Run], list[StudyCell]]:
    """The cells that are not measured yet, after the runs that they need."""
    cells = [each for each in cells if not has_all_numbers(study, record_of_cell(workdir, each))]
    runs = {id(run): run for cell in cells for run in runs_needed(cell, workdir)}
    return list(runs.values()), cells


def listing(study: Study, cells: Sequence[StudyCell], workdir: Path) -> str:
    """The runs and cells of a study with their expected times, and that of all that are missing."""
    lines, seen = [], set()
    runs, missing = _missing(study, cells, workdir)
    for number, cell in enumerate(cells, 1):
        for run in cell.run.chain:
            if id(run) not in seen:
                seen.add(id(run))
                stages = ", ".join(run.stages)
                stages = stages if run.mode == "train" else f"--mode={run.mode}"
                about = f"about {duration(seconds_of_run(study, run))}"
                said = about if run in runs else "has ended"
                lines.append(f"     run {run.name} ({stages}), {said}")
        seconds = seconds_of_cell(study, cell)
        more = f", --mode={cell.mode}, about {duration(seconds)}" if seconds else ""
        lines.append(f"{number:>4} {cell.name}{more if cell in missing else ', is measured'}")
    if study.costs:
        seconds = seconds_of_costs(study, len(points_without_costs(cells, workdir)))
        said = f"about {duration(seconds)}" if seconds else "is measured"
        lines.append(f"     costs of a prediction, {said}")
    sizes = [f"{len(axis.points)} of {study.title(axis.name)}" for axis in study.axes]
    sizes.append(counted(len(study.seeds.points), "seed"))
    head = f"{study.name}: {counted(len(cells), 'cell')} ({', '.join(sizes)})"
    time, begun = _in_all(seconds_left(study, cells, workdir)), len(runs) < len(seen)
    return "\n".join([
        f"{head}, {counted(len(seen), 'run')}",
        *([study.about] if study.about else []),
        *lines,
        f"about {time} left in all" if begun else f"in all about {time} on {study.device}",
    ])  # fmt: skip


def _in_all(seconds):
    """Such as 12 min; from two hours on, such as 2.50 hours."""
    return f"{math.ceil(seconds / 60)} min" if seconds < 7200 else f"{seconds / 3600:.2f} hours"


# ---- space -------------------------------------------------------------------------------------


def space_of_features(study: Study, cells: Sequence[StudyCell]) -> list[str]:
    """A line for each run that keeps features in files: what those of an image take.

    Raises UserError for a config whose method refuses it.
    """
    lines = []
    for run in runs_of(cells):
        if run.mode == "features":
            taken = _bytes_of_image(config_of(study, run.options), run.stages[-1])
            lines.append(f"run {run.name} keeps {size(taken)} of features for each image")
    return lines


def _bytes_of_image(config, stage):
    import jax  # slow imports

    from diffseg_jax.systems.methods import SYSTEMS

    SYSTEMS[config.system].check(config)
    kind, crop = config.stages[stage].kind, tuple(config.stages[stage].augment.crop)
    task = SYSTEMS[config.system].make_task(config, kind, crop, num_classes=2)
    network = jax.eval_shape(task.init, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, *crop, 3), "uint8")
    valid = jax.ShapeDtypeStruct((1, 2), "int32")
    found = jax.eval_shape(task.fit.extract, network, image, valid)
    return sum(4 * each.size for each in found.maps)  # float32
