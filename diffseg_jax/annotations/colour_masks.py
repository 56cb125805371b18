"""Masks in colours, in black and white, and with a palette of their own, as ids."""

from collections.abc import Mapping

import numpy as np

from diffseg_jax.data.class_ids import MaskRules, id_table
from diffseg_jax.data.images import decode, read_file
from diffseg_jax.data.masks import read_colours, read_ids
from diffseg_jax.errors import UserError, counted

MAX_COLOURS = 8  # colours in an error
INDICES = MaskRules(id_table(1), reading="ids")


def ids_of_colours(path, colours: Mapping[tuple[int, int, int], int], table: str) -> np.ndarray:
    """The ids uint8[H,W] of a mask in colours, each of which must be one of `colours`, exactly.

    colours  {(r, g, b): id};  table  where they come from, for errors

    Raises UserError that names the colours which are not among them, with their pixels.
    """
    pixels = read_colours(path).astype(np.int32)
    packed = pixels[..., 0] << 16 | pixels[..., 1] << 8 | pixels[..., 2]
    found, places, counts = np.unique(packed, return_inverse=True, return_counts=True)
    rows = [(value >> 16, value >> 8 & 255, value & 255) for value in found.tolist()]
    unknown = {row: count for row, count in zip(rows, counts.tolist()) if row not in colours}
    if unknown:
        raise UserError(f"mask {path} {_unknown(unknown, colours, table)}")
    ids = np.array([colours[row] for row in rows], np.uint8)
    return ids[places].reshape(packed.shape)


def palette_colours(path) -> list[tuple[int, int, int]]:
    """The colours that a palette image shows; [] for an image of another mode."""
    content = read_file(path)
    image = decode(path, content)
    if image.mode != "P":
        return []
    palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    used = np.unique(np.asarray(image))
    return [tuple(rgb) for rgb in palette[used[used < len(palette)]].tolist()]


def _unknown(unknown, colours, table):
    """The end of the sentence about colours that are of no class."""
    most = sorted(unknown.items(), key=lambda pair: -pair[1])
    shown = ", ".join(
        f"{list(row)} ({counted(count, 'pixel')})" for row, count in most[:MAX_COLOURS]
    )
    more = f" and {len(most) - MAX_COLOURS} more" if len(most) > MAX_COLOURS else ""
    nearest = max(min(_distance(row, known) for known in colours) for row in unknown)
    advice = f"Add them to {table}, such as {','.join(map(str, most[0][0]))},name"
    if len(most) > MAX_COLOURS or nearest <= 16:
        advice = (
            "They look like borders that were smoothed or compressed: export the masks again as "
            "PNG, resized with nearest neighbour"
        )
    are = "colour" if len(most) == 1 else "colours"
    return f"holds {counted(len(most), 'colour')} of no class: {are} {shown}{more}. {advice}."


def _distance(one, other):
    return max(abs(a - b) for a, b in zip(one, other))


def ids_of_black_and_white(path) -> np.ndarray:
    """The mask bool[H,W] of an image with two values, of which 0 is outside.

    The other one may be 1, 255, or any. Raises UserError for more values, as smoothing makes them.
    """
    ids = read_ids(path, rules=INDICES)
    values = np.unique(ids)
    others = values[values != 0]
    if len(others) > 1:
        between = int(((ids != 0) & (ids != others[-1])).sum())
        listed = ", ".join(map(str, others[:MAX_COLOURS])) + (
            ", ..." if len(others) > MAX_COLOURS else ""
        )
        raise UserError(
            f"mask {path} holds the values {listed} beside 0, but a mask in black and white has "
            f"one. {counted(between, 'pixel')} lie between: export it as PNG, resized with nearest "
            "neighbour; or, if the values are ids, give --from=palette."
        )
    return ids != 0


def ids_of_indices(path) -> np.ndarray:
    """The indices [H,W] of a palette image, or the samples of a grey one; its colours are ignored.

    Raises UserError as read_ids.
    """
    return read_ids(path, rules=INDICES)
