"""The predictions of a segmenter: label maps, probabilities and uncertainty, shown and saved."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

import diffseg_jax
from diffseg_jax.data.labels import Labels
from diffseg_jax.errors import UserError, counted
from diffseg_jax.figures import layout
from diffseg_jax.inference.georeference import Georeference
from diffseg_jax.inference.label_output import LABEL_OUTPUT, shares_of_classes
from diffseg_jax.inference.output import OutputKind
from diffseg_jax.inference.saved import (
    REJECT,
    REVIEW,
    SaveOptions,
    path_of,
    require_share,
    write_coco,
    write_image,
)
from diffseg_jax.inference.summary import SUMMARY, described_classes, entries_in
from diffseg_jax.inference.views import Maps
from diffseg_jax.metrics.review import pixels_to_review, without_unsure
from diffseg_jax.storage.paths import open_path, write_json

MAX_SHOWN = 4  # images of a prediction that a notebook displays


class Prediction:
    """The predictions for some images: stacked arrays for images of one size, else lists of arrays.

    names          B strings: the names of files without ending, or numbers
    images         u8[B, H, W, 3], as they were given
    labels         i32[B, H, W], 0..K-1
    probs          f32[B, H, W, K], sums to 1
    depth          f32[B, H, W] in metres; of networks for depth, which have no labels and probs
    uncertainty    f32[B, H, W] in [0, 1], the estimated chance that the label is wrong, or how
                   far the depth moves between steps and draws, as a share of it
    calibrated     whether it was fitted to labelled pixels; else it is 1 - the highest probability
    signals        dict of such: "least_confidence", "entropy", and of some systems "divergence",
                   "changes", "spread"
    familiarity    f32[B], the share of known images that look at least as strange: 1 usual, near 0
                   strange; None where the checkpoint holds no known images
    foreign        bool[B], whether an image looks clearly stranger than all known ones; else None
    descriptors    f32[B, C], numbers by which images can be compared; None where the network gives
                   none
    classes        K names;  palette  K colours (r, g, b)

    `prediction[i]` is that of one image, `len` their number; a notebook displays it.
    """

    def __init__(
        self, names: Sequence[str], images: Sequence[np.ndarray], maps: Sequence[Maps],
        labels: Labels, output: OutputKind = LABEL_OUTPUT,
    ):  # fmt: skip
        """maps: those of each image, without B; labels: names and colours of the classes."""
        self.names, self._output = tuple(names), output
        self.classes, self.palette = labels.names, labels.palette
        self._images, self._maps, self._labels = tuple(images), tuple(maps), labels

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index) -> "Prediction":
        rows = range(len(self))[index]
        rows = rows if isinstance(index, slice) else [rows]
        names, images, maps = (
            [values[row] for row in rows] for values in (self.names, self._images, self._maps)
        )
        return Prediction(names, images, maps, self._labels, self._output)

    @functools.cached_property
    def images(self):
        return _stacked(self._images)

    @functools.cached_property
    def labels(self):
        return self._named("labels")

    @functools.cached_property
    def probs(self):
        return self._named("probs")

    @functools.cached_property
    def depth(self):
        return self._named("depth")

    @functools.cached_property
    def uncertainty(self):
        return self._named("uncertainty")

    def _named(self, name):
        """The maps of that name; UserError where the predictions are of another task."""
        fields = [vars(maps) for maps in self._maps]
        if any(name not in each for each in fields):
            known = ", ".join(self._output.meanings(False))
            raise UserError(
                f"there are no {name} in a prediction of {self._output.name}. It has {known}."
            )
        return _stacked([each[name] for each in fields])

    @property
    def calibrated(self) -> bool:
        return all(maps.calibrated for maps in self._maps)

    @functools.cached_property
    def signals(self) -> dict:
        return {
            name: _stacked([maps.signals[name] for maps in self._maps])
            for name in self._maps[0].signals
        }

    @property
    def familiarity(self) -> np.ndarray | None:
        return self._judged([maps.familiarity for maps in self._maps])

    @property
    def foreign(self) -> np.ndarray | None:
        return self._judged([maps.foreign for maps in self._maps])

    @property
    def descriptors(self) -> np.ndarray | None:
        return self._judged([maps.descriptor for maps in self._maps])

    def _judged(self, found):
        return None if not found or any(each is None for each in found) else np.array(found)

    def color(self):
        """The labels in the colours of their classes, or depths in theirs, u8[B, H, W, 3]."""
        return _stacked([self._output.colour(maps, self._labels) for maps in self._maps])

    def overlay(self, alpha: float = 0.5, contours: bool = False):
        """The same painted over the images: alpha 0 shows the images, 1 the labels.

        contours   whether only lines along the borders of the classes are painted, without alpha
        Raises UserError for an alpha that is not in [0, 1].
        """
        if not 0 <= alpha <= 1:
            raise UserError(f"alpha is {alpha}, but must lie between 0 (image) and 1 (labels).")
        return _stacked([
            self._output.overlay(image, maps, self._labels, alpha, contours)
            for image, maps in zip(self._images, self._maps, strict=True)
        ])  # fmt: skip

    def recoloured(self, palette: Sequence[Sequence[int]]) -> "Prediction":
        """The same prediction with other colours (r, g, b) of the classes."""
        labels = Labels(self.classes, palette)
        return Prediction(self.names, self._images, self._maps, labels, self._output)

    def class_shares(self) -> dict[str, float]:
        """The share of pixels of each class that occurs, the mean over images; in class order."""
        self._named("labels")
        return shares_of_classes(self._maps, self.classes)

    def sheet(self) -> np.ndarray:
        """Rows of image, prediction and uncertainty above a legend, as one image u8[h, w, 3]."""
        return self._output.sheet(self._images, self._maps, self._labels)

    def review(self, missed: float = 0.2):
        """The fewest pixels that hold all expected errors but a share `missed`, bool[B, H, W]."""
        missed = require_share("review", missed, REVIEW)
        self._named("labels")
        return _stacked([pixels_to_review(maps.uncertainty, missed) for maps in self._maps])

    def rejected(self, chance: float = 0.05):
        """The labels, with 255 where the chance of an error is above `chance`, i32[B, H, W]."""
        chance = require_share("reject", chance, REJECT)
        self._named("labels")
        return _stacked(
            [without_unsure(maps.labels, maps.uncertainty, chance) for maps in self._maps]
        )

    def save(
        self, folder, *, extra: Sequence[str] = (), format: str = "png16",
        contours: str | None = None, review: float | None = None, reject: float | None = None,
        overlay: str = "fill",
    ) -> list[str]:  # fmt: skip
        """Writes <name>_labels.png, _color, _overlay and _uncertainty, and what else is asked for.

        folder    a path, made if it is not there; or gs://...
        extra     maps to write: "probs", "uncertainty", or names of signals
        format    of those: "png16", where 65535 is 1, "npy" or "npz"; probabilities are of 16 bits,
                  and .npz in place of PNG
        contours  "geojson" or "coco": the connected regions of each class as polygons
        review    as `missed` of `review`: writes that mask, 255 where a pixel is to be reviewed
        reject    as `chance` of `rejected`: labels are 255 there, in all files
        overlay   "fill" or "contours", as of the method `overlay`

        Returns the paths of the files of the images. _labels.png holds class ids in a palette of
        their colours. legend.png explains the colours and the scale of the uncertainty;
        summary.json describes all images that were saved there with these options, and coco.json
        holds the contours of all of them.
        """
        options = SaveOptions(extra, format, contours, review, reject, overlay)
        self._output.check(options)
        folder = open_path(folder)
        metadata = {"classes": described_classes(self._labels), "options": options.changed()}
        entries = entries_in(folder, metadata) | self.write(folder, options)
        output = self._output
        legend = output.legend(self._labels, self.calibrated, options)
        layout.save_png(folder / "legend.png", legend)
        described = output.described(options)
        content = {"version": diffseg_jax.__version__, **metadata, "files": described}
        found = {"pictures": entries} | output.overview(entries, self.classes)
        write_json(folder / SUMMARY, content | found)
        if options.contours == "coco":
            write_coco(folder, {name: name for name in entries})
        endings = output.endings(options)
        return [path_of(folder, name, each) for name in self.names for each in endings]

    def write(
        self, folder, options: SaveOptions, places: Mapping[str, Georeference] | None = None
    ) -> dict[str, dict]:
        """Writes the files of the images; returns the entries of the images in summary.json.

        places  those of georeferenced images, by their names
        """
        entries, places = {}, places or {}
        for name, image, maps in zip(self.names, self._images, self._maps, strict=True):
            if options.reject is not None:
                labels = without_unsure(maps.labels, maps.uncertainty, options.reject)
                maps = dataclasses.replace(maps, labels=labels)
            contents, place = self._output.contents, places.get(name)
            write_image(folder, name, image, maps, self._labels, options, place, contents)
            entries[name] = self._output.statistics(maps, self.classes, options)
        return entries

    def __repr__(self):
        if not len(self):
            return f"Prediction for no image, {len(self.classes)} classes"
        sizes = sorted({maps.uncertainty.shape for maps in self._maps})
        shown = " and ".join(f"{height} x {width}" for height, width in sizes[:2])
        more = f" and {len(sizes) - 2} other sizes" if len(sizes) > 2 else ""
        mean = np.mean([maps.uncertainty.mean() for maps in self._maps])
        return (
            f"Prediction for {counted(len(self), 'image')} ({shown}{more}), "
            f"{self._output.text(self._maps, self.classes)}; "
            f"mean uncertainty {mean:.3f}{'' if self.calibrated else ' (uncalibrated)'}"
        )

    def _repr_png_(self):
        return layout.png_of(Image.fromarray(self[:MAX_SHOWN].sheet()))


def concatenate(predictions: Sequence[Prediction]) -> Prediction:
    """One prediction for the images of several, at least one, that have the same classes."""
    return Prediction(
        [name for prediction in predictions for name in prediction.names],
        [image for prediction in predictions for image in prediction._images],
        [maps for prediction in predictions for maps in prediction._maps],
        predictions[0]._labels, predictions[0]._output,
    )


def _stacked(arrays):
    """One array if the shapes agree, else a list."""
    return np.stack(arrays) if len({array.shape for array in arrays}) == 1 else list(arrays)
