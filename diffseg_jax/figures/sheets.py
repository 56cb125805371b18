"""Draws label maps, uncertainty and errors as images, and sheets of them; knows no model.

An image is uint8[H, W, 3] RGB. Ignored pixels (label 255) are black. `labels` is anything with
`names` (K strings) and `palette` (K colours of three bytes), as in every labelled source.
"""

import functools
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffseg_jax.data.labels import IGNORE
from diffseg_jax.errors import UserError
from diffseg_jax.storage.paths import write_atomically

BLACK, WHITE, INK, EDGE = (0, 0, 0), (255, 255, 255), (45, 45, 45), (140, 140, 140)
WRONG = (213, 94, 0)  # vermillion, which differs from grey in every kind of colour vision

# All sizes are in pixels. A cell has a white BORDER on every side, so images are two borders apart.
BORDER, TEXT, TITLE, SWATCH, GAP = 6, 18, 30, 18, 8
# Images in a sheet are scaled to a height in this range, unless they would become too wide.
MIN_HEIGHT, MAX_HEIGHT, MAX_WIDTH = 160, 640, 1280
CONTACT_WIDTH = 2000
MAX_STEPS_SHOWN = 4  # columns of a sheet
CELL = (34, 62)  # height and width in a table of numbers

ALL_NAMED = 20  # classes up to which a legend names all; of more, it names those in the images
MAX_NAME_WIDTH = 240

# Line colours that differ on white in every kind of colour vision (Okabe and Ito 2008).
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")

# The colour map "magma" (CC0) at 16 equal steps; linear interpolation is off by 3 of 255 at most.
MAGMA = (
    "000004 0b0924 20114b 3b0f70 57157e 721f81 8c2981 a8327d "
    "c43c75 de4968 f1605d fa7f5e fe9f6d febf84 fddea0 fcfdbf"
)


# ---- one image from one map ----------------------------------------------------------------------


def colour_labels(mask: np.ndarray, palette: Sequence[Sequence[int]]) -> np.ndarray:
    """int[H, W] in 0..K-1 or 255 -> uint8[H, W, 3]; 255 becomes black.

    Raises UserError for a class that has no colour.
    """
    table = np.zeros((256, 3), np.uint8)
    table[: len(palette)] = palette
    known = (mask >= 0) & (mask < len(palette)) | (mask == IGNORE)
    if not known.all():
        raise UserError(
            f"class {mask[~known][0]} has no colour: the palette has {len(palette)}, for classes "
            f"0..{len(palette) - 1}. Give one colour per class; distinct_colours makes them."
        )
    return table[mask]


def overlay(image: np.ndarray, mask: np.ndarray, palette, alpha: float = 0.5) -> np.ndarray:
    """The image with its classes painted over it: alpha 0 is the image, 1 is `colour_labels`."""
    mixed = (1 - alpha) * image + alpha * colour_labels(mask, palette)
    return np.rint(mixed).astype(np.uint8)


def heat(values: np.ndarray) -> np.ndarray:
    """float[H, W] in [0, 1] (clipped) -> uint8[H, W, 3], from dark at 0 evenly to bright at 1."""
    return _heat_table()[np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8)]


@functools.cache
def _heat_table() -> np.ndarray:
    steps = np.array([tuple(bytes.fromhex(colour)) for colour in MAGMA.split()])
    levels = np.linspace(0, 255, len(steps))
    channels = [np.interp(np.arange(256), levels, channel) for channel in steps.T]
    return np.rint(np.stack(channels, -1)).astype(np.uint8)


def errors(truth: np.ndarray, prediction: np.ndarray, image: np.ndarray | None = None):
    """Wrong pixels vermillion, right ones dim grey (of the image, if given), ignored ones black.

    truth, prediction   int[H, W], 255 in the truth = ignored
    """
    grey = np.full(truth.shape, 90.0) if image is None else 30 + 0.45 * image.mean(axis=-1)
    drawn = np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=-1)
    drawn[truth != prediction] = WRONG
    drawn[truth == IGNORE] = BLACK
    return drawn


