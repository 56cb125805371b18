"""Trains every method that the time allows on the same folds of the labelled images.

Each cell of the comparison is one run of `diffseg_jax.main` in a folder of its own, so that a
method that fails or fills the memory stops no other one, and a stopped comparison goes on where it
was. The forest alone is fitted in this process. What a method learns without labels is trained once
for all folds.
"""

import dataclasses
import io
import json
import os
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from diffseg_jax.config.files import read_config
from diffseg_jax.display.console import Display
from diffseg_jax.display.progress import duration
from diffseg_jax.errors import UserError, counted
from diffseg_jax.experiment.child_run import record_of_command
from diffseg_jax.experiment.evaluate import spread
from diffseg_jax.experiment.fit_images import largest_sides, sizes_before_crop
from diffseg_jax.experiment.forest import FOREST_EXTRA, forest_result, has_forest_libraries
from diffseg_jax.experiment.labelled_images import (
    OpenedData,
    Validation,
    open_data,
    validation_split,
)
from diffseg_jax.experiment.targets import target_of
from diffseg_jax.experiment.time_budget import read_budget
from diffseg_jax.storage.networks import first_has_checkpoint
from diffseg_jax.storage.paths import open_path, read_object, write_atomically, write_json
from diffseg_jax.storage.workdir import stage_directory
from diffseg_jax.weights.packaged import packaged_efficientnet

SHORTEST = 1.5  # minutes of a run that trains a network; most of less is compilation
SLOWER = 1.25  # times what a cheap fold took, which another may take
LEAST_LEFT = 1.0  # minutes; runs are skipped until each network that is left has as much
TABLE_SHARE = 0.05  # of the minutes, for the sheet of predictions
DRAWN_OF_FOLD = 4  # images on the sheet
FOREST = "forest"
COMPARED_FOLDS = 3  # where there are no validation images


@dataclasses.dataclass(frozen=True)
class Method:
    """One way to learn from the labelled images.

    title     in the table
    config    the file in the folder of configs, and its preset
    unlabelled  the stage that learns without labels, once for all folds; "" if there is none
    run       the stages that each fold runs; the last one is measured
    weight    shares of the time: of the stage without labels, and of one fold; a fold of 1 or less
              is cheap: it takes what its recipe needs, if there is as much
    filled    the stage whose crop the labelled images must fill; "" if there is none
    """

    title: str
    config: str = ""
    unlabelled: str = ""
    run: tuple[str, ...] = ()
    weight: tuple[float, float] = (0.0, 1.0)
    filled: str = ""


