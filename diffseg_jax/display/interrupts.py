"""Ctrl-C in a command ends it at once with one sentence, also while compiled code runs.

Python calls the handler of a signal in the main thread between two of its instructions: not before
a compilation of a minute is over. The number of the signal is written to a pipe as soon as it
comes, where a thread reads it, and ends the process if the main thread does not respond.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from diffseg_jax.display.console import end_rows

INTERRUPTED = 130  # exit code
RESPONDS_IN = 1.0  # seconds; Python code responds in less
AGAIN_AFTER = 0.1  # seconds


class Interrupts:
    """What Ctrl-C does in this process; nothing changes before `watch`.

    stopped  the sentence with which the command ends
    """

    def __init__(self):
        self.stopped, self.is_watched, self.came = "stopped", False, 0
        self.say: Callable[[int], None] | None = None
        self.responded, self.leaving = threading.Event(), threading.RLock()

    def watch(self):
        """Starts the thread; in the main thread of a command."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._read, args=(reader,), daemon=True).start()
        self.is_watched, sys.unraisablehook = True, self._ignored

    @contextlib.contextmanager
    def raised(self, stopped: str) -> Iterator[None]:
        """Within it, Ctrl-C raises KeyboardInterrupt, if the main thread responds.

        stopped  the sentence with which the command ends if it does not
        """
        if not self.is_watched:
            yield
            return
        self.stopped = stopped
        signal.signal(signal.SIGINT, self._raise)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left to be stopped

    def defer(self, say: Callable[[int], None] | None):
        """From now on another handler responds to the first signal, and Ctrl-C after it ends all.

        say  called with the number of the first signal as soon as it comes, by a thread; None: as
             before
        """
        self.say, self.came = say, 0

    def leave(self, sentence: str = "", code: int = INTERRUPTED):
        """Ends the process with a sentence, `stopped` by default, and without waiting for threads.

        Files are either whole or not there, as they are renamed when whole.
        """
        self.leaving.acquire()  # for good: the first of two threads ends the process
        try:
            end_rows()
            print(sentence or self.stopped, file=sys.stderr, flush=True)
            sys.stdout.flush()
            for child in multiprocessing.active_children():  # those that read data
                child.terminate()
        finally:
            os._exit(code)

    def _raise(self, *_):
        self.responded.set()
        raise KeyboardInterrupt

    def _ignored(self, error):
        """Sends Ctrl-C again where it was raised in a callback that may not raise, as one of jax's.

        error  as for `sys.unraisablehook`
        """
        if error.exc_type and issubclass(error.exc_type, KeyboardInterrupt):
            threading.Timer(AGAIN_AFTER, os.kill, (os.getpid(), signal.SIGINT)).start()
        else:
            sys.__unraisablehook__(error)

    def _read(self, reader):
        while numbers := os.read(reader, 64):
            for number in numbers:
                if number in (signal.SIGTERM, signal.SIGINT):
                    self._came(number)

    def _came(self, number):
        self.came += 1
        if self.say and self.came == 1:
            self.say(number)
        elif number == signal.SIGINT:
            responded = self.responded.wait(RESPONDS_IN)
            is_own = self.say or signal.getsignal(signal.SIGINT) == self._raise
            if is_own and not responded:  # else other code handles it, such as a server
                self.leave()
        self.responded.clear()


INTERRUPTS = Interrupts()
