"""Plots how far to trust the estimated chance that a pixel is wrong."""

import numpy as np

from diffseg_jax.figures.sheets import LINES
from diffseg_jax.metrics.calibration import chance_scores, reliability, risk_coverage

SIZE, DPI = (4.8, 3.8), 100  # inches; pixels per inch
ROOM = 1.05  # share of the largest value at which an axis ends


def reliability_plot(counts: np.ndarray) -> np.ndarray:
    """The share of wrong pixels against the estimated chance, in groups of equally many pixels.

    counts   int[..., 2, CHANCE_BINS], with a pixel at least
    """
    figure, panel = _new_plot()
    predicted, observed = (100 * values for values in reliability(counts))
    end = min(max(ROOM * max(predicted.max(), observed.max()), 1), 100)
    panel.plot([0, end], [0, end], color="0.6", linestyle="--", linewidth=1.2, label="perfect")
    panel.plot(predicted, observed, color=LINES[0], marker="o", markersize=5, linewidth=1.6,
               label=f"{len(predicted)} equal groups of pixels", clip_on=False)  # fmt: skip
    panel.set(xlim=(0, end), ylim=(0, end))
    panel.set(xlabel="estimated chance of an error (%)", ylabel="wrong pixels (%)")
    panel.legend(frameon=False, fontsize=9)
    return _drawn(figure, panel, f"Reliability: ECE {chance_scores(counts)['ECE']:.3f}")


def risk_coverage_plot(counts: np.ndarray) -> np.ndarray:
    """The share of wrong pixels among those kept, the surest first, against the share kept.

    counts   as in `reliability_plot`
    """
    figure, panel = _new_plot()
    kept = np.linspace(1, 100, 200)  # of the first pixels, one alone can be wrong
    risk = np.interp(kept, *(100 * values for values in risk_coverage(counts)))
    best = 100 * np.maximum(0, 1 - (100 - risk[-1]) / kept)
    panel.plot([0, 100], risk[[-1, -1]], color="0.6", linestyle=":", label="random order")
    panel.plot(kept, best, color="0.6", linestyle="--", linewidth=1.2, label="best order")
    panel.plot(kept, risk, color=LINES[0], linewidth=1.8, label="this network", clip_on=False)
    panel.set(xlim=(0, 100), ylim=(0, min(max(ROOM * risk.max(), 1), 100)))
    panel.set(xlabel="pixels kept, the surest first (%)", ylabel="wrong among them (%)")
    panel.legend(frameon=False, fontsize=9)
    scored = chance_scores(counts)
    title = f"Risk and coverage: AURC {scored['AURC']:.3f}, {scored['excess_AURC']:.3f} above best"
    return _drawn(figure, panel, title)


def _new_plot():
    from matplotlib.figure import Figure  # a slow import

    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    return figure, figure.subplots()


def _drawn(figure, panel, title: str) -> np.ndarray:
    """The figure as uint8[H, W, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    panel.set_title(title, fontsize=11, loc="left")
    panel.grid(color="0.9", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
