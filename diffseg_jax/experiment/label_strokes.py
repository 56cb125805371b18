"""Strokes of sparse labels, and how pixels are drawn from them.

A stroke is a connected part of one class in a mask that ignores most pixels: what somebody painted
in one go. Pixels of a stroke are much alike, and a long one has many times the pixels of a short
one, so an even choice of pixels would learn from few regions. Strokes are therefore drawn first.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from diffseg_jax.data.labels import IGNORE
from diffseg_jax.data.transforms import resize_mask

POWER = 0.5  # of a stroke's size, to which its share of the pixels of its class is in proportion


@dataclasses.dataclass(frozen=True)
class Strokes:
    """The painted pixels of one mask, stroke by stroke.

    pixels   i64[n], their indices y * W + x
    labels   u8[n], their classes
    numbers  i64[n], the strokes that they belong to, 0..count - 1
    """

    pixels: np.ndarray
    labels: np.ndarray
    numbers: np.ndarray

    @property
    def count(self) -> int:
        """The number of strokes."""
        return int(self.numbers.max(initial=-1)) + 1


def find_strokes(mask: np.ndarray) -> Strokes:
    """The strokes of a mask u8[H,W] with 255 where nothing is painted; corners connect."""
    from scipy import ndimage  # slow import

    pixels = np.flatnonzero(mask.reshape(-1) != IGNORE)
    labels, numbers, count = mask.reshape(-1)[pixels], np.zeros(len(pixels), np.int64), 0
    if not len(pixels):
        return Strokes(pixels, labels, numbers)
    rows, columns = np.divmod(pixels, mask.shape[1])
    top, left = rows.min(), columns.min()
    box = mask[top : rows.max() + 1, left : columns.max() + 1]
    for label in np.unique(labels):
        of_label = labels == label
        parts, more = ndimage.label(box == label, np.ones((3, 3)))
        numbers[of_label] = parts[rows[of_label] - top, columns[of_label] - left] + count - 1
        count += more
    return Strokes(pixels, labels, numbers)


def shown_labels(ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Painted ids u8[H,W] for an image that is shown at another size (height, width).

    Where several painted pixels become one, it has the id of most of them, the smallest among
    equals, so that thin strokes stay.
    """
    if ids.shape == tuple(size):
        return ids
    if size[0] >= ids.shape[0] and size[1] >= ids.shape[1]:
        return resize_mask(ids, size)
    painted = np.flatnonzero(ids.reshape(-1) != IGNORE)
    rows, columns = np.divmod(painted, ids.shape[1])
    rows, columns = rows * size[0] // ids.shape[0], columns * size[1] // ids.shape[1]
    keys = (rows * size[1] + columns) * (IGNORE + 1) + ids.reshape(-1)[painted]
    keys, votes = np.unique(keys, return_counts=True)
    chosen, labels = np.divmod(keys, IGNORE + 1)
    order = np.lexsort((-labels, votes))  # of those written to one place the last one stays
    shown = np.full(size, IGNORE, np.uint8)
    shown.reshape(-1)[chosen[order]] = labels[order]
    return shown


def chances(labels: np.ndarray, strokes: np.ndarray, power: float = POWER) -> np.ndarray:
    """The chance f64[n] with which each of n painted pixels is drawn; they sum to 1.

    labels   int[n], classes, which have equal chances
    strokes  int[n], numbers of strokes, each of one class; within a class a stroke of s pixels has
             a chance in proportion to s^power
    """
    _, of_stroke, sizes = np.unique(strokes, return_inverse=True, return_counts=True)
    each = sizes[of_stroke] ** (power - 1.0)
    _, of_class = np.unique(labels, return_inverse=True)
    totals = np.bincount(of_class, each)
    return each / totals[of_class] / len(totals)


def groups_of(balance: str, masks: np.ndarray) -> np.ndarray | None:
    """The groups i64[n] of the n labelled pixels of masks u8[N,H,W], for `chances`.

    balance  "class": one for each class; "stroke": one for each stroke; else None
    """
    if balance == "class":
        return masks[masks != IGNORE].astype(np.int64)
    if balance == "stroke":
        return joined_strokes([find_strokes(mask) for mask in masks])[1].numbers
    return None


def draw_evenly(chance: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Indices i64[count] drawn with replacement, as evenly as the chances f64[n] allow.

    A pixel whose chance is c comes at least floor(c * count) times.
    """
    chosen = (np.arange(count) + rng.random()) / count
    return np.searchsorted(np.cumsum(chance), chosen).clip(0, len(chance) - 1)


def joined_strokes(parts: Sequence[Strokes]) -> tuple[np.ndarray, Strokes]:
    """The image i64[n] of each pixel, and the strokes of all images with numbers of their own."""
    firsts = np.cumsum([0, *(part.count for part in parts)])[:-1]
    images = np.repeat(np.arange(len(parts)), [len(part.pixels) for part in parts])
    pixels, labels = (
        np.concatenate([vars(part)[name] for part in parts]) for name in ("pixels", "labels")
    )
    numbers = np.concatenate([part.numbers + first for part, first in zip(parts, firsts)])
    return images, Strokes(pixels, labels, numbers)
