"""The run-length encoding of masks in CVAT: counts of pixels outside, inside, outside, ...

They run along the rows of the box around the mask, and begin with pixels outside it, perhaps 0.
"""

import numpy as np

from diffseg_jax.errors import UserError


def decode_runs(text: str, size: tuple[int, int], name: str) -> np.ndarray:
    """The mask bool[h,w] of counts such as "0, 3, 2, 1".

    size  (height, width) of the box;  name  of the mask, for errors

    Raises UserError for what is no list of counts, and for counts of another sum.
    """
    height, width = size
    try:
        counts = np.array([int(part) for part in text.split(",")], np.int64)
    except (ValueError, OverflowError):
        counts = np.array([-1])
    if (counts < 0).any() or counts.sum() != height * width or counts.max() > height * width:
        total = "something else" if (counts < 0).any() else f"{counts.sum()} pixels"
        raise UserError(
            f'{name}: "rle" must be counts of all {height * width} pixels of its box of '
            f"{width}x{height}, but holds {total}. Export the labels again."
        )
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(size)


def encode_runs(inside: np.ndarray) -> str:
    """The counts of a mask bool[h,w]."""
    flat = np.concatenate([[False], inside.ravel()])
    starts = np.append(np.flatnonzero(np.diff(flat)), inside.size)
    return ", ".join(map(str, np.diff(starts, prepend=0).tolist()))
