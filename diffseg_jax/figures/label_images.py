"""Draws label maps, uncertainty and errors as images; knows no model.

An image is uint8[H, W, 3] RGB. Ignored pixels (label 255) are striped in two greys, as no class
is. Where colours alone do not tell the classes, their numbers are written over them.
"""

import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from diffseg_jax.data.labels import IGNORE
from diffseg_jax.data.transforms import resize_mask
from diffseg_jax.errors import UserError
from diffseg_jax.figures.colour_vision import smallest_difference
from diffseg_jax.figures.layout import BLACK, SWATCH, TEXT, WHITE, font_of, image_pixels, scale_of

WRONG = (213, 94, 0)  # vermillion, which differs from grey in every kind of colour vision
MIXED_ROWS = 512  # of an image, which are mixed at a time
STRIPES = (80, 200)  # the greys of ignored pixels
STRIPE, CONTOUR = 4, 2  # pixels of an image in a sheet: width of a stripe, and of half a contour
# Colours tell classes if they are not more, and if their CIEDE2000 is not less.
MAX_COLOURS, MIN_DISTANCE = 12, 10
NUMBER = 14  # pixels, the height of the numbers in areas

# The colour map "magma" (CC0) at 16 equal steps; linear interpolation is off by 3 of 255 at most.
MAGMA = (
    "000004 0b0924 20114b 3b0f70 57157e 721f81 8c2981 a8327d "
    "c43c75 de4968 f1605d fa7f5e fe9f6d febf84 fddea0 fcfdbf"
)


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
        drawn[ignored] = stripes(*ignored.shape, image_pixels(STRIPE, *ignored.shape))[ignored]
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
    edge = near_edge(mask, image_pixels(CONTOUR, *mask.shape))
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
    size = NUMBER * max(1, round(1 / scale_of(height, width)))
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
                (x, y), str(k), fill=WHITE, font=font_of(size), anchor="mm",
                stroke_width=size // 7, stroke_fill=BLACK,
            )  # fmt: skip
    return np.asarray(sheet)


def heat(chance: np.ndarray) -> np.ndarray:
    """float[H, W] in [0, 1] (clipped) -> uint8[H, W, 3], dark at 0 and bright at 1.

    Even in the square root of the chance, so that 1 and 5 percent differ visibly.
    """
    return shade(np.sqrt(np.clip(chance, 0, 1)))


def shade(level: np.ndarray) -> np.ndarray:
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


def with_boxes(image: np.ndarray, boxes: Sequence[Sequence[int]]) -> np.ndarray:
    """The image with outlines of boxes [x, y, width, height], and their numbers from 1."""
    sheet = Image.fromarray(image)
    draw, line = ImageDraw.Draw(sheet), image_pixels(CONTOUR + 1, *image.shape[:2])
    font = font_of(image_pixels(TEXT, *image.shape[:2]))
    for number, (x, y, width, height) in enumerate(boxes, 1):
        corners = x, y, x + width - 1, y + height - 1
        draw.rectangle(corners, outline=BLACK, width=line + 2 * max(1, line // 3))
        draw.rectangle(corners, outline=WRONG, width=line)
        draw.text(
            (x + 2 * line, y + 2 * line), str(number), fill=WHITE, font=font,
            stroke_width=line, stroke_fill=BLACK,
        )  # fmt: skip
    return np.asarray(sheet)
