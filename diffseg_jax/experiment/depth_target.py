"""Depth in metres as what a stage learns and is measured by."""

from functools import partial

import jax
import numpy as np

from diffseg_jax.data.depth_transforms import augment_depth
from diffseg_jax.data.interpolation import half_pixel_neighbours
from diffseg_jax.errors import UserError, counted
from diffseg_jax.experiment.augmentation import blank_image, blank_map
from diffseg_jax.experiment.depth_checks import count_depth, outside_range, summary_of_depth
from diffseg_jax.experiment.evaluate import share_sums, spread, work_through
from diffseg_jax.experiment.planned import Evaluation, StagePlan
from diffseg_jax.experiment.results import forward_of, progress_of, save_sheet, trace_steps
from diffseg_jax.experiment.target import Target
from diffseg_jax.figures import depth as drawing
from diffseg_jax.inference.depth_maps import DEPTHS
from diffseg_jax.inference.views import Protocol, predict
from diffseg_jax.metrics.depth import (
    DEPTH_METRICS,
    NO_DEPTH,
    add_depth,
    depth_mask,
    depth_scores,
)

READ_DEPTHS = 8  # examples per split that are read before anything is written
LOGGED = ("abs_rel", "rmse", "a1")  # during training
DEPTH_TITLES = f"{'stage':>10} steps draws   abs_rel  rmse (m)      a1   AUSE   ms/image"


def require_depth_of(source, name: str):
    """Raises UserError for images without depth, or with labels too; name: of the data set.

    Scenes with labels give the sky a depth, which nobody measures.
    """
    first = source[0]
    if "mask" in first or "depth" not in first:
        has = "labels, and no measured depth" if "mask" in first else "no depth"
        raise UserError(
            f"dataset {name} has {has} to learn. Try --config.data.source=depth_folder with a "
            "folder of images and depth maps, or depth_scenes."
        )


def image_and_depth(example: dict) -> tuple:
    """The image u8[H,W,3] of an example, and its depth f32[H,W] in metres."""
    return example["image"], example["depth"]


def range_of(evaluation: Evaluation) -> dict:
    """The depths and the crop that are measured, arguments of `depth_mask`."""
    model = evaluation.task.meta["model"]
    return {"low": model["low"], "high": model["high"], "crop": evaluation.crop}


def contact_of_depths(rows, labels, titles) -> np.ndarray:
    """A contact sheet of images beside their depth."""
    images, depths = ([row[name] for row in rows] for name in ("image", "depth"))
    return drawing.depth_contact_sheet(images, depths, titles)


def check_depths(train: StagePlan, val: Evaluation) -> list[str]:
    """Warnings about unusual depths of a few images; UserError if nothing can be learned."""
    low, high = (train.task.meta["model"][name] for name in ("low", "high"))
    sentences = []
    for split, each in (("train", train), ("val", val)):
        some = spread(each.indices, READ_DEPTHS)
        depths = np.concatenate([each.source[int(i)]["depth"].ravel() for i in some])
        measured = depths[depths > 0]
        if not measured.size:
            raise UserError(
                f"{split}: no pixel of {counted(len(some), 'image')} has a depth, so there is "
                "nothing to learn. Check the unit in depth.json, and that 0 means no measurement."
            )
        sentences += outside_range(split, measured, len(some), low, high)
    return sentences


def require_measured_pixels(evaluation: Evaluation):
    """UserError if no pixel of a few validation images, spread over all, would be measured."""
    some = spread(evaluation.indices, READ_DEPTHS)
    limits = range_of(evaluation)
    truths = [evaluation.source[int(index)]["depth"] for index in some]
    if not any(depth_mask(truth, **limits).any() for truth in truths):
        raise UserError(
            f"no pixel of {counted(len(some), 'validation image')} has a depth between "
            f"{limits['low']:g} and {limits['high']:g} metres within the crop {limits['crop']}, so "
            "there is nothing to measure. Check the unit of the depths, --config.depth.high and "
            "--config.evaluate.crop."
        )


def measure_depth(
    evaluation: Evaluation, network: dict, indices: np.ndarray, protocol: Protocol, *_
) -> tuple[dict, list[dict]]:  # fmt: skip
    """Sums of the errors of a network, as of `add_depth`, and examples to draw."""
    forward, limits = forward_of(evaluation, network), range_of(evaluation)
    counts = dict(NO_DEPTH)

    def count(index, example, maps, row):
        uncertainty = maps.uncertainty[row] if maps.signals else None
        added = add_depth(counts, maps.depth[row], example["depth"], uncertainty, **limits)
        counts.update(added)

    def predict_batch(examples):
        images = np.stack([example["image"] for example in examples])
        return predict(forward, images, protocol, decision=DEPTHS)

    with progress_of(evaluation, indices, protocol) as progress:
        examples = work_through(
            predict_batch, evaluation.source, indices, count, evaluation.batch_size,
            evaluation.examples, progress,
        )  # fmt: skip
    return (share_sums(counts) if jax.process_count() > 1 else counts), examples


