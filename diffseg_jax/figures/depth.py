"""Draws depth maps in colours, with a scale in metres, and sheets of them; knows no model.

Depths are float[H, W] in metres, 0 where nothing was measured; such pixels are striped. Colours run
evenly with the logarithm of the depth, bright near and dark far, so that equal ratios look alike.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffseg_jax.figures import label_images, layout, sheets
from diffseg_jax.figures.colour_vision import LINES
from diffseg_jax.figures.layout import INK, SWATCH, TITLE, WHITE
from diffseg_jax.figures.sheets import BAR, MAX_STEPS_SHOWN
from diffseg_jax.figures.trust import pixels_of

DEPTH_COLOURS = "viridis"  # of matplotlib, perceptually even; read from its end
ENDS = 1  # percent of the pixels that may lie beyond each end of the colours
ROUND = (1, 2, 5)  # first digits of the numbers of a scale
SMALL = 14  # pixels, the height of its numbers


# ---- one map -------------------------------------------------------------------------------------


def shown_range(*depths: np.ndarray) -> tuple[float, float]:
    """The depths at the ends of the colours: round numbers around all but a few measured pixels.

    (1.0, 10.0) where no map has a measured pixel.
    """
    measured = np.concatenate([np.ravel(depth)[np.ravel(depth) > 0] for depth in depths])
    measured = measured[np.isfinite(measured)]
    if not measured.size:
        return 1.0, 10.0
    near, far = np.percentile(measured, (ENDS, 100 - ENDS))
    low = max(step for step in _round_numbers(near / 10, near) if step <= near * (1 + 1e-6))
    return low, min(step for step in _round_numbers(far, 11 * far) if step > low)


def _round_numbers(low, high):
    """1, 2, 5, 10, ... from low to high, with a little room for rounding."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    numbers = [digit * 10.0**power for power in powers for digit in ROUND]
    return [number for number in numbers if low * (1 - 1e-6) <= number <= high * (1 + 1e-6)]


def colour_depth(depth: np.ndarray, low: float, high: float, measured=None) -> np.ndarray:
    """float[H, W] in metres -> uint8[H, W, 3]; beyond low and high the colours are those of them.

    measured   bool[H, W]; the other pixels are striped. By default those above 0 are measured
    """
    measured = np.asarray(depth) > 0 if measured is None else measured
    level = np.log(np.clip(np.where(measured, depth, low), low, high) / low) / np.log(high / low)
    return label_images.striped(_depth_table()[np.rint(255 * level).astype(np.uint8)], ~measured)


@functools.cache
def _depth_table() -> np.ndarray:
    import matplotlib  # a slow import

    colours = matplotlib.colormaps[DEPTH_COLOURS](np.arange(255, -1, -1))
    return np.rint(255 * colours[:, :3]).astype(np.uint8)


