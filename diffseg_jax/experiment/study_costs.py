"""What a prediction takes at the points of a study, measured once for each architecture."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from diffseg_jax.devices.mesh import find_devices
from diffseg_jax.devices.settings import own_settings
from diffseg_jax.display.console import Display
from diffseg_jax.errors import UserError
from diffseg_jax.experiment.child_run import run_watched
from diffseg_jax.experiment.plan import check_config, plan_evaluations
from diffseg_jax.experiment.prediction_cost import cost_of_prediction
from diffseg_jax.experiment.study_cells import (
    StudyCell,
    cells_of_study,
    config_of,
    folder_of_run,
    name_of_point,
    started_options,
)
from diffseg_jax.experiment.study_file import Study
from diffseg_jax.experiment.study_runs import is_measured, record_of_cell
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.storage.networks import open_network
from diffseg_jax.storage.paths import read_object, write_json
from diffseg_jax.storage.workdir import read_json_object, stage_directory

COSTS_FILE = "costs.json"


def run_costs(
    study: Study, cells: Sequence[StudyCell], workdir: Path, typed: Sequence[str], say: Callable
) -> str:  # fmt: skip
    """Measures what is missing in a process of its own, which has the devices for itself.

    typed  the command of that process, after python

    Returns why it failed, or "".
    """
    if not study.costs or not points_without_costs(cells, workdir):
        return ""
    say("\ncosts of a prediction at each point")
    status, _, last = run_watched(typed, workdir / "logs" / "costs.log", say)
    return (last.removeprefix("error: ") or f"exit code {status}") if status else ""


def points_without_costs(cells: Sequence[StudyCell], workdir: Path) -> list[StudyCell]:
    """For each point whose costs are missing, the first of its cells that is measured."""
    known, first = costs_of_study(workdir), {}
    for cell in cells:
        if is_measured(record_of_cell(workdir, cell)):
            first.setdefault(cell.labels, cell)
    return [cell for labels, cell in first.items() if name_of_point(labels) not in known]


def costs_of_study(workdir: Path) -> dict[str, Mapping]:
    """`name_of_point` -> `cost_of_prediction`, or {} where a prediction runs no network."""
    return read_object(workdir / COSTS_FILE)


@own_settings()
def keep_costs(study: Study, workdir: Path, display: Display):
    """Measures the costs that are missing, and keeps them in costs.json.

    Raises UserError for a workdir without a measured cell.
    """
    cells = cells_of_study(study)
    waiting, known = points_without_costs(cells, workdir), costs_of_study(workdir)
    if not waiting and not known:
        raise UserError(
            f"{workdir} holds no measured cell of {study.name}. Run the study first, without "
            "--costs."
        )
    find_devices()
    for cell in waiting:
        name = name_of_point(cell.labels)
        known[name] = _cost_of_cell(study, cell, workdir, display, known.values())
        write_json(workdir / COSTS_FILE, known)
        display.say(f"{name}: {_said(known[name])}")


def _cost_of_cell(study, cell, workdir, display, known) -> dict:
    """`cost_of_prediction` of the network of a cell, with the options by which it was measured."""
    folder, options = folder_of_run(workdir, cell.run), {**cell.run.options, **cell.measured}
    config = config_of(study, started_options(study, cell.run, workdir, options))
    config = config.copy_and_resolve_references()
    check_config(config)
    results = read_json_object(folder / "results.json", "")
    stage = study.stage or next(reversed(results))
    (evaluation,) = plan_evaluations(config, folder, [stage], display)
    if evaluation.task.files:
        return {}
    with StageCheckpoints(stage_directory(folder, stage), read_only=True) as checkpoints:
        step = checkpoints.chosen(evaluation.keep_best)
    network, _ = open_network(stage_directory(folder, stage), step)
    with display.progress(f"measures {name_of_point(cell.labels)}"):
        found = cost_of_prediction(evaluation, network, [each for each in known if each])
    evaluation.log.close()
    return found


def _said(cost):
    if not cost:
        return "reads features from files, so that no network is run"
    gflop = sum(cost["operations"].values()) / 1e9
    return f"{cost['parameters']:,} parameters, {gflop:.3g} GFLOP, {cost['ms']:.3g} ms"
