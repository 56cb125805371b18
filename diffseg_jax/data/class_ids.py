"""From the ids that masks store to classes, by tables.

A table is int32[n]: the class of each id, 255 where the id is ignored, -1 where it is a mistake.
"""

import itertools
import json
from dataclasses import dataclass, field

import numpy as np

from diffseg_jax.data.labels import IGNORE
from diffseg_jax.data.palette import distinct_colours
from diffseg_jax.errors import UserError

MAX_RANGES = 12  # of ids in an error
SIGNED_IGNORE = (-1, -100)  # ids that signed arrays hold for ignored pixels
MAX_ID = 65535  # that a table can hold
SMOOTHED = 32  # more unknown ids or colours than these in one mask come from smoothing


def id_table(num_classes, *, ignore=(), zero_is_ignored=False, ids=()):
    """A table, of 256 or more ids, in which ids 0..K-1 are their own classes.

    255 and the ids in `ignore` become 255, all others -1. With zero_is_ignored the stored ids are
    1..K: 0 becomes 255 and k becomes k-1 (as in ADE20K). `ids` lists the stored id of each class
    instead; 255 may be one of them. Raises UserError if there are more classes than ids below 255.
    """
    first = int(zero_is_ignored)
    if not 1 <= num_classes <= IGNORE - first:
        raise UserError(
            f"num_classes is {num_classes}, but there can be 1 to {IGNORE - first} classes beside "
            "the ignore label 255. Name fewer classes, with their stored ids as "
            '"ids" and the other ids as "ignore" in classes.json.'
        )
    ids = list(ids) or list(range(first, first + num_classes))
    table = np.full(1 + max(IGNORE, *ids, *ignore), -1, np.int32)
    table[[*range(first), IGNORE]] = IGNORE
    table[ids] = np.arange(num_classes)
    table[list(ignore)] = IGNORE
    return table


