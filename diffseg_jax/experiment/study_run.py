"""A study from its file to its table."""

import signal
from collections.abc import Sequence
from pathlib import Path

from diffseg_jax.display.console import Display
from diffseg_jax.errors import UserError, counted
from diffseg_jax.experiment.study_cells import cells_of_study, require_data
from diffseg_jax.experiment.study_claim import claim_study
from diffseg_jax.experiment.study_costs import run_costs
from diffseg_jax.experiment.study_file import Study
from diffseg_jax.experiment.study_progress import (
    has_all_numbers,
    listing,
    record_of_cell,
    space_of_features,
)
from diffseg_jax.experiment.study_report import draw_study, report_study
from diffseg_jax.experiment.study_runs import (
    check_cells,
    run_cells_of_study,
    write_commands,
)
from diffseg_jax.experiment.study_scores import keep_class_sizes
from diffseg_jax.storage.lock import locked, require_free
from diffseg_jax.storage.workdir import make_workdir


def run_study(study: Study, workdir: Path, display: Display, typed: Sequence[str]):
    """Runs what is missing, and leaves table.md, table.csv, plot.png and commands.sh.

    typed  the arguments of the command

    Raises UserError for a config that cannot run, before anything runs, and at the end if a cell
    failed.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the run that goes on ends too
    cells = cells_of_study(study)
    with display.progress("checks the configs of the cells"):
        check_cells(study, cells)
        require_data(study, cells)
    require_free(workdir, "study", "--workdir")
    make_workdir(workdir)
    with locked(workdir, "study", "--workdir"):
        keep_class_sizes(study, cells, workdir)
        claim_study(study, workdir)
        costs = ["-m", "diffseg_jax.study", *typed, "--costs"]
        write_commands(study, cells, workdir, costs)
        done = lambda cell: has_all_numbers(study, record_of_cell(workdir, cell))
        display.say("\n".join([listing(study, cells, workdir), *space_of_features(study, cells)]))
        known = {}
        measured = lambda: report_study(study, cells, workdir, known)
        run_cells_of_study(study, cells, workdir, display, measured)
        reason = run_costs(study, cells, workdir, costs, display.say)
        display.say("\n" + report_study(study, cells, workdir, known))
        plots = draw_study(study, cells, workdir)
    failed = [cell.name for cell in cells if not done(cell)]
    if failed:
        lacking = f" The costs of a prediction are missing too: {reason}" if reason else ""
        raise UserError(
            f"{counted(len(failed), 'cell')} of {len(cells)} failed: {', '.join(failed)}. "
            f"{workdir}/table.md says why, their output is in {workdir}/logs. The same command "
            f"runs them again.{lacking}"
        )
    if reason:
        raise UserError(f"all cells are measured, but not the costs of a prediction: {reason}")
    drawn = f", plot in {plots[0]}" if plots else ""
    display.say(f"table in {workdir}/table.md and table.csv{drawn}")
