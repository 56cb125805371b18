"""Label maps as what a stage learns and is measured by."""

import collections
import dataclasses

import numpy as np

from diffseg_jax.data.label_checks import (
    label_counts,
    read_labels,
    require_labelled,
    require_sensible,
    require_sensible_parts,
)
from diffseg_jax.data.labels import IGNORE
from diffseg_jax.data.pipeline import image_and_mask
from diffseg_jax.data.transforms import resize_mask
from diffseg_jax.errors import UserError
from diffseg_jax.experiment.augmentation import augmentation, blank_image, blank_map
from diffseg_jax.experiment.evaluate import Counts, spread
from diffseg_jax.experiment.planned import Evaluation, StagePlan
from diffseg_jax.experiment.results import (
    PROBE,
    auroc_of_signals,
    draw_predictions,
    measure,
    result_of,
    scores_of,
)
from diffseg_jax.experiment.target import Target
from diffseg_jax.figures import sheets, study_plots
from diffseg_jax.inference.views import LABELS
from diffseg_jax.metrics import segmentation

COUNTED_AS = "counted as published"  # part of the title of a column
READ_FIRST = 32  # examples per split that are read before anything is written
STUDIED = {  # signals of uncertainty and the titles of their columns
    "least_confidence": "conf.", "entropy": "entropy", "divergence": "diverg.",
    "changes": "changes", "spread": "spread",
}  # fmt: skip
TITLES = (  # 80 columns
    f"{'':40}   AUROC of the uncertainty by\n"
    f"{'stage':>10} steps draws mIoU (%) ms/image" + "".join(f"{t:>8}" for t in STUDIED.values())
)


def require_classes_of(source, name: str):
    """Raises UserError for images without classes; name: of the data set."""
    if not source.labels:
        raise UserError(
            f"dataset {name} has no classes to learn. Give it as "
            "config.unlabelled.source, and a labelled one as config.data.source."
        )


def contact_of_labels(rows, labels, titles) -> np.ndarray:
    """A contact sheet of images, beside their masks if all have one."""
    masks = [row.get("mask") for row in rows]
    masks = None if any(mask is None for mask in masks) else masks
    return sheets.contact_sheet([row["image"] for row in rows], masks, labels, titles)


def pixels_of_labels(example: dict) -> dict[int, int]:
    """{label: pixels} of the mask of an example."""
    return label_counts(example["mask"]) if "mask" in example else {}


def shares_of_labels(source, counts: dict[int, dict]) -> list[str]:
    """The lines of a table: the share of every class in pixels, and in how many images it is."""
    if not source.labels:
        return []
    names, pixels, images = source.labels.names, collections.Counter(), collections.Counter()
    for one in counts.values():
        pixels.update(one)
        images.update(one.keys())
    total = sum(pixels.values())
    width = max(len(name) for name in names)
    lines = [f"{'class':<{width + 4}} {'pixels':>8} {'images':>8}"]
    for label, name in [*enumerate(names), (IGNORE, "ignored")]:
        share = pixels[label] / total
        lines.append(f"{label:>3} {name:<{width}} {share:>8.2%} {images[label]:>8}")
    return lines


def check_labels(train: StagePlan, val: Evaluation) -> list[str]:
    """Warnings about unusual labels of a few images; UserError for those that are surely wrong."""
    learned, measured = (
        read_labels(split, each.source, each.indices, spread(each.indices, READ_FIRST))
        for split, each in (("train", train), ("val", val))
    )
    if val.source is not train.source:
        return require_sensible(learned, measured)
    held_out = dataclasses.replace(measured, split="the held-out part")
    return require_sensible_parts(learned, held_out)


def require_labelled_pixels(evaluation: Evaluation):
    """UserError if no pixel of the validation images is labelled."""
    source, indices = evaluation.source, evaluation.indices
    require_labelled(read_labels("val", source, indices, indices[:1]))


def quick_scores(evaluation: Evaluation, counts: Counts) -> dict[str, float]:
    """The means to log during training."""
    scored = scores_of(evaluation, counts)
    return {mean: scored[mean] for mean in segmentation.MEANS}


def label_steps_at(steps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Label maps i32[T,h,w] at another size."""
    return np.stack([resize_mask(step, size) for step in steps])


def row_of_study(evaluation: Evaluation, counts: Counts) -> dict:
    """What the study of steps reports of one setting, JSON values."""
    scored, names = scores_of(evaluation, counts), evaluation.source.labels.names
    return {"AUROC": auroc_of_signals(counts), **segmentation.to_json(scored, names)}


def line_of_study(row: dict) -> str:
    """A setting's numbers, below TITLES."""
    areas = "".join(f"{_three_digits(row['AUROC'].get(name)):>8}" for name in STUDIED)
    steps = row["steps"] or "-"
    return (
        f"{row['stage']:>10} {steps:>5} {row['draws']:>5} {100 * row['mIoU']:8.2f} "
        f"{row['ms']:8.2f}{areas}"
    )


def _three_digits(value):
    return "-" if value is None else f"{value:.3f}"


def table_of_results(results: dict) -> str:
    """The final table, a column per stage, and beside it what else it was measured by.

    results  heading -> entry of results.json

    Besides are the linear probe of an ensemble, and the numbers by a paper's convention.
    """
    columns = {}
    for name, result in results.items():
        columns[f"{name} (from {result['start']})"] = result
        if PROBE in result:
            columns[f"{name}, linear probe"] = result[PROBE]
        for convention in segmentation.CONVENTIONS.keys() & result.keys():
            columns[f"{name}, {COUNTED_AS}"] = result[convention]
    conventions = {key for result in results.values() for key in result}
    notes = [
        f"{COUNTED_AS}: {segmentation.CONVENTION_NOTES[convention]}"
        for convention in sorted(segmentation.CONVENTION_NOTES.keys() & conventions)
    ]
    return "\n".join([segmentation.format_table(columns), *notes])


LABEL_TARGET = Target(
    name="segmentation",
    require=require_classes_of,
    labels=lambda source: source.labels,
    parts=image_and_mask,
    change=lambda options: augmentation(options, labelled=True),
    blank=lambda config, options: blank_image(options) | {"mask": blank_map(options, np.int32)},
    contact=contact_of_labels,
    count=pixels_of_labels,
    summary=shares_of_labels,
    check=check_labels,
    decision=LABELS,
    measurable=require_labelled_pixels,
    measure=measure,
    quick=quick_scores,
    result_of=result_of,
    draw=draw_predictions,
    step_maps=label_steps_at,
    row=row_of_study,
    titles=TITLES,
    line=line_of_study,
    steps_plot=study_plots.steps_plot,
    table=table_of_results,
)
