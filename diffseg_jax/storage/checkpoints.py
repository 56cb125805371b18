"""Saving, resuming and opening checkpoints: plain arrays and JSON, whole or not there at all.

<workdir>/checkpoints/<stage>/<step>/state   the training state as a nested dict of arrays
<workdir>/checkpoints/<stage>/<step>/meta    config, classes, palette, position in the data
The only file that knows orbax.
"""

import contextlib
import errno
import functools
import hashlib
import json
import logging
import math
import operator
import os
import re
import sys
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import serialization
from flax.traverse_util import flatten_dict as flatten
from flax.traverse_util import unflatten_dict as unflatten
from orbax.checkpoint import checkpoint_managers as policies

from diffseg_jax.devices import processes
from diffseg_jax.devices.mesh import state_shardings
from diffseg_jax.errors import UserError, choose
from diffseg_jax.storage.paths import in_bucket, open_path

FILE_BYTES = 64 * 2**20  # of each file of arrays; it is put together in memory, at first 2 GB
FORMAT = 1  # of what stands on disk; raised when older versions could not read it any more
EXAMPLE = "such as runs/a/checkpoints/pretrain"
MOST_STEPS = 8  # that a reader tries, from the newest on
BEST = "mIoU"  # the number by which the best checkpoint is kept
ASIDE = "damaged_"  # what the directory of a damaged checkpoint is renamed to, before its step


class Damaged(UserError):
    """A checkpoint that was saved whole and is no longer: a file is missing, cut or changed."""

    def __init__(self, directory, step: int, what: str):
        super().__init__(f"checkpoint {directory}/{step} is damaged ({what})")
        self.step = step


class NotWritten(UserError):
    """A checkpoint that could not be written."""


