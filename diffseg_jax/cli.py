"""The parts that all commands share: flags, exit codes, and settings of the process.

Only a command may call `user_errors`, `use_cache` and `use_memory`: they change warnings, loggers
and memory of the process, which belong to the program that imports the package.
"""

import argparse
import contextlib
import errno
import io
import logging
import math
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence

# XLA's framed notes on slow compilation look like errors; what fails is raised as well. XLA reads
# this when it is loaded; TF_CPP_MIN_LOG_LEVEL=0 shows its log.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
from PIL import Image

from diffseg_jax.devices.compiled import CACHE, keep_compiled
from diffseg_jax.devices.processes import ProcessesLost, barrier, exit_process
from diffseg_jax.errors import UserError, hint
from diffseg_jax.storage.checkpoints import NotWritten
from diffseg_jax.training.signals import Stopped

MISTAKE, STOPPED, INTERRUPTED, LOST = 2, 75, 130, 134  # exit codes; 134 is also that of SIGABRT
STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM}
LOSS = ("UNAVAILABLE", "Gloo", "NCCL", "arrier", "heartbeat", "oordination")  # parts of messages


# ---- flags ---------------------------------------------------------------------------------------


class Flags(argparse.ArgumentParser):
    """The flags of a command, as --flag=value or --flag value; --flag=a b where it takes several.

    No flag may be abbreviated. --help prints all of them and exits with 0. A mistake raises
    UserError, so `parse_args` belongs inside `user_errors`.
    """

    def __init__(self, command: str, description: str):
        """command: the module below diffseg_jax; description: shown as it is by --help."""
        super().__init__(
            prog=f"python -m diffseg_jax.{command}", description=(description or "").strip(),
            formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
        )  # fmt: skip
        self.register("type", int, number(int))
        self.register("type", float, number(float))

    def parse_args(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """The values of the flags; None parses sys.argv."""
        arguments = sys.argv[1:] if arguments is None else map(str, arguments)
        usage = self.format_usage()
        known = {"--help", *re.findall(r"--\w+", usage)}
        several = set(re.findall(r"(--\w+) \w+ \[\w+ \.\.\.\]", usage))
        checked = [_checked(argument, known) for argument in arguments]
        split = [part for argument in checked for part in _split(argument, several)]
        given, rest = self.parse_known_args(split)
        if rest:
            self.error(f'"{rest[0]}" is not a flag; flags begin with --')
        return given

    def error(self, message: str):
        """Raises UserError with argparse's sentence."""
        message = re.sub(r"^argument (\S+): (?=is )", r"\1 ", message)  # "--a is 3, but ..."
        message = message.removeprefix("argument ")
        raise UserError(f"{message}. All flags: {self.prog} --help")


def _checked(argument, known):
    """The argument, with two dashes before the name of a flag; UserError for an unknown flag."""
    match = re.match(r"--?([a-zA-Z][^=]*)", argument)
    if not match or match[0] == "-h":
        return argument
    name = f"--{match[1]}"
    if name not in known:
        raise UserError(f"there is no flag {name}.{hint(name.partition('.')[0], known)}")
    return name + at_home(argument[match.end() :])


def at_home(value: str) -> str:
    """A value, or =value, with the home folder for "~/", which shells leave in --flag=~/a."""
    equals, path = value[: value.startswith("=")], value.removeprefix("=")
    return equals + os.path.expanduser(path) if path.startswith("~/") else value


def _split(argument, several):
    """--flag=a as two arguments where the flag takes several values, so that others may follow."""
    name, equals, value = argument.partition("=")
    return [name, value] if equals and name in several and value[:1] != "-" else [argument]


def number(
    number_type: type, low: float = -math.inf, high: float = math.inf
) -> Callable[[str], float]:
    """The type of a flag that is an int or a float in [low, high]."""
    name = "a whole number" if number_type is int else "a number"
    upper = "up" if high == math.inf else f"to {high:g}"
    limits = "" if low == -math.inf else f" from {low:g} {upper}"

    def parse(text):
        try:
            value = number_type(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"is {text}, but it must be {name}{limits}")
        return value

    return parse


def numbers(text: str) -> tuple[int, ...]:
    """A flag such as 8,16,32; "" is ()."""
    try:
        return tuple(int(part) for part in text.split(",")) if text else ()
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"is {text}, but it must be whole numbers, such as 0,1"
        ) from None


def truth(text: str) -> bool:
    """A flag that is True or False."""
    values = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if text.lower() not in values:
        raise argparse.ArgumentTypeError(f"is {text}, but it must be True or False")
    return values[text.lower()]


