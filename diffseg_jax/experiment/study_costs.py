"""What a prediction takes at the points of a study, measured once for each architecture."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from diffseg_jax.devices.mesh import find_devices
from diffseg_jax.devices.settings import own_settings
from diffseg_jax.display.console import Display
from diffseg_jax.errors import UserError
from diffseg_jax.experiment.child_run import run_watched
from diffseg_jax.experiment.plan import check_config, plan_evaluations
from diffseg_jax.experiment.prediction_cost import cost_of_prediction, gflop_of
from diffseg_jax.experiment.study_cells import (
    StudyCell,
    cells_of_study,
    config_of,
    folder_of_run,
    name_of_labels,
    started_options,
)
from diffseg_jax.experiment.study_claim import require_same_study
from diffseg_jax.experiment.study_file import Study
from diffseg_jax.experiment.study_progress import (
    COSTS_FILE,
    costs_of_study,
    is_measured,
    points_without_costs,
    record_of_cell,
)
from diffseg_jax.experiment.study_report import report_study
from diffseg_jax.experiment.study_runs import measured_stage
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.storage.json_files import read_json_object
from diffseg_jax.storage.lock import locked
from diffseg_jax.storage.networks import open_network
from diffseg_jax.storage.paths import write_json
from diffseg_jax.storage.workdir import stage_directory


def run_costs(
    study: Study, cells: Sequence[StudyCell], workdir: Path, typed: Sequence[str], say: Callable
) -> str:  # fmt: skip
    """Measures what is missing in a process of its own, which has the devices for itself.

    typed  the command of that process, after python

    Returns why it failed, or "".
    """
    if not study.costs or not _first_of_points(cells, workdir):
        return ""
    say("\ncosts of a prediction at each point")
    status, _, last = run_watched(typed, workdir / "logs" / "costs.log", say)
    return (last.removeprefix("error: ") or f"exit code {status}") if status else ""


@own_settings()
def keep_costs(study: Study, workdir: Path, display: Display):
    """Measures the costs that are missing, keeps them in costs.json, and reports the study again.

    Raises UserError for a study without costs, for the workdir of another study, for one without a
    measured cell, while another process measures costs in it, and at the end for points that could
    not be measured.
    """
    if not study.costs:
        raise UserError(f"{study.name} shows no costs. Set costs=True in a copy of the file.")
    require_same_study(study, workdir)
    cells = cells_of_study(study)
    if not any(is_measured(record_of_cell(workdir, cell)) for cell in cells):
        raise UserError(
            f"{workdir} holds no measured cell of {study.name}. Run the study first, without "
            "--costs."
        )
    with locked(workdir, "costs", "--workdir"):
        known = costs_of_study(workdir)
        find_devices()
        failed = []
        try:
            for cell in _first_of_points(cells, workdir):
                name = name_of_labels(cell.labels)
                try:
                    known[name] = _cost_of_cell(study, cell, workdir, display, known.values())
                except (UserError, jax.errors.JaxRuntimeError) as error:  # such as a full memory
                    failed.append(f"{name} cannot be measured: {error}")
                    display.say(failed[-1])
                    continue
                write_json(workdir / COSTS_FILE, known)
                display.say(f"{name}: {_said(known[name])}")
        finally:  # also those before a stop
            report_study(study, cells, workdir)
    if failed:
        raise UserError(" ".join(failed))


def _first_of_points(cells, workdir) -> list[StudyCell]:
    """For each point whose costs are missing, the first of its cells that is measured."""
    points = points_without_costs(cells, workdir).values()
    found = [[e for e in each if is_measured(record_of_cell(workdir, e))] for each in points]
    return [each[0] for each in found if each]


def _cost_of_cell(study, cell, workdir, display, known) -> dict:
    """`cost_of_prediction` of the network of a cell, with the options by which it was measured."""
    folder, options = folder_of_run(workdir, cell.run), {**cell.run.options, **cell.measured}
    config = config_of(study, started_options(study, cell.run, workdir, options))
    config = config.copy_and_resolve_references()
    check_config(config)
    results = read_json_object(folder / "results.json", "")
    stage = measured_stage(study, results)
    (evaluation,) = plan_evaluations(config, folder, [stage], display)
    if evaluation.task.files:
        return {}
    with StageCheckpoints(stage_directory(folder, stage), read_only=True) as checkpoints:
        step = checkpoints.chosen(evaluation.keep_best)
    network, _ = open_network(stage_directory(folder, stage), step)
    with display.progress(f"measures {name_of_labels(cell.labels)}"):
        found = cost_of_prediction(evaluation, network, [each for each in known if each])
    evaluation.log.close()
    return found


def _said(cost):
    if not cost:
        return "reads features from files, so that no network is run"
    return f"{cost['parameters']:,} parameters, {gflop_of(cost):.3g} GFLOP, {cost['ms']:.3g} ms"
