"""A predict function over a split -> confusion counts, and a few examples to look at."""

import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffseg_jax.mesh import batch_sharding
from diffseg_jax.metrics.segmentation import confusion
from diffseg_jax.systems.prediction import Protocol, predict


def local_forward(function: Callable, network: dict, mesh: jax.sharding.Mesh) -> Callable:
    """(images, valid) -> numpy probabilities, for `predict`; compiled once per shape.

    function  (network, images, valid) -> probabilities, jitted

    In one process the images are split over the mesh where they divide. Several processes each
    take a copy of the network and work through their own images: none waits for another.
    """
    if jax.process_count() > 1:
        network = multihost_utils.process_allgather(network, tiled=True)
        return lambda images, valid: np.asarray(function(network, images, valid))

    def forward(images, valid):
        if len(images) % mesh.size == 0:
            images, valid = jax.device_put((images, valid), batch_sharding(mesh))
        return np.asarray(function(network, images, valid))

    return forward


def evaluate(
    forward: Callable, source: Sequence, places: Sequence[int], num_classes: int,
    protocol: Protocol, batch_size: int, keep: int = 0,
) -> tuple[np.ndarray, list[dict]]:  # fmt: skip
    """Confusion counts i64[K,K] over the images at `places`, summed over all processes.

    Neighbours of one size share a batch; the last batch is filled up with copies that are not counted.
    Also returns `keep` examples of this process, spread over the split, with "labels" and
    "uncertainty" added.
    """
    counts = np.zeros((num_classes, num_classes), np.int64)
    kept = []
    mine = places[jax.process_index() :: jax.process_count()]
    shown = {source.names[place] for place in spread(mine, keep)}
    for examples in _batches(source, mine, batch_size):
        images = np.stack([example["image"] for example in examples])
        filled = images[np.arange(batch_size) % len(images)]
        prediction = predict(forward, filled, protocol)
        for row, example in enumerate(examples):
            counts += confusion(example["mask"], prediction.labels[row], num_classes)
            if example["name"] in shown:
                answer = {
                    "labels": prediction.labels[row],
                    "uncertainty": prediction.uncertainty[row],
                }
                kept.append({**example, **answer})
    if jax.process_count() > 1:
        counts = np.sum(_from_all(counts), axis=0)
    return counts, kept


def spread(places: Sequence[int], count: int) -> Sequence[int]:
    """At most `count` of the places, evenly from the first to the last: neighbours look alike."""
    return np.asarray(places)[np.unique(np.linspace(0, len(places) - 1, count).astype(int))]


def _batches(source, places, batch_size) -> Iterator[list[dict]]:
    """Runs of neighbouring examples of one size, at most `batch_size` long."""
    examples = (source[int(place)] for place in places)
    for _, group in itertools.groupby(examples, key=lambda example: example["image"].shape):
        while batch := list(itertools.islice(group, batch_size)):
            yield batch


def _from_all(counts):
    """int64[processes, K, K]: as two 32-bit halves, which is what travels between processes."""
    halves = np.stack([counts >> 31, counts & (2**31 - 1)]).astype(np.int32)
    high, low = np.moveaxis(multihost_utils.process_allgather(halves).astype(np.int64), 1, 0)
    return (high << 31) + low
