"""Steps against quality: networks measured with several numbers of reverse steps and draws."""

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from diffseg_jax.devices import processes
from diffseg_jax.devices.settings import own_settings
from diffseg_jax.display.console import Display
from diffseg_jax.errors import UserError, counted
from diffseg_jax.experiment.plan import (
    check_config,
    labelled_stages,
    make_compiled_task,
    plan_evaluations,
)
from diffseg_jax.experiment.planned import Evaluation
from diffseg_jax.experiment.stages import require_measurable, require_same_training
from diffseg_jax.experiment.start_step import step_to_start_from
from diffseg_jax.figures import layout
from diffseg_jax.inference.forward import make_forward
from diffseg_jax.inference.views import predict
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.storage.lock import locked_in_all, require_free
from diffseg_jax.storage.networks import first_has_checkpoint, open_network
from diffseg_jax.storage.paths import open_path, write_json
from diffseg_jax.storage.workdir import as_json, make_workdir, stage_directory
from diffseg_jax.systems.methods import SYSTEMS
from diffseg_jax.systems.system import Setting, System, split_start

TIMED = 3  # predictions, of which the fastest counts


@dataclasses.dataclass(frozen=True)
class Measured:
    """A network that is measured, and how.

    directory, step  its checkpoint; None = the latest
    settings         with the evaluation whose task predicts by each
    """

    stage: str
    directory: Path
    step: int | None
    system: System
    settings: Sequence[tuple[Setting, Evaluation]]


@own_settings()
def choose_steps(config: ConfigDict, workdir: Path, display: Display | None = None):
    """Measures all stages of a run that can segment; leaves steps.json and pictures/steps.png.

    Where the workdir holds no checkpoint, the directory that a stage starts from is measured, such
    as one that `diffseg_jax.convert` wrote. Prints a table: mIoU, milliseconds per image, and the
    AUROC of every signal of uncertainty, for `sweep.steps` times `sweep.draws`. Raises UserError
    for a system without reverse steps, and where there is no checkpoint.
    """
    require_free(workdir, "steps", "--workdir")
    plan = plan_sweep(config, workdir, display)
    make_workdir(workdir)
    with locked_in_all(workdir, "steps", "--workdir"):
        _measure_all(plan, workdir)


def _measure_all(plan, workdir):
    rows = []
    for measured in plan:
        measure_network(measured, rows, workdir)
    log = plan[0].settings[0][1].log
    image = workdir / "pictures" / "steps.png"
    if processes.is_first():
        with log.progress("draws"):
            layout.save_png(image, plan[0].settings[0][1].target.steps_plot(rows))
    log.say(f"finished; numbers in {workdir / 'steps.json'}, a plot in {image}")
    log.close()


def plan_sweep(
    config: ConfigDict, workdir: Path, display: Display | None = None
) -> list[Measured]:
    """The networks to measure and the settings of each; checks the config."""
    system = SYSTEMS.get(config.system)
    if system and not system.sweep:
        with_steps = " or ".join(name for name, other in SYSTEMS.items() if other.sweep)
        raise UserError(
            f"--mode=steps is for {with_steps}, but the config's system is {config.system}, whose "
            "predictions have no reverse steps. Try --config=configs/ddp_scenes.py."
        )
    check_config(config)
    networks = _networks(config, workdir)
    names = [name for name, _, _ in networks]
    evaluations = plan_evaluations(config, workdir, names, display)
    require_measurable(evaluations[0])
    planned = zip(networks, evaluations, strict=True)
    return [
        Measured(*network, system, _settings(config, system, evaluation))
        for network, evaluation in planned
    ]


def _settings(config, system, evaluation):
    """All settings of a stage, each with the evaluation whose task predicts by it."""
    labels, mesh = evaluation.target.labels(evaluation.source), evaluation.mesh
    classes = len(labels.names) if labels else 0
    kind = config.stages[evaluation.stage].kind
    pairs = []
    for setting in system.sweep(config, kind):
        task = make_compiled_task(setting.config, evaluation.stage, classes, mesh)
        pairs.append((setting, dataclasses.replace(evaluation, task=task)))
    return pairs


