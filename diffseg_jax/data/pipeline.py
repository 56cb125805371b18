"""Endless training batches from a source, whose position is one number: the step.

The examples of a batch and their augmentation are a pure function of (seed, step): the position
p = step * batch_size + row reads example order(p // n)[p % n], where order(epoch) is a permutation
of the n examples drawn from the seed and the epoch. So a run can resume at any step with any number
of threads, workers or processes, and small data sets fill large batches.
"""

import dataclasses
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

PREFETCHED = 4  # batches read ahead


@dataclasses.dataclass(frozen=True)
class Stream:
    """Random access to the augmented rows of this process, in the order of training.

    source   examples; "class" i32[], if the image has one, is passed on
    indices  of the examples that are used
    augment  (*parts, numpy Generator) -> dict of arrays, of the same shapes each time
    parts    example -> the arguments of `augment`, such as an image and its mask; picklable
    rows     those of each batch that this process reads
    start    step of the first batch
    """

    source: Sequence
    indices: np.ndarray
    augment: Callable
    seed: int
    batch_size: int
    rows: np.ndarray
    start: int
    steps: int
    parts: Callable

    def __len__(self):
        return self.steps * len(self.rows)

    def __getitem__(self, index):
        step, offset = divmod(int(index), len(self.rows))
        position = (self.start + step) * self.batch_size + int(self.rows[offset])
        epoch, turn = divmod(position, len(self.indices))
        chosen = _order(self.seed, epoch, len(self.indices))[turn]
        example = self.source[int(self.indices[chosen])]
        rng = np.random.default_rng([self.seed, 1, position])
        row = self.augment(*self.parts(example), rng)
        return row | {"class": example["class"]} if "class" in example else row


class Cached:
    """A source that keeps the examples in memory once they have been read."""

    def __init__(self, source: Sequence):
        self.source = source
        self.labels, self.names, self.report = source.labels, source.names, source.report
        self.classes = source.classes
        self.examples = {}

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        if index not in self.examples:
            self.examples[index] = self.source[index]
        return self.examples[index]


def image_and_mask(example: dict) -> tuple:
    """The image u8[H,W,3] of an example, and its mask i32[H,W] or None."""
    return example["image"], example.get("mask")


def image_alone(example: dict) -> tuple:
    """The image u8[H,W,3] of an example, and None for a mask that is not to be read."""
    return example["image"], None


@functools.lru_cache(maxsize=2)
def _order(seed, epoch, count):
    return np.random.default_rng([seed, 0, epoch]).permutation(count)


def live_as_long_as_the_run(*_):
    """Lets a worker read on after Ctrl-C, or a SIGTERM to the group: the run ends it when saved."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    run = multiprocessing.parent_process()
    threading.Thread(target=lambda: (run.join(), os._exit(1)), daemon=True).start()


def training_batches(
    source: Sequence, indices: np.ndarray, augment: Callable, *, seed: int, batch_size: int,
    start: int, steps: int, rows: np.ndarray | None = None, threads: int = 2, workers: int = 0,
    parts: Callable = image_and_mask,
) -> Iterator[dict]:  # fmt: skip
    """The rows of this process in the batches of steps start .. start + steps - 1, stacked.

    rows     those of every batch that are read; None for all
    threads  number of threads that decode and augment
    workers  number of processes that do so instead; 0 for threads
    """
    rows = np.arange(batch_size) if rows is None else rows
    stream = Stream(source, indices, augment, seed, batch_size, rows, start, steps, parts)
    batches = grain.MapDataset.source(stream).batch(len(rows), drop_remainder=True)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=PREFETCHED)
    batches = batches.to_iter_dataset(options)
    if workers:
        options = grain.MultiprocessingOptions(num_workers=workers)
        batches = batches.mp_prefetch(options, worker_init_fn=live_as_long_as_the_run)
    iterator = iter(batches)
    try:
        yield from iterator
    finally:
        iterator.close()  # stops the threads and workers
