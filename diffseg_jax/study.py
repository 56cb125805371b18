"""Runs a study: a grid of trainings of one config, and the table that compares them.

  python -m diffseg_jax.study --config=configs/studies/label_fractions.py:scenes \\
      --workdir=runs/study --dry-run
  python -m diffseg_jax.study --config=configs/studies/label_fractions.py:folder \\
      --workdir=runs/mine --config.data.path=mine

The file in configs/studies/ names a base config, axes (options and their values), seeds, and the
numbers to collect; presets follow a colon. Every option of the base config that neither axes nor
seeds set can be changed for all cells by --config.option=value. Each cell is a run of python -m
diffseg_jax.main in a folder of its own; what cells have in common, such as one pretraining, is run
once. The workdir gets table.md, table.csv, plot.png, and commands.sh with the command of every
cell.

exit codes: 0 finished, 2 a mistake or a failed cell, 130 stopped; the same command resumes.
"""

import sys
from collections.abc import Sequence

from diffseg_jax.display import loading

if loading.is_command():
    loading.begin()

from diffseg_jax.config.flags import Flags, split_overrides
from diffseg_jax.display.output import standard_outputs
from diffseg_jax.errors import UserError
from diffseg_jax.experiment.study_cells import cells_of_study, require_data
from diffseg_jax.experiment.study_claim import require_same_study
from diffseg_jax.experiment.study_file import read_study
from diffseg_jax.experiment.study_progress import listing, space_of_features
from diffseg_jax.storage.outputs import open_local


def make_flags() -> Flags:
    """All flags."""
    flags = Flags("study", __doc__)
    add = flags.add_argument
    add("--config", required=True, metavar="FILE[:PRESET]", help="a file in configs/studies/")
    add("--workdir", required=True, metavar="DIR", help="folder of the study")
    add("--dry-run", action="store_true", help="list the cells and their time, and run nothing")
    costs = "measure what a prediction takes in finished cells; a study does so at its end"
    add("--costs", action="store_true", help=costs)
    return flags


def main(arguments: Sequence[str] | None = None):
    """The command line; --dry-run lists the cells before the slow imports of a run."""
    loading.end()
    typed = sys.argv[1:] if arguments is None else arguments
    with standard_outputs():
        try:
            given, study, workdir = _opened(typed)
            require_same_study(study, workdir)
            if given.dry_run:
                cells = cells_of_study(study)
                print(listing(study, cells, workdir))
                for line in space_of_features(study, cells):
                    print(line)
                require_data(study, cells)
                return
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
    from diffseg_jax.display.console import Display

    with Display().progress("loading"):
        from diffseg_jax.cli import use_cache, user_errors
        from diffseg_jax.experiment.study_costs import keep_costs
        from diffseg_jax.experiment.study_run import run_study
    with user_errors("stopped; the same command resumes"):
        if given.costs:
            use_cache()
            keep_costs(study, workdir, Display())
        else:
            run_study(study, workdir, Display(), typed)


def _opened(arguments):
    """The flags, the study and its workdir."""
    arguments, overrides = split_overrides(arguments)
    given = make_flags().parse_args(arguments)
    workdir = open_local(given.workdir, "--workdir", "runs/study").resolve()  # runs keep its name
    return given, read_study(given.config, overrides), workdir


if __name__ == "__main__":
    main()
