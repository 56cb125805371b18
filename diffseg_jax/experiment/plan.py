"""A config becomes a plan, once: all that each stage needs to know, read and checked.

`make_plan` opens the data, reads foreign weights and makes the tasks, so that mistakes are found
before anything is written. What runs a stage takes its `StagePlan` or `Evaluation`, not the config.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
import optax
from flax.traverse_util import flatten_dict as flatten
from flax.traverse_util import unflatten_dict as unflatten
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict, FrozenConfigDict

import diffseg_jax
from diffseg_jax.annotations.advice import advised
from diffseg_jax.config.options import BY_TASK, COMMON, FIT, LABELLED_BY_TASK, UNLABELLED
from diffseg_jax.config.schema import check_options, lacking
from diffseg_jax.devices import processes
from diffseg_jax.devices.mesh import check_batch, make_mesh
from diffseg_jax.display.console import Display
from diffseg_jax.errors import UserError, choose, require_known
from diffseg_jax.experiment.augmentation import augmentation
from diffseg_jax.experiment.crops import check_crops
from diffseg_jax.experiment.labelled_images import (
    OpenedData,
    check_folds,
    kept_folds,
    kept_numbers,
    labels_path,
    run_before,
)
from diffseg_jax.experiment.planned import Evaluation, Plan, Reader, StagePlan
from diffseg_jax.experiment.start_step import (
    check_start_within_run,
    describe_classes,
    for_classes,
    open_start,
    step_to_start_from,
)
from diffseg_jax.experiment.step_folds import require_foldable
from diffseg_jax.experiment.targets import target_of
from diffseg_jax.inference.views import protocol_of
from diffseg_jax.storage.checkpoints import steps_in
from diffseg_jax.storage.networks import first_has_checkpoint, open_meta, require_checkpoint
from diffseg_jax.storage.paths import open_path
from diffseg_jax.storage.workdir import as_json, stage_directory
from diffseg_jax.systems.methods import SYSTEMS
from diffseg_jax.systems.system import split_start
from diffseg_jax.systems.task import Task
from diffseg_jax.training.log import Log
from diffseg_jax.training.optimizer import make_optimizer, make_schedule

STARTS = ("random", "weights")  # any other start names a stage or its directory
MAX_PADDING = 2  # times the image's side; a larger crop is mostly padding and surely a mistake
PROTOCOL_KEYS = (  # options of config.evaluate that are written beside the results
    "view", "window", "stride", "limit", "short", "scales", "flip", "absent", "crop",
)  # fmt: skip


# ---- the plan of a run -------------------------------------------------------------------------


def make_plan(config: ConfigDict, workdir: Path, display: Display | None = None) -> Plan:
    """Checks a config and opens everything that its stages read.

    display  of the command; None: one of its own

    Raises UserError for whatever would stop a stage later.
    """
    check_config(config)
    log = Log(workdir, processes.is_first(), display)
    with log.progress("opens data and weights"):
        return _plan_of(config, workdir, log)


def _plan_of(config, workdir, log) -> Plan:
    config = _complete(config, workdir)
    data, before, stages, skipped = _opened(config, workdir), [], [], []
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    for name in config.run:
        if not learns(config, name):
            skipped.append(name)
            continue
        stages.append(_plan_stage(config, name, data, before, workdir, mesh, log))
        before.append(name)
    stages = [with_reader(config, stage, stages) for stage in stages]
    target = target_of(config)
    return Plan(target, tuple(stages), tuple(skipped), tuple(config.run), workdir, mesh, log)


def learns(config: ConfigDict, name: str) -> bool:
    """Whether a stage of a run does something: it is a fit or has steps, and is not skipped."""
    options, system = config.stages[name], SYSTEMS[config.system]
    return not system.skips(config, options.kind) and (options.kind == FIT or options.steps > 0)


def _complete(config, workdir):
    """The config with what files say, or the checkpoints of its stages where they have some."""

    def kept(name):
        directory = stage_directory(workdir, name)
        return open_meta(directory)["task"] if first_has_checkpoint(directory) else {}

    return SYSTEMS[config.system].complete(config, kept)


def _opened(config, workdir):
    """The data of a config; images that labelled stages have learned from stay on their side."""
    workdir = run_before(workdir) or workdir
    stages = [stage_directory(workdir, name) for name in labelled_stages(config)]
    begun = any([first_has_checkpoint(directory) for directory in stages])
    kept = (kept_folds(workdir), kept_numbers(workdir)) if begun else ({}, {})
    return OpenedData(config, kept[0], target_of(config), kept[1])


def _plan_stage(config, name, data, before, workdir, mesh, log) -> StagePlan:
    system, options = SYSTEMS[config.system], config.stages[name]
    labelled = system.stages[options.kind] == "labelled"
    target = target_of(config)
    labels = target.labels(data.val) if labelled else None
    reading = config.data if labelled else config.unlabelled
    source = data.train if labelled else data.unlabelled
    classes = () if labelled else source.classes
    classes = labels.names if labels else classes
    task = make_compiled_task(config, name, len(classes), mesh)
    in_turn = holds_out_in_turn(task)
    indices, chosen = data.learned(in_turn) if labelled else (np.arange(len(source)), None)
    numbers = data.numbers() if task.fit and options.augment.get("variants", 0) else {}
    if numbers:
        named = {source.names[index]: number for index, number in numbers.items()}
        chosen = {**chosen, "numbers": named}
    optimizer, schedule = (None, None) if task.fit else stage_optimizer(options)
    later = {each: config.stages[each] for each in config.run[config.run.index(name) :]}
    alike = {
        each: stage
        for each, stage in later.items()
        if (system.stages[stage.kind] == "labelled") == labelled
    }
    with advised(labels_path(config) if labelled else ""):
        example = source[int(indices[0])]
    _check_example(example, alike, task, target if labelled else None)
    given, which = split_start(options.start)
    if which and given in STARTS:
        raise UserError(
            f"stages.{name}.start is {options.start}, but {given} has no checkpoints to choose "
            f"from. Try --config.stages.{name}.start={given}."
        )
    start = system.start_of(config, options.kind, given)
    which = which if start == given else ""  # a checkpoint of a stage that is skipped
    if start in config.stages:
        _check_earlier_stage(config, name, start, which, before, workdir)
    elif start not in STARTS:
        _check_directory(config, start, which)
    loaded = _arrays_to_load(config, name, start, which, task, classes, workdir, log)
    start = f"{start}@{which}" if which else start
    return StagePlan(
        name=name, target=target, system=system, options=FrozenConfigDict(options),
        seed=config.seed, source=source, indices=indices, threads=reading.threads,
        workers=reading.workers,
        task=task, start=start,
        loaded=loaded,
        meta=_meta(config, start, task, classes, labels, chosen) | _seen(example, target, labelled),
        note=system.note(config, options.kind, given), subset=chosen,
        evaluation=(
            _plan_evaluation(
                config, name, task, data.validation(in_turn), workdir, mesh, log,
                learned=(source, indices),
            ) if labelled else None
        ),
        examples=config.evaluate.pictures if "evaluate" in config else 0,
        optimizer=optimizer, schedule=schedule, keep_best=_keeps_best(config),
        workdir=workdir, mesh=mesh, log=log,
        numbers={index: number for index, number in numbers.items() if number != index},
    )  # fmt: skip


def with_reader(config: ConfigDict, stage: StagePlan, stages: Sequence[StagePlan]) -> StagePlan:
    """A stage that learns without labels with the fit among the stages that starts from it."""
    fits = [each for each in stages if each.task.fit and split_start(each.start)[0] == stage.name]
    if stage.evaluation or not fits:
        return stage
    system, fit, meta = stage.system, fits[0], as_json(stage.task.meta)
    abstract = jax.eval_shape(fit.task.init, jax.random.key(0))
    reader = Reader(
        fit, adopt=lambda network: system.adopt(abstract, fit.task, network, meta),
        given=lambda: system.given_arrays(config, FIT, abstract),
    )  # fmt: skip
    return dataclasses.replace(stage, reader=reader)


def make_compiled_task(config: ConfigDict, name: str, num_classes: int, mesh: Mesh) -> Task:
    """The task of a stage, its functions for monitoring compiled once for all callers."""
    options = config.stages[name]
    task = SYSTEMS[config.system].make_task(
        config, options.kind, tuple(options.augment.crop), num_classes
    )
    replicated = NamedSharding(mesh, PartitionSpec())  # readable in every process
    predict = task.predict and jax.jit(task.predict)
    if traced := task.traced and jax.jit(task.traced):  # a run of the first compiles both
        predict = lambda *given: traced(*given)[0]
    return dataclasses.replace(
        task,
        predict=predict,
        measured=task.measured and jax.jit(task.measured),
        traced=traced,
        trace=task.trace and jax.jit(task.trace),
        denoise=task.denoise and jax.jit(task.denoise, out_shardings=replicated),
    )


def _meta(config, start, task, classes, labels, chosen) -> dict:
    """What is saved beside the checkpoints of a stage: enough to use it without the config file."""
    meta = {
        "version": diffseg_jax.__version__,
        "config": as_json(config.to_dict()),
        "start": start,
        "task": task.meta,
    }
    if labels:
        meta["classes"] = list(classes)
        meta["palette"] = [list(colour) for colour in labels.palette]
    if chosen:
        meta["labelled"] = {key: chosen[key] for key in ("n", "of", "seed", "sha256")}
        if "folds" in chosen:
            held_out = len(chosen["folds"]["held_out"])
            meta["labelled"]["folds"] = {"count": chosen["folds"]["count"], "held_out": held_out}
    elif classes:
        meta["picture_classes"] = list(classes)
    return meta


def _seen(example, target, labelled) -> dict:
    """The size of the first labelled image, for `export`; {} where a task has no single images."""
    known = labelled and target.size_of
    return {"image_size": list(map(int, target.size_of(example)))} if known else {}


# ---- where a stage starts ----------------------------------------------------------------------


def _arrays_to_load(
    config, name, start, which, task, classes, workdir, log
) -> Callable[[], dict] | None:  # fmt: skip
    """() -> the arrays that a fresh stage takes from elsewhere; None for none.

    Foreign files of a fresh stage are read here, so that a wrong one is found before anything runs;
    their arrays are handed over at the first call and not kept.
    """
    system, kind = SYSTEMS[config.system], config.stages[name].kind
    abstract = jax.eval_shape(task.init, jax.random.key(0))

    def read():
        arrays = {}
        if start == "weights":
            arrays = system.load_weights(config, abstract, task)
        elif start != "random":
            inside = stage_directory(workdir, start)
            directory = inside if start in config.stages else open_path(start)
            say = lambda text: log.say(f"{name}: {text}")
            network, meta = open_start(directory, which, say)
            found, before = meta["task"], meta.get("classes", [])
            if _goes_on(start, name, workdir) and before != list(classes):
                say(describe_classes(before, classes))
                network = for_classes(system, task, config.seed, network, before, classes)
                found = task.meta
            arrays = system.adopt(abstract, task, network, found)
        given = system.given_arrays(config, kind, abstract)
        return unflatten({**flatten(arrays), **flatten(given)})

    if first_has_checkpoint(stage_directory(workdir, name)):
        return read  # needed only if all its checkpoints are damaged
    if start in STARTS:
        held = [arrays] if (arrays := read()) else []
        return (lambda: held.pop() if held else read()) if held else None
    system.given_arrays(config, kind, abstract)  # the stage to start from may not exist yet
    return read


def _goes_on(start, name, workdir):
    """Whether a stage is trained further, from its own checkpoint in the run before."""
    before = run_before(workdir)
    return before is not None and start == str(stage_directory(before, name))


def _check_earlier_stage(config, name, start, which, before, workdir):
    directory, options = stage_directory(workdir, start), config.stages[start]
    if start in before:
        if not (which.isdigit() and int(which) in steps_in(directory)):
            labelled = SYSTEMS[config.system].stages[options.kind] == "labelled"
            evaluated = labelled and options.kind != FIT
            check_start_within_run(name, start, which, options, evaluated)
    elif first_has_checkpoint(directory):
        step_to_start_from(directory, which)
    else:
        run = [each for each in config.run if each != start]
        run.insert(run.index(name), start)
        raise UserError(
            f"stages.{name}.start is {start}, which is not run before it and has no checkpoint in "
            f'{workdir}. Run it with --config.run="{tuple(run)}", or start from the stage of '
            f"another run, as --config.stages.{name}.start=runs/a/checkpoints/{start} does."
        )


def _check_directory(config, start, which):
    if not Path(start).exists() and "/" not in start:  # a misspelt name rather than a path
        if "@" in start:
            raise UserError(
                f'unknown start "{start}". After @: best, last or a step, such as '
                f"{start.partition('@')[0]}@best."
            )
        require_known(start, (*config.stages, *STARTS), "start")
    require_checkpoint(open_path(start))
    step_to_start_from(open_path(start), which)


# ---- evaluations -------------------------------------------------------------------------------


def labelled_stages(config: ConfigDict) -> list[str]:
    """The stages of a checked config's run that learn from labels."""
    kinds = SYSTEMS[config.system].stages
    return [name for name in config.run if kinds[config.stages[name].kind] == "labelled"]


