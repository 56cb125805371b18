"""The numbers and sheets of a network on validation images."""

import contextlib
import csv
import dataclasses
import io
from collections.abc import Callable

import jax
import numpy as np

from diffseg_jax.data.transforms import resize_image
from diffseg_jax.devices import processes
from diffseg_jax.display.progress import COMPILES
from diffseg_jax.errors import counted
from diffseg_jax.experiment.calibrate import calibrate, describe_calibration
from diffseg_jax.experiment.evaluate import (
    UNCERTAIN,
    Counts,
    DrawnPixels,
    batches_of,
    draw_none,
    evaluate,
    spread,
    sum_of_counts,
)
from diffseg_jax.experiment.fold_files import (
    describe_scores,
    folds_measured,
    held_out_in,
    network_of_fold,
    scores_line,
)
from diffseg_jax.experiment.planned import Evaluation, StagePlan
from diffseg_jax.experiment.step_folds import counts_of_images
from diffseg_jax.figures import layout, sheets, trust
from diffseg_jax.figures.confusion import confusion_plot
from diffseg_jax.inference.calibrators import file_of, write_calibrator
from diffseg_jax.inference.forward import make_forward
from diffseg_jax.inference.known_images import write_known_images
from diffseg_jax.inference.views import Protocol, View
from diffseg_jax.metrics import segmentation
from diffseg_jax.metrics.calibration import scores_by_class
from diffseg_jax.metrics.calibrator import Calibrator
from diffseg_jax.metrics.familiarity import MIN_KNOWN, known_images
from diffseg_jax.metrics.uncertainty import auroc
from diffseg_jax.storage.paths import write_atomically
from diffseg_jax.storage.workdir import stage_directory

KNOWN_EVALUATED, KNOWN_LEARNED = 256, 64  # images by which others are judged, at most
PROBE = "linear_probe"  # the key of its numbers, beside those of the ensemble


def measure(
    evaluation: Evaluation, network: dict, indices: np.ndarray, protocol: Protocol,
    pixels: DrawnPixels | None = None, descriptors: dict | None = None,
) -> tuple[Counts, list[dict]]:  # fmt: skip
    """Counts of right and wrong pixels of a network, and the examples to draw; as of `evaluate`."""
    with progress_of(evaluation, indices, protocol) as progress:
        return evaluate(
            forward_of(evaluation, network), evaluation.source, indices,
            len(evaluation.source.labels.names), protocol, evaluation.batch_size,
            evaluation.examples, by_name=evaluation.task.files is not None, pixels=pixels,
            descriptors=descriptors, progress=progress, by_image=evaluation.image_counts,
        )  # fmt: skip


def forward_of(evaluation: Evaluation, network: dict) -> Callable:
    """(images, valid) -> maps of a network for its final numbers, as of `make_forward`."""
    task = evaluation.task
    return make_forward(
        task.measured or task.predict, network, evaluation.mesh, evaluation.batch_size,
        task.stride, task.files,
    )  # fmt: skip


@contextlib.contextmanager
def progress_of(evaluation: Evaluation, indices: np.ndarray, protocol: Protocol):
    """`with progress_of(...) as progress: ...` shows an evaluation, and keeps its time."""
    mine = len(indices[jax.process_index() :: jax.process_count()])
    what = f"{evaluation.stage}: evaluates"
    with evaluation.log.progress(what, mine, unit="images", first=COMPILES) as progress:
        yield progress
    each = progress.seconds_each / jax.process_count()
    if not progress.is_warm:  # a single batch, the first of which was compiled
        each = min(each, evaluation.timed.get(protocol, each))
    evaluation.timed[protocol] = each