def from_range(values: np.ndarray, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    """float[..., 3] from [low, high] (clipped) to bytes."""
    unit = (np.asarray(values, np.float32) - low) / (high - low)
    return np.rint(255 * np.clip(unit, 0, 1)).astype(np.uint8)


# ---- images put together -------------------------------------------------------------------------


def panel(columns: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Images side by side, each under its title; no line of titles if all are empty.

    Every image is scaled by `legible`; white fills the area below shorter images.
    """
    images = [legible(image) for _, image in columns]
    height = max(image.shape[0] for image in images)
    cells = [_padded(image, height=height) for image in images]
    if any(title for title, _ in columns):
        cells = [
            np.concatenate([_line(title, cell.shape[1]), cell])
            for (title, _), cell in zip(columns, cells, strict=True)
        ]
    return np.concatenate([_bordered(cell) for cell in cells], axis=1)


def rows(panels: Sequence[np.ndarray]) -> np.ndarray:
    """Panels below each other, aligned on the left, on white with an equal margin."""
    width = max(part.shape[1] for part in panels)
    return _bordered(np.concatenate([_padded(part, width=width) for part in panels]))


def legend(names: Sequence[str], palette, width: int = 960) -> np.ndarray:
    """A swatch and a name per class, in as many columns as `width` pixels hold; read along rows."""
    entry = _entry_width(names, width)
    per_row = max(1, (width - 2 * BORDER) // entry)
    drawn = []
    for name, colour in zip(names, palette, strict=True):
        swatch = np.full((TITLE, SWATCH + GAP, 3), 255, np.uint8)
        top = (TITLE - SWATCH) // 2
        swatch[top : top + SWATCH, :SWATCH] = EDGE
        swatch[top + 1 : top + SWATCH - 1, 1 : SWATCH - 1] = colour
        drawn.append(np.concatenate([swatch, _line(name, entry - SWATCH - GAP)], axis=1))
    lines = [
        np.concatenate(drawn[start : start + per_row], axis=1)
        for start in range(0, len(drawn), per_row)
    ]
    inner = np.concatenate([_padded(line, width=width - 2 * BORDER) for line in lines])
    return _bordered(inner)


def _entry_width(names: Sequence[str], width: int) -> int:
    """Pixels of a swatch, the longest name and a gap; longer names are shortened."""
    longest = max(_text_width(name) for name in names)
    return min(SWATCH + GAP + min(longest, MAX_NAME_WIDTH) + 3 * GAP, width - 2 * BORDER)


def legible(image: np.ndarray) -> np.ndarray:
    """A small image enlarged by repeating pixels, a large one averaged, by a whole factor."""
    height, width = image.shape[:2]
    factor = min(-(-MIN_HEIGHT // height), MAX_WIDTH // width)
    if factor > 1:
        return image.repeat(factor, axis=0).repeat(factor, axis=1)
    factor = max(-(-height // MAX_HEIGHT), -(-width // MAX_WIDTH))
    return np.asarray(Image.fromarray(image).reduce(factor)) if factor > 1 else image


def _bordered(image: np.ndarray) -> np.ndarray:
    return np.pad(image, ((BORDER, BORDER), (BORDER, BORDER), (0, 0)), constant_values=255)


def _padded(image: np.ndarray, *, height: int = 0, width: int = 0) -> np.ndarray:
    """White below and to the right until the image has at least this size."""
    down, right = max(height - image.shape[0], 0), max(width - image.shape[1], 0)
    return np.pad(image, ((0, down), (0, right), (0, 0)), constant_values=255)


@functools.cache
def _font():
    return ImageFont.load_default(TEXT)


def _text_width(text: str) -> int:
    return int(np.ceil(_font().getlength(text)))


def _line(text: str, width: int) -> np.ndarray:
    """Text on white, uint8[TITLE, width, 3]; too long a text loses its middle."""
    length = len(text)
    shown = text
    while length > 1 and _font().getlength(shown) > width:
        length -= 1
        shown = f"{text[: (length + 1) // 2]}..{text[len(text) - length // 2 :]}"
    line = Image.new("RGB", (width, TITLE), WHITE)
    ImageDraw.Draw(line).text((0, TITLE // 2), shown, fill=INK, font=_font(), anchor="lm")
    return np.asarray(line)


def _heat_scale(top: float) -> np.ndarray:
    """The colours of `heat` as a line of a legend, from 0 to `top`."""
    bar = heat(np.tile(np.linspace(0, 1, 256), (SWATCH, 1)))
    bar = np.pad(bar, (((TITLE - SWATCH) // 2,) * 2, (0, 8), (0, 0)), constant_values=255)
    return _bordered(np.concatenate([bar, _line(f"uncertainty, from 0 to {top:g}", 240)], axis=1))


def prediction_legend(labels) -> np.ndarray:
    """The legend of label maps, and of uncertainty from 0 to 1."""
    return rows([legend(labels.names, labels.palette), _heat_scale(1.0)])


def _aligned(titles: Sequence[str], images: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Rows of images of any sizes, with aligned columns; only the first row has titles."""
    scaled = [[legible(image) for image in row] for row in images]
    widths = [
        max(_text_width(title), *(image.shape[1] for image in column))
        for title, column in zip(titles, zip(*scaled, strict=True), strict=True)
    ]
    aligned = [
        [_padded(image, width=width) for image, width in zip(row, widths, strict=True)]
        for row in scaled
    ]
    untitled = [""] * len(titles)
    return [
        panel(list(zip(untitled if i else titles, row, strict=True)))
        for i, row in enumerate(aligned)
    ]


# ---- the sheets of runs --------------------------------------------------------------------------


def score_grid(scores: np.ndarray, row: str, rows: Sequence, column: str) -> np.ndarray:
    """A table of numbers f[R,C] whose cells are coloured from the lowest, dark, to the highest.

    row, column   names of the axes;  rows  a heading for each row, while columns are numbered
    """
    low, high = float(np.min(scores)), float(np.max(scores))
    shade = heat((scores - low) / max(high - low, 1e-9))
    size = (CELL[1] * (scores.shape[1] + 2), CELL[0] * (scores.shape[0] + 1))
    sheet = Image.new("RGB", size, WHITE)
    draw = ImageDraw.Draw(sheet)

    def write(y, x, text, ink=INK):
        centre = CELL[1] * (x + 0.5), CELL[0] * (y + 0.5)
        draw.text(centre, text, fill=ink, font=_font(), anchor="mm")

    write(0, 0.5, f"{row}, {column}:")
    for index in range(scores.shape[1]):
        write(0, index + 2, str(index))
    for y, (heading, values) in enumerate(zip(rows, scores, strict=True), 1):
        write(y, 0.5, str(heading))
        for index, value in enumerate(values):
            colour = tuple(int(part) for part in shade[y - 1, index])
            corner = CELL[1] * (index + 2), CELL[0] * y
            draw.rectangle((*corner, corner[0] + CELL[1] - 2, corner[1] + CELL[0] - 2), fill=colour)
            write(y, index + 2, f"{value:.1f}", WHITE if sum(colour) < 380 else BLACK)
    return _bordered(np.asarray(sheet))


def steps_plot(rows: Sequence[dict]) -> np.ndarray:
    """Mean IoU against reverse steps and time: a line per stage and number of draws.

    rows   dicts of stage, steps (0 if the network takes none), draws, mIoU in [0, 1], ms per image
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # a slow import
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), dpi=110, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    against_steps, against_time = figure.subplots(1, 2, sharey=True)
    groups = {}
    for row in rows:
        draws = f", {row['draws']} draws" if row["draws"] > 1 else ""
        groups.setdefault(row["stage"] + draws, []).append(row)
    for number, (name, group) in enumerate(groups.items()):
        quality = [100 * row["mIoU"] for row in group]
        colour = LINES[number % len(LINES)]
        style = dict(color=colour, marker="o", label=name)
        if group[0]["steps"]:
            against_steps.plot([row["steps"] for row in group], quality, **style)
        else:
            against_steps.axhline(quality[0], color=colour, linestyle="--", label=name)
        against_time.plot([row["ms"] for row in group], quality, **style)
    ticks = sorted({row["steps"] for row in rows if row["steps"]})
    against_steps.set(xlabel="reverse steps", ylabel="mIoU (%)", xticks=ticks)
    for row in rows:
        if row["steps"]:
            against_time.annotate(str(row["steps"]), (row["ms"], 100 * row["mIoU"]))
    against_time.set(xlabel="milliseconds per image (numbers: steps)")
    against_steps.legend()
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def grid(images: np.ndarray) -> np.ndarray:
    """Images uint8[N,H,W,3] in about as many rows as columns, small images enlarged."""
    columns = math.ceil(math.sqrt(len(images)))
    shown = [_bordered(legible(image)) for image in images]
    lines = [shown[start : start + columns] for start in range(0, len(shown), columns)]
    blank = np.full_like(shown[0], 255)
    lines[-1] += [blank] * (columns - len(lines[-1]))
    return np.concatenate([np.concatenate(line, 1) for line in lines])


def prediction_sheet(images, truths, predictions, uncertainties, labels, steps=None) -> np.ndarray:
    """One row per image: image | truth | prediction | uncertainty | error, and a legend below.

    images          uint8[H, W, 3] each, few enough to look at; sizes may differ
    truths          int[H, W] each, 255 = ignored; or None, for no columns of truth and error
    predictions     int[H, W] each
    uncertainties   float[H, W] each, in [0, 1]; the brightest colour is the 99.5th percentile of
                    the sheet, which the legend states
    steps           int[T, H, W] each, the labels after every step of a sampler; MAX_STEPS_SHOWN of
                    them stand before the prediction, among them the first and the last
    """
    high = np.percentile(np.concatenate([np.ravel(values) for values in uncertainties]), 99.5)
    top = np.clip(np.ceil(100 * high) / 100, 0.01, 1.0)
    titles = ["image", "prediction", "uncertainty"]
    columns = [
        images,
        [colour_labels(mask, labels.palette) for mask in predictions],
        [heat(values / top) for values in uncertainties],
    ]
    marks = {}
    if truths is not None:
        titles = ["image", "truth", "prediction", "uncertainty", "error"]
        columns.insert(1, [colour_labels(mask, labels.palette) for mask in truths])
        columns.append([errors(*row) for row in zip(truths, predictions, images, strict=True)])
        marks = {"ignored": BLACK, "wrong": WRONG}
    if steps is not None:
        index = titles.index("prediction")
        shown = np.linspace(0, len(steps[0]) - 1, MAX_STEPS_SHOWN).astype(int)
        for step in reversed(sorted(set(shown))):
            titles.insert(index, f"step {step + 1}")
            columns.insert(index, [colour_labels(maps[step], labels.palette) for maps in steps])
    body = _aligned(titles, list(zip(*columns, strict=True)))
    given = [masks for masks in (truths, predictions, steps) if masks is not None]
    legend_rows = _legend_below(labels, marks, body, [mask for masks in given for mask in masks])
    return rows([*body, legend_rows, _heat_scale(top)])


def _legend_below(labels, marks: dict, body: Sequence[np.ndarray], masks) -> np.ndarray:
    """The legend of `masks`, as wide as the images, and not higher.

    It names all classes if there are at most ALL_NAMED, else those that occur. If these are too
    many, it names those with the most pixels and states how many others there are.
    """
    names, width = labels.names, max(part.shape[1] for part in body)
    chosen, count = range(len(names)), len(names)
    if count > ALL_NAMED:
        pixels = sum(np.bincount(np.ravel(mask), minlength=256)[:count] for mask in masks)
        chosen = np.flatnonzero(pixels)
        more = f"and {len(chosen)} more"
        entry = _entry_width([*(names[k] for k in chosen), *marks, more], width)
        lines = max(1, sum(part.shape[0] for part in body) // TITLE - 1)
        room = max(1, (width - 2 * BORDER) // entry) * lines - len(marks)
        if len(chosen) > room:
            largest = np.argsort(-pixels, kind="stable")[: max(room - 1, 1)]
            marks = {**marks, f"and {len(chosen) - len(largest)} more": WHITE}
            chosen = np.sort(largest)
    entries = [(names[k], labels.palette[k]) for k in chosen] + list(marks.items())
    entries = entries or [("ignored", BLACK)]
    return legend(*zip(*entries, strict=True), width)


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
    return rows(_aligned(titles, list(zip(*columns, strict=True))))


def contact_sheet(images, masks, labels, titles: Sequence[str]) -> np.ndarray:
    """Training data: images next to overlays of their labels, with a legend.

    images   uint8[H, W, 3] each
    masks    int[H, W] each; or None for images alone, then `labels` may be None too
    titles   one per image
    """
    cells = [[legible(image)] for image in images]
    if masks is not None:
        for cell, image, mask in zip(cells, images, masks, strict=True):
            cell.append(legible(overlay(image, mask, labels.palette)))
    width = max(cell[0].shape[1] for cell in cells)
    titled = [
        list(zip((title, ""), (_padded(image, width=width) for image in cell), strict=False))
        for title, cell in zip(titles, cells, strict=True)
    ]
    per_row = max(1, CONTACT_WIDTH // (len(cells[0]) * (width + 2 * BORDER)))
    body = [
        panel([column for cell in titled[start : start + per_row] for column in cell])
        for start in range(0, len(titled), per_row)
    ]
    if masks is not None:
        body.append(_legend_below(labels, {"ignored": BLACK}, body, masks))
    return rows(body)


def save_png(path: Path, image: np.ndarray) -> None:
    """Writes the image atomically: an older file of that name stays until it is replaced."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, format="PNG")
    write_atomically(path, content.getvalue())
