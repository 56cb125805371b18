"""Draws curves of runs from their metrics.jsonl: a panel for every quantity.

python -m diffseg_jax.plot --workdir=runs/a --workdir=runs/b --output=curves.png
"""

from collections.abc import Sequence

from diffseg_jax.cli import Flags, user_errors
from diffseg_jax.data.files import expanded
from diffseg_jax.display.console import Display
from diffseg_jax.figures.curve_data import read_curves
from diffseg_jax.figures.curves import check_output, draw_curves, last_numbers, save_figure


def make_flags() -> Flags:
    """All flags."""
    flags = Flags("plot", __doc__)
    add = flags.add_argument
    workdir = "folders of runs, or patterns, one or several: --workdir=runs/a runs/b"
    add("--workdir", required=True, nargs="+", action="extend", metavar="DIR", help=workdir)
    output = "the image file, which ends with .png, .svg or .pdf"
    add("--output", required=True, metavar="FILE", help=output)
    return flags


def main(arguments: Sequence[str] | None = None):
    """The command line."""
    with user_errors():
        given = make_flags().parse_args(arguments)
        check_output(given.output)
        curves = read_curves([path for workdir in given.workdir for path in expanded(workdir)])
        with Display().progress("draws curves"):
            save_figure(draw_curves(curves), given.output)
        print(last_numbers(curves), f"curves in {given.output}", sep="\n")


if __name__ == "__main__":
    main()
