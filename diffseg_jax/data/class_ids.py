"""From the ids that masks store to classes, by tables.

A table is int32[n]: the class of each id, 255 where the id is ignored, -1 where it is a mistake.
"""

import json
from dataclasses import dataclass, field

import numpy as np

from diffseg_jax.data.labels import IGNORE
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
    """

    table: np.ndarray = field(repr=False)
    hint: str = ""
    names: tuple[str, ...] = ()
    file: str = ""
    entries: dict = field(default_factory=dict, repr=False)
    colours: dict = field(default_factory=dict, repr=False)
    reading: str = ""
    ignore: tuple[int, ...] = ()

    def to_classes(self, ids, path, others=()):
        """The classes int32[H,W] of stored ids, integer [H,W]; -1 and -100 count as ignored.

        others  () -> ids of other masks, by which an error can advise; not called without one

        Raises UserError with the path, the smallest id that the table does not allow, and what to
        do about it.
        """
        mask = _look_up(ids, self.table)
        if mask.min() < 0:
            bad = [int(value) for value in np.unique(ids[mask < 0])]
            classes = np.flatnonzero((self.table >= 0) & (self.table != IGNORE))
            ignored = np.flatnonzero(self.table == IGNORE)
            stored = {*np.unique(ids).tolist(), *(others() if others and self.file else ())}
            advice = self.advice(sorted(stored))
            raise UserError(
                f"mask {path} has class id {bad[0]}, but classes are {_ranges(classes)} "
                f"({_ranges(ignored) or 'none'} is ignored). {advice}".rstrip()
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

    def numbered(self, ids, ignore=()):
        """As `written`, for the stored ids of the classes, and ids that are to be ignored."""
        before = self.entries.get("ignore", [])
        after = [value for value in before if value not in ids] + list(ignore)
        line = self.written(ids=ids, **({"ignore": after} if after != before else {}))
        if set(ids) & set(self.ignore):
            line += " and take them out of --config.data.options.ignore"
        return line

    def ignoring(self, ids):
        """As `written`, for ids that are to be ignored besides those that the file ignores."""
        return self.written(ignore=[*self.entries.get("ignore", []), *ids])

    def advice(self, stored):
        """What to type so that masks with these stored ids, ascending, can be used."""
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
        listed = _ranges(np.array(stored, int)) or "those of ignored pixels"
        return f"The masks hold the ids {listed}. {self._remedy(stored, bad)}"

    def _remedy(self, stored, bad):
        count, known = len(self.names), [i for i in stored if self.class_of(i) != IGNORE]
        listed = "these are the classes in the order of their names"
        if count == 1 and len(stored) == 2:
            return self._with_background(stored)
        if count == 2 and {0, 255} <= set(stored) and 1 not in stored:
            others = [value for value in stored if value not in (0, 255)]
            return f'If 255 is "{self.names[1]}", {self.numbered([0, 255], others)}.'
        if self.entries.get("zero_is_ignored") and 0 in stored and stored[-1] < count:
            return f'If 0 is "{self.names[0]}", {self.written(zero_is_ignored=False)}.'
        if bad == [count] and self.class_of(0) == 0:
            shifted = f"{self.written(zero_is_ignored=True)}."
            if 0 not in stored:
                return f"If ids count from 1, {shifted}"
            return f"{self._named(bad)}; if 0 is unlabelled, {shifted}"
        if len(bad) > 1 and bad == list(range(count, bad[-1] + 1)):
            return f"{self._named(bad)}; {self._objects_of(bad)}."
        if bad == [MAX_ID]:  # -1 as 16 bits
            return f"To ignore it, {self.ignoring(bad)}."
        for ids in (known, stored):
            if len(ids) == count and ids[0] >= 0 and ids != list(range(count)):
                return f"If {listed}, {self.numbered(ids)}."
        others = f"To ignore {_ranges(np.array(bad))}, {self.ignoring(bad)}. " if bad else ""
        order = f'the stored ids of the {count} classes, in the order of their "names", as "ids"'
        return (
            f"{others}Or list {order} in {self.file}." if bad else f"List {order} in {self.file}."
        )

    def _named(self, bad):
        """What to do if all of some ids, which follow those of the classes, are classes."""
        are = f"{bad[0]} is one more class"
        if len(bad) > 1:
            are = f"{bad[0]}..{bad[-1]} are more classes"
        if not self.entries:
            return f"If {are}, give --config.data.options.num_classes={bad[-1] + 1}"
        colour = " and give a colour for it" if self.entries.get("palette") else ""
        each = "it" if len(bad) == 1 else "each of them"
        return f"If {are}, name {each}{colour} in {self.file}"

    def _objects_of(self, bad):
        if len(self.names) == 2:
            return "if the ids number objects, save numpy.minimum(mask, 1)"
        return f"to ignore {_ranges(np.array(bad))}, {self.ignoring(bad)}"

    def _with_background(self, stored):
        palette = self.entries.get("palette")
        colours = {"palette": [[0, 0, 0], *palette]} if palette else {}
        line = self.written(names=["background", *self.names], ids=stored, **colours)
        option = "" if self.entries else " and give --config.data.options.num_classes=2"
        return f'If {stored[1]} is "{self.names[0]}", {line}{option}.'


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


def _ranges(ids):
    """Sorted integers as text: "0..10", "0..6, 9, 255"; long lists are cut."""
    runs = np.split(ids, np.flatnonzero(np.diff(ids) != 1) + 1)
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs if len(run)]
    return ", ".join(texts[:MAX_RANGES]) + (", ..." if len(texts) > MAX_RANGES else "")