def plan_evaluations(
    config: ConfigDict, workdir: Path, names: Sequence[str], display: Display | None = None
) -> list[Evaluation]:
    """The evaluations of labelled stages of a checked config.

    display  of the command; None: one of its own

    Training data are opened only if the validation images are held out of them.
    """
    log = Log(workdir, processes.is_first(), display)
    with log.progress("opens data and weights"):
        return _evaluations_of(_complete(config, workdir), workdir, names, log)


def _evaluations_of(config, workdir, names, log) -> list[Evaluation]:
    mesh, data = make_mesh(config.mesh.data, config.mesh.fsdp), _opened(config, workdir)
    labels = target_of(config).labels(data.val)
    classes = len(labels.names) if labels else 0
    tasks = [make_compiled_task(config, name, classes, mesh) for name in names]
    shown = [data.validation(holds_out_in_turn(task)) for task in tasks]
    return [
        _plan_evaluation(config, name, task, images, workdir, mesh, log)
        for name, task, images in zip(names, tasks, shown, strict=True)
    ]


def holds_out_in_turn(task: Task) -> bool:
    """Whether a stage is so quickly fitted that it can hold out every fold in turn."""
    return task.fit is not None and not task.fit.classifiers


def _plan_evaluation(
    config, name, task, images, workdir, mesh, log, learned=None
) -> Evaluation:  # fmt: skip
    options, protocol = config.evaluate, protocol_of(config.evaluate)
    nearest = min(protocol.scales, key=lambda scale: abs(math.log(scale)))
    shown = {key: options[key] for key in PROTOCOL_KEYS if key in options}
    recorded = {"measured_on": images.origin, "protocol": shown, **task.recorded}
    indices, folds = images.indices, options.get("step_folds", 0)
    quick = indices[: options.images or None] if folds else indices[: options.quick_images]
    if learned:  # else nothing is trained, and no step is chosen
        require_foldable(folds, len(quick), name, task.fit is None)
    return Evaluation(
        stage=name, target=target_of(config), task=task, source=images.source,
        indices=indices[: options.images or None],
        quick_indices=quick, protocol=protocol,
        quick_protocol=dataclasses.replace(protocol, scales=(nearest,), flip=False),
        batch_size=options.batch_size, examples=options.pictures,
        absent=options.get("absent", ""), crop=options.get("crop", "none"),
        convention=SYSTEMS[config.system].convention, keep_best=_keeps_best(config),
        held_out=images.held_out, recorded=as_json(recorded),
        workdir=workdir, mesh=mesh, log=log, learned=learned, folds=images.folds,
        note=images.note, step_folds=folds,
    )  # fmt: skip


