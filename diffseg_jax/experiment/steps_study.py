"""Steps against quality: DDP checkpoints measured with several numbers of steps and draws."""

import time
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from diffseg_jax.devices import processes
from diffseg_jax.errors import UserError, counted
from diffseg_jax.experiment.monitor import draw_predictions, measure, measured, scores_of
from diffseg_jax.experiment.plan import Run, compiled, start_run
from diffseg_jax.experiment.train import chosen_step
from diffseg_jax.figures import sheets
from diffseg_jax.inference.forward import make_forward
from diffseg_jax.inference.views import Protocol, predict, protocol_of
from diffseg_jax.metrics import segmentation
from diffseg_jax.storage.checkpoints import (
    StageCheckpoints,
    has_checkpoint,
    open_network,
)
from diffseg_jax.storage.paths import write_json
from diffseg_jax.storage.workdir import as_json, check_same, make_workdir
from diffseg_jax.systems import ddp
from diffseg_jax.systems.system import Task

TIMED = 3  # answers, of which the fastest counts


def choose_steps(config: ConfigDict, workdir: Path):
    """Measures all stages of a run that can segment; leaves steps.json and pictures/steps.png.

    Where the workdir holds no checkpoint, the directory that a stage starts from is measured, such
    as one that `diffseg_jax.convert` wrote. Prints a table: mIoU, milliseconds per picture, and the
    AUROC of every measure of uncertainty, for `sweep.steps` times `sweep.draws`. Raises UserError
    for another system, and where there is no checkpoint.
    """
    if config.system != "ddp":
        raise UserError(
            f"--mode=steps is for ddp, but the config's system is {config.system}, whose answers "
            "have no reverse steps. Try --config=configs/ddp_scenes.py."
        )
    run = start_run(ConfigDict(config.to_dict()), workdir)
    networks = _networks(run)
    run.config.new_head = False  # nothing is trained here
    run.config.sampling.uncertainty = "entropy"  # of any number of steps; all measures are counted
    rows = []
    for name, directory, step in networks:
        network, meta = open_network(directory, step)
        task = run.task(name)
        ddp.adopt(jax.eval_shape(task.init, jax.random.key(0)), task, network, meta["task"])
        sweep = [(0, 1)] if meta["task"]["kind"] == "plain" else _sweep(run.config)
        places = len(run.places_of_val(run.config.evaluate.images))
        settings = counted(len(sweep), "setting")
        make_workdir(workdir)
        run.log.say(f"{name}, step {meta['step']}: {counted(places, 'image')}, {settings}")
        for steps, draws in sweep:
            rows.append({"stage": name, **measure_setting(run, name, network, steps, draws)})
            run.log.say(line(rows[-1]) if len(rows) > 1 else f"{TITLES}\n{line(rows[-1])}")
            if processes.is_first():
                write_json(workdir / "steps.json", rows)
    picture = workdir / "pictures" / "steps.png"
    if processes.is_first():
        sheets.save_png(picture, sheets.steps_plot(rows))
    run.log.say(f"finished; numbers in {workdir / 'steps.json'}, a plot in {picture}")
    run.log.close()


def _networks(run: Run):
    """(stage, directory, step) of every network to measure."""
    config, workdir = run.config, run.workdir
    found = []
    for name in config.run:
        directory = workdir / "checkpoints" / name
        if has_checkpoint(directory):
            with StageCheckpoints(directory, read_only=True) as checkpoints:
                found.append((name, directory, chosen_step(run, checkpoints)))
    if found:
        check_same(config, workdir, may_differ=("evaluate", "mesh", "sampling", "sweep"))
        return found
    for name in reversed(config.run):
        if has_checkpoint(config.stages[name].start):
            return [(name, config.stages[name].start, None)]
    starts = " or ".join(f"stages.{name}.start={config.stages[name].start}" for name in config.run)
    raise UserError(
        f"{workdir} holds no checkpoint of {' or '.join(config.run)}, and {starts} is no directory "
        "of one. Train first, or try --config.stages.train.start=runs/a/checkpoints/train."
    )


def _sweep(config):
    return [(steps, draws) for draws in config.sweep.draws for steps in config.sweep.steps]


def measure_setting(run: Run, name: str, network: dict, steps: int, draws: int) -> dict:
    """Numbers of one network at so many reverse steps and draws; 0 steps for one that has none."""
    sampling = run.config.sampling
    if steps:
        sampling.steps, sampling.draws = steps, draws
    stage, classes = run.config.stages[name], len(run.val.labels.names)
    task = ddp.make_task(run.config, stage.kind, tuple(stage.augment.crop), classes)
    task = compiled(task, run.mesh)
    protocol = protocol_of(run.config.evaluate)
    places = run.places_of_val(run.config.evaluate.images)
    counts, kept = measure(run, task, network, places, protocol)
    draw_predictions(run, kept, f"{name}_steps{steps}_draws{draws}", name, steps)
    return {
        "steps": steps,
        "draws": draws,
        "images": len(places),
        "ms": milliseconds(run, task, network, protocol),
        "AUROC": measured(counts),
        "sampling": as_json(sampling.to_dict()),
        **segmentation.to_json(scores_of(run, counts), run.val.labels.names),
    }


def milliseconds(run: Run, task: Task, network: dict, protocol: Protocol) -> float:
    """Time of one picture in a batch of the evaluation, by the whole protocol, compiled before."""
    size = run.config.evaluate.batch_size
    images = np.repeat(run.val[0]["image"][None], size, 0)
    forward = make_forward(task.predict, network, run.mesh, size)
    predict(forward, images, protocol)
    seconds = []
    for _ in range(TIMED):
        begun = time.perf_counter()
        predict(forward, images, protocol)
        seconds.append(time.perf_counter() - begun)
    return 1000 * min(seconds) / size


TITLES = f"{'stage':>10} steps draws  mIoU (%)   ms/image  AUROC"


def line(row: dict) -> str:
    """A setting's numbers, below TITLES."""
    areas = "  ".join(f"{name} {_three(value)}" for name, value in row["AUROC"].items())
    steps = row["steps"] or "-"
    return (
        f"{row['stage']:>10} {steps:>5} {row['draws']:>5}  {100 * row['mIoU']:8.2f}  "
        f"{row['ms']:9.3g}  {areas}"
    )


def _three(value):
    return "-" if value is None else f"{value:.3f}"
