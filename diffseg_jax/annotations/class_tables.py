"""Tables of names and colours: labelmap.txt of CVAT, lists of r,g,b,name, and VOC's palette."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from diffseg_jax.annotations.entries import class_name
from diffseg_jax.data.classes_json import read_classes
from diffseg_jax.data.labels import NO_CLASS, Labels
from diffseg_jax.data.names import read_text
from diffseg_jax.errors import UserError, shown

VOC_NAMES = (
    "background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, diningtable, "
    "dog, horse, motorbike, person, pottedplant, sheep, sofa, train, tvmonitor"
)
VOC_BORDER = (224, 224, 192)  # the colour of index 255 in these files
TABLE_NAMES = ("classes.json", "labelmap.txt", "class_dict.csv", "label_colors.txt", "colors.txt")
SEPARATORS = r"[,;:\t ]+"
CHANNEL = r"\d{1,3}(?:\.0+)?"


def voc_colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """The first `count` <= 256 colours of the palette of Pascal VOC.

    The bits of an index, the lowest first, are those of red, green, blue, red, ... the highest
    first.
    """
    return tuple(
        tuple(
            sum((index >> 3 * bit + channel & 1) << 7 - bit for bit in range(8))
            for channel in range(3)
        )
        for index in range(count)
    )


def read_colour_table(file: Path) -> Labels:
    """Names and colours from a classes.json, a labelmap.txt of CVAT, or lines of r,g,b,name.

    Lines may also hold the name first, and be separated by spaces, tabs, ";" or ":"; empty lines,
    lines that begin with "#" and a heading are skipped. Raises UserError for any other line, and
    for a name or a colour that is repeated.
    """
    if file.suffix.lower() == ".json":
        return _from_json(file)
    names, colours = [], []
    try:
        lines = read_text(file).splitlines()
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file}: {error}. It must be text, saved as UTF-8.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _name_and_colour(line)
        if found is None:
            if not names and not re.search(r"\d", line):
                continue  # a heading such as "name,r,g,b"
            raise UserError(
                f"{file}, line {number}: {shown(line.strip())} is no class. Write r,g,b,name, such "
                "as 128,64,128,road, with numbers in 0..255."
            )
        for kind, value, before in (("name", found[0], names), ("colour", found[1], colours)):
            if value in before:
                raise UserError(
                    f"{file}, line {number}: the {kind} {shown(value)} is repeated. Give each "
                    "class its own name and its own colour."
                )
        names.append(found[0])
        colours.append(found[1])
    if not names:
        raise UserError(f"{file} names no class. Write lines r,g,b,name, such as 128,64,128,road.")
    return Labels(tuple(names), tuple(colours))


def _from_json(file):
    if not file.is_file():
        raise UserError(f"there is no {file}. Give a classes.json, or a text of r,g,b,name.")
    labels, rules = read_classes(file, 0)
    if not rules.colours:
        raise UserError(f'{file} has no "palette", so the colours of its classes are unknown.')
    return labels


def _name_and_colour(line):
    """(name, (r, g, b)) of a line; None for another one."""
    numbers = rf"({CHANNEL}){SEPARATORS}({CHANNEL}){SEPARATORS}({CHANNEL})"
    for pattern, name_first in (
        (rf"(.+?) *: *{numbers}(?::.*)?", True),  # labelmap.txt, with parts and actions
        (rf"{numbers}{SEPARATORS}(.+?)[,;\t ]*", False),
        (rf"(.+?){SEPARATORS}{numbers}[,;\t ]*", True),
    ):
        if found := re.fullmatch(pattern, line.strip()):
            parts = found.groups()
            name, *values = parts if name_first else (parts[-1], *parts[:-1])
            name, colour = name.strip(" \"'"), tuple(int(float(value)) for value in values)
            return (name, colour) if name and max(colour) <= 255 else None
    return None


def find_colour_table(folder: Path) -> Path | None:
    """The first of TABLE_NAMES in a folder, or above it; None if there is none.

    A classes.json without a palette is none.
    """
    for parent in (folder, folder.parent):
        for name in TABLE_NAMES:
            file = parent / name
            if file.is_file() and (file.suffix != ".json" or b'"palette"' in file.read_bytes()):
                return file
    return None


def labelmap(names: Sequence[str], colours: Sequence[tuple[int, int, int]]) -> str:
    """The text of a labelmap.txt of CVAT; UserError for a name that its lines cannot hold."""
    rows = [f"{name}:{','.join(map(str, rgb))}::" for name, rgb in zip(names, colours)]
    for name, rgb, row in zip(names, colours, rows):
        if name.startswith("#") or _name_and_colour(row) != (name, tuple(rgb)):
            raise UserError(
                f"class {shown(name)} cannot be a line of labelmap.txt, name:r,g,b::, in which a "
                "name has no # at its beginning, no quotes around it and no colour at its end. "
                f"Rename it: --rename={shlex.quote(name)}:NAME."
            )
    return "\n".join(["# label:color_rgb:parts:actions", *rows, ""])


def different_names(file: Path) -> tuple[str, ...]:
    """The names of classes in a text file, one a line; UserError for one that stands twice."""
    try:
        lines = [line for line in read_text(file).splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file}: {error}. It must be text, saved as UTF-8.") from None
    names = tuple(class_name(line, str(file)) for line in lines)
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"{file} names the class {shown(twice[0])} twice. Rename one of them.")
    if not names:
        raise UserError(f"{file} names no class. Write one a line.")
    return names


def means_nothing(name: str) -> bool:
    """Whether the name of a class says that its pixels are not labelled: void, unlabelled, ..."""
    return name.lower().replace("_", " ").strip() in NO_CLASS
