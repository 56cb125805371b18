"""Says how fine the maps of a fit are, and which labelled things are thinner than their cells."""

from collections.abc import Sequence

import numpy as np

from diffseg_jax.data.labels import IGNORE
from diffseg_jax.models.taps import PixelFeatures
from diffseg_jax.systems.task import Task

LOOKED_AT = 40  # masks
MOSTLY = 0.5  # share of a class's pixels in thin places, above which it is named


def describe_grid(
    features: PixelFeatures, masks: np.ndarray, names: Sequence[str], task: Task
) -> list[str]:
    """Sentences: the grids of the maps, and classes that are mostly thinner than a cell, if any.

    masks  u8[N,H,W] of the images;  names  of the classes;  task  of the fit
    """
    grids = sorted({values.shape[1:3] for values in features.maps}, reverse=True)
    shown = ", ".join(f"{height}x{width}" for height, width in grids)
    sentences = [f"{features.width:,} features a pixel, from maps of {shown}"]
    cell = min(
        max(side / (part * length) for side, length, part in zip(features.size, shape, covered))
        for shape, covered in zip(
            (values.shape[1:3] for values in features.maps),
            features.covered or ((1.0, 1.0),) * len(features.maps),
        )
    )
    chosen = masks[np.unique(np.linspace(0, len(masks) - 1, LOOKED_AT).astype(int))]
    shares = thin_shares(chosen, cell)
    thin = [names[k] for k, share in shares.items() if share > MOSTLY and k < len(names)]
    if thin and cell > 1:
        sentences.append(
            f"most of {', '.join(thin)} is thinner than the {cell:.3g} pixels between values of "
            f"the finest map. Larger images help: {_how_to_enlarge(task)}"
        )
    return sentences


def _how_to_enlarge(task):
    """What lets the networks of a fit see larger images."""
    if task.fit.files:
        return "compute their maps again from larger ones"
    if task.short:
        return f"raise features.short, which is {task.short}"
    return "raise features.scales, or the images' limits"


def thin_shares(masks: np.ndarray, cell: float) -> dict[int, float]:
    """Class -> share of its pixels in u8[N,H,W] that lie in a run shorter than `cell` pixels.

    A run is a row or a column of neighbouring pixels of one class; the shorter one counts.
    """
    thin = np.zeros(masks.shape, bool)
    for mask, found in zip(masks, thin):
        found |= _run_lengths(mask) < cell
        found |= cell > _run_lengths(mask.T).T
    classes, counts = np.unique(masks, return_counts=True)
    narrow = np.bincount(masks[thin].reshape(-1), minlength=256)
    return {
        int(k): float(narrow[k] / count)
        for k, count in zip(classes, counts) if k != IGNORE
    }  # fmt: skip


def _run_lengths(mask):
    """For every pixel the length of the run in its row: i64[H,W]."""
    height, width = mask.shape
    starts = np.ones((height, width), bool)
    starts[:, 1:] = mask[:, 1:] != mask[:, :-1]
    first = np.flatnonzero(starts)
    lengths = np.diff(np.append(first, height * width))
    return np.repeat(lengths, lengths).reshape(height, width)
