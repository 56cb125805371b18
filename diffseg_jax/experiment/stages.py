"""Runs the stages of a plan one after another, and reports their results."""

import contextlib
import dataclasses
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from diffseg_jax.annotations.advice import advised
from diffseg_jax.data.prepared import non_empty
from diffseg_jax.devices import processes
from diffseg_jax.devices.settings import own_settings
from diffseg_jax.display.console import Display
from diffseg_jax.errors import UserError
from diffseg_jax.experiment.changed_data import (
    require_same_classes,
    require_same_data,
    say_changed_since,
    with_data,
)
from diffseg_jax.experiment.class_weights import with_class_weights
from diffseg_jax.experiment.data_notes import notes_of
from diffseg_jax.experiment.ensemble_stage import all_are_fitted, check_fit, fit_stage
from diffseg_jax.experiment.fold_files import lacking_folds
from diffseg_jax.experiment.gradient_stage import planned_steps, train_stage
from diffseg_jax.experiment.labelled_images import (
    LABELLED_FILE,
    labels_path,
    run_before,
    validation_set,
)
from diffseg_jax.experiment.plan import (
    check_config,
    labelled_stages,
    make_plan,
    plan_evaluations,
)
from diffseg_jax.experiment.planned import Evaluation, Plan, StagePlan
from diffseg_jax.experiment.step_folds import measured_by_folds
from diffseg_jax.experiment.target import Target
from diffseg_jax.experiment.time_budget import Budget, require_unfinished, slowness_of_machine
from diffseg_jax.inference.task_report import is_of_learned
from diffseg_jax.storage.checkpoints import BEST, Damaged, StageCheckpoints, has_checkpoint
from diffseg_jax.storage.lock import locked_in_all, require_free
from diffseg_jax.storage.networks import first_has_checkpoint, open_network
from diffseg_jax.storage.paths import write_json
from diffseg_jax.storage.workdir import (
    as_json,
    check_same,
    claim_workdir,
    holds_run_of,
    make_workdir,
    read_results,
    stage_directory,
)
from diffseg_jax.systems.methods import SYSTEMS
from diffseg_jax.training.log import Log
from diffseg_jax.training.trackers import tracking

CHANGED_DATA = ("refuse", "continue")


@own_settings()
def train(
    config: ConfigDict, workdir: Path, changed_data: str = "refuse", minutes: float | None = None,
    begun: float | None = None, track: Sequence[str] = (), display: Display | None = None,
):  # fmt: skip
    """Runs the stages that are not finished yet and leaves results.json.

    changed_data  one of CHANGED_DATA: whether a stage continues that began with other data
    minutes       in which the run ends, with all the processes that it takes; None: when the
                  recipes of its stages end
    begun         time.monotonic() at which they begin to count; None: now
    track         trackers that get the numbers as well, names of TRACKERS
    display       of the command; None: one of its own
    """
    begun = time.monotonic() if begun is None else begun
    require_free(workdir, "train", "--workdir")
    plan, warnings = checked_plan(config, workdir, display)
    make_workdir(workdir)
    with locked_in_all(workdir, "train", "--workdir"):
        claim_workdir(config, workdir)
        say_notes(plan)
        for sentence in warnings:
            plan.log.say(f"warning: {sentence}")
        write_subset(plan)
        budget = minutes and open_budget(plan, minutes, begun)
        kept = budget.kept() if budget else contextlib.nullcontext()
        with tracking(plan.log, track, config, workdir), kept:
            run_stages(plan, changed_data == "continue", budget)


def checked_plan(
    config: ConfigDict, workdir: Path, display: Display | None = None
) -> tuple[Plan, list[str]]:
    """The plan of a run, and warnings; UserError for what would stop it later. Writes nothing."""
    plan = make_plan(config, workdir, display)
    with advised(labels_path(config)), plan.log.progress("reads some labels"):
        warnings = read_some(plan)
    for stage in plan.stages:
        if stage.task.fit:
            check_fit(stage)
    return plan, warnings


