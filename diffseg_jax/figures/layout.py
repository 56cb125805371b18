"""Puts images together to sheets, with titles and legends, and writes them; knows no classes.

An image is uint8[H, W, 3] RGB.
"""

import functools
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffseg_jax.storage.paths import write_atomically

BLACK, WHITE, INK, EDGE = (0, 0, 0), (255, 255, 255), (45, 45, 45), (140, 140, 140)

# All sizes are in pixels. A cell has a white BORDER on every side, so images are two borders apart.
BORDER, TEXT, TITLE, SWATCH, GAP = 6, 18, 30, 18, 8
# Images in a sheet are scaled to a height in this range, unless they would become too wide.
MIN_HEIGHT, MAX_HEIGHT, MAX_WIDTH = 160, 640, 1280
CONTACT_WIDTH = 2000
MAX_NAME_WIDTH = 240  # in a legend


def panel(columns: Sequence[tuple[str, np.ndarray]]) -> np.ndarray:
    """Images side by side, each under its title; no line of titles if all are empty.

    Every image is scaled by `legible`; white fills the area below shorter images.
    """
    images = [legible(image) for _, image in columns]
    height = max(image.shape[0] for image in images)
    cells = [padded(image, height=height) for image in images]
    if any(title for title, _ in columns):
        cells = [
            np.concatenate([text_line(title, cell.shape[1]), cell])
            for (title, _), cell in zip(columns, cells, strict=True)
        ]
    return np.concatenate([bordered(cell) for cell in cells], axis=1)


def rows(panels: Sequence[np.ndarray]) -> np.ndarray:
    """Panels below each other, aligned on the left, on white with an equal margin."""
    width = max(part.shape[1] for part in panels)
    return bordered(np.concatenate([padded(part, width=width) for part in panels]))


def aligned(titles: Sequence[str], images: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Rows of images of any sizes, with aligned columns; only the first row has titles."""
    scaled = [[legible(image) for image in row] for row in images]
    widths = [
        max(text_width(title), *(image.shape[1] for image in column))
        for title, column in zip(titles, zip(*scaled, strict=True), strict=True)
    ]
    aligned = [
        [padded(image, width=width) for image, width in zip(row, widths, strict=True)]
        for row in scaled
    ]
    untitled = [""] * len(titles)
    return [
        panel(list(zip(untitled if i else titles, row, strict=True)))
        for i, row in enumerate(aligned)
    ]


def grid(images: np.ndarray) -> np.ndarray:
    """Images uint8[N,H,W,3] in about as many rows as columns, small images enlarged."""
    columns = math.ceil(math.sqrt(len(images)))
    shown = [bordered(legible(image)) for image in images]
    lines = [shown[start : start + columns] for start in range(0, len(shown), columns)]
    blank = np.full_like(shown[0], 255)
    lines[-1] += [blank] * (columns - len(lines[-1]))
    return np.concatenate([np.concatenate(line, 1) for line in lines])


def contact_rows(cells, titles: Sequence[str]) -> list[np.ndarray]:
    """Rows of cells, each of which is a legible image, or two that belong together."""
    width = max(cell[0].shape[1] for cell in cells)
    titled = [
        list(zip((title, ""), (padded(image, width=width) for image in cell), strict=False))
        for title, cell in zip(titles, cells, strict=True)
    ]
    per_row = max(1, CONTACT_WIDTH // (len(cells[0]) * (width + 2 * BORDER)))
    return [
        panel([column for cell in titled[start : start + per_row] for column in cell])
        for start in range(0, len(titled), per_row)
    ]


def legend(names: Sequence[str], palette, width: int = 960) -> np.ndarray:
    """A swatch and a name per class, in as many columns as `width` pixels hold; read along rows.

    palette   a colour for each name, or an image of SWATCH - 2 pixels
    """
    entry = entry_width(names, width)
    per_row = max(1, (width - 2 * BORDER) // entry)
    drawn = []
    for name, colour in zip(names, palette, strict=True):
        swatch = np.full((TITLE, SWATCH + GAP, 3), 255, np.uint8)
        top = (TITLE - SWATCH) // 2
        swatch[top : top + SWATCH, :SWATCH] = EDGE
        swatch[top + 1 : top + SWATCH - 1, 1 : SWATCH - 1] = colour
        drawn.append(np.concatenate([swatch, text_line(name, entry - SWATCH - GAP)], axis=1))
    lines = [
        np.concatenate(drawn[start : start + per_row], axis=1)
        for start in range(0, len(drawn), per_row)
    ]
    inner = np.concatenate([padded(line, width=width - 2 * BORDER) for line in lines])
    return bordered(inner)


def entry_width(names: Sequence[str], width: int) -> int:
    """Pixels of a swatch, the longest name and a gap; longer names are shortened."""
    longest = max(text_width(name) for name in names)
    return min(SWATCH + GAP + min(longest, MAX_NAME_WIDTH) + 3 * GAP, width - 2 * BORDER)


def legible(image: np.ndarray) -> np.ndarray:
    """A small image enlarged by repeating pixels, a large one averaged, by a whole factor."""
    factor = scale_of(*image.shape[:2])
    if factor > 1:
        return image.repeat(factor, axis=0).repeat(factor, axis=1)
    return np.asarray(Image.fromarray(image).reduce(round(1 / factor))) if factor < 1 else image


def scale_of(height: int, width: int) -> float:
    """The factor by which `legible` scales: a whole number, or 1 divided by one."""
    factor = min(-(-MIN_HEIGHT // height), MAX_WIDTH // width)
    return factor if factor > 1 else 1 / max(-(-height // MAX_HEIGHT), -(-width // MAX_WIDTH))


def image_pixels(shown: int, height: int, width: int) -> int:
    """How many pixels of an image of that size are about that many in a sheet."""
    return max(1, round(shown / scale_of(height, width)))


def bordered(image: np.ndarray) -> np.ndarray:
    """The image with a white margin of BORDER pixels."""
    return np.pad(image, ((BORDER, BORDER), (BORDER, BORDER), (0, 0)), constant_values=255)


def padded(image: np.ndarray, *, height: int = 0, width: int = 0) -> np.ndarray:
    """White below and to the right until the image has at least this size."""
    down, right = max(height - image.shape[0], 0), max(width - image.shape[1], 0)
    return np.pad(image, ((0, down), (0, right), (0, 0)), constant_values=255)


@functools.cache
def font_of(size: int = TEXT):
    return ImageFont.load_default(size)


def text_width(text: str) -> int:
    return int(np.ceil(font_of().getlength(text)))


def text_line(text: str, width: int) -> np.ndarray:
    """Text on white, uint8[TITLE, width, 3]; too long a text loses its middle."""
    length = len(text)
    shown = text
    while length > 1 and font_of().getlength(shown) > width:
        length -= 1
        shown = f"{text[: (length + 1) // 2]}..{text[len(text) - length // 2 :]}"
    line = Image.new("RGB", (width, TITLE), WHITE)
    ImageDraw.Draw(line).text((0, TITLE // 2), shown, fill=INK, font=font_of(), anchor="lm")
    return np.asarray(line)


def save_png(path: Path, image: np.ndarray) -> None:
    """Writes the image atomically: an older file of that name stays until it is replaced."""
    write_atomically(path, png_of(Image.fromarray(image)))


def png_of(image: Image.Image) -> bytes:
    """The content of a PNG file of the image."""
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()