class _Manager(ocp.CheckpointManager):
    """Orbax's manager, which does not ask of its own whether a signal came.

    Whoever asks moves the step at which all processes are told; that is for
    `training.signals` alone.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class StageCheckpoints:
    """The checkpoints of one stage: the latest two, and the best one if evaluations were given.

    Saving returns before the files are written; a save that was cut short is never taken for whole,
    and its remains are removed by the next run that writes there (not by a reader, who may look on
    while another process saves). What is read is compared with sums that were taken of the arrays
    before they were written. A writer puts checkpoints aside whose JSON is damaged.
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 2, read_only: bool = False):
        _mute_echoes()
        self.directory = _absolute(directory)
        newest = policies.LatestN(keep)
        best = policies.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            best_fn=_score,
            best_mode="max",
            preservation_policy=policies.AnyPreservationPolicy([newest, best]),
            cleanup_tmp_directories=not read_only,
            read_only=read_only,
        )
        if not read_only:
            _put_broken_aside(self.directory)
        self.manager = _Manager(
            self.directory,
            options=options,
            item_names=("state", "meta"),
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(),
                "meta": ocp.JsonCheckpointHandler(),
            },
        )

    def save(self, step: int, state: dict, meta: dict, numbers: Mapping[str, float] | None = None):
        """Saves the state after `step` updates; numbers that hold an mIoU let the best be kept.

        Raises NotWritten when this or an earlier save could not be.
        """
        if step in self.manager.all_steps():
            return
        self._save(step, with_string_keys(state), meta, numbers)

    def replace(self, step: int, state: dict, meta: dict, numbers: Mapping[str, float]):
        """Saves a step again, with the numbers that it lacked; returns when it is on disk."""
        self.wait()
        self.manager.delete(step)
        self._save(step, with_string_keys(state), meta, numbers)
        self.wait()

    def _save(self, step, state, meta, numbers):
        meta = _sealed({**meta, "format": FORMAT, "arrays": fingerprints(state)})
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state, ocdbt_target_data_file_size=FILE_BYTES),
            meta=ocp.args.JsonSave(meta),
        )
        scored = numbers is not None and math.isfinite(numbers.get(BEST, math.nan))
        with self._writing():
            self.manager.save(step, args=items, metrics=dict(numbers) if scored else None)

    def latest(self) -> int | None:
        """The newest whole checkpoint's step."""
        return processes.broadcast_from_first(self.manager.latest_step())

    def best(self) -> int | None:
        """The step with the highest evaluated mIoU, or the latest if none was evaluated."""
        best = processes.broadcast_from_first(self.manager.best_step())
        return self.latest() if best is None else best

    def meta(self, step: int) -> dict:
        """What was saved beside the arrays; Damaged when it is not that any more."""
        return _read_meta(self.directory, step)

    def newest(
        self, abstract: dict, mesh: jax.sharding.Mesh, say: Callable[[str], None], part=False
    ) -> tuple[dict | None, int]:  # fmt: skip
        """`restore` of the newest checkpoint that is not damaged, and its step; None, 0 for none.

        Damaged ones are put aside, and said. Raises UserError when all are damaged.
        """
        problem = None
        while (step := self.latest()) is not None:
            try:
                return self.restore(step, abstract, mesh, part), step
            except Damaged as error:
                problem = error
                self.put_aside(error, say)
        if problem:
            raise _none_left(self.directory, problem)
        return None, 0

    def put_aside(self, problem: Damaged, say: Callable[[str], None]):
        """Renames the directory of a damaged checkpoint, so that it counts no more, and says so."""
        if processes.is_first():
            _rename_aside(self.directory, problem.step)
        processes.barrier(f"checkpoint {problem.step} put aside")
        self.manager.reload()
        left = self.latest()
        goes_on = "" if left is None else f"; goes on from step {left}"
        say(f"{problem}; it is kept as {ASIDE}{problem.step}{goes_on}")

    def restore(
        self, step: int, abstract: dict, mesh: jax.sharding.Mesh, part: bool = False
    ) -> dict:  # fmt: skip
        """The state after `step` updates, placed on the mesh.

        abstract  the state's shapes (`jax.eval_shape`)
        part      whether more may be stored, which is then not read
        Raises UserError when something else is stored, Damaged when it is not what was saved.
        """
        target, known = with_string_keys(abstract), self._known(step)
        self._compare(step, target, known, part)
        placed = jax.tree.map(
            lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
            target,
            state_shardings(target, mesh),
        )
        places = ocp.checkpoint_utils.construct_restore_args(placed)
        arguments = ocp.args.PyTreeRestore(item=placed, restore_args=places, partial_restore=part)
        arguments = ocp.args.Composite(state=arguments)
        state = problem = None
        try:
            state = self.manager.restore(step, args=arguments)["state"]
        except Exception as error:  # orbax, tensorstore and the file system raise many types
            problem = _damage(error, self.directory, step)
        _agree(self.directory, step, problem)
        self._require_sums(step, state, known)
        return restore_structure(abstract, state)

    def _known(self, step):
        """The shapes, types and sums of the stored arrays; Damaged in all processes or in none."""
        meta = problem = None
        try:
            meta = self.meta(step)
        except Damaged as error:
            problem = error
        _agree(self.directory, step, problem)
        return meta["arrays"]

    def _compare(self, step, target, known, part):
        wanted = {"/".join(path): leaf for path, leaf in flatten(target).items()}
        where = f"checkpoint {self.directory}/{step}"
        extra = set() if part else known.keys() - wanted.keys()
        for path in sorted(wanted.keys() - known.keys() | extra):
            place = "is in the checkpoint only" if path in known else "is missing there"
            raise UserError(
                f"{where} is of another network: {_dotted(path)} {place}. Take a new workdir."
            )
        for path, leaf in wanted.items():
            there = tuple(known[path]["shape"]), known[path]["dtype"]
            if there != (leaf.shape, leaf.dtype.name):
                raise UserError(
                    f"{where} is of another network: {_dotted(path)} is {there[1]}{list(there[0])} "
                    f"there and {leaf.dtype.name}{list(leaf.shape)} here. Take a new workdir."
                )

    def _require_sums(self, step, state, known):
        """Raises Damaged unless the arrays have the fingerprints that they were saved with."""
        for path, facts in fingerprints(state).items():
            if facts["sum"] != known[path]["sum"]:
                raise Damaged(self.directory, step, f"the values of {_dotted(path)} have changed")

    def wait(self):
        """Returns when everything saved so far is on disk; NotWritten when it cannot be."""
        with self._writing():
            self.manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:  # what orbax and tensorstore raise
            of_storage = isinstance(error, OSError) or OS_CODE.search(str(error))
            if jax.process_count() > 1 and not of_storage:
                raise  # a barrier that a lost process did not come to
            kept = steps_in(self.directory)
            left = f"The one of step {max(kept)} is kept" if kept else "There is none before it"
            raise NotWritten(
                f"a checkpoint cannot be written in {self.directory} ({_reason(error)}). {left}; "
                "make room or mend what it says, then give the same command again."
            ) from None

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        """Waits for what is being written and releases the background threads."""
        try:
            self.wait()
        except UserError:
            if kind is None:  # what ended the stage already is what the user should read
                raise
        finally:
            self.manager.close()


