"""Saving and resuming checkpoints: arrays and JSON, complete or not there at all.

<workdir>/checkpoints/<stage>/<step>/state   the training state as a nested dict of arrays
<workdir>/checkpoints/<stage>/<step>/meta    config, classes, palette, position in the data
Only this file and `networks` call orbax.
"""

import contextlib
import json
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from etils import epath
from flax import serialization
from flax.traverse_util import flatten_dict as flatten
from flax.traverse_util import unflatten_dict as unflatten
from orbax.checkpoint import checkpoint_managers as policies

from diffseg_jax.devices import processes
from diffseg_jax.devices.first import first_does
from diffseg_jax.devices.mesh import state_shardings
from diffseg_jax.errors import UserError
from diffseg_jax.storage.integrity import (
    FORMAT,
    OS_CODE,
    Damaged,
    dotted,
    fingerprints,
    read_in_all,
    read_meta,
    reason_of,
    require_fingerprints,
    with_digest,
)
from diffseg_jax.storage.paths import absolute, in_bucket, write_json
from diffseg_jax.storage.quiet import quiet_orbax, reading

FILE_BYTES = 64 * 2**20  # target size of an array file (orbax: 2 GB); each is assembled in memory
BEST = {"mIoU": 1, "abs_rel": -1}  # metrics by which the best checkpoint is kept; -1: the lowest
ASIDE = "damaged_"  # a damaged checkpoint's directory is renamed to this and its step


def score_of(numbers: Mapping[str, float]) -> float:
    """What an evaluation is worth, the higher the better; NaN without a metric of BEST."""
    name = next((name for name in BEST if name in numbers), None)
    return BEST[name] * numbers[name] if name else math.nan


def _is_scored(numbers):
    return numbers is not None and math.isfinite(score_of(numbers))


class NotWritten(UserError):
    """A checkpoint that could not be written."""


