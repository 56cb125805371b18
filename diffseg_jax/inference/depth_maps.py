"""What becomes of the depth maps of a network: averaged in metres, with an uncertainty."""

import dataclasses
from collections.abc import Collection

import numpy as np

from diffseg_jax.inference.views import Decision

DEPTH_SIGNALS = ("changes", "spread")  # of steps and of draws, as shares of the depth


@dataclasses.dataclass(frozen=True)
class DepthMaps:
    """The maps predicted for a batch of images of one size, or without B for one image.

    depth        f32[B, H, W] in metres
    uncertainty  f32[B, H, W] in [0, 1], how far the depth moves between steps and draws, as a share
                 of it: the root of the sum of the squares of the signals; 0 where there are none.
                 It orders pixels by their error, whose size it does not tell
    signals      name -> f32[B, H, W] in [0, 1], those of DEPTH_SIGNALS that the network returns
    descriptor, familiarity, foreign  as of `views.Maps`
    """

    depth: np.ndarray
    uncertainty: np.ndarray
    signals: dict[str, np.ndarray]
    descriptor: np.ndarray | None = None
    familiarity: np.ndarray | None = None
    foreign: np.ndarray | None = None
    calibrated: bool = False

    def __getitem__(self, row: int) -> "DepthMaps":
        signals = {name: values[row] for name, values in self.signals.items()}
        others = self.descriptor, self.familiarity, self.foreign
        others = [None if each is None else each[row] for each in others]
        return DepthMaps(self.depth[row], self.uncertainty[row], signals, *others)

    def drawn(self) -> "DepthMaps":
        """The maps that a sheet shows."""
        return self

    def kept(self, names: Collection[str]) -> "DepthMaps":
        """The maps without signals that are not among the names."""
        signals = {name: values for name, values in self.signals.items() if name in names}
        return dataclasses.replace(self, signals=signals)


def decided_depth(mean, xp, calibrator=None) -> DepthMaps:
    """The maps of averaged ones f32[B,H,W,1]; metres are averaged over views, as in the paper."""
    signals = {
        name: xp.clip(mean[name][..., 0], 0, 1).astype(xp.float32)
        for name in DEPTH_SIGNALS if name in mean
    }  # fmt: skip
    depth = mean["depth"][..., 0].astype(xp.float32)
    squares = sum((xp.square(values) for values in signals.values()), xp.zeros_like(depth))
    return DepthMaps(depth, xp.clip(xp.sqrt(squares), 0, 1), signals)


DEPTHS = Decision(of_view=lambda maps, xp: maps, decided=decided_depth)
