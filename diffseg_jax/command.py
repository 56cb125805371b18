"""What the commands of the package have in common around their own work."""

import argparse
import contextlib
import logging
import os
import sys
from pathlib import Path

import jax

from diffseg_jax.config import UserError

CACHE = "~/.cache/diffseg_jax"


@contextlib.contextmanager
def user_errors(stopped: str = "stopped"):
    """Ends the program with one sentence: exit code 2 for a user's mistake, 130 for Ctrl-C.

    stopped  what to say after Ctrl-C
    """
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        sys.exit(130)


def use_cache(path: str):
    """Keeps compiled programs in the folder; "" keeps none."""
    logging.getLogger("jax").setLevel(logging.WARNING)  # or it reports every backend not there
    if path:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(path))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def make_folder(path: str | os.PathLike):
    """Makes the folder of a flag --output; UserError when that cannot be."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path} cannot be made ({error.strerror}). Give another --output."
        ) from None


def numbers(text: str) -> tuple[int, ...]:
    """A flag such as 8,16,32; "" is ()."""
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} are no whole numbers, such as 0,1") from None


def truth(text: str) -> bool:
    """A flag that is True or False."""
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in words:
        raise argparse.ArgumentTypeError(f"{text} is neither True nor False")
    return words[text.lower()]
