"""Whether a resumed stage learns from the data that it began with."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffseg_jax.data import fingerprint
from diffseg_jax.devices import processes
from diffseg_jax.devices.first import first_does
from diffseg_jax.errors import UserError
from diffseg_jax.experiment.planned import StagePlan
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.storage.paths import read_object, write_json
from diffseg_jax.storage.workdir import LISTED_IN

VALIDATION = "{}, validation"  # the key of the stage's validation images there
KEY = "trained_on"  # in the metadata of a checkpoint: the digest of the fingerprint


def with_data(stage: StagePlan, checkpoints: StageCheckpoints, go_on: bool) -> StagePlan:
    """The stage, its metadata with a digest of its data, which its checkpoints must share.

    go_on  whether a stage continues with other data than it began with

    The first process reads the data, and lists them in the workdir. Raises UserError that names
    what was added, removed or changed; changed validation images are only logged.
    """
    current, found, listed = _compared(stage, checkpoints, go_on)
    if processes.is_first():
        write_json(stage.workdir / LISTED_IN, {**listed, **found})
    return dataclasses.replace(stage, meta={**stage.meta, KEY: current})


def require_same_data(stage: StagePlan, checkpoints: StageCheckpoints, is_finished: bool):
    """Raises UserError if the stage would not continue with its data."""
    if is_finished:
        require_same_classes(stage, checkpoints.meta(checkpoints.latest()))
    elif checkpoints.latest() is not None:
        _compared(stage, checkpoints, go_on=False)


def _compared(stage, checkpoints, go_on):
    """The digest of the data of a stage, fingerprints by key, and those in the workdir."""
    step = checkpoints.latest()
    meta = {} if step is None else checkpoints.meta(step)
    saved = meta.get(KEY)
    whole = saved["whole"] if saved else None
    found, listed = first_does(
        lambda: _read(stage, whole),
        f"the data of stage {stage.name} cannot be read, as process 0 says.",
    ) or ({}, {})
    mine = found.get(stage.name)
    current = {
        "sha256": _digest_from_first(mine and fingerprint.digest_of_data(mine)).hex(),
        "whole": bool(processes.broadcast_from_first(mine and int(mine["whole"]))),
    }
    if step is not None:
        _compare(stage, step, meta, current, mine, listed.get(stage.name), go_on)
        _say_changed_validation(stage, step, found, listed)
    return current, found, listed


def _read(stage, whole):
    """The fingerprints of a stage's images, by their keys in the workdir, and those there."""
    listed, evaluation = listed_in(stage.workdir), stage.evaluation
    found = {stage.name: fingerprint.fingerprint(stage.source, stage.indices, whole)}
    if evaluation:
        key = VALIDATION.format(stage.name)
        found[key] = fingerprint.fingerprint(evaluation.source, evaluation.indices)
    return found, listed


def _say_changed_validation(stage, step, found, listed):
    """Logs how the validation images differ from those of the steps so far."""
    key = VALIDATION.format(stage.name)
    old, new = listed.get(key), found.get(key)
    if isinstance(old, dict) and new and old.keys() == new.keys() and old != new:
        changes = fingerprint.changes_of_data(old, new) if old["whole"] == new["whole"] else []
        what = (
            f"note: the validation images of stage {stage.name} have changed since step {step}, "
            "so earlier scores cannot be compared with later ones"
        )
        stage.log.say("\n  ".join([what, *changes]))


def _digest_from_first(mine):
    """The 32 bytes of process 0; the others may give None."""
    if jax.process_count() == 1:
        return mine
    array = np.frombuffer(mine or bytes(32), np.uint8).astype(np.int32)
    return multihost_utils.broadcast_one_to_all(array).astype(np.uint8).tobytes()


def require_same_classes(stage: StagePlan, meta: dict):
    """Raises UserError if a finished stage, which is only measured, learned other classes."""
    before, after = meta.get("classes", []), stage.meta.get("classes", [])
    if before != after:
        raise UserError(
            f"stage {stage.name} was trained with the classes {', '.join(before)}, but the data "
            f"now have {', '.join(after)}. Restore them, take another --workdir, or, if all stages "
            "are finished, give --continue."
        )


def say_changed_since(stage: StagePlan):
    """Logs in the first process how the images of a finished stage differ from what it learned."""
    if processes.is_first() and (changes := changes_since(stage)):
        another = f"give another --workdir, such as {stage.workdir}_2"
        further = "give --continue, which trains it further, or "
        more = f"{further if stage.subset else ''}{another}"
        what = (
            f"note: the images of stage {stage.name} have changed since it finished, and it is not "
            f"trained again. To train with them, {more}"
        )
        stage.log.say("\n  ".join([what, *changes]))


def changes_since(stage: StagePlan) -> list[str]:
    """A line for each way in which the images of a stage differ from what it learned.

    Those that are held out of them count, too.
    """
    shown, evaluation = {stage.name: (stage.source, stage.indices)}, stage.evaluation
    if evaluation and evaluation.source is stage.source:
        shown[VALIDATION.format(stage.name)] = evaluation.source, evaluation.indices
    lines, listed = [], listed_in(stage.workdir)
    for key, (source, indices) in shown.items():
        old = listed.get(key)
        if isinstance(old, dict) and {"whole", "classes", "ids", "files"} <= old.keys():
            new = fingerprint.fingerprint(source, indices, bool(old["whole"]))
            lines += fingerprint.changes_of_data(old, new) if old != new else []
    return list(dict.fromkeys(lines))


def listed_in(workdir: Path) -> dict:
    """The fingerprints in the workdir, {} where there are none that can be read."""
    return read_object(workdir / LISTED_IN)


def _compare(stage, step, meta, current, found, listed, go_on):
    """Raises UserError, or with `go_on` logs, when the data differ from those of a checkpoint."""
    saved = meta.get(KEY)
    classes = meta.get("classes", []), stage.meta.get("classes", [])
    if saved is None and classes[0] == classes[1]:
        stage.log.say(
            f"{stage.name}: the checkpoint is of an earlier version, which did not record the "
            "data, so it is not known whether they have changed"
        )
        return
    if saved == current:
        return
    lines = ["how is not known: the list of files is that of other data"]
    if classes[0] != classes[1]:
        lines = [f"classes: {', '.join(classes[0])} -> {', '.join(classes[1])}"]
    if found and listed and saved and fingerprint.digest_of_data(listed).hex() == saved["sha256"]:
        lines = fingerprint.changes_of_data(listed, found)
    what = f"the data of stage {stage.name} have changed since step {step}"
    if go_on:
        stage.log.say("\n  ".join([f"{what}, and it continues with the new ones:", *lines]))
        return
    advice = "Restore them, or take another --workdir"
    if len(classes[0]) == len(classes[1]):
        advice = "Restore them, take another --workdir, or continue with --changed_data=continue"
    raise UserError("\n  ".join([f"{what}. {advice}:", *lines]))