def open_network(
    path: str | os.PathLike, step: int | None = None, ema: float | str | None = None
) -> tuple[dict, dict]:
    """({"params", "stats"} as numpy arrays, meta) of a stage directory, for reading.

    path  <workdir>/checkpoints/<stage>
    step  None takes the latest, or the one before it with a warning where that one is damaged
    ema   rate of the moving average to take, or "off" for the parameters themselves; None takes the
          first rate of the run, the parameters where it kept none

    Raises UserError when no checkpoint or no such average is there, and when all are damaged.
    """
    return _newest_whole(path, step, lambda step: _open_network(path, step, ema))


def open_meta(path: str | os.PathLike) -> dict:
    """What stands beside the arrays of the latest checkpoint; UserError when there is none."""
    return _newest_whole(path, None, lambda step: _read_meta(_absolute(path), step))


def _newest_whole(path, step, read):
    """`read(step)` of the step asked for, or of the newest one that no process finds damaged."""
    require_checkpoint(path)
    newest = sorted(steps_in(path), reverse=True)[:MOST_STEPS]
    newest += [None] * (MOST_STEPS - len(newest))
    steps = [found for found in map(processes.broadcast_from_first, newest) if found is not None]
    steps = steps if step is None else [step]
    for place, step in enumerate(steps):
        content = problem = None
        try:
            content = read(step)
        except Damaged as error:
            problem = error
        try:
            _agree(_absolute(path), step, problem)
            return content
        except Damaged as error:
            if place + 1 == len(steps):
                raise
            warnings.warn(f"{error}; takes step {steps[place + 1]}", stacklevel=3)