METHODS = {  # in the order in which they are dropped last
    "few_labels": Method(
        "classifiers on a network from ImageNet", "ddpm_seg_folder.py", run=("fit",)
    ),
    FOREST: Method("random forest on filters", weight=(0.0, 0.5)),
    "ddp": Method("DDP", "ddp_folder.py", run=("train",), weight=(0.0, 3.0)),
    "ddep": Method(
        "denoising pretraining (DeP)", "ddep_folder.py", "pretrain", ("finetune",), (3.0, 2.5)
    ),
    "adm": Method(
        "classifiers on an own diffusion model", "ddpm_seg_folder.py:adm", "pretrain", ("fit",),
        (5.0, 1.5), filled="fit",
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run: a fold of a method, or its stage without labels (fold None)."""

    method: str
    fold: int | None

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.method}_{'unlabelled' if self.fold is None else self.fold}"

    @property
    def weight(self) -> float:
        """Its share of the time, relative to other cells."""
        return METHODS[self.method].weight[self.fold is not None]

    @property
    def fills_its_time(self) -> bool:
        """Whether it learns for as long as it may, such as the training of a network."""
        return self.weight > 1.0


def cells_of(methods: Sequence[str], folds: int, minutes: float) -> list[Cell]:
    """The cells that fit into the minutes: first fold 0 of every method, then fold 1, ...

    Networks are trained on fewer folds, and then methods are dropped from the end, until every run
    of a network has SHORTEST minutes. The cheap methods always stay, on all folds: what they take
    is known only once they have run (`run_cells`).
    """
    for number in range(len(methods), 0, -1):
        for trained in range(folds, 0, -1):
            cells = _cells(methods[:number], folds, trained)
            one = (1 - TABLE_SHARE) * minutes / sum(cell.weight for cell in cells)
            networks = [cell.weight * one for cell in cells if cell.fills_its_time]
            if not networks or min(networks) >= SHORTEST:
                return cells
    return _cells(methods[:1], folds, 1)


def _cells(methods, folds, trained):
    cells = []
    for fold in range(folds):
        for name in methods:
            cell = Cell(name, fold)
            if fold == 0 and METHODS[name].unlabelled:
                cells.append(Cell(name, None))
            if fold < trained or not cell.fills_its_time:
                cells.append(cell)
    return cells


# ---- what is compared --------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The data, the time and the folders of a comparison.

    folds    of the labelled images; 1 if there are validation images, which are the same for all
    configs  the folder of the configs
    """

    data: str
    unlabelled: str
    minutes: float
    folds: int
    seed: int
    configs: str
    workdir: Path
    display: Display

    def overrides(self, method: str, fold: int) -> dict[str, str]:
        """The options of the config that differ from its file, as they are typed."""
        options = {
            "data.path": self.data,
            "seed": str(self.seed),
            "data.subset_seed": str(self.seed),
        }
        if self.folds > 1:
            options |= {"data.folds": str(self.folds), "data.fold": str(fold)}
        if METHODS[method].unlabelled:
            options["unlabelled.path"] = self.unlabelled
        return options

    def config_file(self, method: str) -> str:
        """As it is typed after --config."""
        return os.path.join(self.configs, METHODS[method].config)

    def images(self, fold: int) -> "Images":
        """The labelled images that a fold learns from, and those on which it is measured."""
        options = list(self.overrides("ddp", fold).items())
        config = read_config(self.config_file("ddp"), options)
        data = OpenedData(config, {}, target_of(config))
        return Images(data.train, data.learned(False)[0], data.validation(False))

    def require_unlabelled(self, methods: Sequence[str]):
        """UserError for unlabelled images that a method learns from and that cannot be opened."""
        for method in methods:
            if METHODS[method].unlabelled:
                options = list(self.overrides(method, 0).items())
                config = read_config(self.config_file(method), options)
                open_data(config, "unlabelled", config.unlabelled.split)


@dataclasses.dataclass(frozen=True)
class Images:
    """The labelled images of a fold: `indices` of those in `source` that it learns from."""

    source: Sequence
    indices: np.ndarray
    validation: Validation


def usual_folds(data: str, configs: str) -> int:
    """3, or 1 for labelled images with validation images of their own.

    Raises UserError for a folder with depth maps in place of masks.
    """
    folder = open_path(data)
    if (folder / "depth").exists() and not (folder / "masks").exists():
        raise UserError(
            f"{data} holds depth, but compare compares methods for classes. Give images with "
            "masks, or learn depth: python -m diffseg_jax.main --config=configs/ddp_depth_folder.py"
            f" --workdir=runs/depth {shlex.quote(f'--config.data.path={data}')}"
        )
    config = read_config(os.path.join(configs, METHODS["ddp"].config), [("data.path", data)])
    return 1 if validation_split(config) else COMPARED_FOLDS


def claim(comparison: Comparison):
    """Writes what is compared; UserError if the workdir holds another comparison."""
    file = comparison.workdir / "comparison.json"
    mine = {
        "data": comparison.data, "unlabelled": comparison.unlabelled, "folds": comparison.folds,
        "seed": comparison.seed, "minutes": comparison.minutes,
    }  # fmt: skip
    stored = {**mine, **read_object(file)}
    if changed := [f"{key} ({stored[key]})" for key in mine if stored[key] != mine[key]]:
        raise UserError(
            f"{comparison.workdir} holds a comparison with other {', '.join(changed)}. Take "
            f"another --workdir, such as {comparison.workdir}_2."
        )
    write_json(file, mine)


def available_methods(methods: Sequence[str], say: Callable[[str], None]) -> list[str]:
    """The methods whose libraries are installed; what is missing is said."""
    found = list(methods)
    if "few_labels" in found:
        try:
            packaged_efficientnet()
        except UserError as error:
            say(f"note: few_labels is skipped: {error}")
            found.remove("few_labels")
    if FOREST in found and not has_forest_libraries():
        say(f"note: {FOREST} is skipped, as scikit-image and scikit-learn are not installed. "
            f"Type: {FOREST_EXTRA}")  # fmt: skip
        found.remove(FOREST)
    if not found:
        raise UserError("no method is left to compare; the notes above say what to install.")
    return found


def announcement(
    comparison: Comparison, images: Images, cells: Sequence[Cell], dropped: Sequence[str]
) -> str:
    """What will be done, a line for each method.

    dropped  the methods for which the minutes are too few
    """
    learned, held_out = len(images.indices), len(images.validation.indices)
    each = f", in each of {comparison.folds} folds" if comparison.folds > 1 else ""
    lines = [
        f"{counted(learned, 'labelled image')} to learn from and {held_out} to measure on{each}; "
        f"at most {counted(len(cells), 'run')} in about {comparison.minutes:g} minutes; those that "
        "do not fit are skipped"
    ]
    needed = SHORTEST * sum(not cell.fold for cell in cells)  # once each method
    if (1 - TABLE_SHARE) * comparison.minutes < needed:
        lines.append(f"  note: a run can take more than {duration(60 * SHORTEST)} on a busy "
                     "machine, so these minutes may be exceeded")  # fmt: skip
    for name in dict.fromkeys(cell.method for cell in cells):
        folds_of = sum(cell.method == name and cell.fold is not None for cell in cells)
        lines.append(f"  {name}: {METHODS[name].title}, {counted(folds_of, 'fold')}")
    for name in dropped:
        lines.append(f"  {name}: skipped, as the minutes are too few; give more --minutes, "
                     "in another --workdir")  # fmt: skip
    return "\n".join(lines)


# ---- running -----------------------------------------------------------------------------------


def run_cells(comparison: Comparison, cells: Sequence[Cell]):
    """Runs what is missing; each run gets its share of the time that is left.

    The last runs are skipped where the minutes are too few for all, and those of a cheap method
    whose first fold failed. A run that has begun keeps its minutes, also if it failed, and goes on.
    """
    records, skipped = {cell: record_of(comparison, cell) for cell in cells}, []
    for index, cell in enumerate(cells):
        if is_done(records[cell]):
            continue
        what = f"{index + 1} of {len(cells)}: {_title(comparison, cell)}"
        failed = {
            each.method for each in cells[:index]
            if not each.fold and not each.fills_its_time and "failed" in records[each]
        }  # fmt: skip
        if cell.method in failed:
            comparison.display.say(f"\n{what}, is skipped, as the first fold failed")
            continue
        used = sum(_seconds_of(comparison, *pair) for pair in records.items())
        left = comparison.minutes * 60 * (1 - TABLE_SHARE) - used
        waiting = [
            each for each in cells[index:]
            if not records[each] and each.method not in failed
            and Cell(each.method, None) not in skipped
        ]  # fmt: skip
        known = {
            each.method: records[each]["seconds"] / 60 for each in cells
            if is_done(records[each]) and not each.fills_its_time
        }  # fmt: skip
        to_come = _fitting(waiting, left / 60, known, always=cells[0].method)
        if not records[cell] and cell not in to_come:
            comparison.display.say(f"\n{what}, is skipped, as the minutes are used up")
            skipped.append(cell)
            continue
        free = max(left / 60, 1.0)
        minutes = records[cell].get("minutes") or _minutes_of(cell, to_come, free, known, records)
        bound = "about" if cell.fills_its_time or cell.method in known else "at most"
        length = duration(60 * known.get(cell.method, minutes))
        comparison.display.say(f"\n{what}, {bound} {length}; {duration(max(left, 0))} left in all")
        write_json(_record_file(comparison, cell), {"minutes": minutes})  # a stopped run keeps it
        with comparison.display.progress(what) as shown:
            shown.show(**{f"of {bound}": length})
            records[cell] = {"minutes": minutes, **_run(comparison, cell, minutes)}
        write_json(_record_file(comparison, cell), records[cell])


def _fitting(cells, minutes, known, always):
    """The cells that can be run in the minutes, in their order; a method is kept in any case.

    Folds after the first go before methods, and networks before cheap runs, each from the end.

    known  method -> minutes that a cheap fold took
    """
    while True:
        one = _minutes_of_one(cells, minutes, known)
        networks = [cell for cell in cells if cell.fills_its_time]
        may_go = [cell for cell in cells if cell.method != always or cell.fold]
        if not may_go or one >= max((LEAST_LEFT / cell.weight for cell in networks), default=0):
            return cells
        gone = sorted(may_go, key=lambda cell: (bool(cell.fold), cell.fills_its_time))[-1]
        without = [gone] if gone.fold else [Cell(gone.method, None), gone]
        cells = [cell for cell in cells if cell not in without]


def _minutes_of_one(cells, minutes, known):
    """The share of a cell of weight 1 in what the known runs leave."""
    rest = minutes - sum(known.get(cell.method, 0.0) for cell in cells)
    return rest / max(sum(cell.weight for cell in cells if cell.method not in known), 1.0)


def _minutes_of(cell, cells, minutes, known, records):
    """Of the next of some cells: a network has its share, a cheap run at most that of its fold.

    As what its first fold needs is not known, networks count no more than it does. Later folds have
    its minutes, by which the number of changed copies is chosen, but not more than are left.
    """
    if cell.fills_its_time:
        return cell.weight * _minutes_of_one(cells, minutes, known)
    if cell.method in known:
        first = next(each for each in records if each.method == cell.method)
        least = SLOWER * known[cell.method]
        return min(records[first].get("minutes", least), max(minutes, least))
    weights = (min(each.weight, 1.0) for each in cells if (each.fold or 0) == cell.fold)
    return minutes * cell.weight / sum(weights)


def _seconds_of(comparison, cell, record):
    """Seconds that a cell has run, also if it was stopped."""
    used = read_budget(comparison.workdir / cell.name).get("used", 0.0)
    return max(record.get("seconds", 0.0), used)


def _title(comparison, cell):
    if cell.fold is None:
        return f"{cell.method}, learns from unlabelled images"
    fold = f", fold {cell.fold} of {comparison.folds}" if comparison.folds > 1 else ""
    return f"{cell.method}{fold}"


def _record_file(comparison, cell):
    return comparison.workdir / f"{cell.name}.json"


def record_of(comparison: Comparison, cell: Cell) -> dict:
    """What is known of a cell: its "minutes" once it is begun, and what `_run` returned."""
    return read_object(_record_file(comparison, cell))


def is_done(record: dict) -> bool:
    """Whether a cell has run to its end; one that failed runs again."""
    return "seconds" in record and "failed" not in record


def _run(comparison, cell, minutes):
    """Runs a cell to its end: {"seconds", "cpu_seconds", ...}, and numbers or why it "failed"."""
    method, folder = METHODS[cell.method], comparison.workdir / cell.name
    if cell.method == FOREST:
        return _run_forest(comparison, cell, minutes)
    starts_elsewhere = method.unlabelled and cell.fold is not None
    if starts_elsewhere and not first_has_checkpoint(_unlabelled_stage(comparison, cell.method)):
        return {"failed": "its stage without labels failed"}
    command = command_of(comparison, cell, minutes)
    log = comparison.workdir / f"{cell.name}.log"
    record = record_of_command(command, log, folder, "train", comparison.display.say)
    record["seconds"] = _seconds_of(comparison, cell, record)
    if "failed" in record:
        comparison.display.say(f"  failed, and the others go on; log in {cell.name}.log")
        return record
    return {**record, **_numbers(comparison, cell)}


def _unlabelled_stage(comparison, method):
    """The directory of the stage that a method learns without labels."""
    folder = comparison.workdir / Cell(method, None).name
    return stage_directory(folder, METHODS[method].unlabelled)


def command_of(comparison: Comparison, cell: Cell, minutes: float) -> list[str]:
    """What is typed for a cell, after python."""
    method = METHODS[cell.method]
    options = comparison.overrides(cell.method, cell.fold or 0)
    run = (method.unlabelled,) if cell.fold is None else method.run
    options["run"] = f"({', '.join(repr(stage) for stage in run)},)"
    if method.unlabelled and cell.fold is not None:
        options[f"stages.{run[0]}.start"] = str(_unlabelled_stage(comparison, cell.method))
    options |= sizes_that_fill(comparison, cell.method)
    return [
        "-m", "diffseg_jax.main", f"--config={comparison.config_file(cell.method)}",
        f"--workdir={comparison.workdir / cell.name}",
        *(f"--config.{key}={value}" for key, value in options.items()),
        f"--minutes={minutes:.2f}",
    ]  # fmt: skip


def sizes_that_fill(comparison: Comparison, method: str) -> dict[str, str]:
    """The crop that the images of all folds fill, or options that let them differ in shape."""
    if not (stage := METHODS[method].filled):
        return {}
    images = comparison.images(0)
    held_out = images.validation.indices if comparison.folds > 1 else ()
    augment = read_config(comparison.config_file(method)).stages[stage].augment
    sizes = sizes_before_crop(images.source, [*images.indices, *held_out], augment)
    options = {f"stages.{stage}.augment.crop": str(largest_sides(sizes))}
    return options if len(sizes) == 1 else {**options, "features.short": "0"}


def _numbers(comparison, cell):
    """The measured numbers of a fold; {} for a stage without labels."""
    if cell.fold is None:
        return {}
    file = comparison.workdir / cell.name / "results.json"
    return _chosen_numbers(json.loads(file.read_text())[METHODS[cell.method].run[-1]])


def _chosen_numbers(result):
    numbers = {"mIoU": result["mIoU"], "AUROC": result["AUROC"]}
    numbers["ECE"] = result["calibration"]["ECE"]
    if "linear_probe" in result:
        numbers["linear_probe"] = result["linear_probe"]["mIoU"]
    return numbers


def _run_forest(comparison, cell, minutes):
    """`_run` of a forest, which is fitted in this process."""
    begun, cpu = time.perf_counter(), time.process_time()
    try:
        numbers = _numbers_of_forest(comparison, cell, minutes)
        score = "-" if numbers["mIoU"] is None else f"{100 * numbers['mIoU']:.1f} %"
        comparison.display.say(f"  mIoU {score}")
    except (UserError, MemoryError, ValueError) as error:
        comparison.display.say(f"  failed, and the others go on: {error}")
        numbers = {"failed": str(error)}
    seconds = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu}
    return seconds | numbers


def _numbers_of_forest(comparison, cell, minutes):
    """The measured numbers of a fold; leaves the labels of the sheet in the workdir."""
    images = comparison.images(cell.fold)
    measured = images.validation
    result, labels = forest_result(
        images.source, images.indices, measured.source, measured.indices, comparison.seed,
        comparison.display, seconds=60 * minutes,
    )  # fmt: skip
    if cell.fold == 0:
        shown = {f"{index}": labels[index] for index in images_of_sheet(images)}
        content = io.BytesIO()
        np.savez_compressed(content, **shown)
        write_atomically(comparison.workdir / f"{FOREST}_labels.npz", content.getvalue())
    return _chosen_numbers(result)


def images_of_sheet(images: Images) -> list[int]:
    """Indices of the held-out images of the sheet."""
    return [int(index) for index in spread(images.validation.indices, DRAWN_OF_FOLD)]
