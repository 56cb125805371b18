"""How far a long phase of a run is, for the reader: n of N, and the time left."""

import time
from collections.abc import Callable

from diffseg_jax.training.log import duration

REPORT_EVERY = 20  # seconds


class Progress:
    """Logs how far a phase is, at most every REPORT_EVERY seconds; a short phase stays silent.

    say    takes a line
    what   what is counted, such as "fit: features"
    total  their number
    clock  seconds

    The first call of `add` may include compilation, so that the rate is that of the others.
    """

    def __init__(
        self, say: Callable[[str], None], what: str, total: int,
        clock: Callable[[], float] = time.perf_counter,
    ):  # fmt: skip
        self.say, self.what, self.total, self.clock = say, what, total, clock
        self.done = self.first = 0
        self.begun = self.reported = self.warm = self.now = clock()

    def add(self, count: int = 1):
        """Some more are done."""
        self.done, self.now = self.done + count, self.clock()
        if not self.first:
            self.first, self.warm = self.done, self.now
        if self.now - self.reported > REPORT_EVERY and self.first < self.done < self.total:
            self.reported = self.now
            left = duration((self.total - self.done) * self.seconds_each)
            self.say(f"{self.what} {self.done}/{self.total}   {left} left")

    @property
    def seconds_each(self) -> float:
        """Seconds for one of them; 0 before the first."""
        if self.done > self.first:
            return (self.now - self.warm) / (self.done - self.first)
        return (self.now - self.begun) / max(self.done, 1)