def _open_network(path, step, ema):
    _mute_echoes()
    directory = _absolute(path)
    meta = _read_meta(directory, step)
    tree = {
        tuple(name.split("/")): jax.ShapeDtypeStruct(tuple(facts["shape"]), facts["dtype"])
        for name, facts in meta["arrays"].items()
    }
    tree = unflatten(tree)
    wanted = {part: tree[part] for part in ("frozen", "stats") if part in tree}
    wanted |= _trained(tree, meta, ema, path)
    target = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), wanted)
    arguments = ocp.args.PyTreeRestore(
        item=target,
        restore_args=jax.tree.map(lambda leaf: ocp.RestoreArgs(np.ndarray), target),
        partial_restore=True,
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        try:
            stored = reader.restore(directory / str(step) / "state", arguments)
        except Exception as error:  # orbax, tensorstore and the file system raise many types
            raise _damage(error, directory, step) from None
    for name, facts in fingerprints(stored).items():
        if facts != meta["arrays"][name]:
            raise Damaged(directory, step, f"the values of {_dotted(name)} have changed")
    trained = stored["params"] if "params" in stored else next(iter(stored["ema"].values()))
    params = {**flatten(stored.get("frozen", {})), **flatten(trained)}
    return {"params": unflatten(params), "stats": stored.get("stats", {})}, meta


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
    return bool(steps_in(path))


def steps_in(path: str | os.PathLike) -> list[int]:
    """The steps of which a whole checkpoint lies in the directory of a stage."""
    children = [child for child in _absolute(path).glob("*") if child.name.isdigit()]
    whole = ocp.path.step.is_path_finalized if in_bucket(path) else lambda child: True
    return [int(child.name) for child in children if whole(child)]


def require_checkpoint(path: str | os.PathLike):
    """Raises UserError unless a stage saved something whole there."""
    path = open_path(path)
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


def with_string_keys(state: dict) -> dict:
    """The state with optimizer tuples as dicts with string keys; empty branches are left out."""
    return unflatten(flatten(serialization.to_state_dict(state)))


def restore_structure(abstract: dict, stored: dict) -> dict:
    """The inverse of `with_string_keys`, in the structure of `abstract`."""
    skeleton = flatten(serialization.to_state_dict(abstract), keep_empty_nodes=True)
    leaves = flatten(stored)
    filled = {path: leaves.get(path, leaf) for path, leaf in skeleton.items()}
    return serialization.from_state_dict(abstract, unflatten(filled))


def fingerprints(state: dict) -> dict[str, dict]:
    """Shape, type and a sum of the bits of every array of nested dicts, by its path with "/".

    The sum is one of unsigned 32-bit words, each times an odd number that grows with its place, so
    that a change of one word always changes it, and a change of several hardly ever does not. It
    does not depend on where the parts of an array live. All processes must ask together.
    """
    leaves = {"/".join(path): leaf for path, leaf in flatten(state).items()}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sums = np.array(list(pool.map(_sum_of_parts, leaves.values())), np.uint32)
    whole = [isinstance(leaf, np.ndarray) or leaf.is_fully_addressable for leaf in leaves.values()]
    if not all(whole):
        sums = np.where(whole, sums, processes.sum_over(sums))
    return {
        name: {"shape": list(np.shape(leaf)), "dtype": leaf.dtype.name, "sum": int(total)}
        for (name, leaf), total in zip(leaves.items(), sums, strict=True)
    }


def _sum_of_parts(array):
    """The sum over those parts of an array that this process is the first to hold."""
    if isinstance(array, jax.Array):
        firsts = [part for part in array.addressable_shards if part.replica_id == 0]
        starts = [[places.start or 0 for places in part.index] for part in firsts]
        parts = [(np.asarray(part.data), start) for part, start in zip(firsts, starts)]
    else:
        parts = [(np.asarray(array), [0] * np.ndim(array))]
    return sum(_sum_of_words(*part, np.shape(array)) for part in parts) % 2**32


def _sum_of_words(part, starts, shape):
    """The sum over a part of an array of some shape, which starts at these places of its axes."""
    size = part.dtype.itemsize
    words = np.ascontiguousarray(part).view(f"u{size}").reshape(part.shape or (1,))
    words = words ^ (words >> 32) if size == 8 else words
    steps = np.cumprod([1, *reversed(shape or (1,))])[-2::-1].astype(np.uint32)
    starts = starts or [0]
    first, *rest = (
        (np.arange(start, start + count, dtype=np.uint32) * step).reshape(-1, *[1] * after)
        for start, count, step, after in zip(
            starts, words.shape, steps, range(words.ndim - 1, -1, -1), strict=True
        )
    )
    row = sum(rest, np.uint32(0))  # places along all axes but the first
    total, many = 0, max(1, 2**16 // max(np.size(row), 1))
    for at in range(0, len(words), many):
        weights = 2 * (first[at : at + many] + row) + np.uint32(1)
        total += int(np.sum(words[at : at + many].astype(np.uint32) * weights, dtype=np.uint32))
    return total


def _sealed(meta):
    """JSON values with a digest of themselves."""
    return {**meta, "sha256": _digest(meta)}


def _digest(meta):
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def _read_meta(directory, step):
    """What stands beside the arrays of a step; Damaged unless it is what was written."""
    try:
        meta = json.loads((directory / str(step) / "meta" / "metadata").read_text())
        if meta.get("format", 1) > FORMAT:
            raise UserError(
                f"checkpoint {directory}/{step} is of format {meta['format']}, written by version "
                f"{meta.get('version', 'unknown')}, but this one reads formats up to {FORMAT}. "
                "Install a newer diffseg_jax."
            )
        digest = meta.pop("sha256", None)
        if digest is None and "arrays" not in meta:
            raise UserError(
                f"checkpoint {directory}/{step} was written by an older version, which kept no "
                "sums. Train or convert again, or take a new workdir."
            )
        if digest != _digest(meta):
            raise Damaged(directory, step, "its meta has changed")
        for facts in meta["arrays"].values():  # of a file that somebody made up
            jnp.dtype(facts["dtype"]), math.prod(map(operator.index, facts["shape"]))
    except UserError:
        raise
    except Exception as error:
        raise _damage(error, directory, step) from None
    return meta


def _agree(directory, step, problem):
    """Raises the problem, or that of another process: a wait for those who left has no end.

    Only what is damaged for one of them is damaged for all; what keeps one from reading is not.
    """
    mine = 0 if problem is None else 1 if isinstance(problem, Damaged) else 2
    worst = processes.maximum_over(mine)
    if problem is not None and mine == worst:
        raise problem
    if worst == 1:
        raise Damaged(directory, step, "so another process found")
    if worst == 2:
        where = f"{directory}/{step}"
        raise processes.ProcessesLost(f"another process could not read checkpoint {where}")


TRANSIENT = (  # what is in the way of reading, and says nothing of what would be read
    "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED", "INTERNAL",
    "PERMISSION_DENIED", "UNAUTHENTICATED", "Gloo", "arrier",
)  # fmt: skip


def _damage(error, directory, step):
    """Damaged, if a failure to read can only come from what lies there; else the error itself."""
    if isinstance(error, OSError):
        proven = isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError))
    elif found := OS_CODE.search(str(error)):
        proven = int(found[1]) in (errno.ENOENT, errno.EISDIR, errno.ENOTDIR)
    else:
        proven = not isinstance(error, (MemoryError, jax.errors.JaxRuntimeError))
        proven = proven and not any(word in str(error) for word in TRANSIENT)
    return Damaged(directory, step, _reason(error)) if proven else error


