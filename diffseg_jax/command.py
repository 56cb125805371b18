"""What every command of the package does around its own work."""

import contextlib
import logging
import os
import sys

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