def result_of(evaluation: Evaluation, network: dict, meta: dict, suffix: str = "result") -> dict:
    """The final numbers of a stage under the whole protocol, with their origin; JSON values.

    suffix  last part of the file name of the sheet of examples
    """
    stage, protocol, indices = evaluation.stage, evaluation.protocol, evaluation.indices
    by_quick = evaluation.keep_best and not evaluation.task.fit
    chosen = "the best by the quick evaluations" if by_quick else "the last"
    evaluation.log.say(
        f"{stage}: evaluates step {meta['step']}, {chosen}, on {counted(len(indices), 'image')} "
        f"{protocol}" + (", by classifiers of the other folds" if evaluation.folds else "")
    )
    drawn = draw_none(indices) if evaluation.held_out else None
    described = dict.fromkeys(map(int, spread(indices, KNOWN_EVALUATED)))
    by_fold = {}
    if evaluation.folds:
        counts, examples, by_fold = measure_folds(evaluation, network, meta, drawn, described)
    else:
        counts, examples = measure(evaluation, network, indices, protocol, drawn, described)
    keep_image_counts(evaluation, suffix)
    keep_known_images(evaluation, network, described, meta)
    names, convention = evaluation.source.labels.names, evaluation.convention
    uncalibrated = scores_by_class(counts.chance, names)
    with evaluation.log.progress(f"{stage}: calibrates"):
        calibrated = calibrate(drawn, len(names)) if drawn else None
    evaluation.log.say(f"{stage}: {describe_calibration(calibrated, evaluation.held_out)}")
    found = calibrated.numbers(names) if calibrated else {}
    calibrator = calibrated.calibrator if calibrated and calibrated.helps else None
    keep_calibrator(evaluation, calibrator, meta, replace=suffix == "result")
    after = calibrated.after if calibrator else None
    with evaluation.log.progress(f"{stage}: draws"):
        trace_steps(evaluation, network, examples, protocol)
        draw_predictions(evaluation, examples, f"{stage}_{suffix}", meta["step"], calibrator)
        draw_trust(evaluation, counts.chance, after, suffix, meta["step"])
        show_confusion(evaluation, counts.confusion[:-1], suffix, meta["step"])
    others = {}
    if counts.baseline.any():
        probe = dataclasses.replace(counts, confusion=counts.baseline)
        others[PROBE] = segmentation.to_json(scores_of(evaluation, probe), names)
    if convention != "default":
        others[convention] = segmentation.to_json(scores_of(evaluation, counts, convention), names)
    return {
        "step": meta["step"],
        "start": meta["start"],
        "images": len(indices),
        "labelled_images": meta["labelled"]["n"],
        "protocol": evaluation.recorded["protocol"],
        **segmentation.to_json(scores_of(evaluation, counts), names),
        "AUROC": (found if calibrator else uncalibrated)["AUROC"],
        "AUROC_of": auroc_of_signals(counts),
        "image_uncertainty": counts.uncertain / UNCERTAIN / counts.images,
        "boundary": boundary_of(evaluation, counts),
        "calibration": {"of": "1 - highest probability", **uncalibrated},
        "calibrated": found,
        **others,
        **by_fold,
        **{key: value for key, value in evaluation.recorded.items() if key != "protocol"},
    }


