"""The parts that all commands share: flags, exit codes, and settings of the process.

Only a command may call `user_errors` and `use_cache`: they change warnings and loggers of the
process, which belong to the program that imports the package.
"""

import contextlib
import errno
import logging
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence

# XLA's framed notes on slow compilation look like errors; what fails is raised as well. XLA reads
# this when it is loaded; TF_CPP_MIN_LOG_LEVEL=0 shows its log.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from diffseg_jax.display import loading

if loading.is_command():  # the other imports take seconds
    loading.begin()

import jax
from PIL import Image

from diffseg_jax.config.flags import (  # noqa: F401  commands take them from here
    Flags,
    at_home,
    factors,
    height_and_width,
    names,
    number,
    numbers,
    sides,
    truth,
)
from diffseg_jax.devices.compiled import CACHE, keep_compiled
from diffseg_jax.devices.processes import ProcessesLost, barrier, exit_process
from diffseg_jax.display.interrupts import INTERRUPTS
from diffseg_jax.display.output import standard_outputs
from diffseg_jax.errors import INTERRUPTED, LOST, MISTAKE, STOPPED, UserError
from diffseg_jax.storage.checkpoints import NotWritten
from diffseg_jax.training.signals import Stopped

STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM}
LOSS = ("UNAVAILABLE", "Gloo", "NCCL", "arrier", "heartbeat", "oordination")  # parts of messages


# ---- flags ---------------------------------------------------------------------------------------

CHECKPOINT_FLAGS = {  # the arguments of `diffseg_jax.load`, and their help
    "checkpoint": "a workdir, a stage in it, a converted directory, gs://..., hf://... or scenes",
    "stage": "stage of the workdir; default: the best by its results",
    "step": "step of the stage; default: the last, or the best if the config says so",
    "ema": "rate of the moving average to take, or off; default: the first rate",
    "dtype": "dtype of the computation, float32 or bfloat16; default: as trained",
    "device": "cpu, cuda (or gpu) or tpu; default: the choice of jax",
}


def add_checkpoint_flags(
    add: Callable, chosen: Sequence[str] = tuple(CHECKPOINT_FLAGS), required: bool = True
):  # fmt: skip
    """Adds the named flags of CHECKPOINT_FLAGS.

    add       `add_argument` of the flags, or of a group of them
    required  whether --checkpoint must be given
    """
    for name in chosen:
        flag_type = int if name == "step" else str
        needed = required and name == "checkpoint"
        add(f"--{name}", type=flag_type, required=needed, help=CHECKPOINT_FLAGS[name])


def add_cache_flag(add: Callable):
    """Adds --compilation_cache, the argument of `use_cache`."""
    default = f"JAX_COMPILATION_CACHE_DIR of the environment, or {CACHE}"
    text = f"folder of compiled programs; empty: as jax is set; default: {default}"
    add("--compilation_cache", metavar="DIR", help=text)


# ---- exit codes ----------------------------------------------------------------------------------


@contextlib.contextmanager
def user_errors(stopped: str = "stopped"):
    """Ends the program with one sentence and an exit code.

    2 for a user's mistake or a full disk, 75 after SIGTERM, 130 for Ctrl-C, 134 when another
    process of the run was lost or never started. A closed pipe ends nothing: the work goes on.
    stopped  the sentence after Ctrl-C, where nothing was saved
    """
    os.environ.pop("MPLBACKEND", None)  # no window opens; a notebook's backend may be missing
    loading.end()
    with standard_outputs(), _exits(stopped), INTERRUPTS.raised(stopped):
        yield


@contextlib.contextmanager
def _exits(stopped):
    """Ends the program with the sentence and the exit code of an error."""
    warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        exit_process(MISTAKE, immediately=isinstance(error, NotWritten))
    except OSError as error:
        if error.errno not in STORAGE:
            _exit_after(error)
        where = f" ({error.filename})" if error.filename else ""
        print(
            f"error: cannot write or read{where}: {error.strerror}. Make room or correct the "
            "permissions, then give the same command again.",
            file=sys.stderr,
        )
        exit_process(MISTAKE, immediately=True)
    except ProcessesLost as error:
        print(f"error: {error}", file=sys.stderr)
        exit_process(LOST)
    except Stopped as notice:
        code = STOPPED if notice.number == signal.SIGTERM else INTERRUPTED
        if INTERRUPTS.is_watched and jax.process_count() == 1:
            INTERRUPTS.leave(str(notice), code)
        print(notice, file=sys.stderr)
        barrier("stopped")  # an exit would end the processes that are still saving
        sys.exit(code)
    except KeyboardInterrupt:
        if INTERRUPTS.is_watched:  # compiled code may go on in threads, which an exit waits for
            INTERRUPTS.leave()
        print(stopped, file=sys.stderr)
        exit_process(INTERRUPTED)
    except Exception as error:
        _exit_after(error)


def _exit_after(error):
    """Exits on an unexpected error without blocking the other processes."""
    line = (str(error).splitlines() or [""])[0][:200]
    if isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error):
        print(
            f"error: the memory of a device is full ({line}). Try --config.remat=True, a smaller "
            "batch_size or crop, a larger accumulate, --config.dtype=bfloat16, or more devices "
            "with --config.mesh.fsdp.",
            file=sys.stderr,
        )
        exit_process(MISTAKE)
    if jax.process_count() > 1 and any(part in str(error) for part in LOSS):
        print(
            f"error: another process of the run was lost ({line}). Start all of them again: the "
            "run resumes from the last checkpoint.",
            file=sys.stderr,
        )
        exit_process(LOST)
    traceback.print_exc()
    exit_process(1)


# ---- settings of the process ---------------------------------------------------------------------


def use_cache(path: str | None = None):
    """Caches programs in a folder, by default the usual one; "": as jax is set. Quiets loggers."""
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of half the largest size
    for name in ("jax", "absl"):  # they log absent backends and every file that is written
        logging.getLogger(name).setLevel(logging.WARNING)
    # They log requests and failures, which are also raised.
    for name in ("fsspec", "gcsfs", "PIL", "python_multipart"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if path != "":
        keep_compiled(path)
