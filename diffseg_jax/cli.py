"""What the commands of the package have in common around their own work."""

import argparse
import contextlib
import errno
import logging
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path

import jax

from diffseg_jax.devices.processes import ProcessesLost, barrier, exit_process
from diffseg_jax.errors import UserError
from diffseg_jax.storage.checkpoints import NotWritten
from diffseg_jax.training.signals import Stopped

CACHE = "~/.cache/diffseg_jax"
MISTAKE, STOPPED, INTERRUPTED, LOST = 2, 75, 130, 134  # exit codes; 134 is also that of SIGABRT
STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM}


@contextlib.contextmanager
def user_errors(stopped: str = "stopped"):
    """Ends the program with one sentence, and a code that says whether to start it again.

    2 for a user's mistake or a full disk, 75 after SIGTERM, 130 for Ctrl-C, 134 when another
    process of the run did not come or was lost.
    stopped  what to say after Ctrl-C, where nothing was saved
    """
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        exit_process(MISTAKE, immediately=isinstance(error, NotWritten))
    except OSError as error:
        if error.errno not in STORAGE:
            _failed(error)
        where = f" ({error.filename})" if error.filename else ""
        print(
            f"error: cannot write or read{where}: {error.strerror}. Make room or mend the "
            "permissions, then give the same command again.",
            file=sys.stderr,
        )
        exit_process(MISTAKE, immediately=True)
    except ProcessesLost as error:
        print(f"error: {error}", file=sys.stderr)
        exit_process(LOST)
    except Stopped as notice:
        print(notice, file=sys.stderr)
        barrier("stopped")  # all of them did, and none shall lose one that still saves
        sys.exit(STOPPED if notice.number == signal.SIGTERM else INTERRUPTED)
    except KeyboardInterrupt:
        print(stopped, file=sys.stderr)
        exit_process(INTERRUPTED)
    except Exception as error:
        _failed(error)


LOSS = ("UNAVAILABLE", "Gloo", "NCCL", "arrier", "heartbeat", "oordination")  # in what is raised


def _failed(error):
    """Ends with what is no user's mistake; others of the run shall not wait for this process."""
    line = (str(error).splitlines() or [""])[0][:200]
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
        print(
            f"error: the memory of a device is full ({line}). Try --config.remat=True, a smaller "
            "batch_size or crop, a larger accumulate, --config.dtype=bfloat16, or more devices "
            "with --config.mesh.fsdp.",
            file=sys.stderr,
        )
        exit_process(MISTAKE)
    if jax.process_count() > 1 and any(word in str(error) for word in LOSS):
        print(
            f"error: another process of the run was lost ({line}). Start all of them again: the "
            "run goes on from the last checkpoint.",
            file=sys.stderr,
        )
        exit_process(LOST)
    traceback.print_exc()
    exit_process(1)


def use_cache(path: str):
    """Keeps compiled programs in the folder; "" keeps none."""
    for name in ("jax", "absl"):  # or they report backends that are not there, and every file
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("fsspec", "gcsfs"):  # and these every request; what fails is raised
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if path:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(path))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def use_memory(fraction: float | None):
    """The share of a GPU's memory that is taken at the start; 0: none, None: jax's own choice."""
    if fraction is not None:
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "true" if fraction else "false"
    if fraction:
        os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = str(fraction)


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
