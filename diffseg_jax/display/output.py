"""The standard streams of a command: they ignore a closed pipe, and wrap lines in a terminal."""

import contextlib
import io
import os
import re
import sys
from collections.abc import Iterator

from rich.cells import cell_len

ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\r")  # of colours, and of moves of the cursor
QUOTED = r"""(?:'[^']*'|"[^"]*"|[^\s'"])"""  # a part of a word of a shell
FLAGS = rf"""(?: (?=["']?--){QUOTED}+)*"""
TYPED = rf"python -m diffseg_jax\.\w+{FLAGS}"  # is copied, so no line ends within it
WORDS = re.compile(rf"(\s*)([(\"'`]?{TYPED}\S*|\S+)")
COPIED = re.compile(r"\s*(python -m |\|)")  # begins a command, or a row of a Markdown table
PARTS_OF_LINE = re.compile(r"(\s*)(\S+(?: \S+)*)")  # such as "3.2 images/s" between two spaces
HANGING = 4  # columns


class Output:
    """A standard stream that takes any text, and drops it once nobody reads the pipe any more.

    Names of files that are not valid text are printed with escapes. In a terminal, lines end
    between words; anywhere else they stay whole, for programs that search in them.
    """

    def __init__(self, stream):
        """stream: None where the process has no such stream."""
        self.stream = open(os.devnull, "w") if stream is None else stream  # noqa: SIM115
        self.wraps = True
        if isinstance(self.stream, io.TextIOWrapper):
            self.stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name):
        return getattr(self.stream, name)  # for all but `write` and `flush`

    def write(self, text: str) -> int:
        with self._dropped():
            width = self._width()
            lines = (wrapped(line, width) for line in text.split("\n")) if width else [text]
            self.stream.write("\n".join(lines))
        return len(text)

    def flush(self):
        with self._dropped():
            self.stream.flush()

    def _width(self):
        """Columns of the terminal; 0 if it is none, and where lines stay whole."""
        if not self.wraps:
            return 0
        try:
            return os.get_terminal_size(self.stream.fileno()).columns
        except (OSError, ValueError, AttributeError):  # a file, closed, or no stream of the system
            return 0

    @contextlib.contextmanager
    def _dropped(self):
        try:
            yield
        except BrokenPipeError:  # what is still buffered would raise again
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)


@contextlib.contextmanager
def standard_outputs() -> Iterator[None]:
    """Within it, the standard streams of the process are an `Output` each."""
    out, err = Output(sys.stdout), Output(sys.stderr)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            yield
        finally:
            out.flush()
            err.flush()


@contextlib.contextmanager
def whole_lines() -> Iterator[None]:
    """Within it, lines of standard output are not wrapped: code, Markdown and JSON are copied."""
    stream = sys.stdout
    if not isinstance(stream, Output):
        yield
        return
    stream.wraps = False
    try:
        yield
    finally:
        stream.wraps = True


def print_whole(*lines: str):
    """Prints lines that a terminal does not wrap, as `whole_lines`."""
    with whole_lines():
        print(*lines, sep="\n")


def wrapped(line: str, width: int) -> str:
    """A line as lines of at most `width` columns, unless a word or a command is longer.

    Those after the first are indented. Escapes before the line stay. A line that begins with a
    command stays whole, and so does a row of a Markdown table.
    """
    start = re.match(f"(?:{ESCAPES.pattern})*", line).end()
    escapes, text = line[:start], line[start:]
    if cell_len(ESCAPES.sub("", line)) <= width or COPIED.match(text):
        return line
    indent = " " * (len(text) - len(text.lstrip()) + HANGING)
    lines, found = [""], PARTS_OF_LINE.findall(text)
    if any(cell_len(indent + part) > width for _, part in found):
        found = WORDS.findall(text)
    for space, word in found:
        if lines[-1].strip() and cell_len(lines[-1] + space + word) > width:
            lines.append(indent + word)
        else:
            lines[-1] += space + word
    return escapes + "\n".join(lines)
