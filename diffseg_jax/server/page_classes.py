"""The classes of a project: which there are, which may be added, and what their names may be."""

from collections.abc import Sequence
from pathlib import Path

from diffseg_jax.data.classes_json import MAX_NAME, read_classes
from diffseg_jax.data.labels import IGNORE, Labels
from diffseg_jax.data.palette import distinct_colours
from diffseg_jax.errors import UserError, shown
from diffseg_jax.storage.paths import open_path

CLASSES_FILE = "classes.json"  # in the folder of a project
MAX_CLASSES = 253  # ids below those of a patch that mean no class


def read_project_classes(folder: Path, given: Sequence[str] | str | None) -> Labels:
    """The classes of a project: those in its folder, and those given, which may only add some.

    given  names, also as one text with commas, or the path of a .json; None or "": none
    Raises UserError if there are none, if they contradict each other, and for wrong names.
    """
    new, names = None, tuple(given or ())
    if isinstance(given, str) and given.endswith(".json"):
        file = open_path(given)
        if not file.exists():
            raise UserError(f"there is no {given}. Give names, as in --classes=sky,road.")
        new = read_classes(file, 0)[0]
        names = new.names
    elif isinstance(given, str):
        names = tuple(name.strip() for name in given.split(",") if name.strip())
    file = folder / CLASSES_FILE
    if not file.exists():
        if not names:
            raise UserError("the classes are unknown. Name them, as in --classes=sky,road,tree.")
        require_names(names)
        return new or Labels(names, distinct_colours(len(names)))
    old = read_classes(file, 0)[0]
    require_names(old.names)
    if not names or old.names[: len(names)] == names:
        return Labels(old.names, old.palette)
    if names[: len(old.names)] != old.names:
        raise UserError(
            f"{file} names {', '.join(old.names)}, but --classes names {', '.join(names)}. Leave "
            "--classes out, add names after those of the file, or give another --output."
        )
    require_names(names)
    palette, wanted = [*old.palette], new.palette if new else [None] * len(names)
    for colour in wanted[len(palette) :]:
        if colour is None or colour in palette:
            taken = {*palette, *wanted[len(palette) :]}  # at most 253 of 255
            colour = next(rgb for rgb in distinct_colours(IGNORE) if rgb not in taken)
        palette.append(colour)
    return Labels(names, tuple(palette))


def require_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names; UserError unless they are different, printable and at most 253."""
    for name in names:
        if not 0 < len(name) <= MAX_NAME or not name.isprintable() or name != name.strip():
            raise UserError(
                f"{shown(name)} is no name of a class: it must have 1 to {MAX_NAME} printable "
                "characters, without spaces around them."
            )
        if list(names).count(name) > 1:
            raise UserError(f"there are two classes {name}. Give each one another name.")
    if len(names) > MAX_CLASSES:
        raise UserError(f"{len(names)} classes are too many: there can be {MAX_CLASSES}.")
    return tuple(names)
