"""Saving, resuming and opening checkpoints: plain arrays and JSON, whole or not there at all.

<workdir>/checkpoints/<stage>/<step>/state   the training state as a nested dict of arrays
<workdir>/checkpoints/<stage>/<step>/meta    config, classes, palette, position in the data
The only file that knows orbax.
"""

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization
from flax.traverse_util import flatten_dict as flatten
from flax.traverse_util import unflatten_dict as unflatten
from orbax.checkpoint import checkpoint_managers as policies

from diffseg_jax.config import UserError, choose
from diffseg_jax.mesh import state_shardings

FILE_BYTES = 64 * 2**20  # of each file of arrays; it is put together in memory, at first 2 GB
EXAMPLE = "such as runs/a/checkpoints/pretrain"
BEST = "mIoU"  # the number by which the best checkpoint is kept


class StageCheckpoints:
    """The checkpoints of one stage: the latest two, and the best one if evaluations were given.

    Saving returns before the files are written; a save that was cut short is never taken for whole,
    and its remains are removed by the next run that writes there (not by a reader, who may look on
    while another process saves).
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 2, read_only: bool = False):
        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports every file otherwise
        newest = policies.LatestN(keep)
        best = policies.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            best_fn=_score,
            best_mode="max",
            preservation_policy=policies.AnyPreservationPolicy([newest, best]),
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
        )
        self.manager = ocp.CheckpointManager(
            Path(directory).absolute(),
            options=options,
            item_names=("state", "meta"),
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
        )

    def save(self, step: int, state: dict, meta: dict, numbers: Mapping[str, float] | None = None):
        """Saves the state after `step` updates; numbers that hold an mIoU let the best be kept."""
        if step in self.manager.all_steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(plain(state), ocdbt_target_data_file_size=FILE_BYTES),
            meta=ocp.args.JsonSave(meta),
        )
        scored = numbers is not None and math.isfinite(numbers.get(BEST, math.nan))
        self.manager.save(step, args=items, metrics=dict(numbers) if scored else None)

    def latest(self) -> int | None:
        """The newest whole checkpoint's step."""
        return self.manager.latest_step()

    def best(self) -> int | None:
        """The step with the highest evaluated mIoU, or the latest if none was evaluated."""
        best = self.manager.best_step()
        return self.latest() if best is None else best

    def meta(self, step: int) -> dict:
        """What was saved beside the arrays."""
        arguments = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self.manager.restore(step, args=arguments)["meta"]

    def restore(
        self, step: int, abstract: dict, mesh: jax.sharding.Mesh, part: bool = False
    ) -> dict:  # fmt: skip
        """The state after `step` updates, placed on the mesh.

        abstract  the state's shapes (`jax.eval_shape`)
        part      whether more may be stored, which is then not read
        Raises UserError when something else is stored.
        """
        target = plain(abstract)
        self._compare(step, target, part)
        placed = jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            target,
            state_shardings(target, mesh),
        )
        places = ocp.checkpoint_utils.construct_restore_args(placed)
        restored = ocp.args.PyTreeRestore(item=placed, restore_args=places, partial_restore=part)
        arguments = ocp.args.Composite(state=restored)
        return from_plain(abstract, self.manager.restore(step, args=arguments)["state"])

    def _compare(self, step, target, part):
        stored = flatten(dict(self.manager.item_metadata(step)["state"].tree))
        wanted = flatten(target)
        where = f"checkpoint {self.manager.directory}/{step}"
        extra = set() if part else stored.keys() - wanted.keys()
        for path in sorted(wanted.keys() - stored.keys() | extra):
            place = "is in the checkpoint only" if path in stored else "is missing there"
            raise UserError(
                f"{where} is of another network: {'.'.join(path)} {place}. Take a new workdir."
            )
        for path, leaf in wanted.items():
            if tuple(stored[path].shape) != leaf.shape:
                raise UserError(
                    f"{where} is of another network: {'.'.join(path)} is "
                    f"{tuple(stored[path].shape)} there and {leaf.shape} here. Take a new workdir."
                )

    def wait(self):
        """Returns when everything saved so far is on disk."""
        self.manager.wait_until_finished()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Waits for what is being written and releases the background threads."""
        self.wait()
        self.manager.close()


def open_network(
    path: str | os.PathLike, step: int | None = None, ema: float | str | None = None
) -> tuple[dict, dict]:
    """({"params", "stats"} as numpy arrays, meta) of a stage directory, for reading.

    path  <workdir>/checkpoints/<stage>; the latest step if none is named
    ema   rate of the moving average to take, or "off" for the parameters themselves; None takes the
          first rate of the run, the parameters where it kept none

    Raises UserError when no checkpoint or no such average is there.
    """
    require_checkpoint(path)
    with StageCheckpoints(path, read_only=True) as checkpoints:
        step = checkpoints.latest() if step is None else step
        tree = checkpoints.manager.item_metadata(step)["state"].tree
        meta = checkpoints.meta(step)
    trained = _trained(tree, meta, ema, path)
    wanted = {part: tree[part] for part in ("frozen", "stats") if part in tree} | trained
    target = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), wanted)
    arguments = ocp.args.PyTreeRestore(
        item=target,
        restore_args=jax.tree.map(lambda leaf: ocp.RestoreArgs(np.ndarray), target),
        partial_restore=True,
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        stored = reader.restore(Path(path).absolute() / str(step) / "state", arguments)
    trained = stored["params"] if "params" in stored else next(iter(stored["ema"].values()))
    params = {**flatten(stored.get("frozen", {})), **flatten(trained)}
    return {"params": unflatten(params), "stats": stored.get("stats", {})}, meta


def open_meta(path: str | os.PathLike) -> dict:
    """What stands beside the arrays of the latest checkpoint; UserError when there is none."""
    require_checkpoint(path)
    with StageCheckpoints(path, read_only=True) as checkpoints:
        return checkpoints.meta(checkpoints.latest())


def _trained(tree, meta, ema, path):
    """The one branch of a stored state that holds the trained parameters asked for."""
    averages = tree.get("ema", {})
    if ema is None:
        ema = meta["ema"][0] if averages else "off"
    branches = {rate: {"ema": {rate: averages[rate]}} for rate in averages}
    branches["off"] = {"params": tree["params"]}
    return choose(branches, str(ema), f"moving average of {path}")


def has_checkpoint(path: str | os.PathLike) -> bool:
    """Whether a stage saved something whole in this directory."""
    return any(child.name.isdigit() for child in Path(path).glob("*"))


def require_checkpoint(path: str | os.PathLike):
    """Raises UserError unless a stage saved something whole there."""
    path = Path(path)
    if has_checkpoint(path):
        return
    if path.is_file():
        raise UserError(
            f"{path} is a file, not the directory of a stage. Official checkpoints are turned into "
            "one by python -m diffseg_jax.convert."
        )
    if not path.is_dir():
        raise UserError(f"there is no directory {path}. Give a stage, {EXAMPLE}.")
    stages = [stage for stage in sorted(path.glob("checkpoints/*")) if has_checkpoint(stage)]
    near = f"Did you mean {stages[-1]}?" if stages else f"Give the directory of a stage, {EXAMPLE}."
    raise UserError(f"{path} holds no checkpoint. {near}")


def plain(state: dict) -> dict:
    """The state with optimizer tuples as dicts with string keys; empty branches are left out."""
    return unflatten(flatten(serialization.to_state_dict(state)))


def from_plain(abstract: dict, stored: dict) -> dict:
    """The inverse of `plain`, in the structure of `abstract`."""
    skeleton = flatten(serialization.to_state_dict(abstract), keep_empty_nodes=True)
    leaves = flatten(stored)
    filled = {path: leaves.get(path, leaf) for path, leaf in skeleton.items()}
    return serialization.from_state_dict(abstract, unflatten(filled))


def write_json(path: str | os.PathLike, content) -> None:
    """Writes a JSON file that is either the old one or the whole new one."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    with open(partial, "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _score(metrics):
    return metrics[BEST]