def require_startable(
    config: ConfigDict, workdir: Path, display: Display | None = None
) -> tuple[list[str], list[str]]:
    """What `train` says before it runs a stage: notes of stages, and warnings of `checked_plan`.

    Raises UserError if `train` would refuse to start or to resume; writes nothing.
    """
    require_free(workdir, "train", "--workdir")
    plan, warnings = checked_plan(config, workdir, display)
    if holds_run_of(config, workdir):
        read_results(workdir)
        for stage in [stage for stage in plan.stages if has_checkpoint(stage.directory)]:
            with StageCheckpoints(stage.directory, read_only=True) as checkpoints:
                require_same_data(stage, checkpoints, is_finished(stage, checkpoints))
    notes = [f"{stage.name}: {stage.note}" for stage in plan.stages if stage.note]
    return [*validation_notes(plan), *notes], warnings


def open_budget(plan: Plan, minutes: float, begun: float) -> Budget:
    """The time of a run; UserError if the run is finished and had another one.

    Stages after the first that segments are optional: the run leaves a model without them.
    """
    measured, waiting = read_results(plan.workdir), []
    for stage in plan.stages:
        finished = first_has_checkpoint(stage.directory)
        if finished:
            with StageCheckpoints(stage.directory) as checkpoints:
                finished = is_finished(stage, checkpoints)
        waiting += [] if finished else [stage]
    if not waiting and all(stage.name in measured for stage in plan.stages if stage.evaluation):
        require_unfinished(plan.workdir, minutes)
    labelled = [stage.name for stage in plan.stages if stage.evaluation]
    after = plan.order.index(labelled[0]) + 1 if labelled else len(plan.order)
    budget = Budget(
        minutes, waiting, plan.workdir, plan.log, begun, optional=plan.order[after:],
        slowness=slowness_of_machine(),
    )  # fmt: skip
    if waiting:
        budget.announce()
    return budget


def run_stages(plan: Plan, go_on: bool, budget: Budget | None = None):
    """Runs the stages of a plan in their order, and measures those that have no results yet.

    go_on   whether a stage continues with other data than it began with
    budget  the time that they have; None: what their recipes take
    """
    workdir, planned = plan.workdir, {stage.name: stage for stage in plan.stages}
    measured, results = read_results(workdir), {}
    for name in plan.order:
        if name in plan.skipped:
            plan.log.say(f"{name}: skipped")
            continue
        stage, network, is_new = planned[name], None, False
        if budget and not budget.begins(stage):
            continue
        with StageCheckpoints(stage.directory) as checkpoints:
            while network is None:  # even a finished stage may have been damaged since
                is_new |= run_stage(stage, checkpoints, go_on, budget)
                with plan.log.progress(f"{name}: reads its checkpoint"):
                    network = read_chosen(stage, checkpoints)
                if network is None:  # another checkpoint takes the place of the measured one
                    is_new = True
                    drop_results(stage)
            last = checkpoints.latest()
        if name in measured and not is_new:
            results[name] = measured[name]
        elif stage.evaluation:
            evaluation = stage.evaluation
            if budget:
                evaluation = budget.shortened(evaluation, network[0])
            results[name] = evaluation.target.result_of(evaluation, *network)
            results[name] |= measured_by_folds(evaluation, last)
            write_results(plan.order, {**measured, **results}, workdir / "results.json")
    file = workdir / "results.json"
    report_results(plan.target, plan.order, results, file, plan.log, next_command(plan))


def read_some(plan: Plan) -> list[str]:
    """Reads a few labelled examples of every split, as a wrong mask should not wait for hours.

    Returns warnings about unusual labels; raises UserError for those that are certainly wrong.
    """
    labelled = [stage for stage in plan.stages if stage.evaluation]
    if not labelled:
        return []
    return labelled[0].target.check(labelled[0], labelled[0].evaluation)


def require_measurable(evaluation: Evaluation):
    """UserError if the validation images have nothing to be measured by."""
    evaluation.target.measurable(evaluation)


