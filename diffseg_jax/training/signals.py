"""Being asked to stop: SIGTERM, the notice of a preempted machine, and Ctrl-C."""

import contextlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

_polls = itertools.count()  # of this process; the same in all, as they take the same steps


class Stopped(Exception):
    """A stage was asked to stop and did, after a checkpoint that the same command goes on from.

    number  of the signal
    """

    def __init__(self, stage: str, step: int, number: int):
        super().__init__(
            f"stopped by {signal.Signals(number).name} after step {step} of stage {stage}, which "
            "is saved; the same command goes on from there"
        )
        self.number = number


@contextlib.contextmanager
def watched() -> Iterator[Callable[[], int]]:
    """`with watched() as asked`: asked() is the number of the signal that came, or 0.

    It must be called once after every step, in all processes: of several, any one may be given
    SIGTERM, and all answer at the same step. The second Ctrl-C stops at once. Outside the main
    thread of a process of its own no signal is watched.
    """
    if jax.process_count() > 1:
        # jax.distributed has taken SIGTERM for its own, and tells the others
        reached = multihost_utils.reached_preemption_sync_point
        yield lambda: signal.SIGTERM if reached(next(_polls)) else 0
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    came = []

    def note(number, _):
        came.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
        text = f"stops after this step and saves{again}\n"
        os.write(2, text.encode())  # print may be what the signal interrupted

    old = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: came[0] if came else 0
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
