"""The numbers and sheets of a network on validation images."""

import numpy as np

from diffseg_jax.data.transforms import resize_image, resize_mask
from diffseg_jax.devices import processes
from diffseg_jax.errors import counted
from diffseg_jax.experiment.evaluate import UNCERTAIN, Counts, evaluate
from diffseg_jax.experiment.plan import Evaluation, StagePlan
from diffseg_jax.figures import sheets, trust
from diffseg_jax.inference.forward import make_forward
from diffseg_jax.inference.views import Protocol, View
from diffseg_jax.metrics import segmentation
from diffseg_jax.metrics.calibration import chance_scores
from diffseg_jax.metrics.uncertainty import auroc


def measure(
    evaluation: Evaluation, network: dict, indices: np.ndarray, protocol: Protocol
) -> tuple[Counts, list[dict]]:
    """Counts of right and wrong pixels of a network, and the examples to draw."""
    task, batch_size = evaluation.task, evaluation.batch_size
    forward = make_forward(
        task.predict, network, evaluation.mesh, batch_size, task.stride, task.files
    )
    return evaluate(
        forward, evaluation.source, indices, len(evaluation.source.labels.names), protocol,
        batch_size, evaluation.examples, by_name=task.files is not None,
    )  # fmt: skip


def result_of(evaluation: Evaluation, network: dict, meta: dict, suffix: str = "result") -> dict:
    """The final numbers of a stage under the whole protocol, with their origin; JSON values.

    suffix  last part of the file name of the sheet of examples
    """
    stage, protocol, indices = evaluation.stage, evaluation.protocol, evaluation.indices
    by_quick = evaluation.keep_best and not evaluation.task.fit
    chosen = "the best by the quick evaluations" if by_quick else "the last"
    evaluation.log.say(
        f"{stage}: evaluates step {meta['step']}, {chosen}, on {counted(len(indices), 'image')} "
        f"{protocol}"
    )
    counts, examples = measure(evaluation, network, indices, protocol)
    trace_steps(evaluation, network, examples, protocol)
    draw_predictions(evaluation, examples, f"{stage}_{suffix}", meta["step"])
    draw_trust(evaluation, counts.chance, suffix, meta["step"])
    names, convention = evaluation.source.labels.names, evaluation.convention
    papers = {}
    if convention != "default":
        papers[convention] = segmentation.to_json(scores_of(evaluation, counts, convention), names)
    return {
        "step": meta["step"],
        "start": meta["start"],
        "images": len(indices),
        "labelled_images": meta["labelled"]["n"],
        "protocol": evaluation.recorded["protocol"],
        **segmentation.to_json(scores_of(evaluation, counts), names),
        "AUROC": segmentation.to_number(auroc(counts.uncertainty)),
        "AUROC_of": auroc_of_measures(counts),
        "image_uncertainty": counts.uncertain / UNCERTAIN / counts.images,
        "boundary": boundary_of(evaluation, counts),
        "calibration": calibration_of(evaluation, counts),
        **papers,
        **{key: value for key, value in evaluation.recorded.items() if key != "protocol"},
    }


def scores_of(evaluation: Evaluation, counts: Counts, convention: str = "") -> dict:
    """Ratios of the counts by a paper's convention, or by the config's choice on absent classes.

    Classes that are never labelled have none.
    """
    absent, ignored_row = segmentation.CONVENTIONS[convention or "default"]
    confusion = counts.confusion if ignored_row else counts.confusion[:-1]
    absent = absent if convention else evaluation.absent
    return segmentation.scores(
        confusion, absent=absent, left_out=evaluation.source.labels.unscored
    )


def boundary_of(evaluation: Evaluation, counts: Counts) -> dict:
    """IoU near boundaries of the labels, in JSON values, and where that is."""
    scored = segmentation.scores(
        counts.boundary, absent=evaluation.absent, left_out=evaluation.source.labels.unscored
    )
    plain = segmentation.to_json(scored, evaluation.source.labels.names)
    share = counts.boundary.sum() / max(counts.confusion[:-1].sum(), 1)
    return {
        "mIoU": plain["mIoU"],
        "IoU": plain["IoU"],
        "radius_of_diagonal": segmentation.TRIMAP,
        "share_of_pixels": float(share),
    }


def calibration_of(evaluation: Evaluation, counts: Counts) -> dict:
    """How well 1 - the highest probability is the chance of an error, also by predicted class."""
    numbers = lambda part: {
        key: segmentation.to_number(value) for key, value in chance_scores(part).items()
    }
    names = evaluation.source.labels.names
    by_class = {name: numbers(part) for name, part in zip(names, counts.chance, strict=True)}
    return {
        "of": "1 - highest probability",
        **numbers(counts.chance),
        **{f"{key}_of_predicted": {name: part[key] for name, part in by_class.items()}
           for key in ("ECE", "Brier", "AUROC")},
    }  # fmt: skip


def draw_trust(evaluation: Evaluation, chance: np.ndarray, suffix: str, step: int):
    """Saves the reliability and the risk-coverage plot, if the run draws any images."""
    if evaluation.examples and chance.any():
        for name, draw in (
            ("reliability", trust.reliability_plot),
            ("risk_coverage", trust.risk_coverage_plot),
        ):
            save_sheet(evaluation, draw(chance), f"{evaluation.stage}_{name}_{suffix}", step)


def auroc_of_measures(counts: Counts) -> dict:
    """AUROC of every measure of uncertainty that the network gave."""
    given = {name: values for name, values in counts.measures.items() if values.any()}
    return {name: segmentation.to_number(auroc(values)) for name, values in given.items()}


def trace_steps(evaluation: Evaluation, network: dict, examples: list[dict], protocol: Protocol):
    """Adds to each example "steps", its labels i32[T,H,W] after every reverse step, if any.

    Only where images are shown whole: each window has its own noise.
    """
    trace = evaluation.task.trace
    if not trace or protocol.view is not View.WHOLE:
        return
    forward = make_forward(trace, network, evaluation.mesh, 1)
    for example in examples:
        size = example["image"].shape[:2]
        shown = resize_image(example["image"], protocol.sizes(size)[0])
        labels = forward(shown[None], np.array([shown.shape[:2]], np.int32))[0]
        example["steps"] = np.stack([resize_mask(step, size) for step in labels])


def draw_predictions(evaluation: Evaluation, examples: list[dict], file: str, step: int):
    """Saves a sheet of examples: image, truth, steps, prediction, uncertainty, error."""
    if examples:
        columns = [[e[key] for e in examples] for key in ("image", "mask", "labels", "uncertainty")]
        steps = [e["steps"] for e in examples] if "steps" in examples[0] else None
        sheet = sheets.prediction_sheet(*columns, evaluation.source.labels, steps)
        save_sheet(evaluation, sheet, file, step)


def save_sheet(plan: StagePlan | Evaluation, sheet: np.ndarray, file: str, step: int):
    """Saves an image to the workdir and the events, in the first process only."""
    if processes.is_first():
        folder = plan.workdir / "pictures"
        folder.mkdir(exist_ok=True)
        sheets.save_png(folder / f"{file}.png", sheet)
        plan.log.image(step, file.rsplit("_", 1)[0], sheet)
