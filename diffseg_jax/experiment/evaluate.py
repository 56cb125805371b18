"""Counts the right and wrong pixels of a network over a split, and collects examples to draw."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffseg_jax.data.labels import IGNORE
from diffseg_jax.display.progress import Progress
from diffseg_jax.inference.views import Maps, Protocol, predict
from diffseg_jax.metrics.calibration import CHANCE_BINS, chance_counts
from diffseg_jax.metrics.image_counts import counts_of_image
from diffseg_jax.metrics.segmentation import boundary_confusion, confusion
from diffseg_jax.metrics.uncertainty import BINS, SIGNALS, image_uncertainty, uncertainty_counts

UNCERTAIN = 2**40  # the count for a mean uncertainty of 1
DRAWN_PIXELS = 200_000  # of a whole split, for a calibrator
DRAWN_IMAGES = 2_000  # at most, from which they come


@dataclasses.dataclass
class Counts:
    """Counts over some images; those of several processes add up.

    confusion  i64[K+1,K], the last row for predictions on ignored pixels
    boundary   i64[K,K], the confusion of the pixels near a boundary of the labels
    chance     i64[K,2,CHANCE_BINS], right and wrong pixels by predicted class and chance of an
               error, which is 1 - the highest probability
    baseline   the confusion of a simpler classifier; zeros where there is none
    images     number of images
    uncertain  sum over images of the mean chance in their most uncertain tenth, in steps of 2**-40:
               a sum of integers is the same in any order
    signals    i64[2,BINS], right and wrong pixels by their value, for each of
               `uncertainty.SIGNALS`; zeros for signals that are missing
    """

    confusion: np.ndarray
    boundary: np.ndarray
    chance: np.ndarray
    baseline: np.ndarray
    images: int = 0
    uncertain: int = 0
    signals: dict[str, np.ndarray] = dataclasses.field(
        default_factory=lambda: {name: np.zeros((2, BINS), int) for name in SIGNALS}
    )

    def add(self, mask: np.ndarray, prediction: Maps, row: int):
        """Counts one image, a row of a prediction, against its mask i32[H,W]."""
        labels, chance = prediction.labels[row], prediction.signals["least_confidence"][row]
        num_classes = self.confusion.shape[1]
        self.confusion += confusion(mask, labels, num_classes, ignored_row=True)
        self.boundary += boundary_confusion(mask, labels, num_classes)
        self.chance += chance_counts(chance, mask, labels, num_classes)
        for name, values in prediction.signals.items():
            self.signals[name] += uncertainty_counts(values[row], mask, labels)
        if prediction.baseline is not None:
            predicted = prediction.baseline[row]
            self.baseline += confusion(mask, predicted, num_classes, ignored_row=True)
        self.images += 1
        self.uncertain += round(image_uncertainty(chance) * UNCERTAIN)


@dataclasses.dataclass
class DrawnPixels:
    """Labelled pixels of a split, drawn at random, with what the network says of them.

    table  f32[images, pixels, 3 + signals]: 1 for a pixel and 0 for none, its predicted label,
           whether that is wrong, and each of SIGNALS, 0 where it is missing
    rows   index of an image in the split -> its row in the table
    """

    table: np.ndarray
    rows: dict[int, int]

    def add(self, index: int, mask: np.ndarray, prediction: Maps, row: int):
        """Draws pixels of one image, a row of a prediction; they depend on the index alone."""
        if index not in self.rows:
            return
        labelled, rng = np.flatnonzero(mask != IGNORE), np.random.default_rng(index)
        drawn = rng.choice(labelled, min(len(labelled), self.table.shape[1]), replace=False)
        labels, signals = prediction.labels[row].ravel()[drawn], prediction.signals
        columns = [np.ones(len(drawn)), labels, labels != mask.ravel()[drawn]]
        columns += [signals[n][row].ravel()[drawn] if n in signals else 0 * labels for n in SIGNALS]
        self.table[self.rows[index], : len(drawn)] = np.stack(columns, -1)


def draw_none(indices: Sequence[int]) -> DrawnPixels:
    """No pixel yet; room for those of images in a split, spread over it."""
    chosen = spread(indices, DRAWN_IMAGES)
    pixels = DRAWN_PIXELS // max(len(chosen), 1)
    table = np.zeros((len(chosen), pixels, 3 + len(SIGNALS)), np.float32)
    return DrawnPixels(table, {int(index): row for row, index in enumerate(chosen)})


def evaluate(
    forward: Callable, source: Sequence, indices: Sequence[int], num_classes: int,
    protocol: Protocol, batch_size: int, keep: int = 0, by_name: bool = False,
    pixels: DrawnPixels | None = None, descriptors: dict[int, np.ndarray | None] | None = None,
    progress: Progress | None = None, by_image: dict[int, np.ndarray] | None = None,
) -> tuple[Counts, list[dict]]:  # fmt: skip
    """Counts over the images at `indices`, summed over all processes.

    Also returns `keep` examples of this process, as of `work_through`. by_name: whether `forward`
    takes names. pixels: where pixels of all processes are added. descriptors: index of an image ->
    None, in whose place its descriptor comes, in all processes. progress: of the images of this
    process. by_image: where the counts of each image come, by its index, as of `counts_of_image`,
    in all processes.
    """
    counts = no_counts(num_classes)

    def count(index, example, prediction, row):
        before = counts.confusion.copy()
        counts.add(example["mask"], prediction, row)
        if by_image is not None:
            by_image[index] = counts_of_image(counts.confusion - before)
        if pixels:
            pixels.add(index, example["mask"], prediction, row)
        if descriptors and index in descriptors and prediction.descriptor is not None:
            descriptors[index] = prediction.descriptor[row]

    def predict_batch(examples):
        images = np.stack([example["image"] for example in examples])
        names = [example["name"] for example in examples] if by_name else ()
        return predict(forward, images, protocol, names)

    drawn = work_through(predict_batch, source, indices, count, batch_size, keep, progress)
    if jax.process_count() > 1:
        counts = Counts(
            *(
                np.sum(_from_all(part), axis=0)
                for part in (counts.confusion, counts.boundary, counts.chance, counts.baseline)
            ),
            int(np.sum(_from_all(np.array(counts.images)))),
            int(np.sum(_from_all(np.array(counts.uncertain)))),
            {name: np.sum(_from_all(values), axis=0) for name, values in counts.signals.items()},
        )
        if pixels:
            pixels.table = multihost_utils.process_allgather(pixels.table).sum(axis=0)
        if descriptors:
            share_descriptors(descriptors)
        if by_image is not None:
            share_counts(by_image, indices, num_classes)
    return counts, drawn


def _shape_of_image(example):
    return example["image"].shape


def work_through(
    predict_batch: Callable, source: Sequence, indices: Sequence[int], count: Callable,
    batch_size: int, keep: int = 0, progress: Progress | None = None,
    shape_of: Callable = _shape_of_image,
) -> list[dict]:  # fmt: skip
    """Predicts the images of this process at `indices`, and counts each of them.

    predict_batch  list of examples -> their maps, such as `Maps`
    count          (index, example, maps, row) -> None
    shape_of       example -> what must be equal within a batch

    Neighbours of one shape share a batch. Returns `keep` examples, spread over the split, with
    their maps as "maps", without large ones that no sheet shows.
    """
    drawn = []
    mine = indices[jax.process_index() :: jax.process_count()]
    shown = {source.names[index] for index in spread(mine, keep)}
    waiting = iter(mine)
    for examples in batches_of(source, mine, batch_size, shape_of):
        prediction = predict_batch(examples)
        for row, example in enumerate(examples):
            count(int(next(waiting)), example, prediction, row)
            if example["name"] in shown:
                drawn.append({**example, "maps": prediction[row].drawn()})
        if progress:
            progress.add(len(examples))
    return drawn


def share_counts(by_image: dict[int, np.ndarray], indices: Sequence[int], num_classes: int):
    """Fills in the counts of images that other processes have; each has those of `work_through`."""
    mine = range(len(indices))[jax.process_index() :: jax.process_count()]
    own = np.zeros((len(indices), 4, num_classes), np.int64)
    for row in mine:  # those of others may be there from an earlier evaluation
        own[row] = by_image[int(indices[row])]
    if len(own):
        summed = np.sum(_from_all(own), axis=0)
        by_image |= {int(i): values for i, values in zip(indices, summed, strict=True)}


def share_descriptors(descriptors: dict[int, np.ndarray | None]):
    """Fills in those that other processes have; each has those of its own images."""
    width = max((len(values) for values in descriptors.values() if values is not None), default=0)
    width = int(np.max(multihost_utils.process_allgather(np.array(width))))
    nothing = np.zeros(width, np.float32)
    own = [nothing if values is None else values for values in descriptors.values()]
    if width:
        summed = multihost_utils.process_allgather(np.stack(own)).sum(axis=0)
        descriptors |= dict(zip(descriptors, summed, strict=True))


def no_counts(num_classes: int) -> Counts:
    """The counts of no image."""
    shapes = (
        (num_classes + 1, num_classes), (num_classes, num_classes), (num_classes, 2, CHANCE_BINS),
        (num_classes + 1, num_classes),
    )  # fmt: skip
    return Counts(*(np.zeros(shape, int) for shape in shapes))


def sum_of_counts(parts: Sequence[Counts]) -> Counts:
    """The counts over the images of all parts."""
    values = [vars(part) for part in parts]
    total = {key: sum(each[key] for each in values) for key in values[0] if key != "signals"}
    signals = {name: sum(each["signals"][name] for each in values) for name in SIGNALS}
    return Counts(**total, signals=signals)


def spread(indices: Sequence[int], count: int) -> Sequence[int]:
    """At most `count` of the indices, evenly from the first to the last: neighbours look alike."""
    if not len(indices) or not count:
        return []
    return np.asarray(indices)[np.unique(np.linspace(0, len(indices) - 1, count).astype(int))]


def batches_of(
    source: Sequence, indices: Sequence[int], batch_size: int, shape_of: Callable = _shape_of_image
) -> Iterator[list[dict]]:
    """Runs of neighbouring examples of one shape, at most `batch_size` long."""
    examples = (source[int(index)] for index in indices)
    for _, group in itertools.groupby(examples, key=shape_of):
        while batch := list(itertools.islice(group, batch_size)):
            yield batch


def share_sums(sums: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The sums over all processes of arrays of 64 bits, which are gathered as halves of 32."""

    def total(values):
        parts = multihost_utils.process_allgather(np.ascontiguousarray(values).view(np.int32))
        return np.sum(np.ascontiguousarray(parts).view(values.dtype), axis=0)

    return {name: total(values) for name, values in sums.items()}


def _from_all(counts):
    """int64[processes, ...], gathered as two 32-bit halves: jax gathers no 64-bit integers."""
    counts = np.asarray(counts, np.int64)
    halves = np.stack([counts >> 31, counts & (2**31 - 1)]).astype(np.int32)
    high, low = np.moveaxis(multihost_utils.process_allgather(halves).astype(np.int64), 1, 0)
    return (high << 31) + low