def depth_scale(low: float, high: float) -> np.ndarray:
    """The colours from low to high as a line of a legend, above round numbers of metres."""
    name, right, font = "depth", 45, ImageFont.load_default
    width = BAR + right + int(np.ceil(font(SMALL + 4).getlength(name)))
    scale = Image.new("RGB", (width, SWATCH + TITLE), WHITE)
    shades = np.geomspace(low, high, BAR)[None].repeat(SWATCH, 0)
    scale.paste(Image.fromarray(colour_depth(shades, low, high)))
    draw, last = ImageDraw.Draw(scale), -math.inf
    for number in _round_numbers(low, high):
        x = round((BAR - 1) * math.log(number / low) / math.log(high / low))
        draw.line((x, SWATCH, x, SWATCH + 4), fill=INK)
        text = f"{number:.6g}"
        half = font(SMALL).getlength(text) / 2
        x = min(max(x, half), BAR + 10 - half)
        if x - half > last + 4:  # else it would touch its neighbour
            draw.text((x, SWATCH + 8), text, fill=INK, font=font(SMALL), anchor="mt")
            last = x + half
    draw.text((BAR + 15, SWATCH + 8), "m", fill=INK, font=font(SMALL), anchor="lt")
    draw.text((BAR + right, SWATCH // 2), name, fill=INK, font=font(SMALL + 4), anchor="lm")
    return layout.bordered(np.asarray(scale))


def depth_error(truth: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """|depth - truth| / truth in the colours of `heat`, uint8[H, W, 3]; not measured: striped."""
    measured = truth > 0
    relative = np.abs(depth - truth) / np.where(measured, truth, 1)
    return label_images.striped(label_images.heat(relative), ~measured)


# ---- sheets --------------------------------------------------------------------------------------


def depth_sheet(
    images, truths, depths, uncertainties, steps=None, shown: tuple[float, float] | None = None
) -> np.ndarray:
    """One row per image: image | truth | prediction | uncertainty | error, and scales below.

    images          uint8[H, W, 3] each, few enough to look at; sizes may differ
    truths          float[H, W] each, 0 where nothing was measured; None: no truth, no error
    depths          float[H, W] each
    uncertainties   float[H, W] each, relative to the depth, on the scale of `heat`; or None
    steps           float[T, H, W] each, the depths after every reverse step; MAX_STEPS_SHOWN of
                    them stand before the prediction, among them the first and the last
    shown           metres at the ends of the colours; None: those of `shown_range` of the
                    truths, or of the depths
    """
    low, high = shown or shown_range(*(depths if truths is None else truths))
    coloured = lambda maps: [colour_depth(each, low, high) for each in maps]
    columns = {"image": images, "prediction": coloured(depths)}
    if truths is not None:
        columns = {"image": images, "truth": coloured(truths), "prediction": coloured(depths)}
    if steps is not None:
        prediction = columns.pop("prediction")
        chosen = np.linspace(0, len(steps[0]) - 1, MAX_STEPS_SHOWN).astype(int)
        for step in sorted(set(chosen.tolist())):
            columns[f"step {step + 1}"] = coloured(maps[step] for maps in steps)
        columns["prediction"] = prediction
    if uncertainties is not None:
        columns["uncertainty"] = [label_images.heat(values) for values in uncertainties]
    if truths is not None:
        columns["error"] = [depth_error(*pair) for pair in zip(truths, depths, strict=True)]
    body = layout.aligned(list(columns), list(zip(*columns.values(), strict=True)))
    scales = [depth_scale(low, high)]
    relative = [name for name in ("uncertainty", "error") if name in columns]
    if relative:
        scales.append(sheets.heat_scale(f"{' and '.join(relative)}, relative to the depth"))
    return layout.rows([*body, *scales])


def depth_contact_sheet(images, depths, titles: Sequence[str]) -> np.ndarray:
    """Training data: images next to their measured depth, with a scale.

    images   uint8[H, W, 3] each;  depths   float[H, W] each;  titles   one per image
    """
    low, high = shown_range(*depths)
    cells = [
        [layout.legible(image), layout.legible(colour_depth(depth, low, high))]
        for image, depth in zip(images, depths, strict=True)
    ]
    return layout.rows([*layout.contact_rows(cells, titles), depth_scale(low, high)])


def depth_steps_plot(rows: Sequence[dict]) -> np.ndarray:
    """abs_rel and rmse against reverse steps, and abs_rel against time: uint8[h, w, 3].

    rows   dicts of stage, steps, draws, abs_rel, rmse in metres, ms per image; a line per stage and
           number of draws
    """
    from matplotlib.figure import Figure  # a slow import

    figure = Figure(figsize=(12, 3.6), dpi=110, layout="constrained")
    panels = figure.subplots(1, 3)
    groups = {}
    for row in rows:
        draws = f", {row['draws']} draws" if row["draws"] > 1 else ""
        groups.setdefault(row["stage"] + draws, []).append(row)
    number = lambda value: math.nan if value is None else value
    for index, (name, group) in enumerate(groups.items()):
        style = dict(color=LINES[index % len(LINES)], marker="o", label=name)
        for panel, key, against in zip(
            panels, ("abs_rel", "rmse", "abs_rel"), ("steps", "steps", "ms"), strict=True
        ):
            values = [number(row[key]) for row in group]
            panel.plot([row[against] for row in group], values, **style)
            panel.set_ylabel("rmse (m)" if key == "rmse" else "abs_rel")
    for panel in panels[:2]:
        panel.set(xlabel="reverse steps", xticks=sorted({row["steps"] for row in rows}))
    panels[2].set(xlabel="milliseconds per image (numbers: steps)")
    for row in rows:
        panels[2].annotate(str(row["steps"]), (row["ms"], number(row["abs_rel"])))
    panels[0].legend()
    return pixels_of(figure)
