"""What every stage goes through: it resumes, reports, saves, and stops when asked to."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import jax

from diffseg_jax.errors import UserError
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.training.log import Log
from diffseg_jax.training.signals import Stopped, watched


@dataclasses.dataclass(frozen=True)
class Lifecycle:
    """A stage between its first and last step.

    total  number of steps
    """

    name: str
    total: int
    checkpoints: StageCheckpoints
    log: Log

    def resume(self, abstract: dict, mesh: jax.sharding.Mesh, part: bool = False):
        """(state of the newest intact checkpoint or None, its step or 0); the log is rewound to it.

        abstract, part  see `StageCheckpoints.newest`
        """
        state, step = self.checkpoints.newest(abstract, mesh, self.log.say, part)
        self.log.rewind(self.name, step)
        return state, step

    @contextlib.contextmanager
    def running(self) -> Iterator[Callable[[], int]]:
        """`with running() as asked`: asked() is the signal that asks to stop, or 0.

        At the end the last checkpoint is on disk. Raises Stopped for a signal that came after the
        last step.
        """
        with watched() as asked:
            yield asked
            self.checkpoints.wait()
            if signal := asked():
                raise Stopped(self.name, self.checkpoints.latest(), signal)

    def save(self, step: int, state: dict, meta: dict, numbers=None, stop: int = 0):
        """Saves a step; raises Stopped once it is on disk if the signal `stop` asked for that."""
        self.log.flush()  # a step that is saved is not run again to be logged
        saves = f"{self.name}: saves step {step}"
        with self.log.progress(saves) if stop else contextlib.nullcontext():
            self.checkpoints.save(step, state, {"stage": self.name, "step": step, **meta}, numbers)
            if stop:
                self.checkpoints.wait()
                raise Stopped(self.name, step, stop)

    def report(self, step: int, numbers: dict[str, float], text: str):
        """Logs the numbers of a step, and a line for the reader."""
        self.log.write(self.name, step, numbers)
        self.log.say(f"{self.name} {step:>{len(str(self.total))}}/{self.total}   {text}")

    def diverged(self, problem: str, advice: str) -> UserError:
        """The error that says what happened, which checkpoint is kept, and what to try."""
        self.checkpoints.wait()
        kept = self.checkpoints.latest()
        left = f"The checkpoint of step {kept} is kept" if kept else "No checkpoint was made yet"
        where = "in a new --workdir, " if kept else ""
        return UserError(f"stage {self.name}: {problem}. {left}; {where}try {advice}.")


def origin(step: int) -> str:
    """Where a stage starts, for its first log line."""
    return f"continues after step {step}" if step else "starts"
