"""Curves of runs, from what they wrote to metrics.jsonl: a panel for every quantity.

python -m diffseg_jax.plot --workdir=runs/a --workdir=runs/b --output=curves.png
"""

import argparse

from diffseg_jax.cli import user_errors
from diffseg_jax.figures.curve_data import read_curves
from diffseg_jax.figures.curves import check_output, draw, last_numbers, save


def main(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m diffseg_jax.plot", description=__doc__.splitlines()[0]
    )
    add = parser.add_argument
    several = "of a run, also gs://...; may be given several times"
    add("--workdir", required=True, action="append", help=several)
    add("--output", required=True, help="the picture, which ends with .png, .svg or .pdf")
    options = parser.parse_args(arguments)
    with user_errors():
        check_output(options.output)
        curves = read_curves(options.workdir)
        save(draw(curves), options.output)
        print(last_numbers(curves))
        print(f"curves in {options.output}")


if __name__ == "__main__":
    main()
