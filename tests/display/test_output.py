"""Lines of a command: wrapped between words in a terminal, whole anywhere else."""

import contextlib
import io
import os
import pty
import shlex
import termios

import pytest

from diffseg_jax.display.output import Output, whole_lines, wrapped

pytestmark = pytest.mark.quick

WORDS = " ".join(["words of some length"] * 12)
COMMAND = "python -m diffseg_jax.main --config=configs/ddpm_seg_folder.py --workdir=runs/few"


def lines_of(line, width=80):
    return wrapped(line, width).split("\n")


def test_lines_end_between_words():
    found = lines_of(f"  fit: {WORDS}")
    assert len(found) > 2 and all(len(line) <= 80 for line in found)
    assert all(line.startswith(" " * 6) and line[6] != " " for line in found[1:])
    assert " ".join(line.strip() for line in found) == f"fit: {WORDS}"


def test_lines_that_fit_and_words_that_do_not_stay():
    for line in ("", "   ", "x" * 80, f"  {'x' * 200}", f"| {WORDS} | {WORDS} |"):
        assert wrapped(line, 80) == line
    assert lines_of(f"saved in {'x' * 200}") == ["saved in", " " * 4 + "x" * 200]


def test_parts_between_several_spaces_stay_together():
    line = "fit   608/14200   loss 0.8419   3 of 3 run   148.4 steps/s   at most 1 min 32 s left"
    assert lines_of(line)[1] == "    at most 1 min 32 s left"


def test_columns_are_counted_not_characters():
    assert len(lines_of("図 " * 30, 80)) == 2 and len(lines_of("図 " * 26, 80)) == 1


def test_no_line_ends_within_a_command():
    found = lines_of(f"the same command with more labels goes on: {COMMAND}, if there are any")
    assert found[1] == f"    {COMMAND}," and found[2] == "    if there are any"


@pytest.mark.parametrize("path", ["my photos/x y", "it's mine/of 'May'", "plain", 'the "old" ones'])
def test_arguments_that_are_quoted_belong_to_their_command(path):
    words = "python", "-m", "diffseg_jax.predict", f"--input={path}", "--output=seen"
    for command in (shlex.join(words), " ".join([*words[:3], f"--input={shlex.quote(path)}"])):
        found = lines_of(f'{WORDS} "{command}", or not: isn\'t it so', 60)
        assert any(f'"{command}",' in line for line in found)
        assert wrapped(f"  {command} {command}", 40) == f"  {command} {command}"


def test_a_sentence_that_begins_with_a_quote_or_a_bracket_is_wrapped():
    for start in '"a name" is', "[1, 2] is", "{0} is":
        assert len(lines_of(f"{start} {WORDS}")) > 2


def test_escapes_have_no_columns():
    row = "\x1b[1m" + "x" * 70 + "\x1b[0m\x1b[2m" + "y" * 10 + "\x1b[0m"
    assert wrapped(row, 80) == row
    found = lines_of("\r\x1b[J" + WORDS)
    assert found[0].startswith("\r\x1b[Jwords") and len(found[0]) <= 84


def test_a_terminal_gets_lines_of_its_width_and_a_file_whole_ones():
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 60))
    with open(theirs, "w") as stream:
        print(WORDS, file=Output(stream), end="", flush=True)
        found = os.read(ours, 4096).decode().splitlines()
        with contextlib.redirect_stdout(Output(stream)), whole_lines():
            print(WORDS, end="", flush=True)
        assert os.read(ours, 4096).decode() == WORDS
    os.close(ours)
    assert len(found) > 3 and max(map(len, found)) <= 60
    file = io.StringIO()
    print(WORDS, file=Output(file))
    assert file.getvalue() == f"{WORDS}\n"
