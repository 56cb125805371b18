"""--continue: a finished run learns from labelled images that were added or changed since.

Its labelled stages run again in <workdir>/continued, a run of its own that can be stopped and
resumed. When it is finished and measured, it takes the place of the old checkpoints and results,
which move to <workdir>/before_1, before_2, ...; until then they stay as they are.
"""

import contextlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from diffseg_jax.config.options import FIT
from diffseg_jax.devices.processes import require_one
from diffseg_jax.display.console import Display
from diffseg_jax.errors import UserError, counted
from diffseg_jax.experiment.changed_data import LISTED_IN, VALIDATION, changes_since, listed_in
from diffseg_jax.experiment.labelled_images import CONTINUED, other_validation, validation_split
from diffseg_jax.experiment.plan import make_plan
from diffseg_jax.experiment.stages import is_finished, train
from diffseg_jax.inference.task_report import is_of_learned
from diffseg_jax.storage.checkpoints import StageCheckpoints, has_checkpoint
from diffseg_jax.storage.lock import locked, require_free
from diffseg_jax.storage.paths import in_bucket, write_atomically, write_json
from diffseg_jax.storage.workdir import (
    as_json,
    holds_run_of,
    make_workdir,
    read_results,
    saved_config,
    stage_directory,
)
from diffseg_jax.systems.methods import SYSTEMS
from diffseg_jax.systems.system import split_start
from diffseg_jax.training.log import Log

SHORTER = 4  # times fewer steps than the recipe
GENTLER = 0.5  # of the recipe's peak learning rate
MOVING = "moving.json"  # in the folder of the new run: it is finished, and where the old one goes
UNMOVED = ("config.json", MOVING)  # files of the new run that take no place
MEASURED_LATER = (  # of the old checkpoints, by other modes than training
    "results_eval.json", "image_counts_*_eval.npz", "confusion_*_eval.csv",
    "corruptions.json", "corruptions.csv", "corruptions.md", "corruption_counts",
    "steps.json",
)  # fmt: skip
PARTED = "checkpoints", "folds", "step_counts", "tensorboard"  # parts of stages, which move


def continue_run(
    config: ConfigDict, workdir: Path, minutes: float | None = None, begun: float | None = None,
    track: Sequence[str] = (), display: Display | None = None,
):  # fmt: skip
    """Trains the labelled stages of a finished run further, or resumes one that is not finished.

    minutes, begun, track, display  as of `train`

    Classifiers are fitted again to all labels. Networks go on from their checkpoint with a new
    schedule of a SHORTER length and a GENTLER learning rate; of the arrays that depend on the
    classes they keep the rows of classes that the data still have, by their names.

    data.val may differ from that of the finished run: train holds out no image any more.
    """
    require_one("--continue")
    if in_bucket(workdir):
        raise UserError(
            f"--continue moves folders of the workdir, which cannot be done in a bucket, and the "
            f"workdir is {workdir}. Copy it to this machine, or give another --workdir."
        )
    require_free(workdir, "train", "--workdir")
    if (workdir / CONTINUED / MOVING).exists():
        with locked(workdir, "train", "--workdir"):
            _move(workdir)
    plan = make_plan(config, workdir, display)
    stages = [stage for stage in plan.stages if stage.evaluation]
    if not (_holds_run_before(config, workdir) and stages and all(map(_ended, plan.stages))):
        train(config, workdir, "continue", minutes, begun, track, plan.log.display)
        return
    changes = {stage.name: changes_since(stage) for stage in stages}
    if not any(changes.values()):
        if _holds_out_no_more(config, workdir):
            plan.log.say(
                "--continue: the run has learned from all labelled images already; its numbers are "
                f"in {workdir / 'results.json'}"
            )
            plan.log.close()
            return
        plan.log.say("--continue: the labelled images are those that the run has learned from")
        train(config, workdir, "continue", minutes, begun, track, plan.log.display)
        return
    _explain(plan.log, stages, changes, minutes)
    make_workdir(workdir / CONTINUED)
    with locked(workdir, "train", "--workdir"):
        further = continued_config(config, workdir, [stage.name for stage in stages])
        train(further, workdir / CONTINUED, "continue", minutes, begun, track, plan.log.display)
        sentences = list(_compared(workdir, stages))
        before = _announce_move(config, workdir)
        _move(workdir)
    plan.log.say(f"numbers in {workdir / 'results.json'}; what was there before is in {before}")
    for sentence in sentences:
        plan.log.say(sentence)
    plan.log.close()


