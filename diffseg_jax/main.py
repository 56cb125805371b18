"""Flags -> config -> one call; the only file that reads flags.

python -m diffseg_jax.main --config=configs/ddep_scenes.py --workdir=runs/scenes
"""

import logging
import os
import sys
from pathlib import Path

import jax
from absl import app, flags
from ml_collections import config_flags

from diffseg_jax import check, experiment
from diffseg_jax.config import UserError, choose

CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment, a file in configs/.")
WORKDIR = flags.DEFINE_string("workdir", None, "Where checkpoints, numbers and pictures go.")
MODE = flags.DEFINE_string("mode", "train", "train, eval or check (the data).")
CACHE = flags.DEFINE_string(
    "compilation_cache", "~/.cache/diffseg_jax", "Where compiled programs are kept; empty for nowhere."
)

MODES = {
    "train": experiment.train,
    "eval": experiment.evaluate_only,
    "check": check.check_data,
}


def main(_):
    """Runs the mode; a user's mistake ends with one sentence and exit code 2."""
    logging.getLogger("jax").setLevel(logging.WARNING)  # or it reports every backend not there
    if CACHE.value:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(CACHE.value))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    mode = choose(MODES, MODE.value, "mode")
    if CONFIG.value is None:
        raise UserError("no config was given. Try --config=configs/ddep_scenes.py.")
    if not WORKDIR.value:
        raise UserError("no workdir was given. Try --workdir=runs/a.")
    mode(CONFIG.value, Path(WORKDIR.value))


def _parse(arguments):
    """The flags, or a UserError in place of ml_collections' traceback."""
    try:
        return flags.FLAGS(arguments)
    except UserError:
        raise
    except (flags.Error, AttributeError, KeyError, ValueError, TypeError, OSError) as error:
        raise UserError(str(error).strip("'\"").splitlines()[0]) from None


def run():
    """The command line."""
    try:
        app.run(main, flags_parser=_parse)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run()
