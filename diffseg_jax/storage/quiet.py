"""Silences what orbax and tensorstore print besides the error that they raise."""

import contextlib
import gc
import logging
import sys
import threading
import time
import traceback

from diffseg_jax.storage.integrity import UNDECODABLE

ORBAX = "/orbax/checkpoint/"  # part of the path of every module of orbax
LOOP_CLOSED = "Event loop is closed"  # in threads of tensorstore whose reads outlive the call
ECHOES = (  # texts of errors that repeat the one that was raised
    "in OCDBT database",  # tensorstore's database, in futures that nobody awaits any more
    "tensorstore_spec",
    UNDECODABLE,
)
LIBRARIES = ("/orbax/", "/tensorstore/", "/asyncio/", "/concurrent/")  # all frames of an echo
PAUSE = 0.2  # seconds without an echo after which no more are expected


@contextlib.contextmanager
def quiet_orbax():
    """Within it, orbax logs nothing below CRITICAL, and no echo of a failed read is printed.

    When one array cannot be read, orbax raises its error and abandons the reads of the others,
    each of which prints a traceback later; so does a failed save, before the call that raises its
    error. Python offers only global hooks for them. They are set while at least one thread is
    within the context, pass on every error that has a frame of another program, and are restored
    when the last thread leaves it.
    """
    _echoes.enter()
    try:
        yield
    finally:
        _echoes.leave()


@contextlib.contextmanager
def reading():
    """`quiet_orbax` around one read; where that fails, echoes are waited for at the end."""
    with quiet_orbax():
        try:
            yield
        except Exception:
            _echoes.expected = True
            raise


class _Echoes(logging.Filter):
    """The hooks, with a count of the contexts that need them."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()
        self.contexts = self.heard = 0
        self.expected = False  # whether a read failed
        self.installed = self.replaced = ()

    def enter(self):
        with self.lock:
            self.contexts += 1
            if self.contexts == 1:
                self._install()

    def leave(self):
        if self.contexts == 1 and self.expected:
            self._wait()
        with self.lock:
            self.contexts -= 1
            if self.contexts == 0:
                self._restore()

    def _install(self):
        self.replaced = sys.excepthook, sys.unraisablehook
        usual, usual_unraisable = self.replaced

        def hook(error_type, error, trace):
            if not self._is_echo(error):
                usual(error_type, error, trace)

        def hook_unraisable(unraisable):
            if not self._is_echo(unraisable.exc_value):
                usual_unraisable(unraisable)

        sys.excepthook, sys.unraisablehook = self.installed = hook, hook_unraisable
        for name in ("absl", "asyncio"):
            logging.getLogger(name).addFilter(self)

    def _restore(self):
        """Restores the hooks, unless another program has replaced them in the meantime."""
        if sys.excepthook is self.installed[0]:
            sys.excepthook = self.replaced[0]
        if sys.unraisablehook is self.installed[1]:
            sys.unraisablehook = self.replaced[1]
        for name in ("absl", "asyncio"):
            logging.getLogger(name).removeFilter(self)

    def _wait(self):
        """Returns when no echo was heard for a while: unfinished reads end in quick succession."""
        self.expected, before = False, -1
        while self.heard != before:
            before = self.heard
            time.sleep(PAUSE)
            gc.collect()  # futures of tensorstore whose error nobody fetched report it when freed

    def filter(self, record):
        """Whether a log record is passed on."""
        by_orbax = ORBAX in record.pathname or ORBAX in str(record.msg)
        error = record.exc_info[1] if record.exc_info else None
        return record.levelno >= logging.CRITICAL or not (by_orbax or self._is_echo(error))

    def _is_echo(self, error):
        frames = traceback.extract_tb(error.__traceback__) if self.contexts and error else ()
        texts = (LOOP_CLOSED, *ECHOES) if frames else ECHOES  # any program's without a traceback
        echo = self.contexts > 0 and any(text in str(error) for text in texts)
        echo = echo and all(any(part in f.filename for part in LIBRARIES) for f in frames)
        self.heard += echo
        return echo


_echoes = _Echoes()
