"""Describes a checkpoint: its origin, classes, parameters, results, and how to use it.

  python -m diffseg_jax.info --checkpoint=runs/a [--stage=pretrain] [--json]

It reads the metadata beside the arrays, and no arrays.
"""

import json
import sys
from collections.abc import Sequence

from rich.console import Console

from diffseg_jax.cli import Flags, add_checkpoint_flags, use_cache, user_errors
from diffseg_jax.devices.mesh import find_devices
from diffseg_jax.display.console import Display
from diffseg_jax.display.output import print_whole
from diffseg_jax.inference.description import describe_checkpoint
from diffseg_jax.inference.description_text import show


def make_flags() -> Flags:
    """All flags."""
    flags = Flags("info", __doc__)
    add_checkpoint_flags(flags.add_argument, ("checkpoint", "stage"))
    flags.add_argument("--json", action="store_true", help="print all of it as JSON, for programs")
    return flags


def main(arguments: Sequence[str] | None = None):
    """The command line."""
    with user_errors():
        given = make_flags().parse_args(arguments)
        use_cache("")
        find_devices()
        display = Display(quiet=not sys.stdout.isatty())  # files hold the description alone
        with display.progress(f"reads {given.checkpoint}"):
            description = describe_checkpoint(given.checkpoint, given.stage)
        if given.json:
            print_whole(json.dumps(description, indent=2))
        else:
            show(description, Console())


if __name__ == "__main__":
    main()
