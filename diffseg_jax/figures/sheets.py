"""The sheets of runs: rows of images with their label maps, uncertainty and errors, and legends.

An image is uint8[H, W, 3] RGB. `labels` is anything with `names` (K strings) and `palette` (K
colours of three bytes), as in every labelled source.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from diffseg_jax.data.labels import IGNORE
from diffseg_jax.figures.label_images import (
    IGNORED,
    WRONG,
    colour_labels,
    errors,
    from_range,
    heat,
    need_numbers,
    overlay,
    shade,
    with_boxes,
    with_numbers,
)
from diffseg_jax.figures.layout import (
    BLACK,
    BORDER,
    CONTACT_WIDTH,
    INK,
    SWATCH,
    TITLE,
    WHITE,
    aligned,
    bordered,
    contact_rows,
    entry_width,
    font_of,
    legend,
    legible,
    panel,
    rows,
    text_width,
)

MAX_STEPS_SHOWN = 4  # columns of a sheet
CELL = (34, 62)  # height and width in a table of numbers
CHANCES = (0, 1, 5, 10, 25, 50, 100)  # percent, beside the colours of a chance
BAR = 360  # pixels, the width of these colours
ALL_NAMED = 20  # classes up to which a legend names all; of more, it names those in the images


def prediction_sheet(
    images, truths, predictions, uncertainties, labels, steps=None, calibrated: bool = True
) -> np.ndarray:
    """One row per image: image | truth | prediction | uncertainty | error, and a legend below.

    images          uint8[H, W, 3] each, few enough to look at; sizes may differ
    truths          int[H, W] each, 255 = ignored; or None, for no columns of truth and error
    predictions     int[H, W] each
    uncertainties   float[H, W] each, the chance of an error, on the scale of `heat`
    steps           int[T, H, W] each, the labels after every step of a sampler; MAX_STEPS_SHOWN of
                    them stand before the prediction, among them the first and the last
    calibrated      whether the uncertainties are; title and legend say if not
    """
    chance = "uncertainty" if calibrated else "uncalibrated uncertainty"
    titles = ["image", "prediction", chance]
    columns = [images, _areas(predictions, labels), [heat(values) for values in uncertainties]]
    ignored = any((mask == IGNORE).any() for mask in predictions)
    marks = {"ignored": IGNORED} if ignored else {}
    if truths is not None:
        titles = ["image", "truth", "prediction", chance, "error"]
        columns.insert(1, _areas(truths, labels))
        columns.append([errors(*row) for row in zip(truths, predictions, images, strict=True)])
        marks = {"ignored": IGNORED, "wrong": WRONG}
    if steps is not None:
        index = titles.index("prediction")
        shown = np.linspace(0, len(steps[0]) - 1, MAX_STEPS_SHOWN).astype(int)
        for step in reversed(sorted(set(shown))):
            titles.insert(index, f"step {step + 1}")
            columns.insert(index, _areas([maps[step] for maps in steps], labels))
    body = aligned(titles, list(zip(*columns, strict=True)))
    given = [masks for masks in (truths, predictions, steps) if masks is not None]
    legend_rows = _legend_below(labels, marks, body, [mask for masks in given for mask in masks])
    return rows([*body, legend_rows, chance_scale(calibrated)])


def comparison_sheet(images, truths, predictions: dict, labels) -> np.ndarray:
    """One row per image: image | truth | the labels of every method, and a legend below.

    predictions   title of a method -> int[H, W] for each image
    """
    titles = ["image", "truth", *predictions]
    drawn = [_areas(masks, labels) for masks in (truths, *predictions.values())]
    body = aligned(titles, list(zip(images, *drawn, strict=True)))
    masks = [mask for each in (truths, *predictions.values()) for mask in each]
    return rows([*body, _legend_below(labels, {"ignored": IGNORED}, body, masks)])


def contact_sheet(images, masks, labels, titles: Sequence[str]) -> np.ndarray:
    """Training data: images next to overlays of their labels, with a legend.

    images   uint8[H, W, 3] each
    masks    int[H, W] each; or None for images alone, then `labels` may be None too
    titles   one per image
    """
    cells = [[legible(image)] for image in images]
    if masks is not None:
        for cell, area in zip(cells, _areas(masks, labels, images), strict=True):
            cell.append(area)
    body = contact_rows(cells, titles)
    if masks is not None:
        body.append(_legend_below(labels, {"ignored": IGNORED}, body, masks))
    return rows(body)


def suggestion_sheet(images, titles, boxes, maps=None, calibrated: bool = True) -> np.ndarray:
    """Images to label next, those to begin with first: with boxes, beside their uncertainty.

    images   uint8[H, W, 3] each
    titles   one per image
    boxes    lists of [x, y, width, height] in pixels of the images, numbered from 1
    maps     float[h, w] each, chances of an error, of any size; None: there are none
    """
    shown = [with_boxes(image, each) for image, each in zip(images, boxes, strict=True)]
    cells = [[(title, legible(image))] for title, image in zip(titles, shown, strict=True)]
    for cell, chance in zip(cells, maps or (), strict=bool(maps)):
        height, width = cell[0][1].shape[:2]
        heated = Image.fromarray(heat(chance)).resize((width, height), Image.Resampling.NEAREST)
        cell.append(("", np.asarray(heated)))
    wide = max(sum(image.shape[1] + 2 * BORDER for _, image in cell) for cell in cells)
    per_row = max(1, CONTACT_WIDTH // wide)
    body = [
        panel([column for cell in cells[start : start + per_row] for column in cell])
        for start in range(0, len(cells), per_row)
    ]
    return rows([*body, chance_scale(calibrated)] if maps else body)


def denoising_sheet(clean, noisy, denoised, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    """One row per image: clean | noisy | denoised | removed.

    clean, noisy, denoised   float[H, W, 3] each, on one scale, shown from `low` to `high`

    The last column is noisy - denoised, shown from -3 to 3 of its standard deviations.
    """
    removed = [np.asarray(n) - np.asarray(d) for n, d in zip(noisy, denoised, strict=True)]
    columns = [
        [from_range(image, low, high) for image in column] for column in (clean, noisy, denoised)
    ]
    spread = [max(3 * float(noise.std()), 1e-6) for noise in removed]
    columns.append([from_range(n, -s, s) for n, s in zip(removed, spread, strict=True)])
    titles = ["clean", "noisy", "denoised", "removed"]
    return rows(aligned(titles, list(zip(*columns, strict=True))))


def score_grid(scores: np.ndarray, row: str, rows: Sequence, column: str) -> np.ndarray:
    """A table of numbers f[R,C] whose cells are coloured from the lowest, dark, to the highest.

    row, column   names of the axes;  rows  a heading for each row, while columns are numbered
    """
    low, high = float(np.min(scores)), float(np.max(scores))
    shades = shade((scores - low) / max(high - low, 1e-9))
    size = (CELL[1] * (scores.shape[1] + 2), CELL[0] * (scores.shape[0] + 1))
    sheet = Image.new("RGB", size, WHITE)
    draw = ImageDraw.Draw(sheet)

    def write(y, x, text, ink=INK):
        centre = CELL[1] * (x + 0.5), CELL[0] * (y + 0.5)
        draw.text(centre, text, fill=ink, font=font_of(), anchor="mm")

    write(0, 0.5, f"{row}, {column}:")
    for index in range(scores.shape[1]):
        write(0, index + 2, str(index))
    for y, (heading, values) in enumerate(zip(rows, scores, strict=True), 1):
        write(y, 0.5, str(heading))
        for index, value in enumerate(values):
            colour = tuple(int(part) for part in shades[y - 1, index])
            corner = CELL[1] * (index + 2), CELL[0] * y
            draw.rectangle((*corner, corner[0] + CELL[1] - 2, corner[1] + CELL[0] - 2), fill=colour)
            write(y, index + 2, f"{value:.1f}", WHITE if sum(colour) < 380 else BLACK)
    return bordered(np.asarray(sheet))


def prediction_legend(labels, calibrated: bool = True, ignored: bool = False) -> np.ndarray:
    """The legend of label maps, with the numbers of the classes, and of uncertainty.

    ignored   whether labels may be 255
    """
    entries = [(_numbered(k, name), labels.palette[k]) for k, name in enumerate(labels.names)]
    entries += [("ignored", IGNORED)] if ignored else []
    return rows([legend(*zip(*entries, strict=True)), chance_scale(calibrated)])


def _legend_below(labels, marks: dict, body: Sequence[np.ndarray], masks) -> np.ndarray:
    """The legend of `masks`, as wide as the images, and not higher.

    It names all classes if there are at most ALL_NAMED, else those that occur. If these are too
    many, it names those with the most pixels and states how many others there are.
    """
    names, width = labels.names, max(part.shape[1] for part in body)
    if need_numbers(labels.palette):
        names = [_numbered(k, name) for k, name in enumerate(names)]
    chosen, count = range(len(names)), len(names)
    if count > ALL_NAMED:
        pixels = sum(np.bincount(np.ravel(mask), minlength=256)[:count] for mask in masks)
        chosen = np.flatnonzero(pixels)
        more = f"and {len(chosen)} more"
        entry = entry_width([*(names[k] for k in chosen), *marks, more], width)
        lines = max(1, sum(part.shape[0] for part in body) // TITLE - 1)
        room = max(1, (width - 2 * BORDER) // entry) * lines - len(marks)
        if len(chosen) > room:
            largest = np.argsort(-pixels, kind="stable")[: max(room - 1, 1)]
            marks = {**marks, f"and {len(chosen) - len(largest)} more": WHITE}
            chosen = np.sort(largest)
    entries = [(names[k], labels.palette[k]) for k in chosen] + list(marks.items())
    entries = entries or [("ignored", IGNORED)]
    return legend(*zip(*entries, strict=True), width)


def _numbered(k: int, name: str) -> str:
    return f"{k} {name}"


def _areas(masks, labels, images=None) -> list[np.ndarray]:
    """The masks in colours, or painted over images; with numbers where the classes need them."""
    palette = labels.palette
    if images is None:
        drawn = [colour_labels(mask, palette) for mask in masks]
    else:
        pairs = zip(images, masks, strict=True)
        drawn = [overlay(image, mask, palette) for image, mask in pairs]
    pairs = zip(drawn, masks, strict=True)
    return [with_numbers(legible(area), mask, palette) for area, mask in pairs]


def chance_scale(calibrated: bool) -> np.ndarray:
    return heat_scale("chance of an error" + ("" if calibrated else ", uncalibrated"))


def heat_scale(name: str) -> np.ndarray:
    """The colours of `heat` as a line of a legend, beside their name, above percentages."""
    right = 60
    scale = Image.new("RGB", (BAR + right + text_width(name), SWATCH + TITLE), WHITE)
    scale.paste(Image.fromarray(shade(np.tile(np.linspace(0, 1, BAR), (SWATCH, 1)))))
    draw = ImageDraw.Draw(scale)
    for chance in CHANCES:
        x = round((BAR - 1) * math.sqrt(chance / 100))
        draw.line((x, SWATCH, x, SWATCH + 4), fill=INK)
        text, anchor = (f"{chance}", "mt") if chance else ("0", "lt")
        draw.text((x, SWATCH + 8), text, fill=INK, font=font_of(14), anchor=anchor)
    draw.text((BAR + 15, SWATCH + 8), "%", fill=INK, font=font_of(14), anchor="lt")
    draw.text((BAR + right - 20, SWATCH // 2), name, fill=INK, font=font_of(), anchor="lm")
    return bordered(np.asarray(scale))