@dataclass(frozen=True, eq=False)
class MaskRules:
    """How the masks of a data set store its classes.

    table     the class of each stored id
    hint      one sentence for errors about ids, of data sets whose classes are published
    names     of the classes, where a classes.json may change what follows
    file      that classes.json, which may not exist yet;  entries  its content, {} without it
    colours   {(r, g, b): stored id} for masks in colours; -1 for ignored ones
    reading   "ids" or "colours": what masks hold; "" where each file tells
    ignore    the ids that the option `ignore` adds to those of the file
    num_classes  the option as given, which must be the number of names; 0: any
    """

    table: np.ndarray = field(repr=False)
    hint: str = ""
    names: tuple[str, ...] = ()
    file: str = ""
    entries: dict = field(default_factory=dict, repr=False)
    colours: dict = field(default_factory=dict, repr=False)
    reading: str = ""
    ignore: tuple[int, ...] = ()
    num_classes: int = 0

    def to_classes(self, ids, path, others=()):
        """The classes int32[H,W] of stored ids, integer [H,W]; -1 and -100 count as ignored.

        others  () -> {id: pixels} of several masks, by which an error can advise; not called
                without one

        Raises UserError with the path, the smallest id that the table does not allow, and what to
        do about it.
        """
        mask = _look_up(ids, self.table)
        if mask.min() < 0:
            bad = [int(value) for value in np.unique(ids[mask < 0])]
            classes = np.flatnonzero((self.table >= 0) & (self.table != IGNORE))
            ignored = np.flatnonzero(self.table == IGNORE)
            own = dict(zip(*(part.tolist() for part in np.unique(ids, return_counts=True))))
            advice = self.advice(own | (others() if others and self.file else {}))
            raise UserError(
                f"mask {path} has class id {bad[0]}, but classes are {ranges(classes)} "
                f"({ranges(ignored) or 'none'} is ignored). {advice}".rstrip()
            )
        return mask

    def class_of(self, stored):
        """The class of a stored id: 255 if it is ignored, -1 if it is a mistake."""
        if stored in SIGNED_IGNORE:
            return IGNORE
        return int(self.table[stored]) if 0 <= stored < len(self.table) else -1

    def stored_id(self, label):
        """The smallest id of a class on disk."""
        return int(np.flatnonzero(self.table == label)[0])

    def written(self, **entries):
        """`set "ids": [0, 255] in FILE`, or the whole file where there is none."""
        if self.entries:
            return f"set {json.dumps(entries)[1:-1]} in {self.file}"
        return f"write {json.dumps({'names': list(self.names)} | entries)} into {self.file}"

    def naming(self, count, **entries):
        """As `written`, for so many classes: the first names, or more of them, and what follows."""
        names = [*self.names, *(f"class_{k}" for k in range(len(self.names), count))][:count]
        if names != list(self.names):
            entries = {"names": names} | self._resized(count) | entries
        option = ""
        if self.num_classes not in (0, count):
            option = f" and give --config.data.options.num_classes={count}"
        return self.written(**entries) + option

    def _resized(self, count):
        """The colours and ids of the file, for so many classes."""
        resized, ids = {}, self.entries.get("ids")
        if palette := self.entries.get("palette"):
            resized["palette"] = filled(palette, count)[:count]
        if ids:
            free = (value for value in range(IGNORE) if value not in ids)
            resized["ids"] = [*ids, *itertools.islice(free, max(count - len(ids), 0))][:count]
        return resized

    def numbered(self, ids, ignore=()):
        """As `naming`, for the stored ids of the classes, and ids that are to be ignored."""
        before = self.entries.get("ignore", [])
        kept = [value for value in before if value not in ids]
        after = kept + [value for value in ignore if value not in kept]
        line = self.naming(len(ids), ids=ids, **({"ignore": after} if after != before else {}))
        if wanted := sorted(set(ids) & set(self.ignore)):
            line += f" and take {ranges(wanted)} out of --config.data.options.ignore"
        return line

    def ignoring(self, ids):
        """As `written`, for ids that are to be ignored besides those that the file ignores."""
        return self.written(ignore=[*self.entries.get("ignore", []), *ids])

    def advice(self, pixels):
        """What to type so that masks with these numbers of pixels by stored id can be used."""
        stored = sorted(pixels)
        if not self.file:
            return self.hint
        bad = [value for value in stored if self.class_of(value) < 0]
        if bad and not 0 <= (wrong := min(bad[0], 0) or bad[-1]) <= MAX_ID:
            return f"Replace {wrong} by 255: numpy.where(mask == {wrong}, 255, mask)."
        if len(bad) > SMOOTHED:
            return (
                f"It holds {len(stored)} different values, as after smooth resizing or lossy "
                "compression. Export it again as PNG, resized with nearest neighbour."
            )
        stored = [value for value in stored if value not in SIGNED_IGNORE]
        listed = ranges(stored) or "of ignored pixels"
        return f"The masks hold the ids {listed}. {self._remedy(stored, bad, pixels)}"

    def _remedy(self, stored, bad, pixels):
        count, known = len(self.names), [i for i in stored if self.class_of(i) != IGNORE]
        if count == 1 and len(stored) == 2:
            return self._with_background(stored)
        if count == 2 and {0, 255} <= set(stored) and 1 not in stored and known != [0, 255]:
            others = [value for value in stored if value not in (0, 255)]
            return f'If 255 is "{self.names[1]}", {self.numbered([0, 255], others)}.'
        if self.entries.get("zero_is_ignored") and 0 in stored and stored[-1] < count:
            return f'If 0 is "{self.names[0]}", {self.written(zero_is_ignored=False)}.'
        if bad == [count] and self.class_of(0) == 0:
            return f"{self._counted_from_one(bad, pixels)}; {self._named(bad)}."
        if len(bad) > 1 and bad == list(range(count, bad[-1] + 1)):
            readings = [self._named(bad), *self._without(bad, stored)]
            if 0 not in pixels:
                line = self.naming(bad[-1], zero_is_ignored=True)
                readings.insert(0, f"if ids count from 1, as no mask that was read holds 0, {line}")
            return f"I{'; '.join(readings)[1:]}."
        if bad == [MAX_ID]:  # -1 as 16 bits
            return f"To ignore it, {self.ignoring(bad)}."
        return self._listed(stored, known, bad)

    def _listed(self, stored, known, bad):
        """What to do about ids that are in no order."""
        count = len(self.names)
        for ids in (known, stored):
            if len(ids) == count and ids[0] >= 0 and ids != list(range(count)):
                line = self.numbered(ids)
                return f"If these are the classes in the order of their names, {line}."
        ids = known if len(known) > 1 else stored
        if not bad and (self.colours or [*map(self.class_of, ids)] == list(range(count))):
            return "Check that these are the right masks, and that no class is ignored."
        if 1 < len(ids) < IGNORE:
            ignored = f"To ignore {ranges(bad)}, {self.ignoring(bad)}. " if bad else ""
            line = f"If the classes are {ranges(ids)}, {self.numbered(ids)}."
            return ignored + line if self._teach(stored) else line
        order = f'the stored ids of the {count} classes, in the order of their "names", as "ids"'
        return f"Check that these are the right masks, or list {order} in {self.file}."

    def _teach(self, stored):
        """Whether ids are of two classes at least, if those that are no class are ignored."""
        return len({self.class_of(value) for value in stored} - {-1, IGNORE}) > 1

    def _counted_from_one(self, bad, pixels):
        """How to shift ids 1..K, with what speaks for that reading."""
        shifted = self.written(zero_is_ignored=True)
        if 0 not in pixels:
            return f"No mask that was read holds 0. If ids count from 1, {shifted}"
        return (
            f"Id 0 has {share(0, pixels)} of the pixels, id {bad[0]} has {share(bad[0], pixels)}. "
            f"If 0 is unlabelled, {shifted}"
        )

    def _named(self, bad):
        """What to do if all of some ids, which follow those of the classes, are classes."""
        are = "is one more class" if len(bad) == 1 else "are more classes"
        line = self.naming(bad[-1] + 1, **self._with_ids(bad))
        if not self.entries:
            line = f"give --config.data.options.num_classes={bad[-1] + 1}"
        return f"if {ranges(bad)} {are}, {line}"

    def _with_ids(self, bad):
        ids = self.entries.get("ids")
        return {"ids": [*ids, *bad]} if ids else {}

    def _without(self, bad, stored):
        """What to do if ids that follow those of the classes are no classes."""
        if len(self.names) == 2:
            return ["if the ids number objects, save numpy.minimum(mask, 1)"]
        return [f"to ignore {ranges(bad)}, {self.ignoring(bad)}"] if self._teach(stored) else []

    def _with_background(self, stored):
        palette = self.entries.get("palette")
        colours = {"palette": [[0, 0, 0], *palette]} if palette else {}
        line = self.written(names=["background", *self.names], ids=stored, **colours)
        option = "" if not self.num_classes else " and give --config.data.options.num_classes=2"
        return f'If {stored[1]} is "{self.names[0]}", {line}{option}.'


