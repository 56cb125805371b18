"""classes.json: the names, colours and ignored ids of the classes in a folder.

    {"names": [str, ...], "palette": [[r, g, b], ...], "ids": [id, ...],
     "ignore": [id or [r, g, b], ...], "zero_is_ignored": bool, "masks": "ids" or "colours"}

All keys but the names are optional. The palette has a colour and "ids" an id on disk for each name.
"""

import json
import re
from dataclasses import replace

from diffseg_jax.data.class_advice import advice_without_names
from diffseg_jax.data.class_ids import MAX_ID, MaskRules, id_table
from diffseg_jax.data.json_text import read_user_json
from diffseg_jax.data.labels import Labels
from diffseg_jax.data.palette import distinct_colours, numbered_labels
from diffseg_jax.errors import UserError, choose

MAX_NAME = 200  # characters of a class name

CLASSES_KEYS = {
    "names": [], "palette": [], "ids": [], "ignore": [], "zero_is_ignored": False, "masks": "",
}  # fmt: skip
READINGS = ("", "ids", "colours")


def read_classes(file, num_classes, ignore=(), seen=lambda: ({}, [])):
    """(Labels, MaskRules) of a classes.json, or of num_classes if there is no such file.

    ignore  ids on disk in 0..65535 that become 255, besides those that the file lists
    seen    () -> ({stored id: pixels}, colours) of some masks, by which an error can advise

    An ignored id that belongs to a class makes the class unscored; the other classes keep their
    indices. With "zero_is_ignored" the stored ids are 1..K, and so are those of the names. Raises
    UserError for a file that breaks a rule, and without a file and num_classes.
    """
    if not _are_integers(list(ignore), MAX_ID):
        raise UserError(f"ignore is {ignore}, but must hold ids in 0..65535, such as (0,).")
    if not file.exists():
        if num_classes < 1:
            raise UserError(
                f"there is no {file} and num_classes is {num_classes}, so the classes are unknown. "
                f"{advice_without_names(*seen(), file, tuple(ignore))}"
            )
        table = id_table(num_classes, ignore=ignore)
        labels = _without_ignored(numbered_labels(num_classes), table)
        return labels, MaskRules(
            table, names=labels.names, file=str(file), ignore=tuple(ignore), num_classes=num_classes
        )
    written = _read_entries(file)
    entries = CLASSES_KEYS | written
    for wrong, sentence in _wrong_classes(**entries, num_classes=num_classes):
        if wrong:
            raise UserError(f"{file}: {sentence}.")
    names, palette = entries["names"], entries["palette"] or distinct_colours(len(entries["names"]))
    ignored = [value for value in entries["ignore"] if not isinstance(value, list)]
    table = id_table(
        len(names), ignore=(*ignored, *ignore), zero_is_ignored=entries["zero_is_ignored"],
        ids=entries["ids"],
    )  # fmt: skip
    labels = Labels(tuple(names), tuple(tuple(colour) for colour in palette))
    rules = MaskRules(
        table, names=labels.names, file=str(file), entries=written, colours=_colours(**entries),
        reading=entries["masks"], ignore=tuple(ignore), num_classes=num_classes,
    )  # fmt: skip
    return _without_ignored(labels, table), rules


def _read_entries(file):
    entries = read_user_json(file)
    by_id = dict(enumerate(entries)) if isinstance(entries, list) else entries
    if by_id and isinstance(by_id, dict) and _are_names_by_id(by_id):
        raise UserError(f"{file} lists names only. It must read {_by_id(by_id)}.")
    if not isinstance(entries, dict):
        raise UserError(f'{file} is not an object. It must read {{"names": [...], ...}}.')
    for key in entries:
        choose(CLASSES_KEYS, key, f"key in {file}")
    return entries


def _are_names_by_id(entries):
    return all(str(key).isdecimal() and isinstance(name, str) for key, name in entries.items())


def _by_id(names):
    """The file that says what {id: name} says."""
    ids, names = [int(key) for key in names], list(names.values())
    counted = {} if ids == list(range(len(ids))) else {"ids": ids}
    return json.dumps({"names": names} | counted)


def _colours(palette, ids, ignore, zero_is_ignored, **_):
    """{colour: stored id} of the classes of a file with a palette; -1 for ignored colours.

    A colour of several classes is left out.
    """
    ids = ids or range(int(zero_is_ignored), len(palette) + 1)
    colours = {tuple(rgb): stored for rgb, stored in zip(palette, ids) if palette.count(rgb) == 1}
    return colours | {tuple(value): -1 for value in ignore if palette and isinstance(value, list)}


def _without_ignored(labels, table):
    """The labels with those classes unscored that no id on disk maps to."""
    unscored = set(range(len(labels.names))) - set(table.tolist())
    return replace(labels, unscored=tuple(sorted(unscored)))


def _wrong_classes(names, palette, ids, ignore, zero_is_ignored, masks, num_classes):
    """(whether it is broken, sentence) for each rule of classes.json, which is written by hand."""
    are_names = isinstance(names, list) and names and all(map(_is_name, names))
    yield (
        not are_names or _repeats(names),
        f"names must be a list of different strings, of 1 to {MAX_NAME} printable characters",
    )
    yield (
        num_classes not in (0, len(names)),
        f"it names {len(names)} classes, but num_classes is {num_classes}; leave num_classes out",
    )
    yield (
        not isinstance(palette, list)
        or not all(map(_is_colour, palette))
        or len(palette) not in (0, len(names)),
        f"palette must hold one [r, g, b] in 0..255 for each of the {len(names)} names"
        + _from_hex(palette),
    )
    yield (
        not _are_integers(ids, MAX_ID) or len(ids) not in (0, len(names)) or _repeats(ids),
        f"ids must hold one id in 0..{MAX_ID} for each of the {len(names)} names, each id once",
    )
    yield (
        not isinstance(ignore, list)
        or not all(_is_colour(value) or _are_integers([value], MAX_ID) for value in ignore),
        f"ignore must be a list of ids in 0..{MAX_ID}, or of colours [r, g, b] in 0..255",
    )
    yield not isinstance(zero_is_ignored, bool), "zero_is_ignored must be true or false"
    yield masks not in READINGS, 'masks must be "ids" or "colours"'
    yield masks == "colours" and not palette, 'masks is "colours", which needs a palette'


def _from_hex(palette):
    """The end of a sentence about a palette of "#ff0000" and its like, or ""."""
    if not isinstance(palette, list) or not all(isinstance(each, str) for each in palette):
        return ""
    if not all(re.fullmatch("#?[0-9a-fA-F]{6}", each) for each in palette):
        return ""
    colours = [list(bytes.fromhex(each.removeprefix("#"))) for each in palette]
    return f': set "palette": {colours}'


def _repeats(values):
    return len(set(values)) < len(values)


def _is_name(value):
    return isinstance(value, str) and 0 < len(value) <= MAX_NAME and value.isprintable()


def _is_colour(value):
    return _are_integers(value, 255) and len(value) == 3


def _are_integers(values, maximum):
    """Whether `values` is a list of integers in 0..maximum."""
    return isinstance(values, list) and all(
        type(value) is int and 0 <= value <= maximum for value in values
    )
