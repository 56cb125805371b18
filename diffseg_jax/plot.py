"""Curves of runs, from what they wrote to metrics.jsonl: a panel for every quantity.

python -m diffseg_jax.plot --workdir=runs/a --workdir=runs/b --output=curves.png
"""

from diffseg_jax.cli import Flags, user_errors
from diffseg_jax.figures.curve_data import read_curves
from diffseg_jax.figures.curves import check_output, draw, last_numbers, save


def main(arguments=None):
    """The command line."""
    flags = Flags("plot", __doc__)
    add = flags.add_argument
    several = "of a run, also gs://...; may be given several times"
    add("--workdir", required=True, action="append", help=several)
    add("--output", required=True, help="the picture, which ends with .png, .svg or .pdf")
    with user_errors():
        options = flags.parse_args(arguments)
        check_output(options.output)
        curves = read_curves(options.workdir)
        save(draw(curves), options.output)
        print(last_numbers(curves))
        print(f"curves in {options.output}")


if __name__ == "__main__":
    main()
