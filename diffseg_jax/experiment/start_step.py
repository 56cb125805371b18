"""The network that a stage starts from: of which checkpoint, and for which classes."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
from flax.traverse_util import flatten_dict as flatten
from flax.traverse_util import unflatten_dict as unflatten

from diffseg_jax.errors import UserError, shortened
from diffseg_jax.storage.checkpoints import StageCheckpoints, steps_in
from diffseg_jax.storage.integrity import Damaged
from diffseg_jax.storage.networks import open_network
from diffseg_jax.systems.system import System, with_classes
from diffseg_jax.systems.task import Task


def open_start(directory: Path, which: str, say: Callable[[str], None]) -> tuple[dict, dict]:
    """The network that a stage starts from and its metadata; `say` logs which step was taken.

    directory, which  as of `step_to_start_from`
    Raises UserError for a damaged checkpoint that `which` names, with one that is not.
    """
    step, reason = step_to_start_from(directory, which)
    try:
        opened = open_network(directory, step)
    except Damaged as error:
        opened, reason = open_network(directory), f"the last one that is not damaged, as {error}"
        if which:
            found = opened[1]["step"]
            other = "last" if found == max(steps_in(directory)) else found
            raise UserError(f"start names @{which}, but {error}. Try @{other}.") from None
    say(f"starts from step {opened[1]['step']} of {directory}, {reason}")
    return opened


def for_classes(
    system: System, task: Task, seed: int, network: dict, before: Sequence[str],
    after: Sequence[str],
) -> dict:  # fmt: skip
    """A network that knows the classes `before` as one for the classes `after`, matched by name.

    task  of the stage with the classes `after`; the rows of new ones are as it draws them
    """
    old, new = (system.class_rows(task.meta, names) for names in (before, after))

    @jax.jit
    def draw(key):
        drawn = flatten(task.init(key))
        return {path: drawn[path] for path in new}

    return unflatten(with_classes(flatten(network), draw(jax.random.key(seed)), old, new))


def describe_classes(before: Sequence[str], after: Sequence[str]) -> str:
    """Which classes a network for the classes `after` has in common with `before`."""
    added = [name for name in after if name not in before]
    dropped = [name for name in before if name not in after]
    kept = [name for name in before if name in after]
    parts = [
        f"{does} {shortened(', '.join(names), 200)}"
        for does, names in (("adds", added), ("drops", dropped)) if names
    ]  # fmt: skip
    order = "" if kept == [name for name in after if name in before] else " in another order"
    return f"classes: {'; '.join([*parts, f'keeps {len(kept)}{order}'])}"


def step_to_start_from(directory: Path, which: str) -> tuple[int, str]:
    """A step in the directory of a stage, and why it was chosen.

    which  "best" by the evaluations during training, "last", a step, or "" for the best of a stage
           that was evaluated and the last one of another
    Raises UserError for a step that is not there.
    """
    with StageCheckpoints(directory, read_only=True) as checkpoints:
        best, last = checkpoints.best_evaluated(), checkpoints.latest()
    if which.isdigit():
        saved = sorted(steps_in(directory))
        if int(which) not in saved:
            listed = ", ".join(map(str, saved))
            raise UserError(
                f"start names step {which}, but {directory} holds the steps {listed}. "
                f"Try @{saved[-1]}."
            )
        return int(which), "the step that start names"
    if which == "best" and best is None:
        raise UserError(
            f"start names the best checkpoint, but {directory} was not evaluated while it was "
            "trained. Try @last."
        )
    if which == "last" or best is None:
        return last, "the last one"
    return best, "the best one by the evaluations during training"


def check_start_within_run(name: str, start: str, which: str, options, labelled: bool):
    """Raises UserError for a checkpoint that the stage `start`, which runs before, will not leave.

    options   those of the stage `start`
    labelled  whether it is evaluated while it is trained
    """
    flag = f"--config.stages.{name}.start={start}@"
    if which == "best" and not labelled:
        raise UserError(
            f"stages.{name}.start is {start}@best, but {start} is not evaluated while it is "
            f"trained. Try {flag}last."
        )
    if which.isdigit() and "steps" in options and int(which) != options.steps:
        raise UserError(
            f"stages.{name}.start is {start}@{which}, but {start}, which runs before it, keeps its "
            f"best and its last checkpoints. Try {flag}best or {flag}last."
        )
