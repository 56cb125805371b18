"""From labelled regions to label maps, by explicit rules."""

import zlib
from collections.abc import Iterable, Iterator, Mapping
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
NAMES_IN_A_NOTE = 12  # of classes, in a sentence
DROPPED = -3  # on the canvas: a region of a class that --classes does not name
MAX_DRAWN_PIXELS = 10**10  # pixels in the boxes of all regions of an image; minutes of work


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
    by_name     names in the labels of the classes that are ignored because of their names
    absent      names of classes that were chosen, and that no label has
    """

    labels: Labels
    codes: Mapping[str, int]
    unlabelled: int
    by_name: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    def sentences(self) -> Iterator[str]:
        """What a user should know about the classes."""
        if self.by_name:
            yield (
                f"ignored because of their names: {_listed(self.by_name)}; --classes or --rename "
                "makes classes of them"
            )
        if self.absent:
            yield f"named in --classes, but no label has it: {_listed(self.absent)}"


def class_table(labelled: LabelledSet, options: PaintOptions) -> ClassTable:
    """The table of a set; UserError for classes that it does not have, and for more than 255.

    Where classes are merely those that occur, others can be chosen too.
    """
    new_names = _renamed(labelled.classes, options.rename)
    known = tuple(dict.fromkeys(new_names.values()))
    absent = tuple(name for name in options.classes if name not in known)
    for name in (*(() if labelled.are_found else options.classes), *options.ignore):
        require_known(name, known, "class")
    renamed = {old for old, _ in options.rename}
    own = {new_names[name] for name in labelled.ignored if name not in renamed}
    own -= {*options.classes, *options.ignore, options.unlabelled}
    ignored = {*options.ignore, *own}
    names = options.classes or tuple(name for name in known if name not in ignored)
    if options.unlabelled in options.ignore:
        raise UserError(
            f"class {shown(options.unlabelled)} is given to --ignore and to --unlabelled. Its "
            "pixels can be ignored, or be a class: name it once."
        )
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
    labels = Labels(names, _colours(labelled, new_names, names))
    by_name = tuple(name for name in labelled.classes if new_names[name] in own)
    return ClassTable(labels, codes, unlabelled, by_name, absent)


def _listed(names):
    """Names for a sentence."""
    more = ["..."] if len(names) > NAMES_IN_A_NOTE else []
    return ", ".join([*list(names)[:NAMES_IN_A_NOTE], *more])


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
            count = counted(len(self.dropped), "class")
            yield (
                f"not in --classes, so their pixels count as unlabelled: {count} "
                f"({_listed(self.dropped)})"
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
    if (canvas == UNLABELLED).all():
        return None
    return _finished(canvas, table, painted)


def blank(size: tuple[int, int], table: ClassTable, painted: Painted) -> np.ndarray:
    """u8[H,W] of an image without any region."""
    return _finished(np.full(size, UNLABELLED, np.int16), table, painted)


def _finished(canvas, table, painted):
    nothing = canvas == UNLABELLED
    painted.unlabelled += int(nothing.sum())
    canvas[nothing | (canvas == DROPPED)] = table.unlabelled
    ids = canvas.astype(np.uint8)
    painted.pixels += np.bincount(ids.ravel(), minlength=256)
    return ids


def _from_ids(ids, classes, table, painted):
    codes = [table.codes.get(name, DROPPED) for name in classes]
    for index in np.unique(ids):
        if index >= 0 and codes[index] == DROPPED:
            painted.dropped[classes[index]] = painted.dropped.get(classes[index], 0) + 1
    look_up = np.zeros(len(codes) + 2, np.int16)
    look_up[: len(codes)] = codes
    look_up[[IGNORED, UNLABELLED]] = IGNORE, UNLABELLED  # which are negative, from the end
    return look_up[ids]


def _from_regions(image, table, overlap, crowd, painted):
    """int16[H,W] of ids, 255, DROPPED and UNLABELLED. Crowds are below all other regions."""
    canvas, crowds = np.full(image.size, UNLABELLED, np.int16), None
    overlapping = np.zeros(image.size, bool)
    for name, is_crowd, box, inside in drawn(image, overlap):
        code = table.codes.get(name, DROPPED)
        if code == DROPPED:
            painted.dropped[name] = painted.dropped.get(name, 0) + 1
        if is_crowd:
            crowds = np.full(image.size, UNLABELLED, np.int16) if crowds is None else crowds
            below, code = crowds[box], IGNORE if crowd == CROWDS[0] and code != DROPPED else code
        else:
            below = canvas[box]
            overlapping[box] |= inside & (below != UNLABELLED) & (below != code)
        under = is_crowd or overlap == "first"
        below[inside & (below == UNLABELLED) if under else inside] = code
    painted.overlapping += int(overlapping.sum())
    return canvas if crowds is None else np.where(canvas == UNLABELLED, crowds, canvas)


def drawn(image: LabelledImage, overlap: str) -> Iterator[tuple]:
    """(class, whether it is a crowd, (rows, columns) of a box, bool[h,w] inside) of each region.

    They come in the order of painting. Where the smallest is to be on top, that is by size, and
    masks are compressed until it is known, since a few bytes of run lengths can be a large mask.
    Raises UserError for regions whose boxes have more than MAX_DRAWN_PIXELS pixels together.
    """
    held, areas, pixels = [], {}, 0
    for number, region in enumerate(image.regions):
        box, inside = region.inside(image.size)
        pixels += inside.size
        if pixels > MAX_DRAWN_PIXELS:
            raise UserError(
                f"{image.name}: its regions cover boxes of more than {MAX_DRAWN_PIXELS:,} pixels "
                "together, which takes too long to draw. Remove regions, or cut the image."
            )
        if overlap != "smallest":
            yield region.name, region.crowd, box, inside
            continue
        key = number if region.group is None else ("group", region.group)
        areas[key] = areas.get(key, 0) + int(inside.sum())
        packed = zlib.compress(np.packbits(inside).tobytes(), 1)
        held.append((key, region.name, region.crowd, box, inside.shape, packed))
    for _, name, is_crowd, box, shape, packed in sorted(held, key=lambda each: -areas[each[0]]):
        bits = np.frombuffer(zlib.decompress(packed), np.uint8)
        inside = np.unpackbits(bits, count=shape[0] * shape[1]).astype(bool)
        yield name, is_crowd, box, inside.reshape(shape)