def _holds_run_before(config, workdir):
    """Whether the workdir holds the run, which may have been measured on other images."""
    cut = ("data.folds", "data.fold") if validation_split(config) else ()  # nothing is cut now
    return holds_run_of(config, workdir, may_differ=("mesh", "data.val", *cut))


def _holds_out_no_more(config, workdir):
    """Whether images are measured that are learned from, and the run measured others."""
    data, before = config.data, saved_config(workdir).get("data", {})
    return data.val == data.train != before.get("val") and not other_validation(config)


def _ended(stage):
    if not has_checkpoint(stage.directory):
        return False
    with StageCheckpoints(stage.directory, read_only=True) as checkpoints:
        return is_finished(stage, checkpoints)


def _explain(log: Log, stages, changes, minutes):
    """Logs what has changed since the run finished, and what each stage does.

    minutes  that are given for all; None: each makes the steps that are said
    """
    log.say("--continue: the labelled images to learn from have changed since the run finished")
    shown = dict.fromkeys(line for lines in changes.values() for line in lines)
    for line in shown:
        log.say(f"  {line}")
    for stage in stages:
        images = counted(len(stage.indices), "labelled image")
        if stage.task.fit:
            does = "fits its classifiers again"
        elif split_start(stage.start)[0] in {other.name for other in stages}:
            does = f"starts from {stage.start} again, {_length(stage.options.steps, minutes)}"
        else:
            fewer = _fewer_steps(stage.options)
            does = f"goes on from its checkpoint, {_length(fewer, minutes)}"
        log.say(f"  {stage.name}: {does}, on {images}")


def _length(steps, minutes):
    """How long a stage is trained, for a sentence."""
    made = counted(steps, "step")
    return f"as long as the minutes allow (recipe: {made})" if minutes else made


