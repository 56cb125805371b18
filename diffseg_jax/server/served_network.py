"""The network of a prediction server: options of requests, their cost, and compiled programs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from diffseg_jax.errors import UserError
from diffseg_jax.inference.options import PredictOptions, require_integer
from diffseg_jax.inference.prediction import Prediction
from diffseg_jax.inference.segmenter import Segmenter
from diffseg_jax.inference.views import View

MIN_SCALE, MAX_SCALE = 0.25, 4.0
MAX_PASSES = 200  # of a network for one request: steps x samples x scales x mirror images


@dataclass(frozen=True)
class Kind:
    """What requests must share to be predicted as one batch.

    size  (height, width) of the images;  keep  the maps that are kept besides labels, see `predict`
    """

    size: tuple[int, int]
    options: PredictOptions
    keep: tuple[str, ...] = ()


class ServedNetwork:
    """Predicts batches of requests with one segmenter; `predict` belongs to one thread.

    batch_size  images of one size that share a batch; None: the default of the segmenter
    round_to    sides are resized to its multiples; None: predictions are those of the evaluation
    most_sizes  sizes of images or windows whose compiled programs are kept in memory: one more
                drops them all
    """

    def __init__(
        self, segmenter: Segmenter, batch_size: int | None = None, round_to: int | None = None,
        most_sizes: int = 16,
    ):  # fmt: skip
        """Raises UserError for a network that cannot segment images, or only known ones."""
        self.segmenter, self.round_to, self.most_sizes = segmenter, round_to, most_sizes
        self.batch_size = segmenter.batch_size if batch_size is None else batch_size
        segmenter.predict_named(iter(()), self.options())
        if segmenter.task.files:
            raise UserError(
                f"this network reads the features of images from {segmenter.task.files.folder}, so "
                "it cannot predict images that are sent. Serve one that computes its features."
            )
        self._compiled = set()

    def options(
        self, steps: int | None = None, samples: int | None = None,
        scales: Sequence[float] | None = None, flip: bool | None = None, seed: int | None = None,
    ) -> PredictOptions:  # fmt: skip
        """The options of a request with those of the server; UserError for too much work."""
        for name, value, most in (("steps", steps, 1000), ("samples", samples, 256)):
            if value is not None:
                require_integer(name, value, 1, most)
        if not all(MIN_SCALE <= scale <= MAX_SCALE for scale in scales or ()):
            raise UserError(
                f"scales is {','.join(f'{scale:g}' for scale in scales)}, but this server takes "
                f"scales from {MIN_SCALE:g} to {MAX_SCALE:g}."
            )
        passes = (steps or 1) * (samples or 1) * len(scales or (1,)) * (2 if flip else 1)
        if passes > MAX_PASSES:
            raise UserError(
                f"steps x samples x scales x mirror images are {passes:,} passes of the network, "
                f"but a request may ask for {MAX_PASSES}. Ask for fewer."
            )
        return PredictOptions(
            steps, samples, None, None, scales, flip, seed, self.round_to, self.batch_size
        )

    def require_size(self, kind: Kind, most: int):
        """UserError if an image would be shown to the network with more than `most` pixels."""
        sizes = self.segmenter.protocol_for(kind.options).sizes(kind.size)
        shown = max(map(math.prod, sizes))
        if shown > most:
            raise UserError(
                f"at these scales the image has {shown:,} pixels, but this server takes {most:,}. "
                "Leave scales out, or send a smaller image."
            )

    def predict(self, kind: Kind, images: list[np.ndarray]) -> list[Prediction]:
        """The predictions for images u8[H,W,3], as of `Segmenter.predict` with these options."""
        options, stride = kind.options, self.segmenter.task.stride
        self._make_room({
            (options.steps, options.samples, *(-(-side // stride) for side in size))
            for size in self._sizes(kind)
        })  # fmt: skip
        named = ((f"{number:06d}", image) for number, image in enumerate(images))
        return list(self.segmenter.predict_named(named, options, kind.keep))

    def _sizes(self, kind):
        """The sizes of what the network reads: whole images, or windows."""
        protocol = self.segmenter.protocol_of_size(kind.options, kind.size)
        if protocol.view is View.SLIDE:
            return [protocol.window]
        return protocol.sizes(kind.size)

    def _make_room(self, programs):
        """Drops all compiled programs if with these there were too many; they compile again."""
        if len(self._compiled | programs) > self.most_sizes and not programs <= self._compiled:
            self.segmenter.forget_programs()
            self._compiled = set()
        self._compiled |= programs
