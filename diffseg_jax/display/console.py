"""What a command shows while it works: lines, and below them how far its activities are.

In a terminal the last rows are drawn again and again; anywhere else, and where TERM is dumb, plain
lines follow at growing intervals, so that logs stay short and nobody waits in silence.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from rich.console import Console
from rich.text import Text

from diffseg_jax.display.progress import Progress, fitted
from diffseg_jax.display.rows import DrawnRows

REDRAWN_EVERY = 0.5  # seconds, in a terminal
SHOWN_AFTER = 0.5  # seconds; what takes less is not shown
NOTE_AFTER = 2.0  # seconds of a part after which a plain line says what it does besides
SILENCES = (8.0, 15.0, 30.0)  # seconds without any line before the first, second, later ones
FIRST_AFTER = 3.0  # seconds of a command after which it says a line: imports took some before
FREE_COLUMNS = 1  # columns; some terminals begin another row after the last one
MOST_ROWS = 4  # that are drawn at once

_drawn: set["Display"] = set()  # those that show rows


class Display:
    """The lines of one command, and its activities; made once, and handed down.

    quiet    whether nothing is shown, as in all processes but the first
    file     None: standard output, whatever it is at the time
    clock    seconds
    ticking  whether a thread draws; else somebody calls `tick`

    Threads may share it. What other code prints meanwhile appears above the rows.
    """

    def __init__(
        self, quiet: bool = False, file: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic, ticking: bool = True,
    ):  # fmt: skip
        self.console = Console(
            file=file, quiet=quiet, highlight=False, soft_wrap=True, emoji=False, markup=False
        )
        self.quiet, self.clock, self.ticking = quiet, clock, ticking and not quiet
        self.open: list[Progress] = []
        self.lock = threading.RLock()
        self.rows: DrawnRows | None = None
        self.ended = threading.Event()
        self.spoken, self.silences, self.named = clock() - SILENCES[0] + FIRST_AFTER, 0, ""
        self.noted: tuple[Progress, str] | None = None

    def say(self, text: str):
        """A line for the reader."""
        with self.lock:
            self.console.print(text, markup=False)
            self.spoken = self.clock()

    def progress(self, what: str, total: int | None = None, **options) -> Progress:
        """`with progress(...) as shown`: how far an activity is, shown until its end.

        options  of `Progress`
        """
        return Progress(
            what, total, clock=self.clock, opened=self._open, closed=self._close, **options
        )

    @contextlib.contextmanager
    def counted(self, what: str, **options) -> Iterator[Callable[[int, int], None]]:
        """`with counted(...) as progress`: progress(done, total) shows an activity.

        It is shown from the first call on, whose parts were done before.
        """
        with contextlib.ExitStack() as stack:
            shown = []

            def progress(done, total):
                if shown:
                    shown[0].at(done)
                else:
                    opened = self.progress(what, total, done=done, **options)
                    shown.append(stack.enter_context(opened))

            yield progress

    @property
    def is_drawn(self) -> bool:
        """Whether rows are drawn, in a terminal that can; FORCE_COLOR makes a file none."""
        return self.console.is_interactive and self.console.file.isatty()

    def tick(self):
        """Draws the rows again, or says a plain line where one is due."""
        with self.lock:
            if self.quiet or not self.open:
                return
            if self.is_drawn:
                self._draw()
            else:
                self._say_due(self.open[-1])

    def _open(self, progress):
        with self.lock:
            self.open.append(progress)
            if progress.what != self.named:
                self.named, self.silences = progress.what, 0
            if self.ticking and len(self.open) == 1:
                self.ended = threading.Event()
                every = REDRAWN_EVERY if self.is_drawn else REDRAWN_EVERY / 2
                target = threading.Thread(target=self._run, args=(self.ended, every), daemon=True)
                target.start()

    def _close(self, progress):
        with self.lock:
            self.open.remove(progress)
            if self.open:
                return
            self.ended.set()
            if self.rows:
                self.rows.end()
                self.rows = None
                _drawn.discard(self)

    def _run(self, ended, every):
        while not ended.wait(every):
            try:
                self.tick()
            except (OSError, ValueError):  # nobody reads, or the stream is closed
                return

    def _say_due(self, progress):
        now = self.clock()
        note = progress, progress.note
        if progress.note and self.noted != note and now - progress.noted >= NOTE_AFTER:
            self.noted = note
            self.say(f"{progress.what}: {progress.note}")
        elif now - self.spoken >= SILENCES[self.silences]:
            self.silences = min(self.silences + 1, len(SILENCES) - 1)
            self.noted = note  # the line ends with it
            self.say(progress.line())

    def _draw(self):
        rows = [each for each in self.open if self.clock() - each.begun >= SHOWN_AFTER]
        if not rows and not self.rows:
            return
        if not self.rows:
            self.rows = DrawnRows(self.console)
            _drawn.add(self)
        self.rows.show([self._row(each) for each in rows[-MOST_ROWS:]])

    def _row(self, progress):
        row = Text(no_wrap=True, overflow="ellipsis", end="")
        for text, style in fitted(progress, self.console.width - FREE_COLUMNS):
            row.append(self._plain(text), style)
        row.truncate(self.console.width - FREE_COLUMNS, overflow="ellipsis")
        return row

    def _plain(self, text):
        """The text in the characters of the terminal."""
        if self.console.encoding.lower().startswith("utf"):
            return text
        return text.replace("━", "#").replace("─", "-").replace("…", "...")


def end_rows():
    """Erases all rows for good, before the process ends; in any thread."""
    for display in list(_drawn):
        # for good: its thread draws no more
        if display.lock.acquire(timeout=1) and display.rows:
            display.rows.end()
