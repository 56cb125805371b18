"""JSON that a person wrote; whatever is wrong with it is a UserError with its line."""

import json
import re
from pathlib import Path

from diffseg_jax.data.names import read_text
from diffseg_jax.errors import UserError, shown

BEGINNINGS = (  # how the text goes on where it is no JSON, and what to do about it
    (r"//|#|/\*", "JSON has no comments. Remove it"),
    (r"'", "a single quote stands where a double quote must. Write \" around names"),
    (r"[\u2018-\u201f\xab\xbb`]", 'a typographic quote is no quote in JSON. Write " around names'),
    (r"(True|False|None)\b", "JSON has no {0}. Write true, false or nothing"),
    (r"[A-Za-z_]\w*", '{0} has no quotes. Write "{0}"'),
    (r"[+.]?\d|\.", "a number begins with a digit other than 0, or with -. Write 1 or 0.5"),
    (r",", "a comma stands where a value must. Remove it"),
    (r";", "a semicolon stands where a comma must. Write a comma"),
    (r"[\]}]", "{0} does not close the last open bracket, or nothing stands before it. Correct it"),
)
MESSAGES = (  # how those of the json module begin, and what to do
    ("Expecting ',' delimiter", "a comma is missing before {rest}. Write it"),
    ("Expecting ':' delimiter", "a colon is missing after a key. Write it"),
    ("Extra data", "there is more after the last bracket. Remove it, or the bracket before it"),
    ("Invalid control character", "a name holds a line end or tab, or its last quote is missing"),
    ("Unterminated string", "the quote that ends a name is missing. Write it"),
    ("Invalid \\", "a backslash stands in a name. Write two of them"),
)


def read_user_json(file: Path, example: str = '{"names": [...]}'):
    """The value in a JSON file; UserError that says what is wrong with the file, and in which line.

    example  what such a file may hold, for the error about an empty one

    A key that is repeated is wrong as well, and so are NaN and infinity.
    """
    try:
        text = read_text(file)
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        byte = error.object[error.start]
        raise UserError(
            f"cannot read {file}, line {line}: byte {byte:#x} is not {error.encoding.upper()}. "
            "Save the file as UTF-8."
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file}: {error}. It must be JSON, saved as UTF-8.") from None
    try:
        return json.loads(text, object_pairs_hook=_each_once, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        at, problem = _problem(text, error, example)
    except _Refused as error:
        at, problem = text.rfind(error.text), str(error)
    except (ValueError, RecursionError) as error:
        raise UserError(f"cannot read {file}: {error}. It must be plain JSON.") from None
    line = text.count("\n", 0, at) + 1
    raise UserError(f"cannot read {file}, line {line}: {problem}.")


class _Refused(ValueError):
    """What the json module reads, but JSON does not have; the last `text` in the file is it."""

    def __init__(self, text, problem):
        super().__init__(problem)
        self.text = text


def _problem(text, error, example):
    """(position, what is wrong there and what to do) of an error of the json module."""
    start = len(text[: error.pos].rstrip())  # after what could be read
    rest = text[start:].lstrip()
    if not rest:
        what = "it ends before the last bracket is closed. Add what is missing" if start else ""
        return start, what or f"it is empty. Write {example} into it"
    comma = re.compile(r",\s*[\]}]").match(text, max(start - text[:start].endswith(","), 0))
    if comma:
        return comma.start(), f"a comma stands before {comma[0][-1]}. Remove the comma"
    for beginning, what in BEGINNINGS if error.msg.startswith("Expecting") else ():
        if found := re.match(beginning, rest):
            return error.pos, what.format(found[0])
    for message, what in MESSAGES:
        if error.msg.startswith(message):
            before = message.startswith("Expecting ','")
            return start - 1 if before else error.pos, what.format(rest=shown(rest[:20]))
    return error.pos, f"it is no JSON there ({error.msg}). Correct the line"


def _each_once(pairs):
    """A JSON object as a dict; ValueError for a repeated key."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise _Refused(f'"{repeated}"', f'the key "{repeated}" is repeated. Remove one of them')
    return entries


def _no_constant(name):
    raise _Refused(name, f"{name} is no number in JSON. Write a number")
