"""Ids as stored in label maps -> classes, by tables."""

import numpy as np

from diffseg_jax.data.labels import IGNORE
from diffseg_jax.errors import UserError


def id_table(num_classes, *, ignore=(), zero_is_ignored=False):
    """int32[n >= 256] for to_classes: ids 0..K-1 stay, 255 and `ignore` become 255, the rest is -1.

    With zero_is_ignored the stored ids are 1..K: 0 becomes 255 and k becomes k-1 (ADE20K's rule).
    Raises UserError if a class would fall on the id 255.
    """
    first = int(zero_is_ignored)
    if not 1 <= num_classes <= IGNORE - first:
        raise UserError(
            f"num_classes is {num_classes}, but 1 to {IGNORE - first} classes fit beside the "
            "ignore label 255. Give the number of classes that the masks hold."
        )
    table = np.full(max([256, *(i + 1 for i in ignore)]), -1, np.int32)
    table[first : first + num_classes] = np.arange(num_classes)
    table[[*ignore, *range(first), IGNORE]] = IGNORE
    return table


def to_classes(raw, table, path, hint=""):
    """Raw ids, integer [H,W], to int32[H,W] classes; -1 in signed arrays counts as 255.

    Raises UserError with the file and the smallest id that the table does not know.
    """
    if raw.dtype == np.uint8 and len(table) > 255:
        mask = table.take(raw)  # no index can lie outside: the common case, checked by one minimum
        bad = mask.min() < 0
    else:
        raw = np.where(raw == -1, np.int32(IGNORE), raw) if raw.dtype.kind == "i" else raw
        outside = (raw < 0) | (raw >= len(table))
        mask = np.where(outside, -1, table[np.where(outside, 0, raw)])
        bad = mask.min() < 0
    if bad:
        classes = np.flatnonzero((table >= 0) & (table != IGNORE))
        ignored = np.flatnonzero(table == IGNORE)
        raise UserError(
            f"mask {path} has class id {raw[mask < 0].min()}, but classes are {_ranges(classes)} "
            f"({_ranges(ignored)} is ignored). {hint}".rstrip()
        )
    return mask


def _ranges(ids):
    """Sorted integers in words: "0..10", "0..6, 9, 255"; long lists are cut."""
    runs = np.split(ids, np.flatnonzero(np.diff(ids) != 1) + 1)
    words = [str(run[0]) if len(run) == 1 else f"{run[0]}..{run[-1]}" for run in runs if len(run)]
    return ", ".join(words[:12]) + (", ..." if len(words) > 12 else "")
