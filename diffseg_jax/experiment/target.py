"""What a stage learns from labels and is measured by, as a plain value."""

import dataclasses
from collections.abc import Callable

from diffseg_jax.inference.views import Decision


@dataclasses.dataclass(frozen=True)
class Target:
    """The truth of a task: read, changed, checked, counted, drawn and reported.

    `evaluation` is a `planned.Evaluation`, `counts` are what `measure` returns.

    name         of the task, as in config.task
    require      (source, name of the data set) -> None; UserError unless its images have the truth
    labels       source -> `Labels` of the classes, or None where the truth has no classes
    parts        example -> the arguments of `change` before the generator
    change       options of config.stages.*.augment -> (parts of an example, rng) -> row of a batch
    blank        (config, options of a stage) -> an example of zeros, for the shapes of a batch
    contact      (rows or examples, `Labels` or None, titles) -> contact sheet of images and truths
    count        example -> what --mode=check adds up of its truth, {key: number}; {} without one
    summary      (source, {index: those}) -> lines of text that it prints
    check        (StagePlan, Evaluation) -> warnings about the truths of both; UserError for wrong
    decision     what becomes of the maps of a network, of `inference.views.predict`
    measurable   evaluation -> None; UserError if the images have nothing to be measured by
    measure      (evaluation, network, indices, protocol) -> counts, examples to draw
    quick        (evaluation, counts) -> numbers to log during training, JSON values
    result_of    (evaluation, network, meta, suffix) -> the entry of results.json
    draw         (evaluation, examples, file, step) -> None; saves a sheet of them
    step_maps    (maps of an example after every step, its size) -> the same at that size; None
                 where `measure` adds them
    row          (evaluation, counts) -> numbers of a row of the steps study, JSON values
    titles, line heading of that table, and row -> a line of it
    steps_plot   rows -> image of its plot
    table        {heading: entry of results.json} -> text
    batch        (evaluation, network) -> () -> predicts a full batch, to be timed; None: of images
    size_of      example -> (height, width) of the image that crops must fit; None: they always do
    """

    name: str
    require: Callable
    labels: Callable
    parts: Callable
    change: Callable
    blank: Callable
    contact: Callable
    count: Callable
    summary: Callable
    check: Callable
    decision: Decision
    measurable: Callable
    measure: Callable
    quick: Callable
    result_of: Callable
    draw: Callable
    step_maps: Callable | None
    row: Callable
    titles: str
    line: Callable
    steps_plot: Callable
    table: Callable
    batch: Callable | None = None
    size_of: Callable | None = lambda example: example["image"].shape[:2]
