"""Numbers and images of a run in Weights & Biases, MLflow and Trackio, beside the workdir.

A tracker is a convenience: what it raises is said once, and the run goes on without it.
"""

import contextlib
import importlib
import importlib.util
import os
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from flax.traverse_util import flatten_dict as flatten
from ml_collections import ConfigDict
from PIL import Image

from diffseg_jax.devices.processes import is_first
from diffseg_jax.errors import UserError, require_known
from diffseg_jax.storage.paths import in_bucket, read_object, write_json
from diffseg_jax.storage.workdir import as_json
from diffseg_jax.training.log import Log

PROJECT = "diffseg_jax"  # in which runs are listed, unless a variable of the tracker says another
TRACKED = "tracked.json"  # tracker -> identifier of this run, in the workdir, by which it resumes
LONGEST = 500  # characters of an option, the limit of older servers of MLflow


class Tracker(Protocol):
    """One service. It may raise anything; `Trackers` catches it."""

    identifier: str

    def numbers(self, stage: str, step: int, numbers: dict[str, float]):
        """Numbers of a step of a stage."""

    def image(self, step: int, name: str, image: np.ndarray):
        """An image u8[H,W,3]."""

    def end(self, failed: bool):
        """The run has ended, or an error or a signal ends it."""


class WeightsAndBiases:
    """wandb; WANDB_MODE=offline writes to the workdir alone, WANDB_PROJECT names the project."""

    def __init__(self, module, title, config, folder, identifier):
        self.module, self.identifier = module, identifier or uuid.uuid4().hex[:12]
        self.run = module.init(
            project=None if "WANDB_PROJECT" in os.environ else PROJECT, name=title, config=config,
            dir=folder, id=self.identifier, resume="allow",
        )  # fmt: skip
        self.stages = set()

    def numbers(self, stage, step, numbers):
        if stage not in self.stages:
            self.run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
            self.stages.add(stage)
        self.run.log({f"{stage}/{n}": v for n, v in {**numbers, "step": step}.items()})

    def image(self, step, name, image):
        self.run.log({name: self.module.Image(image, caption=f"step {step}")})

    def end(self, failed):
        self.run.finish(exit_code=int(failed))


class MLflow:
    """mlflow; a file in the workdir, unless MLFLOW_TRACKING_URI names a server or another one."""

    def __init__(self, module, title, config, folder, identifier):
        address = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        self.client = module.MlflowClient(address)
        self.entities, self.identifier = module.entities, identifier
        if not self._resumes(module):
            self._begin(title, config, folder)

    def _resumes(self, module) -> bool:
        """Whether the run is there and goes on; its database may be gone."""
        if self.identifier is None:
            return False
        try:
            self.client.update_run(self.identifier, status="RUNNING")
            return True
        except module.exceptions.MlflowException:
            return False

    def _begin(self, title, config, folder):
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(project)
        place = None if "MLFLOW_TRACKING_URI" in os.environ else (folder / "mlflow").as_uri()
        experiment = (
            found.experiment_id if found else self.client.create_experiment(project, place)
        )
        self.identifier = self.client.create_run(experiment, run_name=title).info.run_id
        options = flatten(config, sep=".").items()
        options = [(name, str(value)[:LONGEST]) for name, value in options]
        for start in range(0, len(options), 100):  # the most of one request
            chosen = [self.entities.Param(*pair) for pair in options[start : start + 100]]
            self.client.log_batch(self.identifier, params=chosen)

    def numbers(self, stage, step, numbers):
        now = int(1000 * time.time())
        metrics = [
            self.entities.Metric(f"{stage}/{name}", float(value), now, step)
            for name, value in numbers.items()
        ]
        self.client.log_batch(self.identifier, metrics=metrics)

    def image(self, step, name, image):
        self.client.log_image(self.identifier, Image.fromarray(image), f"{name}_{step:07d}.png")

    def end(self, failed):
        self.client.set_terminated(self.identifier, "FAILED" if failed else "FINISHED")


class Trackio:
    """trackio, on this machine; TRACKIO_DIR says where, and TRACKIO_SPACE_ID names a Space."""

    def __init__(self, module, title, config, folder, identifier):
        self.module, self.identifier = module, identifier or f"{title}-{uuid.uuid4().hex[:6]}"
        module.init(
            project=PROJECT, name=self.identifier, config=config, resume="allow", embed=False
        )

    def numbers(self, stage, step, numbers):
        named = {f"{stage}/{name}": value for name, value in numbers.items()}
        self.module.log({**named, f"{stage}/step": step})

    def image(self, step, name, image):
        self.module.log({name: self.module.Image(image, caption=f"step {step}")})

    def end(self, failed):
        self.module.finish()


TRACKERS = {"wandb": WeightsAndBiases, "mlflow": MLflow, "trackio": Trackio}


def require_trackers(names: Sequence[str]):
    """UserError for an unknown tracker, and for one whose package is missing."""
    for name in names:
        require_known(name, TRACKERS, "tracker")
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f'--track={name} needs another package: pip install "diffseg_jax[{name}]".'
            )


@contextlib.contextmanager
def tracking(log: Log, names: Sequence[str], config: ConfigDict, workdir: Path):
    """Within it, the numbers and images of a log go to trackers as well; names: of TRACKERS."""
    if names and is_first():
        log.trackers = Trackers(names, as_json(config.to_dict()), workdir, log.say)
    failed = True
    try:
        yield
        failed = False
    finally:
        if log.trackers:
            log.trackers.end(failed)
        log.trackers = None


class Trackers:
    """Several trackers of one run, none of which can stop it."""

    def __init__(
        self, names: Sequence[str], config: dict, workdir: Path, say: Callable[[str], None]
    ):  # fmt: skip
        """names: of TRACKERS; say: gets a sentence where one fails."""
        self.say, self.open = say, {}
        file = workdir / TRACKED
        before = read_object(file)
        folder = Path.cwd() if in_bucket(workdir) else workdir.absolute()
        for name in names:
            self.say(f"opens {name}")  # no row is drawn, as wandb keeps a copy of standard output
            begin = lambda name=name: TRACKERS[name](
                importlib.import_module(name), workdir.name, config, folder, before.get(name)
            )
            if tracker := self._attempt(name, begin):
                self.open[name] = tracker
        if self.open:
            write_json(file, before | {n: each.identifier for n, each in self.open.items()})

    def numbers(self, stage: str, step: int, numbers: dict[str, float]):
        """As of `Tracker`; so are the others."""
        self._each(lambda tracker: tracker.numbers(stage, step, numbers))

    def image(self, step: int, name: str, image: np.ndarray):
        self._each(lambda tracker: tracker.image(step, name, image))

    def end(self, failed: bool):
        self._each(lambda tracker: tracker.end(failed))
        self.open = {}

    def _each(self, act):
        for name, tracker in list(self.open.items()):
            self._attempt(name, lambda tracker=tracker: act(tracker))

    def _attempt(self, name, act):
        """What a tracker returns; it is left out from its first error on."""
        try:
            return act()
        except (Exception, SystemExit) as error:  # services raise many kinds, and some exit
            lines = str(error).strip().splitlines()
            why = f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__
            self.say(f"warning: {name} failed ({why}). The run goes on without it.")
            self.open.pop(name, None)
            return None
