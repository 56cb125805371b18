"""Draws label maps, uncertainty and errors as images, and sheets of them; knows no model.

An image is uint8[H, W, 3] RGB. Ignored pixels (label 255) are striped in two greys, as no class
is. `labels` is anything with `names` (K strings) and `palette` (K colours of three bytes), as in
every labelled source. Where colours alone do not tell the classes, sheets show their numbers.
"""

import functools
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffseg_jax.data.labels import IGNORE
from diffseg_jax.data.transforms import resize_mask
from diffseg_jax.errors import UserError
from diffseg_jax.figures.colour_vision import smallest_difference
from diffseg_jax.storage.paths import write_atomically

BLACK, WHITE, INK, EDGE = (0, 0, 0), (255, 255, 255), (45, 45, 45), (140, 140, 140)
WRONG = (213, 94, 0)  # vermillion, which differs from grey in every kind of colour vision
MIXED_ROWS = 512  # of an image, which are mixed at a time
STRIPES = (80, 200)  # the greys of ignored pixels
STRIPE, CONTOUR = 4, 2  # pixels of an image in a sheet: width of a stripe, and of half a contour
# Colours tell classes if they are not more, and if their CIEDE2000 is not less.
MAX_COLOURS, MIN_DISTANCE = 12, 10

# All sizes are in pixels. A cell has a white BORDER on every side, so images are two borders apart.
BORDER, TEXT, TITLE, SWATCH, GAP = 6, 18, 30, 18, 8
# Images in a sheet are scaled to a height in this range, unless they would become too wide.
MIN_HEIGHT, MAX_HEIGHT, MAX_WIDTH = 160, 640, 1280
CONTACT_WIDTH = 2000
MAX_STEPS_SHOWN = 4  # columns of a sheet
CELL = (34, 62)  # height and width in a table of numbers

NUMBER = 14  # pixels, the height of the numbers in areas
CHANCES = (0, 1, 5, 10, 25, 50, 100)  # percent, beside the colours of a chance
BAR = 360  # pixels, the width of these colours

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
    """int[H, W] in 0..K-1 or 255 -> uint8[H, W, 3]; 255 becomes stripes.

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
    return striped(table[mask], mask == IGNORE)


def stripes(height: int, width: int, stripe: int = STRIPE) -> np.ndarray:
    """Diagonal stripes of that width in the greys of ignored pixels, uint8[height, width, 3]."""
    across = np.add.outer(np.arange(height), np.arange(width)) // stripe
    return np.repeat(np.array(STRIPES, np.uint8)[across % 2][..., None], 3, axis=-1)


IGNORED = stripes(SWATCH - 2, SWATCH - 2)  # in a legend


def striped(drawn: np.ndarray, ignored: np.ndarray) -> np.ndarray:
    """The same array, in which ignored pixels are striped now."""
    if ignored.any():
        drawn[ignored] = stripes(*ignored.shape, _pixels(STRIPE, *ignored.shape))[ignored]
    return drawn


def overlay(image: np.ndarray, mask: np.ndarray, palette, alpha: float = 0.5) -> np.ndarray:
    """The image with its classes painted over it: alpha 0 is the image, 1 is `colour_labels`."""
    mixed = colour_labels(mask, palette)
    for top in range(0, len(image), MIXED_ROWS):
        rows = np.s_[top : top + MIXED_ROWS]
        mixed[rows] = np.rint((1 - alpha) * image[rows] + alpha * mixed[rows])
    return mixed


def outlined(image: np.ndarray, mask: np.ndarray, palette) -> np.ndarray:
    """The image with a line along each border of two classes, on both sides in their colours."""
    edge = near_edge(mask, _pixels(CONTOUR, *mask.shape))
    return np.where(edge[..., None], colour_labels(mask, palette), image)


def near_edge(mask: np.ndarray, distance: int) -> np.ndarray:
    """Which pixels have another label within that many pixels along a row or column."""
    near = np.zeros(mask.shape, bool)
    for step in range(1, distance + 1):
        for values, marks in ((mask, near), (mask.T, near.T)):
            differ = values[step:] != values[:-step]
            marks[step:] |= differ
            marks[:-step] |= differ
    return near


def with_numbers(drawn: np.ndarray, mask: np.ndarray, palette) -> np.ndarray:
    """`write_numbers` where colours do not tell the classes, else the same image."""
    return write_numbers(drawn, mask) if need_numbers(palette) else drawn


def need_numbers(palette) -> bool:
    """Whether classes are so many, or two colours so close, that colours do not tell the classes.

    Close for people with any type of colour vision.
    """
    return len(palette) > MAX_COLOURS or smallest_difference(palette) < MIN_DISTANCE


def write_numbers(drawn: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The numbers of classes written over them, in all areas that hold one.

    drawn   uint8[h, w, 3], the classes as drawn, at any scale;  mask   int[H, W]
    """
    from scipy.ndimage import distance_transform_edt  # a slow import

    height, width = drawn.shape[:2]
    mask = resize_mask(mask, (height, width))
    size = NUMBER * max(1, round(1 / _scale(height, width)))
    inside = distance_transform_edt(np.pad(~near_edge(mask, 1), 1))[1:-1, 1:-1]
    sheet = Image.fromarray(drawn)
    draw = ImageDraw.Draw(sheet)
    for k in np.setdiff1d(mask, IGNORE):
        room = np.where(mask == k, inside, 0)
        needed = 0.3 * size * (1 + len(str(k)))
        while room.max() >= needed:
            y, x = np.unravel_index(room.argmax(), room.shape)
            apart = 3 * size + int(2 * room[y, x])
            room[max(y - apart, 0) : y + apart, max(x - apart, 0) : x + apart] = 0
            draw.text(
                (x, y), str(k), fill=WHITE, font=_font(size), anchor="mm",
                stroke_width=size // 7, stroke_fill=BLACK,
            )  # fmt: skip
    return np.asarray(sheet)


