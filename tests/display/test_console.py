"""What a command shows: in a terminal of some width, in a file, and where TERM is dumb."""

import io
import os
import pty
import re
import threading
import time

import pytest

from diffseg_jax.display.console import SILENCES, Display
from diffseg_jax.display.progress import COMPILES

pytestmark = pytest.mark.quick


class Clock:
    """A clock that only the test moves."""

    now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    encoding = "utf-8"

    def isatty(self):
        return True


@pytest.fixture
def terminal(monkeypatch):
    """(width, variables) -> display, its clock and its stream; a thread draws nothing."""

    def make(width=80, stream=None, **variables):
        for name in ("NO_COLOR", "FORCE_COLOR", "TERM", "COLUMNS", "TTY_COMPATIBLE"):
            monkeypatch.delenv(name, raising=False)
        given = {"COLUMNS": str(width), "LINES": "24", "TERM": "xterm-256color", **variables}
        for name, value in given.items():
            monkeypatch.setenv(name, value)
        clock, stream = Clock(), Terminal() if stream is None else stream
        return Display(file=stream, clock=clock, ticking=False), clock, stream

    return make


def plain(text):
    """The text without escapes for colours and for moves of the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def run_for(display, clock, seconds, every=1.0, call=lambda: None):
    """Lets the time pass as the thread of a display does."""
    for _ in range(int(seconds / every)):
        clock.now += every
        call()
        display.tick()


# ---- not a terminal ----------------------------------------------------------------------------


def test_a_file_gets_plain_lines_at_growing_intervals(terminal):
    display, clock, stream = terminal(stream=io.StringIO())
    said = []
    with display.progress("images", 1000, unit="images") as progress:
        for _ in range(150):
            clock.now += 1
            progress.add()
            before = stream.tell()
            display.tick()
            if stream.tell() > before:
                said.append(clock.now)
    assert said[0] <= 10 and said == [3, 18, 48, 78, 108, 138]
    text = stream.getvalue()
    assert "\r" not in text and "\x1b" not in text
    assert text.splitlines()[1] == "images 18/1,000   1.0 images/s   16 min 22 s left"


def test_other_lines_put_off_the_next_one(terminal):
    display, clock, stream = terminal(stream=io.StringIO())
    display.say("loss")
    with display.progress("images", 1000):
        for _ in range(60):
            run_for(display, clock, 5)
            display.say("loss")
    assert set(stream.getvalue().split()) == {"loss"}


def test_a_short_activity_says_nothing(terminal):
    display, clock, stream = terminal(stream=io.StringIO())
    with display.progress("images", 4, first=COMPILES):
        run_for(display, clock, 1.5, 0.5)
    assert stream.getvalue() == ""


def test_a_compilation_that_lasts_is_announced_once(terminal):
    display, clock, stream = terminal(stream=io.StringIO())
    with display.progress("train", first=COMPILES):
        run_for(display, clock, 40, 0.5)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "train: compiles once for each size"
    assert lines[1:] == [f"train   {COMPILES}, {seconds} s so far" for seconds in (10, 25)]


def test_a_compilation_that_a_line_has_named_is_not_announced_again(terminal):
    display, clock, stream = terminal(stream=io.StringIO())
    with display.progress("opens data"):
        run_for(display, clock, 8)
    with display.progress("train") as progress:
        run_for(display, clock, 2)
        progress.begins(COMPILES)
        run_for(display, clock, 10)
    said = ["opens data   3 s so far", f"train   {COMPILES}, 1 s so far"]
    assert stream.getvalue().splitlines() == said


def test_nobody_waits_longer_than_the_last_silence_whatever_the_activities_are(terminal):
    display, clock, stream = terminal(stream=io.StringIO())
    said = [0.0]

    def note():
        if stream.tell() != note.at:
            note.at = stream.tell()
            said.append(clock.now)

    note.at = 0
    with display.progress("cells", 100) as cells:
        for _ in cells.each_of(range(20)):
            with display.progress("images", 7) as progress:
                for _ in progress.each_of(range(7)):
                    run_for(display, clock, 1, 0.5, note)
    assert max(b - a for a, b in zip(said, said[1:])) <= SILENCES[-1] + 1


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"TERM": "unknown"}])
def test_a_dumb_terminal_gets_plain_lines(terminal, variables):
    display, clock, stream = terminal(**variables)
    with display.progress("images", 1000):
        run_for(display, clock, 60)
    text = stream.getvalue()
    assert text.count("\n") == 3 and "\r" not in text and "\x1b" not in text


def test_a_file_stays_plain_where_colours_are_forced(terminal):
    display, clock, stream = terminal(stream=io.StringIO(), FORCE_COLOR="1")
    with display.progress("images", 1000):
        run_for(display, clock, 20)
    assert "\r" not in stream.getvalue() and "\x1b" not in stream.getvalue()


def test_a_quiet_display_shows_nothing():
    clock, stream = Clock(), Terminal()
    display = Display(quiet=True, file=stream, clock=clock, ticking=False)
    with display.progress("images", 10) as progress:
        run_for(display, clock, 100, call=progress.add)
        display.say("a line")
    assert stream.getvalue() == ""


# ---- a terminal --------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 200])
def test_rows_fit_and_lines_stay_above_them(terminal, width):
    display, clock, stream = terminal(width)
    with display.progress("train", 400, unit="images", each=8) as steps:
        for step in steps.each_of(range(40)):
            steps.show(loss=f"{1 / (step + 1):.4f}")
            run_for(display, clock, 1)
        with display.progress("train: evaluates", 10) as images:
            display.say("x" * 300)  # longer than the terminal is wide
            run_for(display, clock, 3, call=images.add)
    text = plain(stream.getvalue())
    assert "x" * 300 in text
    assert "train: evaluates" in text and "40/400" in text and "6 min 00 s left" in text
    rows = [row for row in re.split(r"[\r\n]+", text) if "/400" in row or "/10" in row]
    assert rows and max(map(len, rows)) < width
    assert ("━" in text) == (width == 200) or "━" in text
    assert "\x1b[?25l" not in stream.getvalue()  # a killed program could not show the cursor again


def test_rows_are_removed_at_the_end_also_after_an_error(terminal):
    display, clock, stream = terminal()
    with pytest.raises(KeyboardInterrupt), display.progress("images", 10):
        run_for(display, clock, 5)
        raise KeyboardInterrupt
    assert display.rows is None and not display.open
    assert stream.getvalue().endswith("\r\x1b[J")  # the row is erased


def screen_of(text, width=80):
    """The rows of a terminal that breaks long lines anew when it gets another width, as most do."""
    lines, line, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[0-9;?]*[a-zA-Z]|<\d+>|[^\x1b<]", text):
        if part == "\n":
            line, column = line + 1, 0
            lines += [""] * (line == len(lines))
        elif part == "\r":
            column = column // width * width
        elif part == "\x1b[J":
            lines[line:] = [lines[line][:column]]
        elif part.endswith("A"):  # up, by rows of the screen
            for _ in range(int(part[2:-1])):
                line, column = (line, column - width) if column >= width else (line - 1, 0)
        elif part[0] == "<":
            width = int(part[1:-1])
        elif part[0] != "\x1b":
            lines[line] = lines[line][:column] + part + lines[line][column + 1 :]
            column += 1
    return lines


def test_rows_leave_nothing_where_the_terminal_gets_narrower(terminal):
    display, clock, stream = terminal(80)
    display.say("first")
    with display.progress("train", 400, unit="images"), display.progress("evaluates", 10) as images:
        for width in (80, 80, 40, 30, 70, 20):
            stream.write(f"<{width}>")
            display.console.width = width
            run_for(display, clock, 2, call=images.add)
            display.say(f"line {width}")
        before = screen_of(stream.getvalue())
    assert [row.split()[0] for row in before[-2:]] == ["train", "evaluates"]
    after = screen_of(stream.getvalue())
    lines = ["first", *(f"line {width}" for width in (80, 80, 40, 30, 70, 20)), ""]
    assert after == lines


def test_no_row_is_black_or_white_or_of_any_colour(terminal):
    for variables in ({}, {"NO_COLOR": "1"}):
        display, clock, stream = terminal(**variables)
        with display.progress("images", 100, unit="images") as progress:
            run_for(display, clock, 10, call=progress.add)
        styles = set(re.findall(r"\x1b\[([0-9;]*)m", stream.getvalue()))
        assert styles <= {"0", "1", "2"}  # none, bold, dim


def test_a_terminal_without_unicode_gets_a_bar_of_ascii(terminal):
    stream = Terminal()
    stream.encoding = "ascii"
    display, clock, _ = terminal(200, stream)
    with display.progress("images", 20) as progress:
        run_for(display, clock, 10, call=progress.add)
    assert "####" in stream.getvalue() and stream.getvalue().isascii()


def test_what_other_code_prints_appears_above_the_rows(monkeypatch):
    """In a true pseudo-terminal, with the thread that draws."""
    ours, theirs = pty.openpty()
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    with os.fdopen(theirs, "w", encoding="utf-8") as stream:
        monkeypatch.setattr("sys.stdout", stream)
        display, before = Display(), threading.active_count()
        with display.progress("images", 3) as progress:
            for number in progress.each_of(range(3)):
                time.sleep(0.4)
                print(f"line {number}")
        stream.flush()
        deadline = time.monotonic() + 5
        while threading.active_count() > before and time.monotonic() < deadline:
            time.sleep(0.01)
        assert threading.active_count() == before  # the thread has ended
        text = plain(os.read(ours, 100_000).decode())
    os.close(ours)
    assert "images" in text and "1/3" in text
    lines = [line.strip("\r") for line in text.split("\n")]
    assert [line for line in lines if line.endswith("line 2")]