def measure_folds(
    evaluation: Evaluation, network: dict, meta: dict, pixels: DrawnPixels, descriptors: dict
) -> tuple[Counts, list[dict], dict]:  # fmt: skip
    """As `measure`, every image by classifiers that did not learn from it; {"folds": scores}.

    network, meta  those of the stage; the classifiers of its folds are read from the workdir
    """
    parts, examples, scores = [], [], []
    folds = folds_measured(evaluation)
    few = dataclasses.replace(evaluation, examples=-(-evaluation.examples // len(folds)))
    for fold in folds:
        indices = held_out_in(evaluation, fold)
        shown = set(map(int, indices))
        rows = {index: row for index, row in pixels.rows.items() if index in shown}
        drawn = DrawnPixels(np.zeros_like(pixels.table), rows)
        described = {index: None for index in descriptors if index in shown}
        of_fold = network_of_fold(evaluation, fold, network, meta)
        counts, drawings = measure(
            few, of_fold, indices, evaluation.protocol, drawn, described
        )  # fmt: skip
        pixels.table += drawn.table
        descriptors |= described
        parts.append(counts)
        examples += drawings
        scores.append(segmentation.to_number(scores_of(evaluation, counts)["mIoU"]))
    found = describe_scores(scores)
    evaluation.log.say(f"{evaluation.stage}: {scores_line(found)}")
    return sum_of_counts(parts), examples[: evaluation.examples], {"folds": found}


def predicts_by_default(evaluation: Evaluation, config: dict) -> bool:
    """Whether images are shown and noise is drawn as the config of the checkpoint says."""
    own = {"protocol": config["evaluate"], "sampling": config.get("sampling", {})}
    return all(
        own.get(part, {}).get(option, value) == value
        for part, options in evaluation.recorded.items() for option, value in options.items()
    )  # fmt: skip


def keep_calibrator(
    evaluation: Evaluation, calibrator: Calibrator | None, meta: dict, replace: bool
):  # fmt: skip
    """Writes a calibrator beside the arrays of its checkpoint, in the first process only.

    replace  whether it takes the place of an older one, which is removed where there is none now

    None is written where the options are not those with which the checkpoint predicts by default,
    or the images are not those by which its run is measured.
    """
    directory, step = stage_directory(evaluation.workdir, evaluation.stage), meta["step"]
    file = file_of(directory, step)
    if calibrator is None:
        if replace and processes.is_first():
            file.unlink(missing_ok=True)
        return
    own_options = predicts_by_default(evaluation, meta["config"])
    if not own_options or not evaluation.own_images:
        of = "images, as its run is measured on those of its config" if own_options else (
            "options, as predictions use those of its config by default"
        )  # fmt: skip
        evaluation.log.say(f"{evaluation.stage}: the checkpoint keeps no calibrator of these {of}")
        return
    if processes.is_first() and (replace or not file.exists()):
        write_calibrator(directory, step, meta, calibrator)


def keep_image_counts(evaluation: Evaluation, suffix: str = "result"):
    """Writes image_counts_<stage>.npz, with the suffix if it is not "result": see `ImageCounts`."""
    if not processes.is_first():
        return
    end = "" if suffix == "result" else f"_{suffix}"
    kept = counts_of_images(evaluation, evaluation.indices)
    kept.save(evaluation.workdir / f"image_counts_{evaluation.stage}{end}.npz")


def keep_known_images(evaluation: Evaluation, network: dict, described: dict, meta: dict):
    """Writes descriptors of evaluated images, and of some of those with which the stage learned.

    Nothing where training images are not at hand: a validation split alone, such as one drive of
    CamVid, may show so little that training images would look foreign.
    """
    if evaluation.learned is None:
        return
    found = list(described.values())
    if evaluation.held_out and not evaluation.folds:
        source, indices = evaluation.learned
        learned = dict.fromkeys(map(int, spread(indices, KNOWN_LEARNED)))
        again = dataclasses.replace(evaluation, source=source, examples=0, image_counts={})
        measure(again, network, np.array(list(learned)), evaluation.protocol, None, learned)
        found += learned.values()
    if not found or found[0] is None:
        return
    known, images = known_images(np.stack(found)), counted(len(found), "image")
    judges = f"knows {images}, by which it judges whether others are foreign"
    too_few = f"{images} are too few to judge whether others are foreign; {MIN_KNOWN} are needed"
    evaluation.log.say(f"{evaluation.stage}: {judges if known else too_few}")
    if known and processes.is_first():
        directory = stage_directory(evaluation.workdir, evaluation.stage)
        write_known_images(directory, meta["step"], meta, known)


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


def draw_trust(
    evaluation: Evaluation, chance: np.ndarray, after: np.ndarray | None, suffix: str, step: int
):
    """Saves the reliability and the risk-coverage plot, if the run draws any images.

    chance, after   counts before and after calibration, if the calibrator is kept
    """
    if evaluation.examples and chance.any():
        for name, draw in (
            ("reliability", trust.reliability_plot),
            ("risk_coverage", trust.risk_coverage_plot),
        ):
            save_sheet(evaluation, draw(chance, after), f"{evaluation.stage}_{name}_{suffix}", step)


def show_confusion(evaluation: Evaluation, counts: np.ndarray, suffix: str, step: int):
    """Writes counts int[K, K], a row per labelled class, as a table, and draws them.

    The table is confusion_<stage>.csv, with the suffix if it is not "result". The plot is drawn if
    the run draws any images.
    """
    stage, names = evaluation.stage, evaluation.source.labels.names
    if processes.is_first():
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["labelled / predicted", *names])
        table.writerows([name, *row] for name, row in zip(names, counts.tolist(), strict=True))
        end = "" if suffix == "result" else f"_{suffix}"
        file = evaluation.workdir / f"confusion_{stage}{end}.csv"
        write_atomically(file, text.getvalue().encode())
    if evaluation.examples and counts.any():
        save_sheet(evaluation, confusion_plot(counts, names), f"{stage}_confusion_{suffix}", step)


def auroc_of_signals(counts: Counts) -> dict:
    """AUROC of every signal of uncertainty that the network gave."""
    given = {name: values for name, values in counts.signals.items() if values.any()}
    return {name: segmentation.to_number(auroc(values)) for name, values in given.items()}


def trace_steps(evaluation: Evaluation, network: dict, examples: list[dict], protocol: Protocol):
    """Adds to each example "steps", its maps [T,H,W] after every reverse step, if there are any.

    Only where images are shown whole: each window has its own noise.
    """
    task, size = evaluation.task, evaluation.batch_size
    whole = protocol.view is View.WHOLE
    if not task.trace or not whole or not evaluation.target.step_maps:
        return
    steps = lambda *given: task.trace(task.traced(*given)[1], given[1])
    forward = make_forward(steps, network, evaluation.mesh, size)
    for some in batches_of(examples, range(len(examples)), size):
        own = some[0]["image"].shape[:2]
        shown = protocol.sizes(own)[0]
        images = np.stack([resize_image(example["image"], shown) for example in some])
        valid = np.tile(np.array(shown, np.int32), (len(some), 1))
        for example, labels in zip(some, forward(images, valid), strict=True):
            example["steps"] = evaluation.target.step_maps(labels, own)


def draw_predictions(
    evaluation: Evaluation, examples: list[dict], file: str, step: int,
    calibrator: Calibrator | None = None,
):  # fmt: skip
    """Saves a sheet of examples: image, truth, steps, prediction, uncertainty, error."""
    if examples:
        columns = [[e[key] for e in examples] for key in ("image", "mask")]
        maps = [example["maps"] for example in examples]
        columns.append([each.labels for each in maps])
        columns.append([
            calibrator.chance(each.signals, each.labels) if calibrator else each.uncertainty
            for each in maps
        ])  # fmt: skip
        steps = [e["steps"] for e in examples] if "steps" in examples[0] else None
        labels, calibrated = evaluation.source.labels, calibrator is not None
        sheet = sheets.prediction_sheet(*columns, labels, steps, calibrated)
        save_sheet(evaluation, sheet, file, step)


def save_sheet(plan: StagePlan | Evaluation, sheet: np.ndarray, file: str, step: int):
    """Saves an image to the workdir and the events, in the first process only."""
    if processes.is_first():
        folder = plan.workdir / "pictures"
        folder.mkdir(exist_ok=True)
        layout.save_png(folder / f"{file}.png", sheet)
        plan.log.image(step, file.rsplit("_", 1)[0], sheet)
