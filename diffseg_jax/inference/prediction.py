"""What a segmenter answers: label maps, probabilities and uncertainty, to look at and to keep."""

import dataclasses
import functools
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from diffseg_jax.data.labels import Labels
from diffseg_jax.errors import UserError, counted
from diffseg_jax.figures import sheets
from diffseg_jax.metrics.uncertainty import image_uncertainty

SHOWN = 4  # pictures of a prediction that a notebook displays
KINDS = ("labels", "color", "overlay", "uncertainty")  # of files, by the end of their names


@dataclasses.dataclass(frozen=True)
class Answer:
    """The answer for one picture.

    name           of its file, without ending, or a number
    image          u8[H, W, 3]
    labels         i32[H, W], 0..K-1
    probs          f32[H, W, K], sums to 1
    uncertainty    f32[H, W] in [0, 1]
    uncertainties  the same by name, see `systems.prediction.Maps`
    """

    name: str
    image: np.ndarray
    labels: np.ndarray
    probs: np.ndarray
    uncertainty: np.ndarray
    uncertainties: dict[str, np.ndarray]


class Prediction:
    """The answers for some pictures. Arrays of pictures of one size are stacked; else, lists.

    names          B strings: of the files, or numbers
    images         u8[B, H, W, 3], as they were shown
    labels         i32[B, H, W], 0..K-1
    probs          f32[B, H, W, K], sums to 1
    uncertainty    f32[B, H, W] in [0, 1]
    uncertainties  dict of such: "entropy", and of some systems "changes", "spread"
    classes        K names;  palette  K colours (r, g, b)

    `prediction[i]` is that of one picture, `len` their number; a notebook displays it.
    """

    def __init__(self, answers: Sequence[Answer], labels: Labels):
        self.answers = tuple(answers)
        self.classes, self.palette = labels.names, labels.palette
        self._labels = labels

    def __len__(self) -> int:
        return len(self.answers)

    def __getitem__(self, index) -> "Prediction":
        chosen = self.answers[index]
        return Prediction(chosen if isinstance(index, slice) else [chosen], self._labels)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(answer.name for answer in self.answers)

    @functools.cached_property
    def images(self):
        return _together([answer.image for answer in self.answers])

    @functools.cached_property
    def labels(self):
        return _together([answer.labels for answer in self.answers])

    @functools.cached_property
    def probs(self):
        return _together([answer.probs for answer in self.answers])

    @functools.cached_property
    def uncertainty(self):
        return _together([answer.uncertainty for answer in self.answers])

    @functools.cached_property
    def uncertainties(self) -> dict:
        return {
            name: _together([answer.uncertainties[name] for answer in self.answers])
            for name in self.answers[0].uncertainties
        }

    def color(self):
        """The labels in the colours of their classes, u8[B, H, W, 3]."""
        return _together([_color(answer, self._labels) for answer in self.answers])

    def overlay(self, alpha: float = 0.5):
        """The same painted over the pictures: alpha 0 shows the pictures, 1 the labels.

        Raises UserError for an alpha that is not in [0, 1].
        """
        if not 0 <= alpha <= 1:
            raise UserError(f"alpha is {alpha}, but must lie between 0 (picture) and 1 (labels).")
        return _together([_overlay(answer, self._labels, alpha) for answer in self.answers])

    def sheet(self) -> np.ndarray:
        """Rows of picture, labels and uncertainty above a legend, as one picture u8[h, w, 3]."""
        columns = [
            [getattr(answer, word) for answer in self.answers]
            for word in ("image", "labels", "uncertainty")
        ]
        images, labels, uncertainties = columns
        return sheets.prediction_sheet(images, None, labels, uncertainties, self._labels)

    def save(self, folder) -> list[str]:
        """Writes <name>_labels.png (class ids, 8-bit grey), _color, _overlay and _uncertainty.

        folder  a path, made if it is not there; or gs://...
        Returns the paths. The brightness of _uncertainty is on one scale, from 0 to 1.
        """
        return [
            path for answer in self.answers for path in save_answer(folder, answer, self._labels)
        ]

    def __repr__(self):
        if not self.answers:
            return f"Prediction of no picture, {len(self.classes)} classes"
        sizes = sorted({answer.labels.shape for answer in self.answers})
        shown = " and ".join(f"{height} x {width}" for height, width in sizes[:2])
        more = f" and {len(sizes) - 2} other sizes" if len(sizes) > 2 else ""
        shares = {}
        for answer in self.answers:
            for name, share in class_shares(answer, self.classes).items():
                shares[name] = shares.get(name, 0) + share / len(self)
        ordered = sorted(shares, key=shares.get, reverse=True)
        found = ", ".join(f"{name} {100 * shares[name]:.0f} %" for name in ordered[:6])
        mean = np.mean([answer.uncertainty.mean() for answer in self.answers])
        return (
            f"Prediction of {counted(len(self), 'picture')} ({shown}{more}), "
            f"{len(self.classes)} classes: {found}{', ...' if len(ordered) > 6 else ''}; "
            f"mean uncertainty {mean:.3f}"
        )

    def _repr_png_(self):
        content = io.BytesIO()
        Image.fromarray(self[:SHOWN].sheet()).save(content, format="PNG")
        return content.getvalue()


def class_shares(answer: Answer, classes: Sequence[str]) -> dict[str, float]:
    """The part of the picture that each class covers, of those that cover any."""
    counts = np.bincount(answer.labels.ravel(), minlength=len(classes))
    return {name: n / answer.labels.size for name, n in zip(classes, counts, strict=True) if n}


def facts_of(answer: Answer, classes: Sequence[str]) -> dict:
    """What a summary says of one picture; JSON values."""
    return {
        "size": list(answer.labels.shape),
        "shares": {name: round(part, 6) for name, part in class_shares(answer, classes).items()},
        "uncertainty": round(float(answer.uncertainty.mean()), 6),
        "image_uncertainty": round(float(image_uncertainty(answer.uncertainty)), 6),
    }


def save_answer(folder, answer: Answer, labels: Labels) -> list[str]:
    """Writes the four pictures of an answer, the labels last; each whole or not at all."""
    pictures = {
        "color": _color(answer, labels),
        "overlay": _overlay(answer, labels, 0.5),
        "uncertainty": sheets.heat(answer.uncertainty),
        "labels": answer.labels.astype(np.uint8),
    }
    paths = {kind: path_of(folder, answer.name, kind) for kind in KINDS}
    for kind, picture in pictures.items():
        sheets.save_png(paths[kind], picture)
    return list(paths.values())


def path_of(folder, name: str, kind: str) -> str:
    """Where a picture of an answer is saved."""
    return f"{folder}/{name}_{kind}.png"


def _color(answer, labels):
    return sheets.colour_labels(answer.labels, labels.palette)


def _overlay(answer, labels, alpha):
    return sheets.overlay(answer.image, answer.labels, labels.palette, alpha)


def _together(arrays):
    """One array where the shapes agree, else a list."""
    return np.stack(arrays) if len({array.shape for array in arrays}) == 1 else list(arrays)
