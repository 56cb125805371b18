"""Predicted maps seen from above: what a network says of rigs of images, and files of it."""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffseg_jax.data.labels import Labels
from diffseg_jax.figures import layout
from diffseg_jax.figures.bev import bev_sheet, colour_layers, layer_uncertainty
from diffseg_jax.storage.paths import make_folder, open_path, write_atomically


@dataclasses.dataclass(frozen=True)
class BEVMaps:
    """The maps predicted for a batch of rigs, or without B for one.

    probs        f32[B, K, X, Y], of every class; cells may have several, x ahead and y left
    uncertainty  f32[B, X, Y] in [0, 1], the mean entropy of the classes in bits
    signals      name -> f32[B, X, Y]: "changes" and "spread", where there are several steps, draws
    """

    probs: np.ndarray
    uncertainty: np.ndarray
    signals: dict[str, np.ndarray]

    def __getitem__(self, row: int) -> "BEVMaps":
        signals = {name: values[row] for name, values in self.signals.items()}
        return BEVMaps(self.probs[row], self.uncertainty[row], signals)

    def drawn(self) -> "BEVMaps":
        """The maps that a sheet shows."""
        return self


def maps_from(found: dict) -> BEVMaps:
    """The maps of what the task's `predict` returns."""
    probs = np.moveaxis(np.asarray(found["probs"], np.float32), -1, 1)
    signals = {name: found[name] for name in ("changes", "spread") if name in found}
    return BEVMaps(probs, layer_uncertainty(probs), signals)


@dataclasses.dataclass(frozen=True)
class BEVPrediction:
    """Maps of several rigs, by their names, with the classes and the ground that they show.

    output  (lower, upper, size of a cell) of both axes, in metres
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    output: tuple[float, float, float]
    maps: Sequence[BEVMaps]
    images: Sequence[np.ndarray]

    @property
    def probs(self) -> np.ndarray:
        """f32[B, K, X, Y] in [0, 1]."""
        return np.stack([maps.probs for maps in self.maps])

    @property
    def layers(self) -> np.ndarray:
        """bool[B, K, X, Y]: probabilities above one half."""
        return self.probs > 0.5

    @property
    def uncertainty(self) -> np.ndarray:
        """f32[B, X, Y] in [0, 1]."""
        return np.stack([maps.uncertainty for maps in self.maps])

    def save(self, folder) -> list[Path]:
        """Writes <name>_map.png, <name>_sheet.png and <name>_probs.npy of every rig.

        The last of a rig is written last, so if it exists, the others do too.
        """
        folder, written = open_path(folder), []
        for row, name in enumerate(self.names):
            probs = self.maps[row].probs
            drawn = colour_layers(probs, self.palette)
            labels = Labels(self.classes, self.palette)
            sheet = bev_sheet([self.images[row]], None, [probs], labels)
            make_folder((folder / name).parent)
            for end, image in (("map", drawn), ("sheet", sheet)):
                layout.save_png(folder / f"{name}_{end}.png", image)
            content = io.BytesIO()
            np.save(content, probs)
            write_atomically(folder / f"{name}_probs.npy", content.getvalue())
            written += [folder / f"{name}_{end}" for end in ("map.png", "sheet.png", "probs.npy")]
        return written