def filled(colours, count):
    """The colours, and so many of others that there are `count`."""
    others = (list(rgb) for rgb in distinct_colours(IGNORE) if list(rgb) not in colours)
    return [*colours, *itertools.islice(others, max(count - len(colours), 0))]


def share(stored, pixels):
    """The share of the pixels that have an id, as text."""
    return f"{pixels[stored] / sum(pixels.values()):.1%}"


def _look_up(ids, table):
    """int32[H,W]: the class of each id, -1 where the table has none."""
    if ids.dtype == np.uint8 and len(table) > 255:
        return table.take(ids)  # the common case: no id can lie outside the table
    outside = (ids < 0) | (ids >= len(table))
    mask = np.where(outside, np.int32(-1), table[np.where(outside, 0, ids)])
    if ids.dtype.kind == "i":
        for ignored in SIGNED_IGNORE:
            mask[ids == ignored] = IGNORE
    return mask


def ranges(ids):
    """Sorted integers as text: "0..10", "0..6, 9, 255"; long lists are cut."""
    ids = np.array(ids, int)
    runs = np.split(ids, np.flatnonzero(np.diff(ids) != 1) + 1)
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs if len(run)]
    return ", ".join(texts[:MAX_RANGES]) + (", ..." if len(texts) > MAX_RANGES else "")