def heat(chance: np.ndarray) -> np.ndarray:
    """float[H, W] in [0, 1] (clipped) -> uint8[H, W, 3], dark at 0 and bright at 1.

    Even in the square root of the chance, so that 1 and 5 percent differ visibly.
    """
    return _even(np.sqrt(np.clip(chance, 0, 1)))


def _even(level: np.ndarray) -> np.ndarray:
    """float[H, W] in [0, 1] -> uint8[H, W, 3], from dark at 0 evenly to bright at 1."""
    return _heat_table()[np.rint(255 * level).astype(np.uint8)]


@functools.cache
def _heat_table() -> np.ndarray:
    steps = np.array([tuple(bytes.fromhex(colour)) for colour in MAGMA.split()])
    levels = np.linspace(0, 255, len(steps))
    channels = [np.interp(np.arange(256), levels, channel) for channel in steps.T]
    return np.rint(np.stack(channels, -1)).astype(np.uint8)


def errors(truth: np.ndarray, prediction: np.ndarray, image: np.ndarray | None = None):
    """Wrong pixels vermillion, right ones dim grey (of the image, if given), ignored ones striped.

    truth, prediction   int[H, W], 255 in the truth = ignored
    """
    grey = np.full(truth.shape, 90.0) if image is None else 30 + 0.45 * image.mean(axis=-1)
    drawn = np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=-1)
    drawn[truth != prediction] = WRONG
    return striped(drawn, truth == IGNORE)


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
    return np.concatenate([bordered(cell) for cell in cells], axis=1)


def rows(panels: Sequence[np.ndarray]) -> np.ndarray:
    """Panels below each other, aligned on the left, on white with an equal margin."""
    width = max(part.shape[1] for part in panels)
    return bordered(np.concatenate([_padded(part, width=width) for part in panels]))


def legend(names: Sequence[str], palette, width: int = 960) -> np.ndarray:
    """A swatch and a name per class, in as many columns as `width` pixels hold; read along rows.

    palette   a colour for each name, or an image of SWATCH - 2 pixels
    """
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
    return bordered(inner)


def _entry_width(names: Sequence[str], width: int) -> int:
    """Pixels of a swatch, the longest name and a gap; longer names are shortened."""
    longest = max(_text_width(name) for name in names)
    return min(SWATCH + GAP + min(longest, MAX_NAME_WIDTH) + 3 * GAP, width - 2 * BORDER)


def legible(image: np.ndarray) -> np.ndarray:
    """A small image enlarged by repeating pixels, a large one averaged, by a whole factor."""
    factor = _scale(*image.shape[:2])
    if factor > 1:
        return image.repeat(factor, axis=0).repeat(factor, axis=1)
    return np.asarray(Image.fromarray(image).reduce(round(1 / factor))) if factor < 1 else image


