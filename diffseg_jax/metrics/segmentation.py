"""Confusion counts and the ratios taken from them: counts travel, ratios come last.

A confusion is an integer matrix [K, K], rows = label, columns = prediction; those of batches and
hosts add up to that of the data set. A matrix [K+1, K] has one more row, of the predictions on
pixels without a label; only the convention of DDPM-Seg counts those.
"""

import enum
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from diffseg_jax.data.labels import IGNORE
from diffseg_jax.errors import UserError

MEANS = ("mIoU", "mAcc", "aAcc")
MORE_ROWS = {  # of the table, where a run has such a number -> its keys
    "mIoU near boundaries": ("boundary", "mIoU"),
    "ECE (%)": ("calibration", "ECE"),
    "ECE (%), calibrated": ("calibrated", "ECE"),
}
HEADING = 12  # characters of a line of a heading, so that four columns fit into 80
TRIMAP = 0.01  # radius of the band around boundaries, as a share of the diagonal of the image


class Absent(enum.Enum):
    """How a class counts whose ratio is 0 / 0, as when no pixel is labelled or predicted as it."""

    SKIP = "skip"  # its ratio is NaN, and the mean skips it
    ZERO = "zero"  # its ratio is 0, and the mean includes it


class Convention(NamedTuple):
    """How the numbers of a paper were counted: one choice for `scores`, one for `confusion`."""

    absent: Absent
    ignored_row: bool  # a prediction on an ignored pixel enlarges the union of its class


CONVENTIONS = {
    "default": Convention(Absent.SKIP, ignored_row=False),
    "mmseg": Convention(Absent.SKIP, ignored_row=False),
    "ddpm_seg": Convention(Absent.ZERO, ignored_row=True),
}
CONVENTION_NOTES = {  # for readers of a table
    "mmseg": "as by mmsegmentation, for comparison with the tables of DDP's paper",
    "ddpm_seg": (
        "as by the code of DDPM-Seg, for comparison with the tables of its paper: a class that is "
        "absent counts as 0, and predictions on ignored pixels as wrong"
    ),
}


def confusion(
    labels, predictions, num_classes: int, ignore: int = IGNORE, *, ignored_row: bool = False
) -> np.ndarray:
    """Counts on the host, in int64: enough for any data set.

    labels        int[...]   0..K-1, or `ignore`
    predictions   int[...]   0..K-1 on every pixel that is counted
    out           int64[K, K]; with `ignored_row` int64[K+1, K], whose last row counts the
                  predictions on ignored pixels

    Raises UserError for unequal shapes and for an id outside 0..K-1.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.shape != predictions.shape:
        raise UserError(
            f"predictions have shape {predictions.shape}, labels {labels.shape}; "
            "resize the predictions to the labels before counting."
        )
    labelled = labels != ignore
    _check_ids(labels[labelled], num_classes, "label")
    labels = labels.astype(np.int64)
    if ignored_row:
        labels = np.where(labelled, labels, num_classes)
    else:
        labels, predictions = labels[labelled], predictions[labelled]
    _check_ids(predictions, num_classes, "prediction")
    rows = num_classes + ignored_row
    cells = (labels * num_classes + predictions).ravel()
    return np.bincount(cells, minlength=rows * num_classes).reshape(rows, num_classes)


def _check_ids(ids: np.ndarray, num_classes: int, what: str):
    if ids.size and (ids.min() < 0 or ids.max() >= num_classes):
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise UserError(
            f"{what} {wrong} is none of the {num_classes} classes 0..{num_classes - 1}; "
            "compare the number of classes of the model with that of the data."
        )


def boundary_confusion(labels, predictions, num_classes: int, ignore: int = IGNORE) -> np.ndarray:
    """The confusion int64[K, K] of the pixels near a boundary of the labels int[H, W].

    mIoU of such counts is the trimap mIoU of Kraehenbuehl & Koltun (2011) and of DeepLab: the usual
    ratio, only in a band around the boundaries of the labels. (The Boundary IoU of Cheng et al.
    (2021) compares the two contours instead, and is lower.)
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    radius = max(1, round(TRIMAP * float(np.hypot(*labels.shape))))
    near = boundary_band(labels, radius)
    return confusion(labels[near], predictions[near], num_classes, ignore)


def boundary_band(labels: np.ndarray, radius: int) -> np.ndarray:
    """Whether another label lies within `radius` rows and columns of a pixel: bool[H, W].

    The border of an ignored area is a boundary too, as some data sets ignore the contours of all
    objects; the border of the image is none.
    """
    down = _near_changes(labels[1:] != labels[:-1], radius)
    right = _near_changes((labels[:, 1:] != labels[:, :-1]).T, radius).T
    return down | right


