"""Rows below all lines of a terminal, which are drawn again and again."""

import os
import sys
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console, RenderHook
from rich.control import Control
from rich.file_proxy import FileProxy
from rich.segment import ControlType, Segment
from rich.text import Text

ERASE = "\r\x1b[J"  # the row of the cursor and all below
PLAIN = ("", "dumb", "unknown")  # kinds of terminals that cannot erase a row


class DrawnRows(RenderHook):
    """The rows of a console, from the first `show` to `end`.

    The cursor rests at the beginning of the first row. So erasing what is below it is right also
    after the terminal has got another width, where many break their lines anew. What other code
    prints to standard output and to the terminal by standard error appears above the rows.
    """

    def __init__(self, console: Console):
        self.console, self.is_drawn = console, False
        self.rows: Sequence[Text] = ()
        self.streams: dict[str, object] = {}

    def show(self, rows: Sequence[Text]):
        """Draws other rows, none of which is wider than the terminal."""
        self.rows = rows
        if not self.is_drawn:
            self.console.push_render_hook(self)
        self.console.print(Control())  # nothing but the rows
        if not self.streams:
            self._redirect()

    def end(self):
        """Erases the rows."""
        for name, stream in self.streams.items():
            getattr(sys, name).flush()
            setattr(sys, name, stream)
        self.streams, self.rows = {}, ()
        self.console.print(Control())
        self.console.pop_render_hook()

    def process_renderables(self, renderables: list) -> list:
        """What rich prints in place of these: the rows follow them."""
        before = [_moving(ERASE)] if self.is_drawn else []
        self.is_drawn = bool(self.rows)
        return [*before, *renderables, *self._drawn()]

    def _drawn(self):
        if not self.rows:
            return []
        up = f"\x1b[{len(self.rows) - 1}A" if len(self.rows) > 1 else ""
        return [Text("\n", end="").join(self.rows), _moving(f"\r{up}")]

    def _redirect(self):
        for name in ("stdout", "stderr"):
            stream = getattr(sys, name)
            if stream is not None and stream.isatty() and not isinstance(stream, FileProxy):
                self.streams[name] = stream
                setattr(sys, name, FileProxy(self.console, stream))


def can_erase(stream: TextIO | None) -> bool:
    """Whether a row of the stream can be drawn and erased; None: there is no such stream."""
    return stream is not None and stream.isatty() and os.environ.get("TERM", "") not in PLAIN


def _moving(code: str) -> Control:
    """What moves the cursor and erases; rich counts no columns for it."""
    moving = Control()
    moving.segment = Segment(code, None, [(ControlType.CARRIAGE_RETURN,)])
    return moving
