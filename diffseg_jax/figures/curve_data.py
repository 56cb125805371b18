"""Reads the numbers of runs from metrics.jsonl, for curves."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffseg_jax.errors import UserError, shortened
from diffseg_jax.storage.paths import open_path, reachable
from diffseg_jax.storage.similar import similar_path

MAX_NUMBER = 2**53  # larger steps and values are ignored
MAX_CURVE_NAME = 48  # characters of a curve's name
NO_CURVES = ("stage", "step", "time", "images")  # keys of metrics.jsonl


@dataclass(frozen=True)
class Curve:
    """The numbers of one stage of one run.

    name    in the legend
    run     index of its workdir among the given ones;  stage  index of its stage
    values  {quantity: (steps i64[N], ascending; values f64[N], NaN if not finite)}
    """

    name: str
    run: int
    stage: int
    values: dict[str, tuple[np.ndarray, np.ndarray]]


def read_curves(workdirs: Sequence[str | os.PathLike]) -> list[Curve]:
    """A curve per run and stage: runs in the given order, stages as they were written.

    Raises UserError for a workdir that does not exist, or that has no numbers.
    """
    runs = {str(workdir).rstrip("/") or "/": read_numbers(workdir) for workdir in workdirs}
    stages = list(dict.fromkeys(stage for stages in runs.values() for stage in stages))
    names = run_names(list(runs))
    return [
        Curve(_curve_name(name, stage, len(runs), len(stages)), i, stages.index(stage), values)
        for i, (name, run) in enumerate(zip(names, runs.values(), strict=True))
        for stage, values in run.items()
    ]


def read_numbers(workdir: str | os.PathLike) -> dict[str, dict[str, tuple]]:
    """{stage: {quantity: (steps, values)}} of a workdir's metrics.jsonl.

    If a step occurs twice, as after a resumed run, the later number counts. Incomplete lines are
    skipped, such as the last line of a run that is still writing.
    """
    points = {}
    for record in _records(workdir):
        for quantity, value in record.items():
            if quantity not in NO_CURVES and type(value) in (int, float):
                curve = points.setdefault(record["stage"], {}).setdefault(quantity, {})
                curve[record["step"]] = float(value) if abs(value) < MAX_NUMBER else np.nan
    if not points:
        raise UserError(
            f"{workdir}/metrics.jsonl holds no numbers yet. Wait until the run has logged its "
            "first steps, or give another --workdir."
        )
    return {
        stage: {quantity: _sorted(curve) for quantity, curve in quantities.items()}
        for stage, quantities in points.items()
    }


def _records(workdir):
    """The lines of metrics.jsonl that are JSON objects with a stage and a step."""
    folder = open_path(workdir)
    with reachable(folder):
        if not folder.is_dir():
            near = similar_path(folder, fits=Path.is_dir)
            raise UserError(
                f"there is no folder {workdir}. Give a --workdir that main wrote.{near}"
            )
        file = folder / "metrics.jsonl"
        if not file.is_file():
            raise UserError(
                f"{workdir} holds no metrics.jsonl. Give a --workdir in which main has trained."
            )
        lines = file.read_bytes().splitlines()
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if (
            isinstance(record, dict)
            and isinstance(record.get("stage"), str)
            and type(record.get("step")) is int
            and 0 <= record["step"] < MAX_NUMBER
        ):
            yield record


def _sorted(curve: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    steps = np.array(sorted(curve), np.int64)
    return steps, np.array([curve[step] for step in steps.tolist()])


def run_names(workdirs: Sequence[str]) -> list[str]:
    """The last part of each path, or the last parts if it takes more of them to differ."""
    parts = [workdir.split("/") for workdir in workdirs]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            break
    return names


def _curve_name(run: str, stage: str, runs: int, stages: int) -> str:
    name = stage if runs == 1 else run if stages == 1 else f"{run}, {stage}"
    return shortened(name, MAX_CURVE_NAME)
