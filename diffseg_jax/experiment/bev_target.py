"""Maps seen from above as what a stage learns and is measured by."""

import math

import jax
import numpy as np

from diffseg_jax.data.bev_source import open_bev_scenes
from diffseg_jax.data.bev_transforms import (
    RigChange,
    RigView,
    cameras_of,
    network_input,
    require_lidar,
)
from diffseg_jax.errors import UserError, counted
from diffseg_jax.experiment.evaluate import batches_of, share_sums, spread, work_through
from diffseg_jax.experiment.planned import Evaluation, StagePlan
from diffseg_jax.experiment.results import progress_of, save_sheet
from diffseg_jax.experiment.target import Target
from diffseg_jax.figures.bev import bev_contact_sheet, bev_sheet
from diffseg_jax.figures.study_plots import steps_plot
from diffseg_jax.inference.bev_maps import maps_from
from diffseg_jax.inference.bev_output import BEV_OUTPUT
from diffseg_jax.inference.rig_forward import make_rig_forward, view_of
from diffseg_jax.inference.views import Protocol
from diffseg_jax.metrics.bev import THRESHOLDS, constant_ious, layer_counts, layer_scores
from diffseg_jax.systems.ddp_bev import BEV

READ_RIGS = 4  # examples per split that are read before anything is written
BEV_TITLES = f"{'stage':>10} steps draws  mIoU (%)  at 0.5 (%)   ms/rig"


def require_rigs(source, name: str):
    """Raises UserError for images without cameras' calibration or maps; name: of the data set."""
    example = source[0]
    if "images" not in example or "bev" not in example or source.labels is None:
        raise UserError(
            f"dataset {name} has no maps seen from above, with images of several cameras and map "
            "layers, to learn. Try --config.data.source=nuscenes, or bev_scenes."
        )
    cameras_of(example, np.stack([np.eye(4)] * len(example["images"])), np.eye(4))


def whole_example(example: dict) -> tuple:
    """The example itself, as the only argument of `rig_change`."""
    return (example,)


def rig_change(options) -> RigChange:
    """The random change of an example by the options of config.stages.*.augment."""
    values = {key: value for key, value in options.items() if key not in ("crop", "resize")}
    resize = tuple(options["resize"])
    view = RigView(tuple(options["crop"]), sum(resize) / 2)
    return RigChange(view, resize, **values)


