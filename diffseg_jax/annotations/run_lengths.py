"""Run-length encodings of COCO: numbers of pixels by columns, in turn outside and inside a region.

Compressed ones are text: differences to the count before the last one, in groups of five bits, the
lowest first, each a character from "0" on; a sixth bit says that more follow. They are read here,
since pycocotools returns whatever is in memory for encodings that are too short.
"""

from collections.abc import Sequence

import numpy as np

from diffseg_jax.annotations.entries import brief, entry
from diffseg_jax.errors import UserError

FIRST, MORE, SIGN = 48, 32, 16  # the character of 0; bits of a group
MAX_GROUPS = 7  # of a number; 35 bits, more than an image has pixels


def decoded_run_lengths(
    encoding: dict, size: tuple[int, int], where: str
) -> tuple[np.ndarray, tuple[int, int]]:
    """(bool[h,w], its upper left pixel (x, y)) of {"size": [h, w], "counts": list or text}.

    size  (height, width) of the image
    Raises UserError for another size, and for counts that do not fill the image.
    """
    if entry(encoding, "size", list, where) != list(size):
        raise UserError(
            f"{where}: the run lengths are of an image of {brief_size(encoding['size'])} (height, "
            f"width), but the image is {brief_size(list(size))}. Correct one of them."
        )
    counts = encoding.get("counts")
    if isinstance(counts, str):
        counts = uncompressed(counts, where)
    elif not isinstance(counts, list) or not all(type(n) is int and 0 <= n < 2**40 for n in counts):
        raise UserError(
            f'{where}: "counts" must be text or a list of whole numbers from 0 on, but it is '
            f"{brief(counts)}."
        )
    height, width = size
    ends = np.cumsum(np.array(counts, np.int64))
    if not len(ends) or ends[-1] != height * width or np.min(counts) < 0:
        total = int(ends[-1]) if len(ends) else 0
        raise UserError(
            f"{where}: the run lengths are of {total} pixels, but the image has {height * width}. "
            "The file is damaged, or cut; export it again."
        )
    return _box(ends, height)


def brief_size(size) -> str:
    """The size in an error."""
    return ", ".join(brief(side) for side in size[:2])


def _box(ends, height):
    """(bool[h,w], corner) of the columns with a pixel inside; ends: of all runs, by columns."""
    starts, stops = ends[:-1:2], ends[1::2]
    used = starts < stops
    starts, stops = starts[used], stops[used]
    if not len(starts):
        return np.zeros((0, 0), bool), (0, 0)
    left, right = int(starts[0]) // height, -(-int(stops[-1]) // height)
    changes = np.zeros((right - left) * height + 1, np.int8)
    changes[starts - left * height] += 1  # no two runs begin, or end, at the same pixel
    changes[stops - left * height] -= 1
    inside = np.cumsum(changes[:-1], dtype=np.int8).reshape(right - left, height).T > 0
    rows = np.flatnonzero(inside.any(axis=1))
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    return inside[top:bottom], (left, top)


def uncompressed(text: str, where: str) -> np.ndarray:
    """int64[N] of the counts in a compressed encoding; they may be wrong, even negative."""
    groups = np.frombuffer(text.encode("utf-32-le", "replace"), np.uint32).astype(np.int64) - FIRST
    last = np.flatnonzero((groups & MORE) == 0)
    lengths = np.diff(last, prepend=-1)
    damaged = ((groups < 0) | (groups > 63)).any() or not len(groups) or not len(last)
    if damaged or last[-1] != len(groups) - 1 or lengths.max() > MAX_GROUPS:
        raise UserError(f"{where}: the run lengths are damaged, or cut. Export the file again.")
    position = np.arange(len(groups)) - np.repeat(last - lengths + 1, lengths)
    numbers = np.add.reduceat((groups & 31) << (5 * position), last - lengths + 1)
    numbers -= np.where(groups[last] & SIGN, 1 << (5 * lengths), 0)
    counts = numbers.copy()
    counts[1::2] = np.cumsum(numbers[1::2])
    counts[2::2] = np.cumsum(numbers[2::2])
    return counts


def compressed(counts: Sequence[int]) -> str:
    """The compressed encoding of counts."""
    characters = []
    for index, count in enumerate(counts):
        number = count - counts[index - 2] if index > 2 else count
        more = True
        while more:
            group, number = number & 31, number >> 5
            more = number != (-1 if group & SIGN else 0)
            characters.append(chr(FIRST + group + MORE * more))
    return "".join(characters)
