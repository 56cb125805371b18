"""From labelled regions to label maps, by explicit rules."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from diffseg_jax.annotations.entries import class_name
from diffseg_jax.annotations.regions import (
    IGNORED,
    OVERLAPS,
    UNLABELLED,
    LabelledImage,
    LabelledSet,
)
from diffseg_jax.data.labels import IGNORE, Labels
from diffseg_jax.data.palette import distinct_colours
from diffseg_jax.errors import UserError, counted, require_known, shown

CROWDS = ("255", "class")  # what pixels of crowd regions become
NOTHING = str(IGNORE)  # of PaintOptions.unlabelled: such pixels are ignored
MAX_DROPPED = 12  # names of classes in a sentence


@dataclass(frozen=True)
class PaintOptions:
    """How regions become a label map.

    rename      (name in the labels, name of the class) of classes that are renamed, or joined; all
                other options use the new names
    classes     names of the classes of the label map, in order; () = those of the labels. Regions
                of other classes count as unlabelled
    ignore      names of classes whose pixels become 255
    unlabelled  what pixels in no region become: "255", or the name of a class, which is added as
                the first one if there is none of that name
    overlap     one of OVERLAPS; None = that of the format
    crowd       one of CROWDS
    """

    classes: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    unlabelled: str = NOTHING
    overlap: str | None = None
    crowd: str = CROWDS[0]
    rename: tuple[tuple[str, str], ...] = ()

    def __post_init__(self):
        for name in (self.unlabelled, *(new for _, new in self.rename)):
            class_name(name, "--unlabelled and --rename")
        if self.overlap is not None:
            require_known(self.overlap, OVERLAPS, "overlap")
        require_known(self.crowd, CROWDS, "crowd")


@dataclass(frozen=True)
class ClassTable:
    """What the classes of labels become.

    labels      of the label maps
    codes       name of each class that is kept or ignored -> its id, or 255
    unlabelled  the id of pixels in no region
    """

    labels: Labels
    codes: Mapping[str, int]
    unlabelled: int


def class_table(labelled: LabelledSet, options: PaintOptions) -> ClassTable:
    """The table of a set; UserError for classes that it does not have, and for more than 255."""
    new_names = _renamed(labelled.classes, options.rename)
    known = tuple(dict.fromkeys(new_names.values()))
    for name in (*options.classes, *options.ignore):
        require_known(name, known, "class")
    ignored = {*options.ignore, *(new_names[name] for name in labelled.ignored)}
    names = options.classes or tuple(name for name in known if name not in ignored)
    if twice := [name for name in names if names.count(name) > 1 or name in options.ignore]:
        raise UserError(f"class {shown(twice[0])} is named twice. Name each class once.")
    rest = options.unlabelled
    if rest != NOTHING and rest not in names:
        names = (rest, *names)
    if not names:
        raise UserError("the labels have no class, or all of them are ignored. Check --input.")
    if len(names) > IGNORE:
        raise UserError(
            f"there are {len(names)} classes, but label maps hold {IGNORE} at most. Choose "
            "some with --classes=NAME,NAME."
        )
    ids = dict.fromkeys(ignored, IGNORE) | {name: index for index, name in enumerate(names)}
    codes = {name: ids[new] for name, new in new_names.items() if new in ids}
    unlabelled = IGNORE if rest == NOTHING else names.index(rest)
    return ClassTable(Labels(names, _colours(labelled, new_names, names)), codes, unlabelled)


def _renamed(classes, rename):
    """{name in the labels: name of the class}."""
    for old, _ in rename:
        require_known(old, classes, "class")
    if twice := [old for old, _ in rename if [each for each, _ in rename].count(old) > 1]:
        raise UserError(f"class {shown(twice[0])} is renamed twice. Give it one new name.")
    return {name: name for name in classes} | dict(rename)


def _colours(labelled, new_names, names):
    """The colours of a set, completed by others; of joined classes, that of the first one."""
    given = {}
    for name, colour in zip(labelled.classes, labelled.colours):
        given.setdefault(new_names[name], colour)
    used = {given[name] for name in names if name in given}
    free = (colour for colour in distinct_colours(IGNORE) if colour not in used)
    return tuple(given[name] if name in given else next(free) for name in names)


@dataclass
class Painted:
    """Counts of pixels over label maps.

    pixels      int64[256] of each id
    overlapping  pixels in regions of several classes
    unlabelled  pixels in no region
    dropped     {class: regions of it, or images with a map of it, that --classes does not name}
    """

    pixels: np.ndarray
    overlapping: int
    unlabelled: int
    dropped: dict[str, int]

    @classmethod
    def nothing(cls):
        """Before the first image."""
        return cls(np.zeros(256, np.int64), 0, 0, {})

    def sentences(self, overlap: str, unlabelled: str) -> Iterable[str]:
        """What a user should know about these pixels."""
        total = max(int(self.pixels.sum()), 1)
        if self.dropped:
            names = ", ".join(list(self.dropped)[:MAX_DROPPED]) + ", ..." * (
                len(self.dropped) > MAX_DROPPED
            )
            yield (
                f"not in --classes, so their pixels count as unlabelled: "
                f"{counted(len(self.dropped), 'class').replace('classs', 'classes')} ({names})"
            )
        if self.overlapping:
            yield (
                f"regions of different classes overlap on {self.overlapping / total:.2%} of the "
                f"pixels; {WINNERS[overlap]} (--overlap={overlap})"
            )
        if self.unlabelled and unlabelled == NOTHING:
            yield (
                f"{self.unlabelled / total:.1%} of the pixels are in no region and become 255, "
                "which is ignored; --unlabelled=background makes them a class"
            )


WINNERS = {
    "last": "the later one is on top",
    "first": "the earlier one is on top",
    "smallest": "the smaller one is on top",
}


def painted_map(
    image: LabelledImage, classes: tuple[str, ...], table: ClassTable, overlap: str, crowd: str,
    painted: Painted,
) -> np.ndarray | None:  # fmt: skip
    """u8[H,W] of the labels of an image, or None if it has none.

    classes  of the set, which `image.ids` index;  painted  is counted on
    """
    if image.ids is not None:
        canvas = _from_ids(image.ids, classes, table, painted)
    else:
        canvas = _from_regions(image, table, overlap, crowd, painted)
    nothing = canvas == UNLABELLED
    if nothing.all():
        return None
    return _finished(canvas, nothing, table, painted)


def blank(size: tuple[int, int], table: ClassTable, painted: Painted) -> np.ndarray:
    """u8[H,W] of an image without any region."""
    canvas = np.full(size, UNLABELLED, np.int16)
    return _finished(canvas, canvas == UNLABELLED, table, painted)


def _finished(canvas, nothing, table, painted):
    painted.unlabelled += int(nothing.sum())
    canvas[nothing] = table.unlabelled
    ids = canvas.astype(np.uint8)
    painted.pixels += np.bincount(ids.ravel(), minlength=256)
    return ids


def _from_ids(ids, classes, table, painted):
    codes = [table.codes.get(name, UNLABELLED) for name in classes]
    for index in np.unique(ids):
        if index >= 0 and codes[index] == UNLABELLED:
            painted.dropped[classes[index]] = painted.dropped.get(classes[index], 0) + 1
    look_up = np.array([*codes, IGNORE, UNLABELLED], np.int16)  # IGNORED is -2, UNLABELLED -1
    assert (IGNORED, UNLABELLED) == (-2, -1)
    return look_up[ids]


def _from_regions(image, table, overlap, crowd, painted):
    """int16[H,W] of ids, 255 and UNLABELLED. Crowds are below all other regions."""
    canvas, crowds = np.full(image.size, UNLABELLED, np.int16), []
    for region in ordered(image, overlap):
        code = table.codes.get(region.name)
        if code is None:
            painted.dropped[region.name] = painted.dropped.get(region.name, 0) + 1
        elif region.crowd:
            crowds.append((region, IGNORE if crowd == CROWDS[0] else code))
        else:
            box, inside = region.inside(image.size)
            below = canvas[box]
            before = below[inside]
            painted.overlapping += int(((before != UNLABELLED) & (before != code)).sum())
            below[inside & (below == UNLABELLED) if overlap == "first" else inside] = code
    for region, code in crowds:
        box, inside = region.inside(image.size)
        below = canvas[box]
        below[inside & (below == UNLABELLED)] = code
    return canvas


def ordered(image: LabelledImage, overlap: str) -> Iterable:
    """The regions of an image, with the largest first where the smallest is to be on top."""
    if overlap != "smallest":
        return image.regions
    regions, areas = list(image.regions), {}
    keys = [number if region.group is None else ("group", region.group)
            for number, region in enumerate(regions)]  # fmt: skip
    for key, region in zip(keys, regions):
        areas[key] = areas.get(key, 0) + int(region.inside(image.size)[1].sum())
    order = sorted(range(len(regions)), key=lambda number: -areas[keys[number]])
    return [regions[number] for number in order]