def blank_rig(config, options) -> dict:
    """A drawn rig with black photographs, and LiDAR features of zeros if the network reads some."""
    output = tuple(config.bev.output)
    rig = open_bev_scenes("train", images=1, output=output)[0]
    needed = [math.ceil(side / options.augment.resize[0]) + 1 for side in options.augment.crop]
    rig["images"] = np.zeros((len(rig["images"]), *needed, 3), np.uint8)
    if channels := config.model.get("lidar", 0):
        sides = config.bev.x, config.bev.y
        cells = [round((high - low) / size) // 2 for low, high, size in sides]
        rig["lidar_bev"] = np.zeros((*cells, channels), np.float32)
    return rig


def contact_of_rigs(rows, labels, titles) -> np.ndarray:
    """A contact sheet of the cameras of rigs beside their maps."""
    images, maps = ([row[key] for row in rows] for key in ("images", "bev"))
    return bev_contact_sheet(images, maps, labels, titles)


def count_layers(example: dict) -> dict:
    """{class: cells that have it, -1: all cells} of the map of an example; {} without one."""
    if "bev" not in example:
        return {}
    bev = example["bev"]
    return {**dict(enumerate(bev.sum((1, 2)).tolist())), -1: bev[0].size}


def summary_of_layers(source, counts) -> list[str]:
    """The share of the cells that have each class, and in how many maps it is.

    counts  index -> as of `count_layers`
    """
    found = [each for each in counts.values() if each]
    cells = sum(each[-1] for each in found)
    if not cells:
        return []
    names = source.labels.names
    width = max(map(len, names))
    lines = [f"{'class':<{width}} {'cells':>8} {'maps':>6}"]
    for k, name in enumerate(names):
        share = sum(each[k] for each in found) / cells
        maps = sum(each[k] > 0 for each in found)
        lines.append(f"{name:<{width}} {share:>8.2%} {maps:>6}")
    return lines


def check_rigs(train: StagePlan, val: Evaluation) -> list[str]:
    """A warning where a class is missing.

    Raises UserError for maps that the network does not predict, and for features of a LiDAR that
    it does not read.
    """
    settings, sentences = BEV.settings_of(train.task.meta), []
    side = settings.side
    for split, each in (("train", train), ("val", val)):
        names = each.source.labels.names
        some = [each.source[int(i)] for i in spread(each.indices, READ_RIGS)]
        for example in some:
            _require_features(example, settings)
        shapes = {example["bev"].shape for example in some}
        if shapes != {(len(names), side, side)}:
            raise UserError(
                f"{split}: maps have shape {shapes.pop()}, but config.bev.output makes "
                f"{(len(names), side, side)}. Give both the same range, such as "
                f'--config.data.options.output="{tuple(settings.output)}".'
            )
        found = np.mean([example["bev"].mean((1, 2)) for example in some], 0)
        if not found.any():
            raise UserError(
                f"{split}: no cell of {counted(len(some), 'map')} has a class, so there is nothing "
                "to learn. Check the poses and the map layers."
            )
        if missing := [name for name, share in zip(names, found) if not share]:
            sentences.append(f"{split}: {counted(len(some), 'map')} show no {', '.join(missing)}.")
    return sentences


def _require_features(example, settings):
    (x, y), channels = settings.noisy, settings.lidar
    require_lidar(
        example, (x, y, channels),
        f"Save f32[C, X, Y] of shape {(channels, x, y)} in lidar_bev/, and set "
        "--config.data.options.lidar=True.",
        "Set --config.data.options.lidar=False, or --config.model.lidar to their channels.",
    )  # fmt: skip


def measure_bev(
    evaluation: Evaluation, network: dict, indices: np.ndarray, protocol: Protocol, *_
) -> tuple[dict, list[dict]]:  # fmt: skip
    """Counts of a network at all thresholds, as of `layer_counts`, and examples to draw.

    "positive" are the cells that have each class, "cells" all cells.
    """
    task, view, classes = evaluation.task, view_of(evaluation.task.meta), evaluation.source.labels
    forward = make_rig_forward(
        task.predict, network, evaluation.mesh, evaluation.batch_size, view
    )  # fmt: skip
    number = len(classes.names)
    counts = {
        "layers": np.zeros((len(THRESHOLDS), 3, number), np.int64),
        "positive": np.zeros(number, np.int64), "cells": np.zeros(1, np.int64),
    }  # fmt: skip

    def count(index, example, maps, row):
        truth = np.moveaxis(example["bev"], 0, -1)
        counts["layers"] += layer_counts(np.moveaxis(maps.probs[row], 0, -1), truth)
        counts["positive"] += truth.sum((0, 1), dtype=np.int64)
        counts["cells"] += truth[..., 0].size

    shape = lambda example: example["images"].shape
    with progress_of(evaluation, indices, protocol) as progress:
        examples = work_through(
            lambda batch: maps_from(forward(batch)), evaluation.source, indices, count,
            evaluation.batch_size, evaluation.examples, progress, shape,
        )  # fmt: skip
    if task.trace and examples:
        steps = lambda *given: task.trace(task.traced(*given)[1], given[1])
        trace = make_rig_forward(steps, network, evaluation.mesh, evaluation.batch_size, view)
        for some in batches_of(examples, range(len(examples)), evaluation.batch_size, shape):
            for example, layers in zip(some, trace(some), strict=True):
                example["steps"] = np.moveaxis(layers, -1, 1)
    return (share_sums(counts) if jax.process_count() > 1 else counts), examples


def batch_of_rigs(evaluation: Evaluation, network: dict):
    """() -> the maps of a batch of the first rig."""
    size, view = evaluation.batch_size, view_of(evaluation.task.meta)
    forward = make_rig_forward(evaluation.task.predict, network, evaluation.mesh, size, view)
    rigs = [evaluation.first_example] * size
    return lambda: forward(rigs)


def quick_bev_scores(evaluation: Evaluation, counts: dict) -> dict[str, float]:
    """The means to log during training."""
    scores = layer_scores(counts["layers"], evaluation.source.labels.names)
    return {name: scores[name] for name in ("mIoU", "mIoU at 0.5")}


def bev_result(
    evaluation: Evaluation, network: dict, meta: dict, suffix: str = "result"
) -> dict:
    """The final numbers of a stage, with their origin; JSON values.

    "constant" is the mean IoU of the best constant map, which has a class everywhere or nowhere.
    """
    stage, indices = evaluation.stage, evaluation.indices
    chosen = "the best by the quick evaluations" if evaluation.keep_best else "the last"
    evaluation.log.say(
        f"{stage}: evaluates step {meta['step']}, {chosen}, on {counted(len(indices), 'rig')}"
    )
    counts, examples = measure_bev(evaluation, network, indices, evaluation.protocol)
    draw_rigs(evaluation, examples, f"{stage}_{suffix}", meta["step"])
    names = evaluation.source.labels.names
    constant = constant_ious(counts["positive"], int(counts["cells"][0]))
    return {
        "step": meta["step"],
        "start": meta["start"],
        "images": len(indices),
        "labelled_images": meta["labelled"]["n"],
        **layer_scores(counts["layers"], names),
        "constant": float(constant.mean()),
        "constant IoU": dict(zip(names, constant.tolist(), strict=True)),
        **evaluation.recorded,
    }


def draw_rigs(evaluation: Evaluation, examples: list[dict], file: str, step: int):
    """Saves a sheet of examples: cameras, truth, steps, prediction, uncertainty."""
    if examples:
        view = view_of(evaluation.task.meta)
        steps = [example["steps"] for example in examples] if "steps" in examples[0] else None
        sheet = bev_sheet(
            [network_input(example, view)["images"] for example in examples],
            [example["bev"] for example in examples],
            [example["maps"].probs for example in examples], evaluation.source.labels, steps,
        )  # fmt: skip
        save_sheet(evaluation, sheet, file, step)


def bev_row(evaluation: Evaluation, counts: dict) -> dict:
    """What the study of steps reports of one setting, JSON values."""
    return layer_scores(counts["layers"], evaluation.source.labels.names)


def bev_line(row: dict) -> str:
    """A setting's numbers, below BEV_TITLES."""
    return (
        f"{row['stage']:>10} {row['steps']:>5} {row['draws']:>5}  {100 * row['mIoU']:8.2f}  "
        f"{100 * row['mIoU at 0.5']:10.2f}  {row['ms']:7.2f}"
    )


def bev_table(results: dict) -> str:
    """The final table: IoU of every class at its best threshold, and of a constant map.

    results  heading -> entry of results.json
    """
    columns = {}
    for name, result in results.items():
        columns[f"{name} (from {result['start']})"] = result["IoU"] | {"mean": result["mIoU"]}
        constant = result["constant IoU"] | {"mean": result["constant"]}
    columns["constant map"] = constant
    rows = [["IoU (%)", *columns]]
    for name in constant:
        rows.append([name, *(f"{100 * column[name]:.2f}" for column in columns.values())])
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    lines = [
        "  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])])
        for name, *cells in rows
    ]
    rule = "-" * len(lines[0])
    return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


BEV_TARGET = Target(
    name="bev",
    require=require_rigs,
    labels=lambda source: source.labels,
    parts=whole_example,
    change=rig_change,
    blank=blank_rig,
    contact=contact_of_rigs,
    count=count_layers,
    summary=summary_of_layers,
    check=check_rigs,
    decision=BEV_OUTPUT.decision,
    measurable=lambda evaluation: None,
    measure=measure_bev,
    quick=quick_bev_scores,
    result_of=bev_result,
    draw=draw_rigs,
    step_maps=None,
    row=bev_row,
    titles=BEV_TITLES,
    line=bev_line,
    steps_plot=steps_plot,
    table=bev_table,
    batch=batch_of_rigs,
    size_of=None,
)
