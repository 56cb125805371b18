"""What one command does: stages one after another, and their results."""

from pathlib import Path

from ml_collections import ConfigDict

from diffseg_jax.devices import processes
from diffseg_jax.errors import UserError
from diffseg_jax.experiment.ensemble_stage import check_fit, fit_stage
from diffseg_jax.experiment.gradient_stage import (
    check_stages,
    describe_stage,
    make_stage,
    read_some,
)
from diffseg_jax.experiment.monitor import result_of
from diffseg_jax.experiment.plan import Run, is_fit, is_labelled, left_out, start_run
from diffseg_jax.metrics import segmentation
from diffseg_jax.storage.checkpoints import Damaged, StageCheckpoints, open_network
from diffseg_jax.storage.paths import write_json
from diffseg_jax.storage.workdir import check_same, claim_workdir, read_results
from diffseg_jax.systems.system import Task
from diffseg_jax.training import loop


def train(config: ConfigDict, workdir: Path):
    """Runs the stages that are not finished yet and leaves results.json."""
    run = start_run(config, workdir)
    check_stages(run)
    read_some(run)
    for name in config.run:
        if is_fit(config, name) and not left_out(run, name):
            check_fit(run, name)
    claim_workdir(config, workdir)
    measured = read_results(workdir)
    results = {}
    for name in config.run:
        if left_out(run, name):
            run.log.say(f"{name}: left out")
            continue
        task, network = run.task(name), None
        with StageCheckpoints(workdir / "checkpoints" / name) as checkpoints:
            while network is None:  # a finished stage, too, may have been damaged since
                if is_finished(run, name, checkpoints):
                    run.log.say(f"{name}: is finished")
                else:
                    run_stage(run, name, task, checkpoints)
                    measured.pop(name, None)
                network = read_chosen(run, checkpoints)
        if name in measured:
            results[name] = measured[name]
        elif task.predict:
            results[name] = result_of(run, name, task, *network)
            write_results(run, {**measured, **results}, "results.json")
    finish(run, results, "results.json")


def read_chosen(run: Run, checkpoints: StageCheckpoints) -> tuple[dict, dict] | None:
    """The network of a stage and its meta; None if it is damaged, which is then put aside."""
    try:
        return open_network(checkpoints.directory, chosen_step(run, checkpoints))
    except Damaged as error:
        checkpoints.put_aside(error, run.log.say)
        return None


def is_finished(run: Run, name: str, checkpoints: StageCheckpoints) -> bool:
    """Whether a stage has made its last step."""
    step = checkpoints.latest()
    if is_fit(run.config, name):
        return step is not None and checkpoints.meta(step)["finished"]
    return step == run.config.stages[name].steps and checkpoints.meta(step)["evaluated"]


def run_stage(run: Run, name: str, task: Task, checkpoints: StageCheckpoints):
    """Trains or fits a stage from where it stopped to its end."""
    if is_fit(run.config, name):
        fit_stage(run, name, checkpoints)
        return
    stage = make_stage(run, name, task)
    describe_stage(run, stage)
    loop.run(stage, checkpoints, run.mesh, run.log)


def evaluate_only(config: ConfigDict, workdir: Path):
    """Evaluates the stages that have a checkpoint, with the options at hand; results_eval.json."""
    if not (workdir / "config.json").exists():
        raise UserError(f"{workdir} holds no run. Train first, with --mode=train.")
    run = start_run(config, workdir)
    if not any(is_labelled(run, name) for name in config.run):
        raise UserError(
            "no stage in config.run learns from labels, so there is nothing to evaluate. Pictures "
            "of a diffusion model are drawn by python -m diffseg_jax.sample."
        )
    check_same(config, workdir, may_differ=("evaluate", "mesh", "sampling", "sweep"))
    results = {}
    for name in config.run:
        directory = workdir / "checkpoints" / name
        if not is_labelled(run, name) or not directory.is_dir():
            continue
        with StageCheckpoints(directory, read_only=True) as checkpoints:
            step = chosen_step(run, checkpoints)
        if step is None:
            continue
        network, meta = open_network(directory, step)
        results[name] = result_of(run, name, run.task(name), network, meta, "eval")
    if not results:
        raise UserError(f"{workdir} holds no checkpoint that can segment yet. Train first.")
    finish(run, results, "results_eval.json")


def write_results(run: Run, results: dict, file: str):
    """The results of the stages so far, in the order of the run."""
    if processes.is_first():
        ordered = {name: results[name] for name in run.config.run if name in results}
        write_json(run.workdir / file, ordered)


def finish(run: Run, results: dict, file: str):
    """Writes the results and shows them as a table."""
    if not results:
        stage = run.workdir / "checkpoints" / run.config.run[-1]
        draws = run.tasks and run.task(run.config.run[-1]).sample
        advice = f"pictures: python -m diffseg_jax.sample --checkpoint={stage} --output=samples"
        nothing = "no stage of this run segments, so there is nothing to measure"
        run.log.say(f"finished; {advice if draws else nothing}")
        run.log.close()
        return
    write_results(run, results, file)
    columns = {}
    for name, result in results.items():
        columns[f"{name} (from {result['start']})"] = result
        if run.system.CONVENTION in result:
            columns[f"{name}, as {run.system.CONVENTION}"] = result[run.system.CONVENTION]
    run.log.say(segmentation.format_table(columns))
    pictures = run.workdir / "pictures"
    run.log.say(f"finished; numbers in {run.workdir / file}, pictures in {pictures}")
    run.log.close()


def chosen_step(run: Run, checkpoints: StageCheckpoints) -> int | None:
    """The step whose network is measured: the last or the best, as the config says."""
    best = "evaluate" in run.config and run.config.evaluate.checkpoint == "best"
    return checkpoints.best() if best else checkpoints.latest()
