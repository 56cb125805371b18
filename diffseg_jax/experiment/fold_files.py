"""Classifiers that were fitted to all folds of the labelled images but one, to measure on that one.

<workdir>/folds/<stage>/<fold>.npz holds {"params/ensemble/...", "stats/ensemble/...",
"stats/probe/..."}, the arrays by which the network of the stage differs there, "learned", the
names of the images that they were fitted to, and "of", which tells to which data and options.
"""

import hashlib
import io
import json
import zipfile
import zlib
from pathlib import Path

import numpy as np
from flax.traverse_util import flatten_dict as flatten
from flax.traverse_util import unflatten_dict as unflatten

from diffseg_jax.config.schema import lacking
from diffseg_jax.devices import processes
from diffseg_jax.errors import UserError, counted
from diffseg_jax.experiment.planned import Evaluation
from diffseg_jax.storage.paths import write_atomically

FITTED_TO = (  # keys of metadata
    "classes", "labelled", "trained_on", "task", "start", "copies", "steps",
)  # fmt: skip
DAMAGED = (ValueError, EOFError, zipfile.BadZipFile, zlib.error)  # raised by numpy's reader
MAY_DIFFER = ("mesh", "evaluate")  # parts of the config in the metadata


def held_out_in(evaluation: Evaluation, fold: int) -> np.ndarray:
    """Those indices of the evaluation that a fold holds out."""
    return np.array([i for i in evaluation.indices if evaluation.folds[int(i)] == fold], np.int64)


def folds_in_turn(evaluation: Evaluation) -> list[int]:
    """All folds, also those of which the evaluation measures no image; [] if there are none."""
    return sorted(set((evaluation.folds or {}).values()))


def folds_measured(evaluation: Evaluation) -> list[int]:
    """The folds that hold out an image of the evaluation."""
    return sorted({evaluation.folds[int(index)] for index in evaluation.indices})


def write_fold(evaluation: Evaluation, fold: int, meta: dict, arrays: dict, learned: list[str]):
    """Writes the classifiers of a fold, in the first process; meta: that of their stage."""
    flat = {"/".join(path): np.asarray(leaf) for path, leaf in flatten(arrays).items()}
    content = io.BytesIO()
    np.savez(content, of=_identity(meta), learned=json.dumps(learned), **flat)
    file = _file(evaluation, fold)
    if processes.is_first():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, content.getvalue())
    processes.barrier(f"fold {fold} of {evaluation.stage} written")


def lacking_folds(evaluation: Evaluation, meta: dict) -> list[int]:
    """The folds without classifiers that were fitted as the metadata say."""
    folds = folds_in_turn(evaluation)
    fitted = [_read(evaluation, fold, meta) is not None for fold in folds]
    return [fold for fold, is_fitted in zip(folds, fitted, strict=True) if not is_fitted]


def network_of_fold(evaluation: Evaluation, fold: int, network: dict, meta: dict) -> dict:
    """The network of a stage with the classifiers of a fold.

    Raises UserError where there are none that were fitted as its metadata say.
    """
    arrays = _read(evaluation, fold, meta)
    if arrays is None:
        raise UserError(
            f"the classifiers of fold {fold} in {_file(evaluation, fold)} are missing, or are "
            f"others than those of stage {evaluation.stage}. The command that trained fits them "
            "again."
        )
    return {part: {**network[part], **arrays.get(part, {})} for part in network}


def describe_scores(scores: list[float | None]) -> dict:
    """The mean IoU of every fold, their mean and standard deviation, JSON values."""
    known = [score for score in scores if score is not None]
    deviation = float(np.std(known, ddof=1)) if len(known) > 1 else None
    mean = float(np.mean(known)) if known else None
    return {"count": len(scores), "mIoU": scores, "mean": mean, "deviation": deviation}


def scores_line(found: dict) -> str:
    """A line for the log about what `describe_scores` returns."""
    shown = " ".join("-" if score is None else f"{100 * score:.1f}" for score in found["mIoU"])
    spread = "" if found["deviation"] is None else (
        f"; mean {100 * found['mean']:.1f}, standard deviation {100 * found['deviation']:.1f} "
        "(the result counts the pixels of all folds together)"
    )  # fmt: skip
    return f"mIoU (%) of {counted(found['count'], 'fold')}, each held out in turn: {shown}{spread}"


def _file(evaluation, fold) -> Path:
    return evaluation.workdir / "folds" / evaluation.stage / f"{fold}.npz"


def _read(evaluation, fold, meta):
    """The arrays of a fold; None if there are none, of other data, or of images it holds out."""
    names = {evaluation.source.names[index] for index in held_out_in(evaluation, fold)}
    try:
        with np.load(io.BytesIO(_file(evaluation, fold).read_bytes()), allow_pickle=False) as file:
            if str(file["of"]) != _identity(meta) or names & set(json.loads(str(file["learned"]))):
                return None
            paths = [path for path in file.files if "/" in path]
            return unflatten({tuple(path.split("/")): file[path] for path in paths})
    except (*DAMAGED, LookupError, OSError):  # absent or damaged: the classifiers are fitted again
        return None


def _identity(meta):
    """A digest of the data and options in a stage's metadata."""
    config = {key: part for key, part in meta["config"].items() if key not in MAY_DIFFER}
    config["data"] = {**lacking("data."), **config["data"]}
    fitted_to = {key: meta.get(key) for key in FITTED_TO}
    text = json.dumps({**fitted_to, "config": config}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
