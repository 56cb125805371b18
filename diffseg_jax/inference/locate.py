"""Finds a trained network: the directory of a stage, and the step to open."""

import math
import os
from pathlib import Path

from diffseg_jax.errors import UserError, choose
from diffseg_jax.storage.checkpoints import (
    StageCheckpoints,
    has_checkpoint,
    score_of,
    steps_in,
)
from diffseg_jax.storage.hub import fetch, in_hub
from diffseg_jax.storage.networks import open_meta
from diffseg_jax.storage.paths import open_path, reachable
from diffseg_jax.storage.similar import similar_path
from diffseg_jax.storage.workdir import read_results, saved_config

PRETRAINED = {"scenes": Path(__file__).parents[1] / "pretrained" / "scenes"}  # in the package
OF_STAGES = "checkpoints"  # of a workdir, which may be given in its place


def find_stage(path: str | os.PathLike, stage: str | None = None) -> Path:
    """The directory of a stage for a path, as of `load`.

    Raises UserError with the searched paths if there is none.
    """
    if str(path).startswith(("hf:/", "gs:/")) and "://" not in str(path):
        raise UserError(
            f"{path} was an address before pathlib changed it. Give it as text, such as "
            '"gs://bucket/runs/a".'
        )
    given, path = path, open_path(fetch(str(path)) if in_hub(path) else path)
    with reachable(path):
        if path.name == OF_STAGES and stages_in(path.parent):
            path = path.parent
        stages = stages_in(path)
        if not stages and not has_checkpoint(path) and str(path) in PRETRAINED:
            path = PRETRAINED[str(path)]
        if has_checkpoint(path):
            if stage not in (None, path.name):
                raise UserError(f"{path} is one stage already. Leave the stage out.")
            return path
        if stages:
            return choose(stages, stage or best_stage(path, stages), f"stage in {given}")
    if path.is_file():
        raise UserError(
            f"{path} is a file, but a checkpoint is a directory. python -m diffseg_jax.convert "
            "makes one of an official file."
        )
    if path.name.isdigit() and has_checkpoint(path.parent):
        raise UserError(
            f"{path} is one step of a stage. Give {path.parent}; load(..., step={path.name}) and "
            f"predict --step={path.name} open this step of it."
        )
    problem = "holds no checkpoint" if path.is_dir() else "does not exist"
    raise UserError(
        f"{given} {problem}: looked for {given}/<step> and {given}/checkpoints/<stage>/<step>. "
        "Give a workdir, the directory of a stage or of a converted file, or "
        f"{', '.join(PRETRAINED)}.{similar_path(path, PRETRAINED, _is_trained)}"
    )


def _is_trained(path):
    return has_checkpoint(path) or bool(stages_in(path.parent if path.name == OF_STAGES else path))


def stages_in(workdir: Path) -> dict[str, Path]:
    """Name -> directory of the stages of a workdir that hold a checkpoint, in its run's order."""
    found = {folder.name: folder for folder in sorted(workdir.glob(f"{OF_STAGES}/*"))}
    found = {name: folder for name, folder in found.items() if has_checkpoint(folder)}
    run = saved_config(workdir).get("run", [])
    return {name: found[name] for name in sorted(found, key=lambda n: n in run and run.index(n))}


def best_stage(workdir: Path, stages: dict[str, Path]) -> str:
    """The stage that `load` opens by default; a run may hold others to compare with."""
    results = read_results(workdir)
    scores = {name: score_of(numbers_in(results.get(name, {}))) for name in stages}
    measured = [name for name in stages if not math.isnan(scores[name])]
    if measured:
        return max(measured, key=scores.get)
    learned = {"classes", "labelled"}  # keys of stages with labels
    predicting = [name for name, folder in stages.items() if learned & open_meta(folder).keys()]
    return (predicting or list(stages))[-1]


def numbers_in(result: dict) -> dict[str, float]:
    """The numbers of an entry of results.json."""
    return {key: value for key, value in result.items() if isinstance(value, float | int)}


def step_to_open(directory: Path, step: int | None = None) -> int | None:
    """The step to open: the given one, the best if the config says so, or None for the last.

    Raises UserError for a step that does not exist.
    """
    saved = sorted(steps_in(directory))
    if step is not None and step not in saved:
        raise UserError(f"{directory} holds no step {step}. It holds {', '.join(map(str, saved))}.")
    evaluate = open_meta(directory)["config"].get("evaluate", {})
    if step is None and evaluate.get("checkpoint") == "best":
        with StageCheckpoints(directory, read_only=True) as checkpoints:
            return checkpoints.best()
    return step