def _networks(config, workdir):
    """(stage, directory, step) of every network to measure."""
    found = []
    for name in labelled_stages(config):
        directory = stage_directory(workdir, name)
        if first_has_checkpoint(directory):
            with StageCheckpoints(directory, read_only=True) as checkpoints:
                best = config.evaluate.checkpoint == "best"
                found.append((name, directory, checkpoints.chosen(best)))
    if found:
        require_same_training(config, workdir)
        return found
    for name in reversed(labelled_stages(config)):
        start, which = split_start(config.stages[name].start)
        if first_has_checkpoint(directory := open_path(start)):
            return [(name, directory, step_to_start_from(directory, which)[0])]
    starts = " or ".join(f"stages.{name}.start={config.stages[name].start}" for name in config.run)
    raise UserError(
        f"{workdir} holds no checkpoint of {' or '.join(config.run)}, and {starts} is no directory "
        "of one. Train first, or try --config.stages.train.start=runs/a/checkpoints/train."
    )


def measure_network(measured: Measured, rows: list[dict], workdir: Path):
    """Adds the numbers of one network to the rows, which are saved after each setting."""
    evaluation = measured.settings[0][1]
    task, log = evaluation.task, evaluation.log
    network, meta = open_network(measured.directory, measured.step)
    abstract = jax.eval_shape(task.init, jax.random.key(0))
    measured.system.adopt(abstract, task, network, meta["task"])
    images = counted(len(evaluation.indices), "image")
    settings = counted(len(measured.settings), "setting")
    log.say(f"{measured.stage}, step {meta['step']}: {images}, {settings}")
    shown = log.progress(f"{measured.stage}: settings", len(measured.settings))
    with shown as progress:
        for setting, evaluation in progress.each_of(measured.settings):
            rows.append(measure_setting(setting, evaluation, network))
            line = evaluation.target.line(rows[-1])
            log.say(line if len(rows) > 1 else f"{evaluation.target.titles}\n{line}")
            if processes.is_first():
                write_json(workdir / "steps.json", rows)


def measure_setting(setting: Setting, evaluation: Evaluation, network: dict) -> dict:
    """Numbers of one network in one setting, JSON values."""
    target, indices = evaluation.target, evaluation.indices
    counts, examples = target.measure(evaluation, network, indices, evaluation.protocol)
    file = f"{evaluation.stage}_steps{setting.steps}_draws{setting.draws}"
    target.draw(evaluation, examples, file, setting.steps)
    numbers = target.row(evaluation, counts)
    return {
        "stage": evaluation.stage,
        "steps": setting.steps,
        "draws": setting.draws,
        "images": len(evaluation.indices),
        "ms": milliseconds(evaluation, network),
        **{key: numbers.pop(key) for key in ("AUROC",) if key in numbers},
        **as_json(setting.recorded),
        **numbers,
    }


def milliseconds(evaluation: Evaluation, network: dict) -> float:
    """Time per image in a batch of the evaluation, under the whole protocol, after compilation."""
    run = batch_prediction(evaluation, network)
    run()
    seconds = []
    for _ in range(TIMED):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds) / evaluation.batch_size


def batch_prediction(evaluation: Evaluation, network: dict) -> Callable:
    """() -> the maps of a batch of the evaluation, which is full of its first example."""
    return (evaluation.target.batch or _batch_of_images)(evaluation, network)


def _batch_of_images(evaluation, network):
    """() -> the maps of a batch of the first image."""
    size = evaluation.batch_size
    images = np.repeat(evaluation.first_example["image"][None], size, 0)
    forward = make_forward(evaluation.task.predict, network, evaluation.mesh, size)
    return functools.partial(
        predict, forward, images, evaluation.protocol, decision=evaluation.target.decision
    )