def _put_broken_aside(directory):
    """Puts checkpoints aside whose JSON is not what it was: nothing can be said of them.

    Those older than a whole one are removed: a kill while orbax removed them left a part. Raises
    UserError when none is whole, though there are some.
    """
    problems, steps = {}, sorted(steps_in(directory)) if processes.is_first() else []
    for step in steps:
        try:
            _read_meta(directory, step)
            _require_metrics(directory, step)
        except Damaged as error:
            problems[step] = error
    newest = max(set(steps) - problems.keys(), default=-1)
    for step, error in problems.items():
        if step < newest:
            epath.Path(directory / str(step)).rmtree(missing_ok=True)
            continue
        _rename_aside(directory, step)
        warnings.warn(f"{error}; it is kept as {ASIDE}{step}", stacklevel=4)
    if problems and newest < 0:
        raise _none_left(directory, next(reversed(problems.values())))
    processes.barrier(f"checkpoints of {directory} looked at")


def _require_metrics(directory, step):
    """Raises Damaged unless orbax can read the numbers that the best checkpoint is chosen by."""
    file = directory / str(step) / "metrics" / "metrics"
    text = file.read_bytes() if file.exists() else b"{}"
    try:
        json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Damaged(directory, step, f"its metrics: {_reason(error)}") from None


def _none_left(directory, problem):
    return UserError(
        f"{problem}, and there is no whole one. They are kept as {directory}/{ASIDE}*; the same "
        "command starts the stage from its beginning."
    )


def _rename_aside(directory, step):
    places = (directory / f"{ASIDE}{step}{'_' * again}" for again in range(100))
    (directory / str(step)).rename(next(place for place in places if not place.exists()))


def _reason(error):
    """The cause of an error in a line; that of the file system, where tensorstore passes it on."""
    if found := OS_CODE.search(str(error)):
        return os.strerror(int(found[1]))
    if ECHOES[1] in str(error):
        return "the files of an array cannot be decoded"
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


OS_CODE = re.compile(r"os_error_code=\W*(\d+)")  # as tensorstore passes it on
ECHOES = ("Event loop is closed", "See full TensorStore details")


@functools.cache
def _mute_echoes():
    """When one array cannot be read or written, orbax leaves the others alone, and each of them
    prints a traceback at some later time. The first one is raised, and says all."""
    usual, usual_unraisable = sys.excepthook, sys.unraisablehook

    def hook(kind, error, trace):
        if not str(error).startswith(ECHOES[0]):
            usual(kind, error, trace)

    def hook_unraisable(what):
        if not any(echo in str(what.exc_value) for echo in ECHOES):
            usual_unraisable(what)

    sys.excepthook, sys.unraisablehook = hook, hook_unraisable
    for name in ("absl", "asyncio"):  # by which orbax reports every file, and every array
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _dotted(name):
    return name.replace("/", ".")


def _absolute(path):
    return open_path(path) if in_bucket(path) else Path(path).absolute()


def _score(metrics):
    return metrics[BEST]
