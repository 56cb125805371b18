"""Plots how far to trust the estimated chance that a pixel is wrong."""

import numpy as np

from diffseg_jax.figures.colour_vision import LINES
from diffseg_jax.metrics.calibration import chance_scores, reliability, risk_coverage

SIZE, DPI = (4.8, 3.8), 100  # inches; pixels per inch
ROOM = 1.05  # share of the largest value at which an axis ends


def reliability_plot(counts: np.ndarray, calibrated: np.ndarray | None = None) -> np.ndarray:
    """The share of wrong pixels against the estimated chance, in groups of equally many pixels.

    counts      int[..., 2, CHANCE_BINS], with a pixel at least
    calibrated  the same after calibration, if there is one
    """
    figure, panel = _new_plot()
    curves = [reliability(each) for each in _given(counts, calibrated)]
    end = min(max(ROOM * 100 * np.max(curves), 1), 100)
    panel.plot([0, end], [0, end], color="0.6", linestyle="--", linewidth=1.2, label="perfect")
    for (predicted, observed), (name, style) in zip(curves, _styles(calibrated), strict=True):
        points = 100 * predicted, 100 * observed
        panel.plot(*points, markersize=5, label=name, clip_on=False, **style)
    panel.set(xlim=(0, end), ylim=(0, end))
    groups = f"in {len(curves[0][0])} equal groups"
    panel.set(xlabel=f"estimated chance of an error (%), {groups}", ylabel="wrong pixels (%)")
    panel.legend(frameon=False, fontsize=9)
    scores = [f"{chance_scores(each)['ECE']:.3f}" for each in _given(counts, calibrated)]
    return _drawn(figure, panel, f"Reliability: ECE {', '.join(scores)}")


def risk_coverage_plot(counts: np.ndarray, calibrated: np.ndarray | None = None) -> np.ndarray:
    """The share of wrong pixels among those kept, the surest first, against the share kept.

    counts, calibrated   as in `reliability_plot`
    """
    figure, panel = _new_plot()
    kept = np.linspace(1, 100, 200)  # of the first pixels, one alone can be wrong
    given = _given(counts, calibrated)
    risks = [np.interp(kept, *(100 * values for values in risk_coverage(each))) for each in given]
    best = 100 * np.maximum(0, 1 - (100 - risks[0][-1]) / kept)
    panel.plot([0, 100], risks[0][[-1, -1]], color="0.6", linestyle=":", label="random order")
    panel.plot(kept, best, color="0.6", linestyle="--", linewidth=1.2, label="best order")
    for risk, (name, style) in zip(risks, _styles(calibrated), strict=True):
        panel.plot(kept, risk, label=name, clip_on=False, **{**style, "marker": None})
    panel.set(xlim=(0, 100), ylim=(0, min(max(ROOM * np.max(risks), 1), 100)))
    panel.set(xlabel="pixels kept, the surest first (%)", ylabel="wrong among them (%)")
    panel.legend(frameon=False, fontsize=9)
    scores = [f"{chance_scores(each)['AURC']:.3f}" for each in given]
    return _drawn(figure, panel, f"Risk and coverage: AURC {', '.join(scores)}")


def _given(counts, calibrated) -> list:
    return [counts] if calibrated is None else [counts, calibrated]


def _styles(calibrated) -> list[tuple[str, dict]]:
    """The name and style of each curve of a plot."""
    before = dict(color=LINES[1], linewidth=1.4, marker="s")
    after = dict(color=LINES[0], linewidth=1.8, marker="o")
    if calibrated is None:
        return [("1 - highest probability", after)]
    return [("1 - highest probability", before), ("calibrated, on held-out images", after)]


def _new_plot():
    from matplotlib.figure import Figure  # a slow import

    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    return figure, figure.subplots()


def _drawn(figure, panel, title: str) -> np.ndarray:
    panel.set_title(title, fontsize=11, loc="left")
    panel.grid(color="0.9", linewidth=0.6)
    panel.spines[["top", "right"]].set_visible(False)
    return pixels_of(figure)


def pixels_of(figure) -> np.ndarray:
    """A figure of matplotlib as uint8[H, W, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