def _scale(height: int, width: int) -> float:
    """The factor by which `legible` scales: a whole number, or 1 divided by one."""
    factor = min(-(-MIN_HEIGHT // height), MAX_WIDTH // width)
    return factor if factor > 1 else 1 / max(-(-height // MAX_HEIGHT), -(-width // MAX_WIDTH))


def _pixels(shown: int, height: int, width: int) -> int:
    """How many pixels of an image of that size are about that many in a sheet."""
    return max(1, round(shown / _scale(height, width)))


def bordered(image: np.ndarray) -> np.ndarray:
    """The image with a white margin of BORDER pixels."""
    return np.pad(image, ((BORDER, BORDER), (BORDER, BORDER), (0, 0)), constant_values=255)


def _padded(image: np.ndarray, *, height: int = 0, width: int = 0) -> np.ndarray:
    """White below and to the right until the image has at least this size."""
    down, right = max(height - image.shape[0], 0), max(width - image.shape[1], 0)
    return np.pad(image, ((0, down), (0, right), (0, 0)), constant_values=255)


@functools.cache
def _font(size: int = TEXT):
    return ImageFont.load_default(size)


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


def _chance_scale(calibrated: bool) -> np.ndarray:
    return heat_scale("chance of an error" + ("" if calibrated else ", uncalibrated"))


def heat_scale(name: str) -> np.ndarray:
    """The colours of `heat` as a line of a legend, beside their name, above percentages."""
    right = 60
    scale = Image.new("RGB", (BAR + right + _text_width(name), SWATCH + TITLE), WHITE)
    scale.paste(Image.fromarray(_even(np.tile(np.linspace(0, 1, BAR), (SWATCH, 1)))))
    draw = ImageDraw.Draw(scale)
    for chance in CHANCES:
        x = round((BAR - 1) * math.sqrt(chance / 100))
        draw.line((x, SWATCH, x, SWATCH + 4), fill=INK)
        text, anchor = (f"{chance}", "mt") if chance else ("0", "lt")
        draw.text((x, SWATCH + 8), text, fill=INK, font=_font(14), anchor=anchor)
    draw.text((BAR + 15, SWATCH + 8), "%", fill=INK, font=_font(14), anchor="lt")
    draw.text((BAR + right - 20, SWATCH // 2), name, fill=INK, font=_font(), anchor="lm")
    return bordered(np.asarray(scale))


def prediction_legend(labels, calibrated: bool = True, ignored: bool = False) -> np.ndarray:
    """The legend of label maps, with the numbers of the classes, and of uncertainty.

    ignored   whether labels may be 255
    """
    entries = [(_numbered(k, name), labels.palette[k]) for k, name in enumerate(labels.names)]
    entries += [("ignored", IGNORED)] if ignored else []
    return rows([legend(*zip(*entries, strict=True)), _chance_scale(calibrated)])


def _numbered(k: int, name: str) -> str:
    return f"{k} {name}"


def aligned(titles: Sequence[str], images: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
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
    shade = _even((scores - low) / max(high - low, 1e-9))
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
    return bordered(np.asarray(sheet))


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
    shown = [bordered(legible(image)) for image in images]
    lines = [shown[start : start + columns] for start in range(0, len(shown), columns)]
    blank = np.full_like(shown[0], 255)
    lines[-1] += [blank] * (columns - len(lines[-1]))
    return np.concatenate([np.concatenate(line, 1) for line in lines])


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
    return rows([*body, legend_rows, _chance_scale(calibrated)])


def comparison_sheet(images, truths, predictions: dict, labels) -> np.ndarray:
    """One row per image: image | truth | the labels of every method, and a legend below.

    predictions   title of a method -> int[H, W] for each image
    """
    titles = ["image", "truth", *predictions]
    drawn = [_areas(masks, labels) for masks in (truths, *predictions.values())]
    body = aligned(titles, list(zip(images, *drawn, strict=True)))
    masks = [mask for each in (truths, *predictions.values()) for mask in each]
    return rows([*body, _legend_below(labels, {"ignored": IGNORED}, body, masks)])


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
        entry = _entry_width([*(names[k] for k in chosen), *marks, more], width)
        lines = max(1, sum(part.shape[0] for part in body) // TITLE - 1)
        room = max(1, (width - 2 * BORDER) // entry) * lines - len(marks)
        if len(chosen) > room:
            largest = np.argsort(-pixels, kind="stable")[: max(room - 1, 1)]
            marks = {**marks, f"and {len(chosen) - len(largest)} more": WHITE}
            chosen = np.sort(largest)
    entries = [(names[k], labels.palette[k]) for k in chosen] + list(marks.items())
    entries = entries or [("ignored", IGNORED)]
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
    return rows(aligned(titles, list(zip(*columns, strict=True))))


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


def contact_rows(cells, titles: Sequence[str]) -> list[np.ndarray]:
    """Rows of cells, each of which is a legible image, or two that belong together."""
    width = max(cell[0].shape[1] for cell in cells)
    titled = [
        list(zip((title, ""), (_padded(image, width=width) for image in cell), strict=False))
        for title, cell in zip(titles, cells, strict=True)
    ]
    per_row = max(1, CONTACT_WIDTH // (len(cells[0]) * (width + 2 * BORDER)))
    return [
        panel([column for cell in titled[start : start + per_row] for column in cell])
        for start in range(0, len(titled), per_row)
    ]


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
    return rows([*body, _chance_scale(calibrated)] if maps else body)


def with_boxes(image: np.ndarray, boxes: Sequence[Sequence[int]]) -> np.ndarray:
    """The image with outlines of boxes [x, y, width, height], and their numbers from 1."""
    sheet = Image.fromarray(image)
    draw, line = ImageDraw.Draw(sheet), _pixels(CONTOUR + 1, *image.shape[:2])
    font = _font(_pixels(TEXT, *image.shape[:2]))
    for number, (x, y, width, height) in enumerate(boxes, 1):
        corners = x, y, x + width - 1, y + height - 1
        draw.rectangle(corners, outline=BLACK, width=line + 2 * max(1, line // 3))
        draw.rectangle(corners, outline=WRONG, width=line)
        draw.text(
            (x + 2 * line, y + 2 * line), str(number), fill=WHITE, font=font,
            stroke_width=line, stroke_fill=BLACK,
        )  # fmt: skip
    return np.asarray(sheet)


def save_png(path: Path, image: np.ndarray) -> None:
    """Writes the image atomically: an older file of that name stays until it is replaced."""
    write_atomically(path, png_of(Image.fromarray(image)))


def png_of(image: Image.Image) -> bytes:
    """The content of a PNG file of the image."""
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()
