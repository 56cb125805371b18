"""The first row of a command, which a terminal shows while Python imports what it needs."""

import os
import signal
import sys

from diffseg_jax.display.interrupts import INTERRUPTS

LOADING = "loading, a few seconds"
ERASED = "\r\x1b[2K"
PLAIN = ("", "dumb", "unknown")  # kinds of terminals that cannot erase a row


def is_command() -> bool:
    """Whether this process was started as `python -m diffseg_jax.NAME`."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name.startswith("diffseg_jax.")


def begin():
    """Shows the row; Ctrl-C ends the process from now on, in `end` or not."""
    INTERRUPTS.watch()
    signal.signal(signal.SIGINT, _leave)
    if _is_terminal():
        print(LOADING, end="", flush=True)


def end():
    """Erases the row."""
    if INTERRUPTS.is_watched and _is_terminal():
        print(ERASED, end="", flush=True)


def _leave(*_):
    end()
    INTERRUPTS.leave()


def _is_terminal():
    """Whether a row can be drawn and erased."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    return is_terminal and os.environ.get("TERM", "") not in PLAIN
