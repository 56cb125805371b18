"""From the ids that masks store to classes, by tables.

A table is int32[n]: the class of each id, 255 where the id is ignored, -1 where it is a mistake.
"""

import numpy as np

from diffseg_jax.data.labels import IGNORE
from diffseg_jax.errors import UserError

MAX_RANGES = 12  # of ids in an error


def id_table(num_classes, *, ignore=(), zero_is_ignored=False):
    """A table, of 256 or more ids, in which ids 0..K-1 are their own classes.

    255 and the ids in `ignore` become 255, all others -1. With zero_is_ignored the stored ids are
    1..K: 0 becomes 255 and k becomes k-1 (as in ADE20K). Raises UserError if a class would have the
    id 255.
    """
    first = int(zero_is_ignored)
    if not 1 <= num_classes <= IGNORE - first:
        raise UserError(
            f"num_classes is {num_classes}, but there can be 1 to {IGNORE - first} classes beside "
            "the ignore label 255. Give the number of classes in the masks."
        )
    table = np.full(max([256, *(i + 1 for i in ignore)]), -1, np.int32)
    table[first : first + num_classes] = np.arange(num_classes)
    table[[*ignore, *range(first), IGNORE]] = IGNORE
    return table


def to_classes(ids, table, path, hint=""):
    """The classes int32[H,W] of stored ids, integer [H,W]; -1 in signed arrays counts as 255.

    Raises UserError with the path, the smallest id that the table does not allow, and the hint.
    """
    if ids.dtype == np.uint8 and len(table) > 255:
        mask = table.take(ids)  # the common case: no id can lie outside the table
        bad = mask.min() < 0
    else:
        ids = np.where(ids == -1, np.int32(IGNORE), ids) if ids.dtype.kind == "i" else ids
        outside = (ids < 0) | (ids >= len(table))
        mask = np.where(outside, -1, table[np.where(outside, 0, ids)])
        bad = mask.min() < 0
    if bad:
        classes = np.flatnonzero((table >= 0) & (table != IGNORE))
        ignored = np.flatnonzero(table == IGNORE)
        raise UserError(
            f"mask {path} has class id {ids[mask < 0].min()}, but classes are {_ranges(classes)} "
            f"({_ranges(ignored)} is ignored). {hint}".rstrip()
        )
    return mask


def _ranges(ids):
    """Sorted integers as text: "0..10", "0..6, 9, 255"; long lists are cut."""
    runs = np.split(ids, np.flatnonzero(np.diff(ids) != 1) + 1)
    texts = [str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs if len(run)]
    return ", ".join(texts[:MAX_RANGES]) + (", ..." if len(texts) > MAX_RANGES else "")
