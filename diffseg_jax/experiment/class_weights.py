"""Weights of classes in the loss that follow from the labels of the training images."""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from diffseg_jax.data.label_checks import label_counts
from diffseg_jax.data.labels import IGNORE
from diffseg_jax.experiment.planned import StagePlan
from diffseg_jax.storage.checkpoints import StageCheckpoints

WEIGHTS_KEY = "class_weights"  # in the metadata of a checkpoint
LEAST, MOST = 0.1, 10.0  # that a weight may be


def with_class_weights(stage: StagePlan, checkpoints: StageCheckpoints) -> StagePlan:
    """The stage, its loss with weights from the labels if the config asks for them.

    They stand in the metadata of its checkpoints, from which a resumed stage takes them.
    """
    if stage.task.balanced is None:
        return stage
    step = checkpoints.latest()
    weights = None if step is None else checkpoints.meta(step).get(WEIGHTS_KEY)
    if weights is None:
        names = stage.evaluation.source.labels.names
        weights = inverse_frequencies(count_labels(stage), len(names))
        listed = ", ".join(f"{name} {weight:.2f}" for name, weight in zip(names, weights))
        stage.log.say(f"{stage.name}: weights of classes: {listed}")
    task = dataclasses.replace(stage.task, loss=stage.task.balanced(tuple(weights)))
    return dataclasses.replace(stage, task=task, meta={**stage.meta, WEIGHTS_KEY: list(weights)})


def count_labels(stage: StagePlan) -> collections.Counter:
    """{label: number of pixels} in the images that a labelled stage uses."""
    pixels = collections.Counter()
    shown = stage.log.progress(f"{stage.name}: counts labels", len(stage.indices), unit="images")
    read = lambda index: label_counts(stage.source[int(index)]["mask"])
    with ThreadPoolExecutor(stage.threads) as pool, shown as progress:
        for counts in progress.each_of(pool.map(read, stage.indices)):
            pixels.update(counts)
    return pixels


def inverse_frequencies(pixels: Mapping[int, int], num_classes: int) -> Sequence[float]:
    """1 / (share of the class times number of classes shown), from LEAST to MOST; 1 for others.

    Without these limits the mean over labelled pixels is 1, as without weights.
    """
    pixels = {label: count for label, count in pixels.items() if label != IGNORE and count}
    total, shown = sum(pixels.values()), len(pixels)
    weights = (total / (shown * pixels[k]) if k in pixels else 1.0 for k in range(num_classes))
    return [min(max(weight, LEAST), MOST) for weight in weights]