def _fewer_steps(options) -> int:
    """Steps for which a gradient stage is trained further."""
    return max(options.steps // SHORTER, 1)


def continued_config(config: ConfigDict, workdir: Path, names: list[str]) -> ConfigDict:
    """The config of the new run, with the labelled stages of that name.

    A stage that starts from another of them does so again, by its recipe; others go on from their
    own checkpoint.
    """
    further = SYSTEMS[config.system].further(ConfigDict(config.to_dict()))
    further.run = tuple(names)
    for name in names:
        options = further.stages[name]
        start = split_start(options.start)[0]
        if options.kind == FIT:
            if start in config.stages:
                options.start = str(stage_directory(workdir, options.start))
        elif start not in names:
            options.start = str(stage_directory(workdir, name))
            options.steps = _fewer_steps(options)
            options.optim.peak_lr = GENTLER * options.optim.peak_lr
            options.optim.warmup_steps = min(options.optim.warmup_steps, options.steps // 10)
    return further.lock()


def _compared(workdir, stages):
    """A sentence for each stage: its mIoU, or error of depth, before and after."""
    before, after = read_results(workdir), read_results(workdir / CONTINUED)
    listed = listed_in(workdir), listed_in(workdir / CONTINUED)
    for stage in stages:
        old, new = before.get(stage.name), after.get(stage.name)
        if new and is_of_learned(new):
            yield (
                f"{stage.name}: no image was held out, so the new numbers are of images that it "
                "has learned from, and do not say how it does on others"
            )
        if old and new and "abs_rel" in new:
            yield f"{stage.name}: abs_rel {old['abs_rel']:.4f} -> {new['abs_rel']:.4f}"
        elif old and new and None not in (old["mIoU"], new["mIoU"]):
            key = VALIDATION.format(stage.name)
            same = listed[0].get(key) and listed[0].get(key) == listed[1].get(key)
            same = same and old["IoU"].keys() == new["IoU"].keys()
            images = f"{old['images']} and {new['images']} images"
            of = "other images" if old["images"] == new["images"] else images
            of = "other classes" if old["IoU"].keys() != new["IoU"].keys() else of
            differ = f" (of {of}, so that the numbers do not compare)"
            yield (
                f"{stage.name}: mIoU {100 * old['mIoU']:.2f} -> {100 * new['mIoU']:.2f}"
                f"{'' if same else differ}"
            )
            if old["IoU"].keys() != new["IoU"].keys():
                yield from _common_classes(stage.name, old["IoU"], new["IoU"])


def _common_classes(name, old, new):
    """A sentence about the mean IoU of the classes that two results share, if they share some."""
    common = [k for k in old if None not in (old[k], new.get(k))]
    if common:
        before, after = (100 * sum(each[k] for k in common) / len(common) for each in (old, new))
        classes = counted(len(common), "class")
        yield f"{name}: mIoU of the {classes} that both have {before:.2f} -> {after:.2f}"


# ---- the new run takes the place of the old one ------------------------------------------------


def _announce_move(config, workdir):
    """Completes the files of the new run, and writes that it may take its place.

    config  with which the run is known from then on

    Returns the folder to which the old one moves.
    """
    new, numbers = workdir / CONTINUED, range(1, 10**6)
    write_json(new / LISTED_IN, {**listed_in(workdir), **listed_in(new)})
    _merge_metrics(workdir, new)
    folders = (workdir / f"before_{number}" for number in numbers)
    before = next(folder for folder in folders if not folder.exists())
    write_json(new / MOVING, {"before": before.name, "config": as_json(config.to_dict())})
    return before


def _merge_metrics(workdir, new):
    """Puts the old records of stages that did not run again before the new ones."""
    old, mine = (folder / "metrics.jsonl" for folder in (workdir, new))
    new_lines, old_lines = map(_records, (mine, old))
    stages = {stage for stage, _ in new_lines}
    kept = [(stage, line) for stage, line in old_lines if stage not in stages]
    write_atomically(mine, b"".join(line + b"\n" for _, line in (*kept, *new_lines)))


def _records(file):
    """(stage, line) of a file of metrics, without lines that a kill or a full disk cut."""
    records = []
    for line in file.read_bytes().splitlines() if file.exists() else ():
        with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
            records.append((json.loads(line)["stage"], line))
    return records


def _move(workdir):
    """Moves the old run aside and the finished new one to its place; resumes where it was killed.

    Each name below is either still to be moved aside, or already, or in its place.
    """
    new = workdir / CONTINUED
    if not (new / MOVING).exists():
        return
    moving = json.loads((new / MOVING).read_bytes())
    before = workdir / moving["before"]
    names = [entry.name for entry in new.iterdir() if entry.name[0] != "."]
    whole = [name for name in names if name not in (*UNMOVED, *PARTED)]
    parts = [
        f"{folder}/{entry.name}"
        for folder in PARTED if (new / folder).is_dir()
        for entry in (new / folder).iterdir()
    ]  # fmt: skip
    for file in [file for pattern in MEASURED_LATER for file in workdir.glob(pattern)]:
        make_workdir(before)
        file.rename(before / file.name)
    for name in [*parts, *whole]:
        place, aside = workdir / name, before / name
        if place.exists():
            aside.parent.mkdir(parents=True, exist_ok=True)
            place.rename(aside)
        place.parent.mkdir(parents=True, exist_ok=True)
        (new / name).rename(place)
    if "config" in moving:  # which earlier versions did not write
        config, aside = workdir / "config.json", before / "config.json"
        if config.exists() and not aside.exists():  # else it was killed after it had written one
            write_atomically(aside, config.read_bytes())
        write_json(config, moving["config"])
    (new / MOVING).unlink()
    shutil.rmtree(new)
