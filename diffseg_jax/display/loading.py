"""The first row of a command, which a terminal shows while Python imports what it needs."""

import os
import signal
import sys
import threading
import time

from diffseg_jax.display.interrupts import INTERRUPTS
from diffseg_jax.display.progress import duration

LOADING = "loading, a few seconds"
ERASED = "\r\x1b[2K"
PLAIN = ("", "dumb", "unknown")  # kinds of terminals that cannot erase a row
REDRAWN_AFTER = 1.0  # seconds

_drawing, _ended = threading.RLock(), threading.Event()


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
        threading.Thread(target=_redraw, args=(time.monotonic(),), daemon=True).start()


def end():
    """Erases the row."""
    with _drawing:
        is_drawn = INTERRUPTS.is_watched and not _ended.is_set() and _is_terminal()
        _ended.set()
        if is_drawn:
            print(ERASED, end="", flush=True)


def _redraw(begun):
    """Shows the time, which a busy machine makes longer than a few seconds."""
    while not _ended.wait(REDRAWN_AFTER):
        with _drawing:
            if not _ended.is_set():
                so_far = duration(time.monotonic() - begun)
                print(f"\r{LOADING}, {so_far} so far", end="", flush=True)


def _leave(*_):
    end()
    INTERRUPTS.leave()


def _is_terminal():
    """Whether a row can be drawn and erased."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    return is_terminal and os.environ.get("TERM", "") not in PLAIN