class _Manager(ocp.CheckpointManager):
    """Orbax's manager without its own check for a preemption signal.

    Every check moves the step at which all processes learn of the signal, so only
    `training.signals` may ask.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class StageCheckpoints:
    """The checkpoints of one stage: the latest ones, and the best one if evaluations were given.

    Saving returns before the files are written. An interrupted save is never taken for a complete
    one; its remains are removed by the next writer (not by a reader, since another process may
    still be saving). What is read is compared with the fingerprints taken before saving. A writer
    sets checkpoints with damaged JSON aside; a reader raises Damaged for damaged metrics.

    directory  <workdir>/checkpoints/<stage>
    keep       how many of the latest checkpoints are kept
    """

    def __init__(self, directory: Path, keep: int = 2, read_only: bool = False):
        self.directory, self.keep = absolute(directory), keep
        self.exits = contextlib.ExitStack()
        if not read_only:
            _set_broken_aside(self.directory)
        for step in steps_in(self.directory) if read_only else ():
            _require_metrics(self.directory, step)
        newest = policies.LatestN(keep)
        best = policies.BestN(get_metric_fn=score_of, n=1, keep_checkpoints_without_metrics=False)
        with quiet_orbax():
            options = ocp.CheckpointManagerOptions(
                best_fn=score_of,
                best_mode="max",
                preservation_policy=policies.AnyPreservationPolicy([newest, best]),
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
            )
            self.manager = _Manager(
                self.directory,
                options=options,
                item_names=("state", "meta"),
                item_handlers={
                    "state": ocp.PyTreeCheckpointHandler(),
                    "meta": ocp.JsonCheckpointHandler(),
                },
            )

    def __enter__(self):
        self.exits.enter_context(quiet_orbax())  # orbax writes between the calls, too
        return self

    def __exit__(self, error_type, *_):
        """Waits for pending writes and releases the background threads."""
        with self.exits:
            try:
                self.wait()
            except UserError:
                if error_type is None:  # an error that already ended the stage is the one to report
                    raise
            finally:
                self.manager.close()

    def save(self, step: int, state: dict, meta: dict, numbers: Mapping[str, float] | None = None):
        """Saves the state after `step` updates.

        numbers  metrics of an evaluation; the checkpoint that is best by one of BEST is kept
        Raises NotWritten when this or an earlier save failed.
        """
        if step in self.manager.all_steps():
            return
        self._save(step, with_string_keys(state), meta, numbers)

    def add_evaluation(self, step: int, meta: dict, numbers: Mapping[str, float]):
        """Gives a saved step metrics and, last, this metadata; NotWritten when that fails.

        Its arrays stay where they are: at any time the step is complete, with or without metrics.
        Steps that are kept no longer are removed, as after a save.
        """
        self.wait()
        folder = self.directory / str(step)

        def write():
            if _is_scored(numbers):
                write_json(folder / "metrics" / "metrics", dict(numbers))
            write_json(folder / "meta" / "metadata", with_digest(meta))
            self.manager.reload()
            for old in self.manager.all_steps()[: -self.keep]:
                if old != self.manager.best_step():
                    epath.Path(self.directory / str(old)).rmtree()

        with self._writing():
            first_does(write, f"{folder} cannot be written, as process 0 says.")
            self.manager.reload()

    def _save(self, step, state, meta, numbers):
        meta = with_digest({**meta, "format": FORMAT, "arrays": fingerprints(state)})
        items = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state, ocdbt_target_data_file_size=FILE_BYTES),
            meta=ocp.args.JsonSave(meta),
        )
        metrics = dict(numbers) if _is_scored(numbers) else None
        with self._writing():
            self.manager.save(step, args=items, metrics=metrics)

    def wait(self):
        """Returns when everything saved so far is on disk; NotWritten when that fails."""
        with self._writing():
            self.manager.wait_until_finished()

    @contextlib.contextmanager
    def _writing(self):
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:  # what orbax and tensorstore raise
            from_storage = isinstance(error, OSError) or OS_CODE.search(str(error))
            if jax.process_count() > 1 and not from_storage:
                raise  # a barrier that a lost process did not reach
            kept = steps_in(self.directory)
            left = f"The one of step {max(kept)} is kept" if kept else "There is no earlier one"
            raise NotWritten(
                f"a checkpoint cannot be written in {self.directory} ({reason_of(error)}). {left}; "
                "free some space or fix this error, then give the same command again."
            ) from None

    def latest(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return processes.broadcast_from_first(self.manager.latest_step())

    def best_evaluated(self) -> int | None:
        """The step with the best evaluation, by BEST; None if none was evaluated."""
        return processes.broadcast_from_first(self.manager.best_step())

    def best(self) -> int | None:
        """The step with the best evaluation, by BEST, or the latest if none was evaluated."""
        best = self.best_evaluated()
        return self.latest() if best is None else best

    def chosen(self, best: bool) -> int | None:
        """The step whose network counts: the best one, or the latest."""
        return self.best() if best else self.latest()

    def meta(self, step: int) -> dict:
        """The metadata saved with a step; Damaged when it has changed since."""
        return read_meta(self.directory, step)

    def newest(
        self, abstract: dict, mesh: jax.sharding.Mesh, say: Callable[[str], None], part=False
    ) -> tuple[dict | None, int]:  # fmt: skip
        """(state, step) as by `restore` of the newest undamaged checkpoint; (None, 0) for none.

        Damaged ones are set aside and reported through `say`. Raises UserError when all are
        damaged.
        """
        problem = None
        while (step := self.latest()) is not None:
            try:
                return self.restore(step, abstract, mesh, part), step
            except Damaged as error:
                problem = error
                self.set_aside(error, say)
        if problem:
            raise _all_damaged(self.directory, problem)
        return None, 0

    def set_aside(self, problem: Damaged, say: Callable[[str], None]):
        """Renames the directory of a damaged checkpoint, so that it is not read again."""
        if processes.is_first():
            _rename_aside(self.directory, problem.step)
        processes.barrier(f"checkpoint {problem.step} set aside")
        self.manager.reload()
        left = self.latest()
        goes_on = "" if left is None else f"; continuing from step {left}"
        say(f"{problem}; it was renamed to {ASIDE}{problem.step}{goes_on}")

    def restore(
        self, step: int, abstract: dict, mesh: jax.sharding.Mesh, part: bool = False
    ) -> dict:  # fmt: skip
        """The state after `step` updates, placed on the mesh.

        abstract  the state's shapes (`jax.eval_shape`)
        part      whether the checkpoint may hold further arrays, which are then not read
        Raises UserError for a checkpoint of another network, Damaged when it has changed.
        """
        target = with_string_keys(abstract)
        meta = read_in_all(self.meta, self.directory, step)
        self._compare(step, target, meta["arrays"], part)
        placed = jax.tree.map(
            lambda leaf, split: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=split),
            target,
            state_shardings(target, mesh),
        )
        options = ocp.checkpoint_utils.construct_restore_args(placed)
        arguments = ocp.args.PyTreeRestore(item=placed, restore_args=options, partial_restore=part)
        read = lambda step: self._read_state(step, arguments)
        state = read_in_all(read, self.directory, step)
        require_fingerprints(state, meta["arrays"], self.directory, step)
        return restore_structure(abstract, state)

    def _read_state(self, step, arguments):
        with reading():
            return self.manager.restore(step, args=ocp.args.Composite(state=arguments))["state"]

    def _compare(self, step, target, stored, part):
        """Raises UserError unless the stored arrays have the shapes and dtypes of the target."""
        wanted = {"/".join(path): leaf for path, leaf in flatten(target).items()}
        where = f"checkpoint {self.directory}/{step} belongs to another network"
        extra = set() if part else stored.keys() - wanted.keys()
        for path in sorted(wanted.keys() - stored.keys() | extra):
            problem = "is in the checkpoint only" if path in stored else "is missing there"
            raise UserError(f"{where}: {dotted(path)} {problem}. Take a new workdir.")
        for path, leaf in wanted.items():
            found = tuple(stored[path]["shape"]), stored[path]["dtype"]
            if found != (leaf.shape, leaf.dtype.name):
                raise UserError(
                    f"{where}: {dotted(path)} is {found[1]}{list(found[0])} there and "
                    f"{leaf.dtype.name}{list(leaf.shape)} here. Take a new workdir."
                )


def has_checkpoint(directory: Path) -> bool:
    """Whether the directory of a stage holds a complete checkpoint."""
    return bool(steps_in(directory))


def steps_in(directory: Path) -> list[int]:
    """The steps of the complete checkpoints in the directory of a stage."""
    steps = [child for child in directory.glob("*") if child.name.isdigit()]
    if in_bucket(directory):  # on disks, a save ends with renaming the directory to its step
        steps = [child for child in steps if ocp.path.step.is_path_finalized(child)]
    return [int(child.name) for child in steps]


def with_string_keys(state: dict) -> dict:
    """The state with optimizer tuples as dicts with string keys, and without empty branches."""
    return unflatten(flatten(serialization.to_state_dict(state)))


def restore_structure(abstract: dict, stored: dict) -> dict:
    """The inverse of `with_string_keys`, in the structure of `abstract`."""
    skeleton = flatten(serialization.to_state_dict(abstract), keep_empty_nodes=True)
    leaves = flatten(stored)
    filled = {path: leaves.get(path, leaf) for path, leaf in skeleton.items()}
    return serialization.from_state_dict(abstract, unflatten(filled))


def _set_broken_aside(directory):
    """Renames checkpoints whose JSON has changed; all processes call it, the first one does it.

    Raises UserError in all of them when there are checkpoints and all are damaged.
    """
    problem = _rename_broken(directory) if processes.is_first() else None
    step = processes.broadcast_from_first(problem.step if problem else None)  # others wait here
    if step is not None:
        raise _all_damaged(directory, problem or Damaged(directory, step, "as process 0 found"))


def _rename_broken(directory):
    """Damaged of the newest checkpoint if all are damaged, else None.

    Those without metadata that are older than a complete one are removed instead: orbax was killed
    while removing them.
    """
    problems, steps = {}, sorted(steps_in(directory))
    for step in steps:
        try:
            read_meta(directory, step)
            _require_metrics(directory, step)
        except Damaged as error:
            problems[step] = error
    newest = max(set(steps) - problems.keys(), default=-1)
    for step, error in problems.items():
        if step < newest and not (directory / str(step) / "meta" / "metadata").exists():
            epath.Path(directory / str(step)).rmtree(missing_ok=True)
            continue
        _rename_aside(directory, step)
        warnings.warn(f"{error}; it was renamed to {ASIDE}{step}", stacklevel=5)
    return problems[max(problems)] if problems and newest < 0 else None


def _require_metrics(directory, step):
    """Raises Damaged where the metrics by which the best checkpoint is chosen hold no number."""
    file = directory / str(step) / "metrics" / "metrics"
    try:
        found = json.loads(file.read_bytes()) if file.exists() else dict.fromkeys(BEST, 0)
        math.isfinite(found[next(name for name in BEST if name in found)])
    except (ValueError, LookupError, TypeError, RecursionError, StopIteration) as error:
        raise Damaged(directory, step, f"its metrics: {reason_of(error)}") from None


def _all_damaged(directory, problem):
    return UserError(
        f"{problem}, and there is no other one. All were renamed to {directory}/{ASIDE}*; the same "
        "command starts the stage from its beginning."
    )


def _rename_aside(directory, step):
    names = (f"{ASIDE}{step}{'_' * repeat}" for repeat in range(100))
    free = next(path for path in map(directory.joinpath, names) if not path.exists())
    (directory / str(step)).rename(free)
