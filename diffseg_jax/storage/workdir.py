"""A run's directory: which config it belongs to, and the results in it."""

import contextlib
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from ml_collections import ConfigDict

from diffseg_jax.config.schema import differing_lines
from diffseg_jax.devices import processes
from diffseg_jax.errors import UserError
from diffseg_jax.storage.checkpoints import has_checkpoint, steps_in
from diffseg_jax.storage.integrity import Damaged, read_meta
from diffseg_jax.storage.json_files import read_json_object
from diffseg_jax.storage.paths import BUCKET, open_path, reachable, write_json

LISTED_IN = "trained_on.json"  # stage -> fingerprint of the data with which it learned
FIT_FEATURES = "fit_features"  # folder of maps that fits have read, which may be deleted
PROBED = r"stages\.[^.]+\.probe\."  # when a stage ends, not what it learns
REMOVED = ("sampling.uncertainty:",)  # options of version 0.1.0 that have no effect any more


def open_workdir(text: str) -> Path:
    """A local path, or a path in a bucket (gs://bucket/runs/a).

    Raises UserError for other addresses, and for a bucket that cannot be reached.
    """
    path = open_path(text)
    with reachable(path):
        path.exists()
    return path


def claim_workdir(config: ConfigDict, workdir: Path):
    """Creates the workdir and config.json, or checks that its checkpoints are of this config.

    The config of a run without a checkpoint may still change. Raises UserError when the workdir
    cannot be written, holds a run of another config, or differs between processes.
    """
    options = as_json(config.to_dict())
    processes.require_same_everywhere("config", options)
    make_workdir(workdir)
    file, is_held = workdir / "config.json", holds_run_of(config, workdir)
    if processes.is_first() and not (is_held and file.exists()):
        write_json(file, options)
    require_shared(workdir)


def holds_run_of(
    config: ConfigDict, workdir: Path, may_differ: tuple[str, ...] = ("mesh",)
) -> bool:  # fmt: skip
    """Whether the workdir holds checkpoints of this config; UserError for those of another.

    may_differ  as of `check_same`
    """
    if not has_checkpoints(workdir):
        return False
    check_same(config, workdir, may_differ)
    return True


def make_workdir(workdir: Path):
    """Creates the workdir; raises UserError when it cannot be created or written."""
    probe = workdir / f".{uuid.uuid4().hex}.partial"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"workdir {workdir} cannot be written ({error.strerror or error}). "
            "Give a directory that you may write to, such as --workdir=runs/a."
        ) from None


def require_shared(workdir: Path):
    """Raises UserError in processes that do not see what the first one writes to the workdir."""
    if jax.process_count() == 1:
        return
    token = workdir / f".shared_{processes.broadcast_from_first(uuid.uuid4().int % 2**31)}"
    if processes.is_first():
        token.write_text("")
    processes.barrier("token of the workdir written")
    seen = token.exists()
    processes.barrier("token of the workdir read")
    if processes.is_first():
        token.unlink()
    if not seen:
        raise UserError(
            f"workdir {workdir} of process {jax.process_index()} is not that of process 0. Give a "
            f"folder that all hosts see, on a network file system or in a bucket, {BUCKET}..."
        )


def has_checkpoints(workdir: Path) -> bool:
    """Whether any stage in the workdir has a complete checkpoint."""
    return any(has_checkpoint(stage) for stage in workdir.glob("checkpoints/*"))


def check_same(config: ConfigDict, workdir: Path, may_differ: tuple[str, ...]):
    """Raises UserError with the lines in which a config differs from the workdir's.

    may_differ  options, or groups of them, that may differ
    """
    new = as_json(config.to_dict())
    differing = [differing_options(old, new, may_differ) for old in _configs_of(workdir)]
    if lines := max(differing, key=len):
        raise UserError(
            f"workdir {workdir} holds a run of another config; take another --workdir, or undo:\n  "
            + "\n  ".join(lines)
        )


def differing_options(old: Mapping, new: Mapping, may_differ: Sequence[str]) -> list[str]:
    """`differing_lines` of two configs without those of options that may differ, as `check_same`.

    What has no effect on a network may always differ.
    """
    ignored = (*(f"{key}{end}" for key in may_differ for end in ".:"), *REMOVED)
    lines = differing_lines(old, new)
    return [line for line in lines if not line.startswith(ignored) and not re.match(PROBED, line)]


def _configs_of(workdir):
    """The config of a run; if its file is missing, those with which stages saved a checkpoint."""
    file = workdir / "config.json"
    unknown = f"it is unknown which config the checkpoints in {workdir} belong to"
    advice = f", so {unknown}. Take another --workdir, or restore the file."
    if file.exists():
        return [read_json_object(file, advice)]
    found = []
    for directory in workdir.glob("checkpoints/*"):
        for step in steps_in(directory):
            with contextlib.suppress(Damaged, LookupError):
                found.append(read_meta(directory, step)["config"])
    if not found:
        raise UserError(f"{file} is missing{advice}")
    return found


def saved_config(workdir: Path) -> dict:
    """The config of a run as JSON, {} if there is none; UserError if it cannot be parsed."""
    file = workdir / "config.json"
    return read_json_object(file, ". Restore the file.") if file.exists() else {}


def stage_directory(workdir: Path, stage: str) -> Path:
    """Where the checkpoints of a stage are."""
    return workdir / "checkpoints" / stage


def read_results(workdir: Path) -> dict:
    """The content of results.json: {stage: results}, {} without the file; UserError if damaged."""
    file = workdir / "results.json"
    advice = ". Remove it, and give the command that trained again: it measures the stages again."
    results = read_json_object(file, advice) if file.exists() else {}
    if not all(isinstance(result, dict) for result in results.values()):
        raise UserError(f"{file} cannot be read (it does not hold the results of stages){advice}")
    return results


def as_json(values):
    """Nested dicts and tuples as JSON returns them, with lists for tuples."""
    if isinstance(values, dict):
        return {key: as_json(value) for key, value in values.items()}
    return [as_json(value) for value in values] if isinstance(values, (tuple, list)) else values
