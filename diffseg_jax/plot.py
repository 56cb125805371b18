"""Draws curves of runs from their metrics.jsonl: a panel for every quantity.

python -m diffseg_jax.plot --workdir=runs/a --workdir=runs/b --output=curves.png
"""

from collections.abc import Sequence

from diffseg_jax.cli import Flags, user_errors
from diffseg_jax.figures.curve_data import read_curves
from diffseg_jax.figures.curves import check_output, draw_curves, last_numbers, save_figure


def make_flags() -> Flags:
    """All flags."""
    flags = Flags("plot", __doc__)
    add = flags.add_argument
    workdir = "folder of a run, also gs://...; may be given several times"
    add("--workdir", required=True, action="append", metavar="DIR", help=workdir)
    output = "the image file, which ends with .png, .svg or .pdf"
    add("--output", required=True, metavar="FILE", help=output)
    return flags


def main(arguments: Sequence[str] | None = None):
    """The command line."""
    with user_errors():
        given = make_flags().parse_args(arguments)
        check_output(given.output)
        curves = read_curves(given.workdir)
        save_figure(draw_curves(curves), given.output)
        print(last_numbers(curves))
        print(f"curves in {given.output}")


if __name__ == "__main__":
    main()