def sides(text: str) -> tuple[int, int]:
    """A flag such as 512, or 256,512, or 256x512: (height, width)."""
    try:
        given = tuple(int(part) for part in text.replace("x", ",").split(","))
    except ValueError:
        given = ()
    if len(given) not in (1, 2):
        raise argparse.ArgumentTypeError(
            f"is {text}, but it must be a side, such as 512, or height,width"
        )
    return given * 2 if len(given) == 1 else given


def factors(text: str) -> tuple[float, ...]:
    """A flag such as 0.75,1,1.25."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"is {text}, but it must be numbers, such as 0.75,1,1.25"
        ) from None


def names(text: str) -> tuple[str, ...]:
    """A flag such as probs,uncertainty; "" is ()."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


CHECKPOINT_FLAGS = {  # the arguments of `diffseg_jax.load`, and their help
    "checkpoint": "a workdir, a stage in it, a converted directory, gs://..., hf://... or scenes",
    "stage": "stage of the workdir; default: the best by its results",
    "step": "step of the stage; default: the last, or the best if the config says so",
    "ema": "rate of the moving average to take, or off; default: the first rate",
    "dtype": "dtype of the computation, float32 or bfloat16; default: as trained",
    "device": "cpu, cuda (or gpu) or tpu; default: the choice of jax",
}


def add_checkpoint_flags(
    add: Callable, names: Sequence[str] = tuple(CHECKPOINT_FLAGS), required: bool = True
):  # fmt: skip
    """Adds the named flags of CHECKPOINT_FLAGS.

    add       `add_argument` of the flags, or of a group of them
    required  whether --checkpoint must be given
    """
    for name in names:
        flag_type = int if name == "step" else str
        needed = required and name == "checkpoint"
        add(f"--{name}", type=flag_type, required=needed, help=CHECKPOINT_FLAGS[name])


def add_cache_flag(add: Callable):
    """Adds --compilation_cache, the argument of `use_cache`."""
    text = f"folder of compiled programs; empty for none; default: {CACHE}"
    add("--compilation_cache", default=CACHE, metavar="DIR", help=text)


# ---- exit codes ----------------------------------------------------------------------------------


@contextlib.contextmanager
def user_errors(stopped: str = "stopped"):
    """Ends the program with one sentence and an exit code.

    2 for a user's mistake or a full disk, 75 after SIGTERM, 130 for Ctrl-C, 134 when another
    process of the run was lost or never started. A closed pipe ends nothing: the work goes on.
    stopped  the sentence after Ctrl-C, where nothing was saved
    """
    os.environ.pop("MPLBACKEND", None)  # no window opens; a notebook's backend may be missing
    out, err = Output(sys.stdout), Output(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            with _exits(stopped):
                yield
        finally:
            out.flush()
            err.flush()


class Output:
    """A standard stream that takes any text, and drops it once nobody reads the pipe any more.

    Names of files that are not valid text are printed with escapes.
    """

    def __init__(self, stream):
        """stream: None where the process has no such stream."""
        self.stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115
        if isinstance(self.stream, io.TextIOWrapper):
            self.stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name):
        return getattr(self.stream, name)  # for all but `write` and `flush`

    def write(self, text: str) -> int:
        with self._dropped():
            self.stream.write(text)
        return len(text)

    def flush(self):
        with self._dropped():
            self.stream.flush()

    @contextlib.contextmanager
    def _dropped(self):
        try:
            yield
        except BrokenPipeError:  # what is still buffered would raise again
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)


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
        print(notice, file=sys.stderr)
        barrier("stopped")  # an exit would end the processes that are still saving
        sys.exit(STOPPED if notice.number == signal.SIGTERM else INTERRUPTED)
    except KeyboardInterrupt:
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


def use_cache(path: str):
    """Caches compiled programs in a folder, unless it is "", and quietens other loggers."""
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # of half the largest size
    for name in ("jax", "absl"):  # they log absent backends and every file that is written
        logging.getLogger(name).setLevel(logging.WARNING)
    # They log requests and failures, which are also raised.
    for name in ("fsspec", "gcsfs", "PIL", "python_multipart"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if path:
        keep_compiled(path)


def use_memory(fraction: float | None):
    """Sets the share of a GPU's memory taken at the start; 0: none, None: the default of jax."""
    if fraction is not None:
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "true" if fraction else "false"
    if fraction:
        os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = str(fraction)