def _near_changes(changes: np.ndarray, radius: int) -> np.ndarray:
    """bool[H-1, W], where a row differs from the next -> bool[H, W], what is near such a place."""
    rows, columns = changes.shape[0] + 1, changes.shape[1]
    row, column = np.arange(rows), np.arange(columns)
    sums = np.cumsum(np.pad(changes, ((1, 0), (0, 0))), axis=0, dtype=np.int32)
    found = sums[np.minimum(row + radius, rows - 1)] > sums[np.maximum(row - radius, 0)]
    sums = np.cumsum(np.pad(found, ((0, 0), (1, 0))), axis=1, dtype=np.int32)
    ends = np.minimum(column + radius + 1, columns), np.maximum(column - radius, 0)
    return sums[:, ends[0]] > sums[:, ends[1]]


def scores(counts, *, absent: Absent | str, left_out: Sequence[int] = ()) -> dict:
    """The usual ratios of a confusion [K, K] or [K+1, K], in [0, 1].

    IoU_k = C_kk / (row_k + column_k - C_kk), Acc_k = C_kk / row_k, mIoU and mAcc are their means,
    aAcc = trace / sum over labelled pixels. Under Absent.SKIP the two means may run over different
    classes: one that is predicted but never labelled has an IoU of 0 and no Acc.

    absent     whether means skip a ratio of 0 / 0 or count it as 0; an Absent or its value
    left_out   classes without a ratio of their own (a background class that is not averaged)
    out        {"mIoU", "mAcc", "aAcc": float, "IoU", "Acc": float64[K]}, NaN = undefined
    """
    absent = Absent(absent)
    counts = np.asarray(counts, np.int64)
    num_classes = counts.shape[1]
    labelled = counts[:num_classes]  # an ignored row enlarges unions and nothing else
    hits, row = np.diagonal(labelled), labelled.sum(axis=1)
    iou = _ratio(hits, row + counts.sum(axis=0) - hits, absent)
    acc = _ratio(hits, row, absent)
    iou[list(left_out)] = acc[list(left_out)] = np.nan
    total = labelled.sum()
    return {
        "mIoU": _mean(iou),
        "mAcc": _mean(acc),
        "aAcc": float(hits.sum() / total) if total else float("nan"),
        "IoU": iou,
        "Acc": acc,
    }


def _ratio(part: np.ndarray, total: np.ndarray, absent: Absent) -> np.ndarray:
    undefined = 0.0 if absent is Absent.ZERO else np.nan
    out = np.full(total.shape, undefined)
    return np.divide(part, total, out=out, where=total > 0)


def _mean(ratios: np.ndarray) -> float:
    defined = ratios[~np.isnan(ratios)]
    return float(defined.mean()) if defined.size else float("nan")


def format_table(columns: Mapping[str, dict]) -> str:
    """IoU per class, the means and MORE_ROWS as plain text, in percent; "-" = undefined.

    columns   heading -> what `to_json` returned, one column per run of the same classes; headings
              are broken between words into lines of HEADING characters, the last beside "IoU (%)"
    """
    names = next(iter(columns.values()))["IoU"]
    classes = [[name, *(_percent(run["IoU"][name]) for run in columns.values())] for name in names]
    means = [[mean, *(_percent(run[mean]) for run in columns.values())] for mean in MEANS]
    for name, (part, key) in MORE_ROWS.items():
        if any(part in run for run in columns.values()):
            numbers = [run.get(part, {}).get(key) for run in columns.values()]
            means.append([name, *map(_percent, numbers)])
    lines_of = lambda heading: textwrap.wrap(heading, HEADING, break_long_words=False)
    headings = [["IoU (%)"], *map(lines_of, columns)]
    top = max(map(len, headings))
    head = zip(*([""] * (top - len(heading)) + heading for heading in headings), strict=True)
    table = [*head, *classes, *means]
    widths = [max(map(len, cells)) for cells in zip(*table, strict=True)]
    lines = [
        "  ".join([name.ljust(widths[0]), *map(str.rjust, numbers, widths[1:])])
        for name, *numbers in table
    ]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    below = top + len(classes)
    return "\n".join([*lines[:top], rule, *lines[top:below], rule, *lines[below:]])


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * ratio:.2f}"


def to_json(scored: dict, names: Sequence[str]) -> dict:
    """`scores` as floats and None (undefined), classes by name; ready for `json.dump`."""
    plain = {mean: to_number(scored[mean]) for mean in MEANS}
    for key in ("IoU", "Acc"):
        plain[key] = {n: to_number(r) for n, r in zip(names, scored[key], strict=True)}
    return plain


def to_number(ratio: float) -> float | None:
    """A ratio for JSON: None where it is undefined."""
    return None if np.isnan(ratio) else float(ratio)