def say_notes(plan: Plan):
    """Prints what a user should know about the data, once for each source."""
    used = {}
    for stage in plan.stages:
        what = "labelled images" if stage.evaluation else "unlabelled images"
        used[id(stage.source)] = what, stage.source, stage.indices
        if stage.evaluation and stage.evaluation.source is not stage.source:
            source, indices = stage.evaluation.source, stage.evaluation.indices
            used[id(source)] = "validation images", source, indices
    for what, source, indices in used.values():
        for note in notes_of(source, indices):
            plan.log.say(f"note, {what}: {note}")
    for note in validation_notes(plan):
        plan.log.say(note)


def validation_notes(plan: Plan) -> list[str]:
    """The sentences about where validation images come from that are not a split of their own."""
    notes = (stage.evaluation.note for stage in plan.stages if stage.evaluation)
    return list(dict.fromkeys(filter(None, notes)))


def write_subset(plan: Plan):
    """Writes to the workdir which labelled images are used, unless a stage has learned from some.

    A stage that goes on with other images writes them itself.
    """
    labelled = [stage.subset for stage in plan.stages if stage.subset]
    begun = [has_checkpoint(stage.directory) for stage in plan.stages if stage.subset]
    if labelled and not any(begun) and processes.is_first():
        write_json(plan.workdir / LABELLED_FILE, labelled[0])


def run_stage(
    stage: StagePlan, checkpoints: StageCheckpoints, go_on: bool, budget: Budget | None = None
) -> bool:  # fmt: skip
    """Runs a stage from where it stopped to its end; False if it was finished already."""
    if is_finished(stage, checkpoints):
        require_same_classes(stage, checkpoints.meta(checkpoints.latest()))
        stage.log.say(f"{stage.name}: is finished")
        say_changed_since(stage)
        return False
    stage = with_class_weights(with_data(stage, checkpoints, go_on), checkpoints)
    if stage.subset and processes.is_first():
        write_json(stage.workdir / LABELLED_FILE, stage.subset)
    drop_results(stage)
    (fit_stage if stage.task.fit else train_stage)(stage, checkpoints, budget)
    if budget:
        budget.end(stage)
    return True


def is_finished(stage: StagePlan, checkpoints: StageCheckpoints) -> bool:
    """Whether a stage has made its last step."""
    step = checkpoints.latest()
    if stage.task.fit:
        return all_are_fitted(checkpoints) and not lacking_folds(
            stage.evaluation, checkpoints.meta(step)
        )
    return step == planned_steps(stage, checkpoints) and checkpoints.meta(step)["evaluated"]


def read_chosen(stage: StagePlan, checkpoints: StageCheckpoints) -> tuple[dict, dict] | None:
    """The network of a stage and its meta; None if it is damaged, and the checkpoint set aside."""
    try:
        return open_network(checkpoints.directory, checkpoints.chosen(stage.keep_best))
    except Damaged as error:
        checkpoints.set_aside(error, stage.log.say)
        return None


def require_same_training(config: ConfigDict, workdir: Path):
    """Raises UserError unless the config trains what the run in the workdir trained."""
    check_same(config, workdir, read_in_evaluation(config))


def read_in_evaluation(config: ConfigDict) -> tuple[str, ...]:
    """The options, or groups of them, that may change after training."""
    measured = ("evaluate", "mesh", "data.val", "data.validation")
    return (*measured, *SYSTEMS[config.system].prediction)


@own_settings()
def evaluate_only(config: ConfigDict, workdir: Path, display: Display | None = None):
    """Evaluates the stages that have a checkpoint with the given options: results_eval.json."""
    evaluations = evaluations_of_run(config, workdir, "eval", display)
    with locked_in_all(workdir, "eval", "--workdir"):
        _evaluate_again(config, workdir, evaluations)


