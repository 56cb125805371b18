"""Plots how a network does on corrupted images, type by type."""

from collections.abc import Mapping, Sequence

import numpy as np

from diffseg_jax.figures.colour_vision import LINES
from diffseg_jax.figures.trust import pixels_of

ROW, HEAD, WIDTH = 0.3, 1.5, 9.0  # inches: of a type, of titles and legend, of the whole plot
SHADES = ("#a9c9e8", "#5b9bd0", "#0072b2", "#00517f", "#002a44")  # of severities 1 to 5
PANELS = {"mIoU": ("mIoU (%)", 100), "AUROC": ("AUROC of the uncertainty", 1)}  # title, unit


def robustness_plot(clean: Mapping, curves: Mapping, severities: Sequence[int]) -> np.ndarray:
    """A row for each type, the least harmful first: a dot per severity, and a line for the clean.

    clean   {"mIoU", "AUROC": number}
    curves  type -> {"mIoU", "AUROC": a number per severity}, None where it is undefined
    out     uint8[h, w, 3]
    """
    from matplotlib.figure import Figure  # a slow import

    harm = {name: np.mean(_numbers(values["mIoU"])) for name, values in curves.items()}
    names = sorted(curves, key=lambda name: -np.nan_to_num(harm[name]))
    size = (WIDTH, HEAD + ROW * max(len(names), 2))
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for panel, (key, (title, unit)) in zip(panels, PANELS.items(), strict=True):
        values = unit * np.array([_numbers(curves[name][key]) for name in names])
        _draw_dots(panel, values, severities)
        if clean[key] is not None:
            panel.axvline(unit * clean[key], color=LINES[1], linewidth=1.4, label="clean", zorder=1)
        panel.set_title(title, fontsize=10, loc="left")
    panels[0].set_yticks(range(len(names)), [name.replace("_", " ") for name in names], fontsize=9)
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    panels[0].set_xlim(left=0)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper left", ncols=len(handles), fontsize=9, frameon=False
    )
    return pixels_of(figure)


def _draw_dots(panel, values, severities):
    """Dots f64[types, severities] joined by a line from the lowest to the highest of a type."""
    rows = np.arange(len(values))
    if len(severities) > 1:
        panel.hlines(rows, np.nanmin(values, 1), np.nanmax(values, 1), color="0.85", linewidth=3)
    for column, severity in enumerate(severities):
        panel.plot(
            values[:, column], rows, "o", color=SHADES[severity - 1], markersize=6.5,
            label=f"severity {severity}", markeredgecolor="white", markeredgewidth=0.7,
        )  # fmt: skip
    panel.grid(axis="x", color="0.9", linewidth=0.6)
    panel.tick_params(labelsize=9)
    panel.spines[["top", "right", "left"]].set_visible(False)
    panel.tick_params(axis="y", length=0)


def _numbers(values):
    return np.array([np.nan if value is None else value for value in values], float)
