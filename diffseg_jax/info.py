"""What is in a checkpoint: where it comes from, what it knows, how good it is, how to use it.

python -m diffseg_jax.info --checkpoint=runs/a [--stage=pretrain] [--json]

Reads what stands beside the arrays, and no arrays.
"""

import json

from rich.console import Console

from diffseg_jax.cli import Flags, use_cache, user_errors
from diffseg_jax.devices.mesh import find_devices
from diffseg_jax.inference.description import describe
from diffseg_jax.inference.description_text import show


def main(arguments=None):
    """The command line."""
    flags = Flags("info", __doc__)
    where = "a workdir, a stage in it, a converted directory, gs://..., hf://..., or scenes"
    flags.add_argument("--checkpoint", required=True, help=where)
    flags.add_argument("--stage", default=None, help="of a workdir; else the one that load takes")
    flags.add_argument("--json", action="store_true", help="for programs: all of it as JSON")
    use_cache("")
    with user_errors():
        given = flags.parse_args(arguments)
        find_devices()
        found = describe(given.checkpoint, given.stage)
        if given.json:
            print(json.dumps(found, indent=2))
        else:
            show(found, Console())


if __name__ == "__main__":
    main()
