"""Opening the network of a stage for use: parameters and statistics as NumPy arrays."""

import warnings
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict as flatten
from flax.traverse_util import unflatten_dict as unflatten

from diffseg_jax.devices import processes
from diffseg_jax.devices.first import first_does
from diffseg_jax.errors import UserError, choose
from diffseg_jax.storage.checkpoints import has_checkpoint, steps_in
from diffseg_jax.storage.integrity import (
    Damaged,
    read_in_all,
    read_meta,
    require_fingerprints,
)
from diffseg_jax.storage.paths import absolute
from diffseg_jax.storage.quiet import quiet_orbax, reading
from diffseg_jax.storage.similar import similar_path

STAGE_EXAMPLE = "such as runs/a/checkpoints/pretrain"
MAX_STEPS_TRIED = 8  # checkpoints that a reader tries, from the newest on


def open_network(
    directory: Path, step: int | None = None, ema: float | str | None = None
) -> tuple[dict, dict]:
    """({"params", "stats"} as numpy arrays, metadata) of a stage directory, for reading.

    directory  <workdir>/checkpoints/<stage>
    step       None takes the latest, or with a warning the one before it where that is damaged
    ema        rate of the moving average to take, or "off" for the parameters themselves; None
               takes the first rate of the run, or the parameters if it has no average

    Raises UserError when no checkpoint or no such average is there, Damaged when all are damaged.
    """
    return _newest_undamaged(directory, step, lambda step: _open_network(directory, step, ema))


def open_meta(directory: Path) -> dict:
    """The metadata of the latest checkpoint; UserError when there is none."""
    return _newest_undamaged(directory, None, lambda step: read_meta(directory, step))


def _newest_undamaged(directory, step, read):
    """`read(step)` of the requested step, or of the newest one that no process finds damaged."""
    missing = f"{directory} holds no checkpoint, as process 0 says."
    first_does(lambda: require_checkpoint(directory), missing)
    newest = sorted(steps_in(directory), reverse=True)[:MAX_STEPS_TRIED]
    newest += [None] * (MAX_STEPS_TRIED - len(newest))
    steps = [found for found in map(processes.broadcast_from_first, newest) if found is not None]
    steps = steps if step is None else [step]
    for step, earlier in zip(steps, [*steps[1:], None], strict=True):
        try:
            with quiet_orbax():
                return read_in_all(read, directory, step)
        except Damaged as error:
            if earlier is None:
                raise
            warnings.warn(f"{error}; takes step {earlier}", stacklevel=3)


def _open_network(directory, step, ema):
    meta = read_meta(directory, step)
    tree = unflatten({
        tuple(path.split("/")): jax.ShapeDtypeStruct(tuple(entry["shape"]), entry["dtype"])
        for path, entry in meta["arrays"].items()
    })  # fmt: skip
    wanted = {part: tree[part] for part in ("frozen", "stats") if part in tree}
    wanted |= _trained(tree, meta, ema, directory)
    target = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), wanted)
    arguments = ocp.args.PyTreeRestore(
        item=target,
        restore_args=jax.tree.map(lambda leaf: ocp.RestoreArgs(np.ndarray), target),
        partial_restore=True,
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader, reading():
        stored = reader.restore(absolute(directory) / str(step) / "state", arguments)
    require_fingerprints(stored, meta["arrays"], directory, step)
    trained = stored["params"] if "params" in stored else next(iter(stored["ema"].values()))
    params = {**flatten(stored.get("frozen", {})), **flatten(trained)}
    return {"params": unflatten(params), "stats": stored.get("stats", {})}, meta


def _trained(tree, meta, ema, directory):
    """The one branch of a stored state that holds the requested trained parameters."""
    averages = tree.get("ema", {})
    if ema is None:
        ema = meta["ema"][0] if averages else "off"
    branches = {rate: {"ema": {rate: averages[rate]}} for rate in averages}
    branches["off"] = {"params": tree["params"]}
    return choose(branches, str(ema), f"moving average of {directory}")


def first_has_checkpoint(directory: Path) -> bool:
    """Whether process 0 sees a complete checkpoint; all processes must call it."""
    return bool(processes.broadcast_from_first(int(has_checkpoint(directory))))


def require_checkpoint(directory: Path):
    """Raises UserError unless the directory of a stage holds a complete checkpoint."""
    if has_checkpoint(directory):
        return
    if directory.is_file():
        raise UserError(
            f"{directory} is a file, not the directory of a stage. Convert official checkpoints "
            "with python -m diffseg_jax.convert."
        )
    if not directory.is_dir():
        near = similar_path(directory, fits=has_checkpoint)
        raise UserError(f"there is no directory {directory}. Give a stage, {STAGE_EXAMPLE}.{near}")
    stages = [stage for stage in sorted(directory.glob("checkpoints/*")) if has_checkpoint(stage)]
    near = f"Give the directory of a stage, {STAGE_EXAMPLE}."
    if stages:
        near = f"Did you mean {stages[-1]}?"
    raise UserError(f"{directory} holds no checkpoint. {near}")
