"""Draws maps seen from above in colours, beside the images of the cameras; knows no model.

A map is [K, X, Y], x ahead and y left of the car. Drawn, the car looks up: the top is ahead. Later
classes cover earlier ones.
"""

import math
from collections.abc import Sequence

import numpy as np

from diffseg_jax.figures import label_images, layout, sheets
from diffseg_jax.figures.layout import INK
from diffseg_jax.figures.sheets import MAX_STEPS_SHOWN

GROUND = (238, 236, 232)  # of cells without a class
SHOWN_FROM = 0.5  # the probability from which a class is drawn
CAMERAS_PER_ROW = 3


def upright(values: np.ndarray) -> np.ndarray:
    """[X, Y, ...] -> [rows, columns, ...] of a drawing, whose top is ahead."""
    return values[::-1, ::-1]


def colour_layers(layers: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """bool or probabilities [K, X, Y] -> uint8[X, Y, 3], upright, with the car in the middle."""
    drawn = np.full((*layers.shape[1:], 3), GROUND, np.uint8)
    for layer, colour in zip(layers, palette, strict=True):
        drawn[np.asarray(layer) > SHOWN_FROM] = colour
    return _with_car(upright(drawn).copy())


def _with_car(drawn):
    """A dark arrow head of a few cells where the car is."""
    half = round(min(drawn.shape[:2]) / 50)
    row, column = drawn.shape[0] // 2, drawn.shape[1] // 2
    for step in range(-half, half + 1):
        reach = (step + half) // 2
        drawn[row + step, max(column - reach, 0) : column + reach + 1] = INK
    return drawn


def layer_errors(truth: np.ndarray, probs: np.ndarray) -> np.ndarray:
    """Share of the classes that are wrong in each cell, in the colours of `heat`, upright."""
    wrong = (np.asarray(truth) > 0) != (np.asarray(probs) > SHOWN_FROM)
    return label_images.heat(upright(wrong.mean(0)))


def layer_uncertainty(probs, xp=np):
    """float[..., X, Y] in [0, 1] of probabilities [..., K, X, Y]: mean entropy of classes, bits.

    xp  the module of the arrays, numpy or jax.numpy
    """
    p = xp.clip(xp.asarray(probs, xp.float32), 1e-7, 1 - 1e-7)
    return (-(p * xp.log2(p) + (1 - p) * xp.log2(1 - p))).mean(-3)


def camera_grid(images: np.ndarray) -> np.ndarray:
    """Images u8[N, H, W, 3] as one, as they look around the car.

    Six images that turn to the left one by one are two rows: ahead and its neighbours, then behind.
    """
    order = range(len(images))
    if len(images) == 6:
        order = (1, 0, 5, 2, 3, 4)
    per_row = min(CAMERAS_PER_ROW, len(images))
    rows = math.ceil(len(images) / per_row)
    blank = np.zeros_like(images[0])
    shown = [images[n] for n in order] + [blank] * (rows * per_row - len(images))
    lines = [np.concatenate(shown[r * per_row : (r + 1) * per_row], 1) for r in range(rows)]
    return np.concatenate(lines, 0)


def bev_sheet(images, truths, probs, labels, steps=None) -> np.ndarray:
    """One row per example: cameras | truth | steps | prediction | uncertainty, a legend below.

    images  u8[N, H, W, 3] each;  truths  u8[K, X, Y] each, or None;  probs  float[K, X, Y] each
    labels  anything with `names` and `palette`
    steps   float[T, K, X, Y] each, after every reverse step; MAX_STEPS_SHOWN of them are drawn
    """
    coloured = lambda maps: [colour_layers(each, labels.palette) for each in maps]
    columns = {"cameras": [camera_grid(each) for each in images]}
    if truths is not None:
        columns["truth"] = coloured(truths)
    if steps is not None:
        chosen = np.linspace(0, len(steps[0]) - 1, MAX_STEPS_SHOWN).astype(int)
        for step in sorted(set(chosen.tolist())):
            columns[f"step {step + 1}"] = coloured([each[step] for each in steps])
    columns["prediction"] = coloured(probs)
    columns["uncertainty"] = [label_images.heat(upright(layer_uncertainty(each))) for each in probs]
    drawn = layout.aligned(list(columns), list(zip(*columns.values(), strict=True)))
    width = max(part.shape[1] for part in drawn)
    return layout.rows([
        *drawn, layout.legend(labels.names, labels.palette, min(width, 960)),
        sheets.heat_scale("mean entropy of the classes"),
    ])  # fmt: skip


def bev_contact_sheet(images, truths, labels, titles: Sequence[str]) -> np.ndarray:
    """Cameras beside their true map, one row per example under its title."""
    maps = [colour_layers(each, labels.palette) for each in truths]
    pairs = [layout.panel([(title, camera_grid(cameras)), ("", drawn)])
             for title, cameras, drawn in zip(titles, images, maps, strict=True)]  # fmt: skip
    return layout.rows([*pairs, layout.legend(labels.names, labels.palette, pairs[0].shape[1])])
