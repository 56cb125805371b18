"""Ctrl-C in a command ends it at once with one sentence, also while compiled code runs.

Python calls the handler of a signal in the main thread between two of its instructions, so a
handler waits until a compilation ends. The number of the signal is written to a pipe as soon as it
comes, where a thread reads it, and ends the process if the main thread does not respond.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from diffseg_jax.display.console import end_rows
from diffseg_jax.display.rows import ERASE, can_erase
from diffseg_jax.errors import INTERRUPTED

RESPONDS_IN = 1.0  # seconds; Python code responds in less
AGAIN_AFTER = 1.0  # seconds after the answer to a signal; before, a wrapper or a key repeats it
RESENT_AFTER = 0.1  # seconds


class Interrupts:
    """What Ctrl-C does in this process; nothing changes before `watch`.

    stopped   the sentence with which the command ends
    releases  functions that `leave` calls, such as one that removes a lock
    """

    def __init__(self):
        self.stopped, self.is_watched, self.before = "stopped", False, ()
        self.announce: Callable[[int], None] | None = None
        self.announced_at = self.raised_at = -float("inf")
        self.releases: list[Callable[[], None]] = []
        self.leaving = threading.RLock()

    def watch(self, handle: Callable | int = signal.default_int_handler):
        """Starts the thread, in the main thread of a command, where `handle` is for Ctrl-C."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self.before = signal.signal(signal.SIGINT, handle), wakeup, sys.unraisablehook
        threading.Thread(target=self._read, args=(reader,), daemon=True).start()
        self.is_watched, sys.unraisablehook = True, self._ignored

    @contextlib.contextmanager
    def raised(self, stopped: str) -> Iterator[None]:
        """Within it, Ctrl-C raises KeyboardInterrupt, if the main thread responds.

        After it, nothing is left to be stopped: signals are handled as before `watch`.
        stopped  the sentence with which the command ends if the main thread does not respond
        """
        if not self.is_watched:
            yield
            return
        self.stopped = stopped
        signal.signal(signal.SIGINT, self.interrupt)
        try:
            yield
        finally:
            handle, wakeup, sys.unraisablehook = self.before
            signal.signal(signal.SIGINT, handle or signal.SIG_DFL)
            signal.set_wakeup_fd(wakeup)

    def interrupt(self, *_):
        """Raises KeyboardInterrupt; a handler of signals."""
        self.raised_at = time.monotonic()
        raise KeyboardInterrupt

    def defer(self, announce: Callable[[int], None] | None):
        """From now on another handler responds to the first signal, and Ctrl-C after it ends all.

        announce  called with the number of the first, by a thread, as it comes; None: as before
        """
        self.announced_at, self.announce = -float("inf"), announce

    def leave(self, sentence: str = "", code: int = INTERRUPTED):
        """Ends the process with a sentence, `stopped` by default, and without waiting for threads.

        In a terminal the sentence takes the place of ^C, which Ctrl-C shows there.

        Files are renamed when whole. Those that grow by lines, and compiled programs, which jax
        writes, may end in the middle, and partial files (.NAME.PROCESS) may stay.
        """
        self.leaving.acquire()  # for good: the first of two threads ends the process
        try:
            with contextlib.suppress(Exception):
                end_rows()
            echo = ERASE if can_erase(sys.stderr) else ""
            print(f"{echo}{sentence or self.stopped}", file=sys.stderr, flush=True)
            sys.stdout.flush()
            for child in multiprocessing.active_children():  # those that read data
                child.kill()
            for release in list(self.releases):
                released = threading.Thread(target=release, daemon=True)
                released.start()
                released.join(RESPONDS_IN)  # a bucket may be out of reach
        finally:
            os._exit(code)

    def _ignored(self, error):
        """Sends Ctrl-C again where it was raised in a callback that may not raise, as one of jax's.

        error  as for `sys.unraisablehook`
        """
        if error.exc_type and issubclass(error.exc_type, KeyboardInterrupt):
            threading.Timer(RESENT_AFTER, self._resend).start()
        else:
            sys.__unraisablehook__(error)

    def _resend(self):
        if self._ends_command():  # else the work is done
            os.kill(os.getpid(), signal.SIGINT)

    def _ends_command(self):
        """Whether Ctrl-C ends the command; not if other code handles it, such as a server."""
        return bool(self.announce) or signal.getsignal(signal.SIGINT) == self.interrupt

    def _read(self, reader):
        while read := os.read(reader, 64):
            if numbers := {signal.SIGINT, signal.SIGTERM}.intersection(read):
                self._on_signal(min(numbers))  # two at once count as one

    def _on_signal(self, number):
        now, announce = time.monotonic(), self.announce
        if announce and self.announced_at < 0:
            self.announced_at = now
            with contextlib.suppress(Exception):  # nobody may read it
                announce(number)
        elif number == signal.SIGINT and now >= self.announced_at + AGAIN_AFTER:
            threading.Timer(RESPONDS_IN, self._leave_unless_raised, [now]).start()

    def _leave_unless_raised(self, since):
        if self._ends_command() and (self.announce or self.raised_at < since - RESPONDS_IN):
            self.leave()


INTERRUPTS = Interrupts()
