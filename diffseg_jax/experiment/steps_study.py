"""Steps against quality: networks measured with several numbers of reverse steps and draws."""

import dataclasses
import time
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from diffseg_jax.devices import processes
from diffseg_jax.errors import UserError, counted
from diffseg_jax.experiment.plan import (
    Evaluation,
    check_config,
    labelled_stages,
    make_compiled_task,
    plan_evaluations,
)
from diffseg_jax.experiment.results import (
    auroc_of_measures,
    draw_predictions,
    measure,
    scores_of,
)
from diffseg_jax.figures import sheets
from diffseg_jax.inference.forward import make_forward
from diffseg_jax.inference.views import predict
from diffseg_jax.metrics import segmentation
from diffseg_jax.storage.checkpoints import StageCheckpoints, has_checkpoint
from diffseg_jax.storage.lock import locked_in_all
from diffseg_jax.storage.networks import open_network
from diffseg_jax.storage.paths import open_path, write_json
from diffseg_jax.storage.workdir import as_json, check_same, make_workdir, stage_directory
from diffseg_jax.systems.methods import SYSTEMS

TIMED = 3  # predictions, of which the fastest counts


def choose_steps(config: ConfigDict, workdir: Path):
    """Measures all stages of a run that can segment; leaves steps.json and pictures/steps.png.

    Where the workdir holds no checkpoint, the directory that a stage starts from is measured, such
    as one that `diffseg_jax.convert` wrote. Prints a table: mIoU, milliseconds per image, and the
    AUROC of every measure of uncertainty, for `sweep.steps` times `sweep.draws`. Raises UserError
    for a system without reverse steps, and where there is no checkpoint.
    """
    config = ConfigDict(config.to_dict())
    system = SYSTEMS.get(config.system)
    if system and not system.with_steps:
        raise UserError(
            f"--mode=steps is for ddp, but the config's system is {config.system}, whose "
            "predictions have no reverse steps. Try --config=configs/ddp_scenes.py."
        )
    check_config(config)
    networks = _networks(config, workdir)
    config.new_head = False  # nothing is trained here
    config.sampling.uncertainty = "entropy"  # exists for any number of steps; all are measured
    names = [name for name, _, _ in networks]
    evaluations = {e.stage: e for e in plan_evaluations(config, workdir, names)}
    make_workdir(workdir)
    with locked_in_all(workdir, "steps", "--workdir"):
        _measure_all(config, workdir, networks, evaluations)


def _measure_all(config, workdir, networks, evaluations):
    rows, system = [], SYSTEMS[config.system]
    for name, directory, step in networks:
        network, meta = open_network(directory, step)
        evaluation, log = evaluations[name], evaluations[name].log
        task = evaluation.task
        system.adopt(jax.eval_shape(task.init, jax.random.key(0)), task, network, meta["task"])
        settings = _sweep(config) if task.trace else [(0, 1)]
        images = counted(len(evaluation.indices), "image")
        log.say(f"{name}, step {meta['step']}: {images}, {counted(len(settings), 'setting')}")
        for steps, draws in settings:
            row = measure_setting(config, evaluation, network, steps, draws)
            rows.append({"stage": name, **row})
            log.say(line(rows[-1]) if len(rows) > 1 else f"{TITLES}\n{line(rows[-1])}")
            if processes.is_first():
                write_json(workdir / "steps.json", rows)
    image = workdir / "pictures" / "steps.png"
    if processes.is_first():
        sheets.save_png(image, sheets.steps_plot(rows))
    log.say(f"finished; numbers in {workdir / 'steps.json'}, a plot in {image}")
    log.close()


def _networks(config, workdir):
    """(stage, directory, step) of every network to measure."""
    found = []
    for name in labelled_stages(config):
        directory = stage_directory(workdir, name)
        if has_checkpoint(directory):
            with StageCheckpoints(directory, read_only=True) as checkpoints:
                best = config.evaluate.checkpoint == "best"
                found.append((name, directory, checkpoints.chosen(best)))
    if found:
        check_same(config, workdir, may_differ=("evaluate", "mesh", "sampling", "sweep"))
        return found
    for name in reversed(labelled_stages(config)):
        start = open_path(config.stages[name].start)
        if has_checkpoint(start):
            return [(name, start, None)]
    starts = " or ".join(f"stages.{name}.start={config.stages[name].start}" for name in config.run)
    raise UserError(
        f"{workdir} holds no checkpoint of {' or '.join(config.run)}, and {starts} is no directory "
        "of one. Train first, or try --config.stages.train.start=runs/a/checkpoints/train."
    )


def _sweep(config):
    return [(steps, draws) for draws in config.sweep.draws for steps in config.sweep.steps]


def measure_setting(
    config: ConfigDict, evaluation: Evaluation, network: dict, steps: int, draws: int
) -> dict:
    """Numbers of one network at so many reverse steps and draws; 0 steps for one that has none."""
    if steps:
        config = SYSTEMS[config.system].with_steps(config, steps, draws)
        classes = len(evaluation.source.labels.names)
        task = make_compiled_task(config, evaluation.stage, classes, evaluation.mesh)
        evaluation = dataclasses.replace(evaluation, task=task)
    counts, examples = measure(evaluation, network, evaluation.indices, evaluation.protocol)
    draw_predictions(evaluation, examples, f"{evaluation.stage}_steps{steps}_draws{draws}", steps)
    return {
        "steps": steps,
        "draws": draws,
        "images": len(evaluation.indices),
        "ms": milliseconds(evaluation, network),
        "AUROC": auroc_of_measures(counts),
        "sampling": as_json(config.sampling.to_dict()),
        **segmentation.to_json(scores_of(evaluation, counts), evaluation.source.labels.names),
    }


def milliseconds(evaluation: Evaluation, network: dict) -> float:
    """Time per image in a batch of the evaluation, under the whole protocol, after compilation."""
    size = evaluation.batch_size
    images = np.repeat(evaluation.source[0]["image"][None], size, 0)
    forward = make_forward(evaluation.task.predict, network, evaluation.mesh, size)
    predict(forward, images, evaluation.protocol)
    seconds = []
    for _ in range(TIMED):
        start = time.perf_counter()
        predict(forward, images, evaluation.protocol)
        seconds.append(time.perf_counter() - start)
    return 1000 * min(seconds) / size


TITLES = f"{'stage':>10} steps draws  mIoU (%)   ms/image  AUROC"


def line(row: dict) -> str:
    """A setting's numbers, below TITLES."""
    areas = "  ".join(f"{name} {_three_digits(value)}" for name, value in row["AUROC"].items())
    steps = row["steps"] or "-"
    return (
        f"{row['stage']:>10} {steps:>5} {row['draws']:>5}  {100 * row['mIoU']:8.2f}  "
        f"{row['ms']:9.3g}  {areas}"
    )


def _three_digits(value):
    return "-" if value is None else f"{value:.3f}"