def _keeps_best(config):
    return "evaluate" in config and config.evaluate.checkpoint == "best"


# ---- data and optimizers -----------------------------------------------------------------------


def stage_schedule(options: ConfigDict, steps: int) -> Callable:
    """The learning rates of a stage of so many steps; other than its own have a shorter warm-up."""
    optim, warmup_steps = options.optim, options.optim.warmup_steps
    if steps != options.steps:
        warmup_steps = min(warmup_steps, steps // 10)
    return make_schedule(optim.schedule, optim.peak_lr, steps, warmup_steps, optim.warmup_ratio)


def stage_optimizer(options: ConfigDict) -> tuple[optax.GradientTransformation, Callable]:
    """The optimizer of a stage, and the learning-rate schedule inside it."""
    optim, schedule = options.optim, stage_schedule(options, options.steps)
    optimizer = make_optimizer(
        optim.name, schedule, b1=optim.b1, b2=optim.b2, epsilon=optim.epsilon,
        weight_decay=optim.weight_decay, no_decay=optim.no_decay, clip_norm=optim.clip_norm,
    )  # fmt: skip
    return optimizer, schedule


def _check_example(example, stages, task, target):
    """Raises UserError when the first example of the first stage does not fit its crop.

    target  what labelled stages learn; None for others
    """
    padding = 1 if task.sample else MAX_PADDING  # a generator must never learn to draw padding
    size_of = target.size_of if target else (lambda example: example["image"].shape[:2])
    if size_of:
        check_crops(size_of(example), stages, padding)
    change, rng = next(iter(stages.values())).augment, np.random.default_rng(0)
    if target:
        target.change(change)(*target.parts(example), rng)
    else:
        augmentation(change, labelled=False)(example["image"], None, rng)


# ---- the config alone --------------------------------------------------------------------------


def check_config(config: ConfigDict):
    """Raises UserError for a config that cannot run, before anything is read or written."""
    values = config.to_dict()
    system = choose(SYSTEMS, values.get("system", ""), "system")
    kinds = _kinds(values)
    for name, kind in kinds.items():
        choose(system.stages, kind, f"kind of stage {name}")
    kinds = set(kinds.values())
    learns_from = {system.stages[kind] for kind in kinds}
    labelled = "labelled" in learns_from
    task = values.get("task", lacking("")["task"])
    options = {**system.options, **choose(system.tasks, task, "task")}
    allowed = {**COMMON, **BY_TASK[task], **options}
    allowed = {name: rule for name, rule in allowed.items() if rule is not None}
    allowed |= LABELLED_BY_TASK[task] if labelled else {}
    allowed |= UNLABELLED if "unlabelled" in learns_from or "unlabelled" in values else {}
    for kind in kinds:
        allowed |= system.stage_options.get(kind, {})
    check_options(values, allowed)
    for index, name in enumerate(config.run):
        choose(config.stages, name, "stage in config.run")
        if name in config.run[:index]:
            raise UserError(
                f"config.run names {name} twice. Write each stage once, all in one --config.run."
            )
        if name in STARTS:
            raise UserError(f"a stage is named {name}, which is a start. Take another name.")
    system.check(config)
    for name in config.run:
        _check_schedule(config, name, labelled)
    if labelled:
        protocol_of(config.evaluate)
        check_folds(config)


def probe_option(stage: Mapping, name: str) -> float:
    """The value of an option of a stage's group "probe", which a config may lack."""
    return stage.get("probe", {}).get(name, lacking("stages.*.probe.")[name])


def _kinds(values):
    """Stage -> kind, of a config that is not checked yet; entries of a wrong type are skipped."""
    stages = values.get("stages")
    stages = stages if isinstance(stages, Mapping) else {}
    stages = {name: stage for name, stage in stages.items() if isinstance(stage, Mapping)}
    kinds = {name: stage.get("kind") for name, stage in stages.items()}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, str)}


def _check_schedule(config, name, labelled):
    """Raises UserError for a batch that devices cannot share, and for a best that is not saved."""
    stage = config.stages[name]
    if stage.kind == FIT:
        return
    check_batch(stage.batch_size, stage.accumulate, f"stages.{name}.batch_size")
    if probe_option(stage, "every") and SYSTEMS[config.system].stages[stage.kind] == "labelled":
        raise UserError(
            f"stages.{name}.probe.every is {stage.probe.every}, but the stage learns from labels, "
            "so it is evaluated and not probed. Leave out its probe, or try "
            f"--config.stages.{name}.probe.every=0."
        )
    evaluate, checkpoint = stage.every.evaluate, stage.every.checkpoint
    if labelled and _keeps_best(config) and evaluate % checkpoint:
        raise UserError(
            f"stages.{name}.every.evaluate is {evaluate}, but to keep the best checkpoint it "
            f"must be a multiple of every.checkpoint, {checkpoint}. "
            f"Try --config.stages.{name}.every.checkpoint={evaluate}."
        )
