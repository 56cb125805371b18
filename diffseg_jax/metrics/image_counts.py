"""Counts of right and wrong pixels image by image, from which intervals of mean IoU are drawn.

A split is a sample of images: another one would have given other numbers. Resampling the images
with replacement (Efron, "Bootstrap methods", 1979) shows how far they would have differed.
"""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffseg_jax.data.npy import arrays_in_npz
from diffseg_jax.metrics.segmentation import Absent
from diffseg_jax.storage.paths import write_atomically

HITS, LABELLED, PREDICTED, ON_IGNORED = range(4)  # rows of the counts of an image


def counts_of_image(confusion: np.ndarray) -> np.ndarray:
    """What IoU needs of a confusion i[K+1,K]: i64[4,K].

    The rows are right pixels, labelled pixels, predicted pixels where there is a label, and
    predicted pixels where there is none, for each class.
    """
    labelled = np.asarray(confusion, np.int64)[:-1]
    rows = np.diagonal(labelled), labelled.sum(1), labelled.sum(0), confusion[-1]
    return np.stack(rows).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class ImageCounts:
    """The counts of the images of an evaluation.

    names     of the N images
    classes   names of the K classes
    counts    i64[N,4,K], as of `counts_of_image`
    absent    value of `segmentation.Absent`: how a class counts that is nowhere in the images
    unscored  classes without an IoU of their own
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    counts: np.ndarray
    absent: str
    unscored: tuple[int, ...] = ()

    def save(self, file: Path):
        """Writes them as .npz."""
        content = io.BytesIO()
        np.savez_compressed(
            content, names=np.array(self.names), classes=np.array(self.classes),
            counts=self.counts.astype(np.int32), absent=np.array(self.absent),
            is_scored=np.isin(np.arange(len(self.classes)), self.unscored, invert=True),
        )  # fmt: skip
        write_atomically(file, content.getvalue())


def read_image_counts(file: Path) -> ImageCounts:
    """What `ImageCounts.save` wrote."""
    with file.open("rb") as content:
        stored = arrays_in_npz(content)
    return ImageCounts(
        names=tuple(stored["names"].tolist()), classes=tuple(stored["classes"].tolist()),
        counts=stored["counts"].astype(np.int64), absent=str(stored["absent"]),
        unscored=tuple(np.flatnonzero(~stored["is_scored"]).tolist()),
    )  # fmt: skip


def class_iou(sums: np.ndarray, absent: str, ignored_row: bool = False) -> np.ndarray:
    """IoU f64[..., K] of summed counts [..., 4, K]; NaN where it is undefined and skipped.

    absent, ignored_row  as of `segmentation.Convention`
    """
    hits, labelled, predicted, on_ignored = np.moveaxis(np.asarray(sums, np.float64), -2, 0)
    union = labelled + predicted - hits + (on_ignored if ignored_row else 0)
    undefined = 0.0 if Absent(absent) is Absent.ZERO else np.nan
    return np.divide(hits, union, out=np.full(union.shape, undefined), where=union > 0)


def mean_iou(
    sums: np.ndarray, absent: str, unscored: Sequence[int] = (), ignored_row: bool = False,
    chosen: Sequence[int] | None = None,
) -> np.ndarray:  # fmt: skip
    """Mean IoU f64[...] of summed counts [..., 4, K].

    unscored, chosen  classes that do not count, and those that alone count; None: all
    """
    iou = class_iou(sums, absent, ignored_row)
    iou[..., list(unscored)] = np.nan
    iou = iou if chosen is None else iou[..., list(chosen)]
    defined = ~np.isnan(iou)
    total = np.where(defined, iou, 0.0).sum(-1)
    number = defined.sum(-1)
    return np.divide(total, number, out=np.full(np.shape(total), np.nan), where=number > 0)


def resampled(images: int, draws: int, rng) -> np.ndarray:
    """How often each image is in a resample: f64[draws, images]."""
    times = rng.multinomial(images, np.full(images, 1 / images), size=draws)
    return times.astype(np.float64)
