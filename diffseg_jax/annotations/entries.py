"""Entries of files that other tools wrote, checked; whatever is wrong is a sentence."""

import json
import math
from pathlib import Path

import numpy as np

from diffseg_jax.annotations.polygons import MAX_COORDINATE
from diffseg_jax.data.images import MAX_PIXELS
from diffseg_jax.data.json_text import read_user_json
from diffseg_jax.errors import UserError, shown

BEGINNING = 4096  # bytes of a file that are read to recognise its format
ENTRY_TYPES = {dict: "an object", list: "a list", str: "text", int: "a whole number"}


def entry(parent: dict, key: str, kind: type, where: str):
    """parent[key] of a type among dict, list, str, int; UserError if it is missing or another one.

    where  the file, and the part of it, for the error: "a.json, annotation 3"
    """
    if key not in parent:
        raise UserError(f'{where} has no "{key}", which must be {ENTRY_TYPES[kind]}.')
    return of_type(parent[key], kind, f'"{key}"', where)


def of_type(value, kind: type, what: str, where: str):
    """The value, if it is of a type; UserError that calls it `what` if not."""
    if isinstance(value, float) and kind is int and value.is_integer():
        return int(value)  # as programs write that know no integers
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"{where}: {what} is {brief(value)}, but must be {ENTRY_TYPES[kind]}.")
    return value


def brief(value) -> str:
    """A value for an error; of lists and objects only what they are."""
    if isinstance(value, dict | list):
        return ENTRY_TYPES[type(value)]
    return shown(value)


def objects(parent: dict, key: str, where: str) -> list[dict]:
    """parent[key], a list of objects; UserError for anything else."""
    values = entry(parent, key, list, where)
    for number, value in enumerate(values):
        of_type(value, dict, f'entry {number} of "{key}"', where)
    return values


def image_size(height, width, where: str) -> tuple[int, int]:
    """(height, width); UserError unless they are whole, positive and not more than is read."""
    height, width = (of_type(value, int, "the size", where) for value in (height, width))
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise UserError(
            f"{where}: the image is {shown(width)} x {shown(height)} (width x height), but images "
            f"have 1 to {MAX_PIXELS} pixels. Correct the file."
        )
    return height, width


def corners(values, where: str, least: int = 3) -> np.ndarray:
    """f64[N,2] of a list [[x, y], ...]; UserError unless there are N >= least finite corners."""
    of_type(values, list, "the list of corners", where)
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in values):
        raise UserError(f"{where}: corners must be pairs [x, y] of numbers.")
    return checked_ring([number for pair in values for number in pair], where, least)


def checked_ring(numbers: list, where: str, least: int = 3) -> np.ndarray:
    """f64[N,2] of a flat list x, y, x, y, ...; UserError as `corners`."""
    if len(numbers) % 2 or len(numbers) < 2 * least:
        raise UserError(
            f"{where}: a polygon of {len(numbers)} numbers, but it must be x, y of {least} corners "
            "or more."
        )
    for number in numbers:
        if type(number) not in (int, float) or not abs(number) <= MAX_COORDINATE:
            raise UserError(
                f"{where}: a coordinate is {brief(number)}, but must be a number of at most "
                f"{MAX_COORDINATE:.0e} pixels."
            )
    return np.array(numbers, np.float64).reshape(-1, 2)


def object_in(file: Path) -> dict:
    """The object in a JSON file; UserError if it holds anything else."""
    return of_type(read_user_json(file), dict, "the content", str(file))


def begins_with(file: Path, *parts: str) -> bool:
    """Whether a file is JSON by its name, and one of the texts stands in its beginning."""
    if file.suffix.lower() != ".json" or not file.is_file():
        return False
    with open(file, "rb") as stream:
        start = stream.read(BEGINNING)
    return any(part.encode() in start for part in parts)


def colour_of(value) -> tuple[int, int, int] | None:
    """A colour [r, g, b] in 0..255, or "#ff0000"; None for anything else."""
    if isinstance(value, str) and len(value) == 7 and value[0] == "#":
        try:
            value = list(bytes.fromhex(value[1:]))
        except ValueError:
            return None
    if not isinstance(value, list | tuple) or len(value) != 3:
        return None
    whole = all(type(part) is int and 0 <= part <= 255 for part in value)
    return tuple(value) if whole else None


def class_name(value, where: str) -> str:
    """The name of a class, without spaces around it; UserError unless it can be one."""
    name = value.strip() if isinstance(value, str) else ""
    if not 0 < len(name) <= 200 or not name.isprintable():
        raise UserError(
            f"{where}: the name of a class is {brief(value)}, but must be text of 1 to 200 "
            "printable characters."
        )
    return name


def is_number(value) -> bool:
    """Whether a value of a JSON file is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)


def json_bytes(content) -> bytes:
    """The content of a JSON file, in UTF-8, without spaces."""
    return (json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n").encode()
