"""The options of a prediction, and what they change in the protocol of the evaluation."""

import dataclasses
from collections.abc import Sequence
from numbers import Integral, Real

import numpy as np

from diffseg_jax.errors import UserError
from diffseg_jax.inference.views import Protocol, View

MIN_TILE = 32  # pixels; the largest stride of an encoder
OVERLAP = 0.25  # share of a tile that its neighbour covers too, if no stride is given


@dataclasses.dataclass(frozen=True)
class PredictOptions:
    """The options of `Segmenter.predict`, described there; None: as the run was evaluated."""

    steps: int | None = None
    samples: int | None = None
    tile: int | tuple[int, int] | None = None
    stride: int | tuple[int, int] | None = None
    scales: Sequence[float] | None = None
    flip: bool | None = None
    seed: int | None = None
    round_to: int | None = None
    batch_size: int | None = None

    def change(self, protocol: Protocol) -> Protocol:
        """The protocol with these options; UserError for wrong ones."""
        changes = {}
        if self.scales is not None:
            changes["scales"] = _checked_scales(self.scales)
        if self.flip is not None:
            changes["flip"] = bool(self.flip)
        if self.round_to is not None:
            changes["multiple"] = require_integer("round_to", self.round_to, 1, 4096)
        if np.array_equal(self.tile, 0) or np.array_equal(self.tile, (0, 0)):
            changes["view"] = View.WHOLE
        elif self.tile is not None:
            changes |= {"view": View.SLIDE, **_windows(self.tile, self.stride)}
        if self.stride is not None and "window" not in changes:
            tile = max(512, *_pair("stride", self.stride, 1))
            raise UserError(
                f"stride is {self.stride}, but no tile is given. Add a tile, such as tile={tile}."
            )
        return dataclasses.replace(protocol, **changes)


def _windows(tile, stride):
    """Window and stride of a protocol."""
    window = _pair("tile", tile, MIN_TILE)
    steps = tuple(int((1 - OVERLAP) * side) for side in window)
    steps = steps if stride is None else _pair("stride", stride, 1)
    if any(step > side for step, side in zip(steps, window, strict=True)):
        raise UserError(
            f"the tile {window} is smaller than the stride {steps}, which leaves gaps between "
            "tiles. Give no stride, or one that is not larger than the tile."
        )
    return {"window": window, "stride": steps}


def _pair(name, value, minimum):
    """(height, width) of one side or two; UserError for anything else."""
    sides = tuple(value) if isinstance(value, Sequence | np.ndarray) else (value, value)
    if len(sides) != 2 or not all(isinstance(s, Integral) and s >= minimum for s in sides):
        raise UserError(
            f"{name} is {value}, but must be a side, or height and width, of {minimum} pixels or "
            f"more. Try {name}=512."
        )
    return tuple(map(int, sides))


def _checked_scales(scales):
    scales = tuple(scales) if isinstance(scales, Sequence | np.ndarray) else (scales,)
    if not scales or not all(isinstance(s, Real) and 0.01 <= s <= 100 for s in scales):
        raise UserError(f"scales is {scales}, but must hold factors, such as (0.75, 1.0, 1.25).")
    return scales


def require_integer(name: str, value, minimum: int, maximum: int) -> int:
    """The value of an option; UserError unless it is a whole number in that range."""
    in_range = isinstance(value, Integral) and minimum <= value <= maximum
    if isinstance(value, bool) or not in_range:
        raise UserError(
            f"{name} is {value}, but must be a whole number from {minimum} to {maximum}."
        )
    return int(value)
