"""How far one long activity of a command is, as text: what, n of N, rate, time left, values."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

from rich.cells import cell_len, set_cell_size

COMPILES = "compiles once for each size"  # in a process
SHORTEST_BAR, LONGEST_BAR, SHORTEST_NOTE = 10, 40, 12  # columns
GAP = "  "


class Progress:
    """Counts what is done of one activity; a `Display` shows it between `with` and its end.

    what     what is done, such as "fit: features"
    total    the number of parts; None: unknown, only its time is shown
    unit     of the rate, such as "images"; "" shows none
    each     units of one part, such as the images of a batch
    first    what the first part does besides, such as COMPILES, which is said until it is done
    done     parts that were done before
    at_most  whether it may end before all parts are done
    clock    seconds

    The time of the first part, and of those that `begins` names, is not counted in the rate, as it
    may include compilation.
    """

    def __init__(
        self, what: str, total: int | None = None, *, unit: str = "", each: float = 1,
        first: str = "", done: int = 0, at_most: bool = False,
        clock: Callable[[], float] = time.monotonic,
        opened: Callable[["Progress"], None] = lambda progress: None,
        closed: Callable[["Progress"], None] = lambda progress: None,
    ):  # fmt: skip
        self.what, self.total, self.unit, self.each = what, total, unit, each
        self.bound = "at most " if at_most else ""
        self.note, self.clock, self.opened, self.closed = first, clock, opened, closed
        self.start = self.warm_done = self.done = done
        self.begun = self.noted = self.warm = self.now = clock()
        self.rested = self.resting = 0.0  # seconds: up to `now`, after it
        self.stride = 1  # parts done at once, as those of a batch
        self.values: dict[str, str] = {}
        self.lock = threading.Lock()

    def __enter__(self) -> "Progress":
        self.begun = self.noted = self.warm = self.now = self.clock()
        self.opened(self)
        return self

    def __exit__(self, *error):
        self.closed(self)

    def add(self, count: int = 1):
        """Some more are done."""
        self.at(self.done + count)

    def at(self, done: int):
        """So many are done."""
        with self.lock:
            more, self.done, self.now = done - self.done, done, self.clock()
            self.stride = max(more, 1)
            self.rested, self.resting = self.rested + self.resting, 0.0
            if self.warm_done == self.start:
                self.warm_done, self.warm, self.rested = done, self.now, 0.0
            elif self.note:
                self.warm_done, self.warm = self.warm_done + more, self.warm + self.now - self.noted
            self.note = ""

    def begins(self, note: str):
        """The next part does something besides, as compiling for another size; as `first`."""
        with self.lock:
            self.note, self.noted = note, self.clock()

    def rest(self, seconds: float):
        """So long something else was done, such as an evaluation, which is not in the rate."""
        with self.lock:
            self.resting += seconds

    def show(self, **values: str):
        """Sets the last values, such as loss="0.1234"."""
        self.values = {**self.values, **values}

    def each_of(self, parts: Iterable) -> Iterator:
        """The parts, each of which is done when the next one is asked for."""
        for part in parts:
            yield part
            self.add()

    @property
    def is_warm(self) -> bool:
        """Whether more than the first part is done."""
        return self.done > self.warm_done > self.start

    @property
    def seconds_each(self) -> float:
        """Seconds for one part, rests included; 0 before the first."""
        if self.is_warm:
            return (self.now - self.warm) / (self.done - self.warm_done)
        return (self.now - self.begun) / max(self.done - self.start, 1)

    @property
    def seconds_left(self) -> float | None:
        """Until the last part is done; None where it is not known, as where that one is late."""
        if not self.is_warm or self.total is None or self.done >= self.total:
            return None
        each, parts = self.seconds_each, self.total - self.done
        left = max(parts * each - (self.clock() - self.now), (parts - self.stride) * each, 0)
        return left or None

    def texts(self) -> dict[str, str]:
        """The parts of a line: "count", "rate", "values", "left", "note"; only those known."""
        with self.lock:
            found = {}
            if self.total is not None:
                width = len(f"{self.total:,}")
                found["count"] = f"{self.done:>{width},}/{self.total:,}"
            elif self.done > self.start:
                found["count"] = f"{self.done:,}"
            if self.unit and self.is_warm:
                seconds = max(self.now - self.warm - self.rested, 1e-9)
                found["rate"] = rate_text(
                    (self.done - self.warm_done) * self.each / seconds, self.unit
                )
            if self.values:
                found["values"] = values_text(self.values)
            if (left := self.seconds_left) is not None:
                found["left"] = f"{self.bound}{duration(left)} left"
            if self.note:
                found["note"] = f"{self.note}, {duration(self.clock() - self.noted)} so far"
            elif self.done == self.start:
                found["note"] = f"{duration(self.clock() - self.begun)} so far"
            return found

    def line(self) -> str:
        """All of it, where lines are as long as they need to be."""
        texts = self.texts()
        count = f" {texts.pop('count').strip()}" if "count" in texts else ""
        return "   ".join([f"{self.what}{count}", *texts.values()])


def values_text(values: Mapping[str, str]) -> str:
    """The last values in a line: loss 0.1234   mIoU 0.45."""
    return "   ".join(f"{name} {value}" for name, value in values.items())


def rate_text(rate: float, unit: str) -> str:
    """12.3 images/s; below one a second, the time of one: 3.2 s each."""
    if rate >= 1 or not rate:
        return f"{rate:.1f} {unit}/s"
    return f"{1 / rate:.1f} s each" if rate > 1 / 60 else f"{duration(1 / rate)} each"


def duration(seconds: float) -> str:
    """Seconds as 45 s, 3 min 20 s or 2 h 05 min."""
    seconds = int(round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def fitted(progress: Progress, width: int) -> list[tuple[str, str]]:
    """The parts of a line of at most `width` columns: (text, "bold", "dim" or "").

    Where there is no room, the bar goes first, then the rate, the last values, the end of the note,
    the time left, and the end of what is done.
    """
    texts, room = progress.texts(), 0
    for dropped in ("", "rate", "values", "note", "left"):
        note = texts.pop(dropped, "")
        if dropped == "note" and cell_len(note) + room >= SHORTEST_NOTE:
            texts["note"] = cut(note, cell_len(note) + room)
        rest = GAP.join(texts.values())
        room = width - cell_len(progress.what) - (len(GAP) if rest else 0) - cell_len(rest)
        if room >= 0:
            break
    what = cut(progress.what, cell_len(progress.what) + min(room, 0))
    parts = [(what, "bold")]
    if progress.total and room >= len(GAP) + SHORTEST_BAR:
        parts += [(GAP, ""), *bar(progress, min(room - len(GAP), LONGEST_BAR))]
    for name, text in texts.items():
        parts += [(GAP, ""), (text, "dim" if name in ("rate", "note") else "")]
    return parts


def cut(text: str, width: int) -> str:
    """The text, or its beginning and "…" where it has more columns."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, max(width - 1, 0)).rstrip() + "…"


def bar(progress: Progress, width: int) -> list[tuple[str, str]]:
    """A bar whose two parts differ in their characters, for terminals without dim text."""
    filled = width * min(progress.done, progress.total) // progress.total
    return [("━" * filled, "bold"), ("─" * (width - filled), "dim")]
