"""Folds of the validation images, each of which chooses the step that the others test.

The protocol of Zhang et al., "DatasetGAN" (CVPR 2021), whose program measures the checkpoint of
every epoch on five consecutive parts of the test images. Here every evaluation during training
keeps the counts of its images, so that no checkpoint but the last is needed.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from diffseg_jax.devices import processes
from diffseg_jax.errors import UserError, counted
from diffseg_jax.experiment.planned import Evaluation
from diffseg_jax.metrics import segmentation
from diffseg_jax.metrics.image_counts import ImageCounts, mean_iou, read_image_counts

FOLDER = "step_counts"  # of the workdir; a folder for each stage


def require_foldable(folds: int, images: int, name: str, has_steps: bool):
    """Raises UserError for numbers of folds that cannot be, for a stage with that name."""
    if folds == 1 or folds > images:
        others = f" or from 2 to {images}, the number of validation images"
        others = others if images > 1 else ", as there is only one validation image"
        raise UserError(
            f"evaluate.step_folds is {folds}, but it must be 0 (off){others}. Try "
            f"--config.evaluate.step_folds={min(images, 5) if images > 1 else 0}."
        )
    if folds and not has_steps:
        raise UserError(
            f"evaluate.step_folds is {folds}, but the stage {name} fits classifiers, without "
            "evaluations before its end. Try --config.evaluate.step_folds=0."
        )


def counts_of_images(evaluation: Evaluation, indices: Sequence[int]) -> ImageCounts:
    """The counts of some images that were measured last."""
    source = evaluation.source
    return ImageCounts(
        names=tuple(source.names[index] for index in indices),
        classes=tuple(source.labels.names),
        counts=np.stack([evaluation.image_counts[int(index)] for index in indices]),
        absent=str(evaluation.absent), unscored=tuple(source.labels.unscored),
    )  # fmt: skip


def keep_step_counts(evaluation: Evaluation, step: int):
    """Keeps the counts of the quick evaluation of a step, if folds are to choose among steps."""
    if evaluation.step_folds and processes.is_first():
        kept = counts_of_images(evaluation, evaluation.quick_indices)
        kept.save(_folder(evaluation) / f"{step:08d}.npz")


def forget_later_counts(evaluation: Evaluation, step: int):
    """Removes the kept counts of steps after `step`, from which the stage goes on.

    They are of another training: its config changed before its first checkpoint, its checkpoints
    were damaged, or it was measured at other steps.
    """
    if evaluation.step_folds and processes.is_first():
        for file in _folder(evaluation).glob("*.npz"):
            if int(file.stem) > step:
                file.unlink()


def measured_by_folds(evaluation: Evaluation, last: int) -> dict:
    """{"step_folds": `scores_by_folds`}, JSON values, of all steps up to `last`; {} without.

    last  the step that the stage has trained, not the one whose checkpoint is chosen

    Of several processes the first one reads the files, as it has written them.
    """
    if not evaluation.step_folds or not processes.is_first():
        return {}
    names = tuple(evaluation.source.names[index] for index in evaluation.quick_indices)
    kept = {}
    for file in sorted(_folder(evaluation).glob("*.npz")):
        if int(file.stem) <= last and (each := read_image_counts(file)).names == names:
            kept[int(file.stem)] = sums_by_folds(each.counts, evaluation.step_folds)
    if not kept:
        return {}
    convention = segmentation.CONVENTIONS[evaluation.convention]
    own = evaluation.convention == "default"
    absent = str(evaluation.absent) if own else convention.absent.value
    unscored = evaluation.source.labels.unscored
    score = lambda sums: float(mean_iou(sums, absent, unscored, convention.ignored_row))
    chosen = scores_by_folds(np.stack([*kept.values()]), score)
    scores = [segmentation.to_number(score) for _, score in chosen]
    known = [score for score in scores if score is not None]
    found = {
        "mIoU": float(np.mean(known)) if known else None,
        "deviation": float(np.std(known)) if known else None,  # of all folds, as published
        "scores": scores,
        "steps": [list(kept)[row] for row, _ in chosen],
        "steps_measured": len(kept),
        "convention": evaluation.convention,
    }
    _say(evaluation, found)
    return {"step_folds": found}


def sums_by_folds(counts: np.ndarray, folds: int) -> np.ndarray:
    """The sums i64[folds+1,4,K] of the counts i64[N,4,K] of images, in their order, in each fold.

    Folds are consecutive and of N // folds images; the last row is that of the N % folds others.
    """
    size = len(counts) // folds
    parts = [counts[fold * size : (fold + 1) * size] for fold in range(folds)]
    return np.stack([part.sum(0) for part in (*parts, counts[folds * size :])])


def scores_by_folds(
    sums: np.ndarray, score: Callable[[np.ndarray], float]
) -> list[tuple[int, float]]:  # fmt: skip
    """For each fold the step that is best on it, and the score of that step on all other images.

    sums   i64[S,folds+1,4,K] at S steps, as of `sums_by_folds`: images in no fold are always others
    score  summed counts i64[4,K] -> number; a larger one is better, NaN is none

    The first of equal steps counts, and the first of all where none has a number.
    """
    found = []
    for fold in range(sums.shape[1] - 1):
        chosen = [score(each[fold]) for each in sums]
        best = int(np.argmax(np.nan_to_num(chosen, nan=-np.inf)))
        found.append((best, score(sums[best].sum(0) - sums[best, fold])))
    return found


def _folder(evaluation) -> Path:
    return evaluation.workdir / FOLDER / evaluation.stage


def _say(evaluation, found):
    if found["mIoU"] is not None:
        steps = ", ".join(map(str, found["steps"]))
        evaluation.log.say(
            f"{evaluation.stage}: {100 * found['mIoU']:.1f} ± {100 * found['deviation']:.1f} mIoU "
            f"(%) over {counted(evaluation.step_folds, 'fold')}, each of which chose one of "
            f"{counted(found['steps_measured'], 'measured step')} that the others test: {steps}"
        )
