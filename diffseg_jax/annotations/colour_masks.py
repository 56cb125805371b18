"""Masks in colours, in black and white, and with a palette of their own, as ids."""

from collections.abc import Mapping

import numpy as np

from diffseg_jax.data.class_ids import MaskRules, id_table
from diffseg_jax.data.images import decode, read_file
from diffseg_jax.data.masks import read_colours, read_ids
from diffseg_jax.data.npy import is_array
from diffseg_jax.errors import UserError, counted

MAX_COLOURS = 8  # colours in an error
NO_COLOUR = -3  # in ColourIds.look_up, where UNLABELLED and IGNORED are negative too
INDICES = MaskRules(id_table(1), reading="ids")


class ColourIds:
    """The ids of colours, each of which must be one of a table, exactly."""

    def __init__(self, colours: Mapping[tuple[int, int, int], int], table: str):
        """colours: {(r, g, b): index or IGNORED};  table: where they come from, for errors"""
        self.colours, self.table = colours, table
        self.look_up = np.full(1 << 24, NO_COLOUR, np.int16)
        self.look_up[[red << 16 | green << 8 | blue for red, green, blue in colours]] = [
            *colours.values()
        ]

    def read(self, path) -> np.ndarray:
        """The indices of classes int16[H,W] of a mask in colours, with IGNORED.

        A table may have more classes than a label map, of which some are chosen.

        Raises UserError that names the colours which are not in the table, with their pixels.
        """
        red, green, blue = np.moveaxis(read_colours(path).astype(np.int32), -1, 0)
        packed = red << 16 | green << 8 | blue
        ids = self.look_up[packed]
        if (ids == NO_COLOUR).any():
            found = np.unique(packed[ids == NO_COLOUR], return_counts=True)
            unknown = {
                (value >> 16, value >> 8 & 255, value & 255): count
                for value, count in zip(*(part.tolist() for part in found))
            }
            raise UserError(f"mask {path} {_unknown(unknown, self.colours, self.table)}")
        return ids


def holds_colours(path) -> bool:
    """Whether a mask is an image in colours without a palette, and not indices or grey values."""
    return not is_array(path) and decode(path, read_file(path)).mode in ("RGB", "RGBA")


def palette_colours(path) -> dict[int, tuple[int, int, int]]:
    """{index: its colour} of those that a palette image uses; {} for an image of another mode."""
    image = decode(path, read_file(path))
    if image.mode != "P":
        return {}
    palette = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3).tolist()
    used = np.flatnonzero(np.bincount(np.asarray(image).ravel(), minlength=256)).tolist()
    return {index: tuple(palette[index]) for index in used if index < len(palette)}


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


def inside_of_black_and_white(path) -> np.ndarray:
    """The mask bool[H,W] of an image with two values, of which 0 is outside.

    The other one may be 1, 255, or any. Raises UserError for more values, as smoothing makes them.
    """
    ids = read_ids(path, rules=INDICES)
    outside = ids == 0
    inside = ids[~outside]
    if not inside.size or (inside == inside[0]).all():
        return ~outside
    values = np.unique(inside)
    between = counted(int((inside != values[-1]).sum()), "pixel")
    more = ", ..." if len(values) > MAX_COLOURS else ""
    raise UserError(
        f"mask {path} holds the values {', '.join(map(str, values[:MAX_COLOURS]))}{more} beside 0, "
        f"but a mask in black and white has one. {between} lie between: export it as PNG, resized "
        "with nearest neighbour; or, if the values are ids, give --from=palette."
    )


def ids_of_indices(path) -> np.ndarray:
    """The indices [H,W] of a palette image, or the samples of a grey one; its colours are ignored.

    Raises UserError as read_ids.
    """
    return read_ids(path, rules=INDICES)
