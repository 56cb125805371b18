"""Draws which classes are taken for which."""

import numpy as np

from diffseg_jax.figures.trust import pixels_of

NUMBERED = 30  # classes up to which the cells hold numbers
LONGEST_NAME = 24  # characters that are shown
CELL_SIZES = {True: (0.42, 8), False: (0.13, 6.5)}  # inches per class, size of text


def confusion_plot(counts: np.ndarray, names) -> np.ndarray:
    """The share of each labelled class that is predicted as each, in percent: uint8[H, W, 3].

    counts  int[K, K], a row per labelled class; rows without a pixel are grey
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure  # a slow import

    numbered = len(names) <= NUMBERED
    cell, text = CELL_SIZES[numbered]
    names, side = [_shortened(name) for name in names], max(cell * len(names), 2)
    room = 0.075 * text / 8 * max(map(len, names)) + 0.6  # inches beside the cells
    figure = Figure((side + room + 0.9, side + room + 0.5), dpi=100, layout="constrained")
    panel = figure.subplots()
    percent = row_percent(counts)
    roots = PowerNorm(0.5, vmin=0, vmax=100)  # so that a few percent can be seen
    shown = panel.imshow(percent, cmap="Blues", norm=roots, interpolation="nearest")
    panel.set_facecolor("0.88")
    panel.set_xticks(range(len(names)), names, rotation=90, fontsize=text)
    panel.set_yticks(range(len(names)), names, fontsize=text)
    panel.set(xlabel="predicted", ylabel="labelled")
    panel.set_title("Share of the labelled class (%)", fontsize=11, loc="left")
    if numbered:
        for row, column in zip(*np.nonzero(np.nan_to_num(percent) >= 0.5)):
            share = percent[row, column]
            ink = "white" if share > 40 else "black"
            panel.text(column, row, f"{share:.0f}", ha="center", va="center", size=text, color=ink)
    else:
        figure.colorbar(shown, ax=panel, shrink=0.3, pad=0.01)
    return pixels_of(figure)


def row_percent(counts: np.ndarray) -> np.ndarray:
    """float[K, K] in percent of each row's sum; NaN in rows without a count."""
    totals = counts.sum(axis=1, keepdims=True).astype(float)
    return 100 * counts / np.where(totals, totals, np.nan)


def _shortened(name):
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 3]}..."
