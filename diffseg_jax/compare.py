"""Compares what can be learned from a folder of labelled images in a given time.

  python -m diffseg_jax.compare --data=mine --unlabelled=photos --minutes=30 --workdir=runs/compare

It trains classifiers on the features of a network from ImageNet, a random forest on filters, DDP,
denoising pretraining, and classifiers on a diffusion model of the unlabelled images, each of them
on the same folds of the labelled images, as far as the minutes reach. It leaves table.md and
sheet.png in the workdir and prints the command to go on with the best one. After a stop the same
command resumes.

methods:
  few_labels  classifiers on the features of EfficientNet-Lite0 (extra "pretrained")
  forest      random forest on filters, the baseline (extra "compare")
  ddp         DDP
  ddep        a TransUNet that first learns to denoise the unlabelled images
  adm         classifiers on the features of a diffusion model of the unlabelled images
"""

import signal
from collections.abc import Sequence
from pathlib import Path

from diffseg_jax.cli import Flags, names, number, user_errors
from diffseg_jax.display.console import Display
from diffseg_jax.errors import UserError, require_known
from diffseg_jax.experiment.comparison import METHODS, Comparison, usual_folds
from diffseg_jax.experiment.comparison_report import compare_methods, next_step
from diffseg_jax.storage.lock import locked, require_free
from diffseg_jax.storage.outputs import open_local

CONFIGS = Path(__file__).parents[1] / "configs"  # of the repository


def make_flags() -> Flags:
    """All flags."""
    flags = Flags("compare", __doc__)
    add = flags.add_argument
    data = "labelled images, as config.data.path of configs/ddp_folder.py"
    add("--data", required=True, metavar="DIR", help=data)
    more = "images without labels; default: those of --data"
    add("--unlabelled", default="", metavar="DIR", help=more)
    add("--minutes", type=number(float, 1), default=30.0, metavar="X", help="in all; default: 30")
    add("--workdir", default="runs/compare", metavar="DIR", help="default: runs/compare")
    folds = "default: 3, or 1 where there are validation images, which then serve all methods"
    add("--folds", type=number(int, 1, 20), default=0, metavar="N", help=folds)
    add("--methods", type=names, default=tuple(METHODS), metavar="A,B", help="default: all")
    add("--seed", type=number(int, 0, 2**31 - 1), default=0, metavar="N", help="default: 0")
    configs = "folder of the configs; default: that of the repository"
    add("--configs", default="", metavar="DIR", help=configs)
    return flags


def main(arguments: Sequence[str] | None = None):
    """The command line."""
    with user_errors("stopped; the same command resumes"):
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # the run that goes on ends too
        given = make_flags().parse_args(arguments)
        for name in given.methods:
            require_known(name, METHODS, "method")
        if not given.methods:
            raise UserError(f"no method is named. Known: {', '.join(METHODS)}.")
        workdir = open_local(given.workdir, "--workdir", "runs/compare")
        configs = given.configs or _configs()
        require_free(workdir, "compare", "--workdir")
        comparison = Comparison(
            data=given.data, unlabelled=given.unlabelled or given.data, minutes=given.minutes,
            folds=_folds(given.folds, usual_folds(given.data, configs)), seed=given.seed,
            configs=configs, workdir=workdir, display=Display(),
        )  # fmt: skip
        workdir.mkdir(parents=True, exist_ok=True)
        with locked(workdir, "compare", "--workdir"):
            methods = [name for name in METHODS if name in given.methods]  # dropped from the end
            rows = compare_methods(comparison, methods)
        print(f"table in {workdir}/table.md, predictions in {workdir}/sheet.png")
        print(next_step(comparison, rows))


def _folds(given, usual):
    """The number of folds; 1 is that of data with validation images alone."""
    if given == 1 < usual:
        raise UserError(
            "--folds=1 needs validation images, but the data have none: with one fold nothing "
            f"would be held out. Try --folds={usual}."
        )
    return given or usual


def _configs():
    """The folder of the configs, as it is typed."""
    for folder in (Path("configs"), CONFIGS):
        if (folder / "ddp_folder.py").is_file():
            return str(folder)
    raise UserError(
        "the folder of the configs was not found. Give the one of the repository, as "
        "--configs=diffseg_jax/configs."
    )


if __name__ == "__main__":
    main()