def quick_depth_scores(evaluation: Evaluation, counts: dict) -> dict[str, float]:
    """The means to log during training."""
    scores = depth_scores(counts)
    return {name: scores[name] for name in LOGGED if scores[name] is not None}


def depth_result(
    evaluation: Evaluation, network: dict, meta: dict, suffix: str = "result"
) -> dict:
    """The final numbers of a stage under the whole protocol, with their origin; JSON values."""
    stage, protocol, indices = evaluation.stage, evaluation.protocol, evaluation.indices
    chosen = "the best by the quick evaluations" if evaluation.keep_best else "the last"
    evaluation.log.say(
        f"{stage}: evaluates step {meta['step']}, {chosen}, on {counted(len(indices), 'image')} "
        f"{protocol}"
    )
    counts, examples = measure_depth(evaluation, network, indices, protocol)
    trace_steps(evaluation, network, examples, protocol)
    draw_depths(evaluation, examples, f"{stage}_{suffix}", meta["step"])
    scores = depth_scores(counts)
    measured = scores.pop("images")
    return {
        "step": meta["step"],
        "start": meta["start"],
        "images": len(indices),
        "measured_images": measured,
        "labelled_images": meta["labelled"]["n"],
        "protocol": evaluation.recorded["protocol"],
        **scores,
        "range": range_of(evaluation),
        **{key: value for key, value in evaluation.recorded.items() if key != "protocol"},
    }


def draw_depths(evaluation: Evaluation, examples: list[dict], file: str, step: int):
    """Saves a sheet of examples: image, truth, steps, prediction, uncertainty, error."""
    if examples:
        maps = [example["maps"] for example in examples]
        sheet = drawing.depth_sheet(
            [example["image"] for example in examples],
            [example["depth"] for example in examples], [each.depth for each in maps],
            [each.uncertainty for each in maps] if maps[0].signals else None,
            [example["steps"] for example in examples] if "steps" in examples[0] else None,
        )  # fmt: skip
        save_sheet(evaluation, sheet, file, step)


def depth_steps_at(steps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Depths f32[T,h,w] at another size, bilinear."""
    for axis, length in ((1, size[0]), (2, size[1])):
        low, high, weight = half_pixel_neighbours(steps.shape[axis], length)
        weight = weight.reshape([-1 if a == axis else 1 for a in range(3)])
        steps = steps.take(low, axis) * (1 - weight) + steps.take(high, axis) * weight
    return steps


def depth_row(evaluation: Evaluation, counts: dict) -> dict:
    """What the study of steps reports of one setting, JSON values."""
    scores = depth_scores(counts)
    return {key: value for key, value in scores.items() if key != "images"}


def depth_line(row: dict) -> str:
    """A setting's numbers, below DEPTH_TITLES."""
    ause = row["AUSE"]["abs_rel"]
    ause = "     -" if ause is None else f"{ause:6.3f}"
    numbers = [float("nan") if row[k] is None else row[k] for k in ("abs_rel", "rmse", "a1")]
    return (
        f"{row['stage']:>10} {row['steps']:>5} {row['draws']:>5}  {numbers[0]:8.4f}  "
        f"{numbers[1]:8.3f}  {numbers[2]:6.3f} {ause}  {row['ms']:9.2f}"
    )


def depth_table(results: dict) -> str:
    """The final table, a column per stage; results: heading -> entry of results.json."""
    columns = {f"{name} (from {result['start']})": result for name, result in results.items()}
    rows = [["", *columns]]
    for metric in DEPTH_METRICS:
        rows.append([metric, *(_shown(result[metric]) for result in columns.values())])
    areas = [result["AUSE"]["abs_rel"] for result in columns.values()]
    rows.append(["AUSE of abs_rel", *map(_shown, areas)])
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = [
        "  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])])
        for name, *cells in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _shown(number):
    return "-" if number is None else f"{number:.4f}"


DEPTH_TARGET = Target(
    name="depth",
    require=require_depth_of,
    labels=lambda source: None,
    parts=image_and_depth,
    change=lambda options: partial(augment_depth, **options),
    blank=lambda config, options: blank_image(options) | {"depth": blank_map(options, np.float32)},
    contact=contact_of_depths,
    count=count_depth,
    summary=summary_of_depth,
    check=check_depths,
    decision=DEPTHS,
    measurable=require_measured_pixels,
    measure=measure_depth,
    quick=quick_depth_scores,
    result_of=depth_result,
    draw=draw_depths,
    step_maps=depth_steps_at,
    row=depth_row,
    titles=DEPTH_TITLES,
    line=depth_line,
    steps_plot=drawing.depth_steps_plot,
    table=depth_table,
)
