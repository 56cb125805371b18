"""The first row of a command, which a terminal shows while Python imports what it needs."""

import signal
import sys
import threading
import time

from diffseg_jax.display.command import typed_module
from diffseg_jax.display.interrupts import INTERRUPTS
from diffseg_jax.display.progress import duration
from diffseg_jax.display.rows import ERASE, can_erase

LOADING = "loading"
SOON = ", a few seconds"
REDRAWN_AFTER = 1.0  # seconds

_drawing, _ended = threading.RLock(), threading.Event()


def is_command():
    """Whether this process was started as `python -m diffseg_jax.NAME`.

    A program or a notebook may run the same module, whose name is that of the main module then.
    """
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec is not None and spec.name == typed_module()


def begin():
    """Shows the row. From now on Ctrl-C ends the process, whether or not the row was erased."""
    if INTERRUPTS.is_watched:  # another module of the command began
        return
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # by `end_without_traceback`
        signal.signal(signal.SIGINT, signal.default_int_handler)
    INTERRUPTS.watch(_leave)
    if can_erase(sys.stdout):
        sys.excepthook = _fail
        print(LOADING + SOON, end="", flush=True)
        threading.Thread(target=_redraw, args=(time.monotonic(),), daemon=True).start()


def end():
    """Erases the row."""
    with _drawing:
        is_drawn = INTERRUPTS.is_watched and not _ended.is_set() and can_erase(sys.stdout)
        _ended.set()
        if is_drawn:
            print(ERASE, end="", flush=True)


def _redraw(begun):
    """Shows the time, which a busy machine makes longer than a few seconds."""
    while not _ended.wait(REDRAWN_AFTER):
        with _drawing:
            if not _ended.is_set():
                so_far = duration(time.monotonic() - begun)
                print(f"{ERASE}{LOADING}, {so_far} so far", end="", flush=True)


def _fail(*error):
    """Erases the row before the traceback of an import."""
    end()
    sys.__excepthook__(*error)


def _leave(*_):
    end()
    INTERRUPTS.leave()