def evaluations_of_run(
    config: ConfigDict, workdir: Path, task: str, display: Display | None = None
) -> list[Evaluation]:
    """The evaluations of the stages of a run that can segment and have a checkpoint, in order.

    task     of the lock that the caller will take, such as "eval"
    display  of the command; None: one of its own

    Raises UserError where there is none, for a config of other training, and for validation images
    without a labelled pixel.
    """
    if not (workdir / "config.json").exists():
        raise UserError(f"{workdir} holds no run. Train first, with --mode=train.")
    require_free(workdir, task, "--workdir")
    check_config(config)
    names = labelled_stages(config)
    if not names:
        raise UserError(
            "no stage in config.run learns from labels, so there is nothing to evaluate. Images "
            "of a diffusion model are drawn by python -m diffseg_jax.sample."
        )
    require_same_training(config, workdir)
    names = [name for name in names if first_has_checkpoint(stage_directory(workdir, name))]
    if not names:
        raise UserError(f"{workdir} holds no checkpoint that can predict yet. Train first.")
    evaluations = plan_evaluations(config, workdir, names, display)
    require_measurable(evaluations[0])
    return evaluations


def _evaluate_again(config, workdir, evaluations):
    results = {}
    for evaluation in evaluations:
        directory = stage_directory(workdir, evaluation.stage)
        with StageCheckpoints(directory, read_only=True) as checkpoints:
            step = checkpoints.chosen(evaluation.keep_best)
        network, meta = open_network(directory, step)
        own = _measured_images(ConfigDict(meta["config"])) == _measured_images(config)
        evaluation = dataclasses.replace(evaluation, own_images=own)
        results[evaluation.stage] = evaluation.target.result_of(evaluation, network, meta, "eval")
    file = workdir / "results_eval.json"
    target, log = evaluations[0].target, evaluations[0].log
    report_results(target, tuple(config.run), results, file, log)


def _measured_images(config):
    """The split and the data set that the final numbers are of, as JSON values."""
    _, (source, path, options) = validation_set(config)
    return as_json([config.data.val, source, str(path), non_empty(options)])


def write_results(order: tuple[str, ...], results: dict, file: Path):
    """Writes the results of the stages so far, in the order of the run."""
    if processes.is_first():
        write_json(file, {name: results[name] for name in order if name in results})


def drop_results(stage: StagePlan):
    """Removes the results of a stage, which are of a network that it will not have any more."""
    if not processes.is_first():
        return
    results = read_results(stage.workdir)
    if results.pop(stage.name, None) is not None:
        write_json(stage.workdir / "results.json", results)


def report_results(
    target: Target, order: tuple[str, ...], results: dict, file: Path, log: Log, advice: str = ""
):  # fmt: skip
    """Writes the results, shows them as a table, and closes the log.

    advice  its last line, such as `next_command` returns
    """
    ending = "finished"
    if results:
        write_results(order, results, file)
        log.say(target.table(results))
        place = run_before(file.parent) or file.parent  # of a run that goes on, once it has ended
        images = f", images in {place / 'pictures'}" if (file.parent / "pictures").is_dir() else ""
        ending += f"{main_number(results)}; numbers in {place / file.name}{images}"
    log.say(ending)
    if advice:
        log.say(advice)
    log.close()


def main_number(results: dict) -> str:
    """Such as ": mIoU 55.9 %", of the last stage: that by which checkpoints are compared.

    It says so where that is of the images of the training.
    """
    last = list(results.values())[-1]
    name = next((name for name in BEST if last.get(name) is not None), None)
    if name is None:
        return ""
    number = f"{100 * last[name]:.1f} %" if name == "mIoU" else f"{last[name]:.3f}"
    return f": {name} {number}{' of images that it learned from' if is_of_learned(last) else ''}"


def next_command(plan: Plan) -> str:
    """The line of the log that says what can be done with the networks of a run."""
    last = plan.stages[-1] if plan.stages else None
    if any(stage.evaluation for stage in plan.stages):
        run = run_before(plan.workdir) or plan.workdir  # whose place it takes
        flags = ["predict", f"--checkpoint={run}", "--images=photos", "--output=predicted"]
        return f"to predict: python -m diffseg_jax.{shlex.join(flags)}"
    if last and last.task.sample:
        flags = ["sample", f"--checkpoint={last.directory}", "--output=samples"]
        return f"to draw images: python -m diffseg_jax.{shlex.join(flags)}"
    return "no stage of this run segments, so there is nothing to measure"
