"""What is in a checkpoint: where it comes from, what it knows, how good it is, how to use it.

python -m diffseg_jax.info --checkpoint=runs/a [--stage=pretrain] [--json]

Reads what stands beside the arrays, and no arrays.
"""

import argparse
import json

from rich.console import Console

from diffseg_jax.cli import use_cache, user_errors
from diffseg_jax.devices.mesh import find_devices
from diffseg_jax.inference.description import describe
from diffseg_jax.inference.description_text import show


def main(arguments=None):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m diffseg_jax.info", description=__doc__.splitlines()[0]
    )
    where = "a workdir, a stage in it, a converted directory, gs://..., hf://..., or scenes"
    parser.add_argument("--checkpoint", required=True, help=where)
    parser.add_argument("--stage", default=None, help="of a workdir; else the one that load takes")
    parser.add_argument("--json", action="store_true", help="for programs: all of it as JSON")
    given = parser.parse_args(arguments)
    use_cache("")
    with user_errors():
        find_devices()
        found = describe(given.checkpoint, given.stage)
        if given.json:
            print(json.dumps(found, indent=2))
        else:
            show(found, Console())


if __name__ == "__main__":
    main()
