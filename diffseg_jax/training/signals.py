"""Signals that ask a run to stop: SIGTERM, as before a preemption, and Ctrl-C."""

import contextlib
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax
from jax.experimental import multihost_utils

from diffseg_jax.display.interrupts import AGAIN_AFTER, INTERRUPTS

_polls = itertools.count()  # the same in all processes, as they make the same steps


class Stopped(Exception):
    """A stage stopped on request, after saving a checkpoint from which the same command continues.

    number  of the signal
    """

    def __init__(self, stage: str, step: int, number: int):
        super().__init__(
            f"stopped by {signal.Signals(number).name} after step {step} of stage {stage}, which "
            "is saved; the same command continues from there"
        )
        self.number = number


@contextlib.contextmanager
def watched() -> Iterator[Callable[[], int]]:
    """`with watched() as asked`: asked() is the number of the signal that came, or 0.

    It must be called after every step, equally often in all processes: any of them may receive
    SIGTERM, and all stop at the same step. Ctrl-C again, AGAIN_AFTER seconds later, stops at once,
    as does one before the first call, when there is nothing to save. A single process watches
    signals only in its main thread.
    """
    if jax.process_count() > 1:
        # jax.distributed handles SIGTERM and notifies the other processes.
        reached = multihost_utils.reached_preemption_sync_point
        yield lambda: signal.SIGTERM if reached(next(_polls)) else 0
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return
    received, begun = [], []

    def handle(number, _):
        received.append((number, time.monotonic()))
        if len(received) == 1:
            if not (INTERRUPTS.is_watched and begun):  # else its thread says so, as the step runs
                os.write(2, f"{_notice(number)}\n".encode())  # It may have interrupted print.
        elif number == signal.SIGINT and time.monotonic() >= received[0][1] + AGAIN_AFTER:
            INTERRUPTS.interrupt()

    def asked():
        if not begun and not received:
            begun.append(True)
            signal.signal(signal.SIGINT, handle)
            INTERRUPTS.defer(lambda number: print(_notice(number), file=sys.stderr, flush=True))
        return received[0][0] if received else 0

    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, handle)
    try:
        yield asked
    finally:
        INTERRUPTS.defer(None)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _notice(number):
    """The sentence that answers a signal."""
    again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
    return f"stops after this step and saves{again}"
