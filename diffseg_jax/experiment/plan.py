"""What all stages of one command share: the config, the data, the tasks, the log."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from diffseg_jax.config.options import COMMON, FIT, LABELLED, UNLABELLED
from diffseg_jax.config.schema import check_options
from diffseg_jax.data.pipeline import Cached
from diffseg_jax.data.sources import open_source
from diffseg_jax.data.subsets import subset
from diffseg_jax.data.transforms import augment
from diffseg_jax.devices import processes
from diffseg_jax.devices.mesh import check_batch, make_mesh
from diffseg_jax.errors import UserError, choose, counted
from diffseg_jax.inference.views import protocol_of
from diffseg_jax.systems import SYSTEMS
from diffseg_jax.systems.system import Task
from diffseg_jax.training.log import Log

STARTS = ("random", "weights")  # of a stage; any other start names a stage or its directory


@dataclasses.dataclass
class Run:
    """What all stages of one command share."""

    config: ConfigDict
    workdir: Path
    log: Log
    mesh: jax.sharding.Mesh
    tasks: dict[str, Task] = dataclasses.field(default_factory=dict)
    loaded: dict[str, dict] = dataclasses.field(default_factory=dict)  # by the check, until used

    @property
    def system(self):
        return SYSTEMS[self.config.system]

    def task(self, name: str) -> Task:
        """What the system wants to be done in a stage; made once."""
        if name not in self.tasks:
            self.tasks[name] = make_task(self, name)
        return self.tasks[name]

    @functools.cached_property
    def train(self) -> Sequence:
        return open_data(self.config, "data", self.config.data.train)

    @functools.cached_property
    def val(self) -> Sequence:
        return open_data(self.config, "data", self.config.data.val)

    @functools.cached_property
    def unlabelled(self) -> Sequence:
        return open_data(self.config, "unlabelled", self.config.unlabelled.split)

    @functools.cached_property
    def labelled(self) -> np.ndarray:
        """Places in `train` of the images whose labels are used."""
        data = self.config.data
        return subset(
            self.train.names, fraction=data.fraction, count=data.count, seed=data.subset_seed,
            list_path=data.list_path,
        )  # fmt: skip

    def places_of_val(self, most: int = 0) -> np.ndarray:
        """The first `most` validation images, all for 0."""
        return np.arange(len(self.val))[: most or None]


def open_data(config: ConfigDict, part: str, split: str) -> Sequence:
    """The source that a config's part "data" or "unlabelled" names."""
    data = config[part]
    try:
        source = open_source(data.source, split, path=data.path, **data.options.to_dict())
    except UserError as error:
        raise UserError(f"--config.{part}: {error}") from None
    return Cached(source) if data.cache else source


def make_task(run: Run, name: str) -> Task:
    """What the system wants to be done in a stage, its answers compiled once for all askers."""
    options = run.config.stages[name]
    classes = run.val.labels.names if is_labelled(run, name) else run.unlabelled.classes
    task = run.system.make_task(run.config, options.kind, tuple(options.augment.crop), len(classes))
    return compiled(task, run.mesh)


def compiled(task: Task, mesh: jax.sharding.Mesh) -> Task:
    """The task with its answers compiled."""
    whole = NamedSharding(mesh, PartitionSpec())  # readable in every process
    return dataclasses.replace(
        task,
        predict=task.predict and jax.jit(task.predict),
        trace=task.trace and jax.jit(task.trace),
        denoise=task.denoise and jax.jit(task.denoise, out_shardings=whole),
    )


def augmentation(options: dict, labelled: bool):
    """(image, mask, rng) -> example; unlabelled stages never see a mask."""
    change = functools.partial(augment, **options)
    return change if labelled else functools.partial(_without_mask, change)


def _without_mask(change, image, mask, rng):
    return change(image, None, rng)


def is_labelled(run: Run, name: str) -> bool:
    """Whether a stage learns from labels, hence can be measured."""
    return run.system.STAGES[run.config.stages[name].kind] == "labelled"


def is_fit(config: ConfigDict, name: str) -> bool:
    """Whether a stage fits an ensemble to features, without the training loop."""
    return config.stages[name].kind == FIT


def left_out(run: Run, name: str) -> bool:
    """Whether a stage is not run: the system says so, or it has no steps."""
    options = run.config.stages[name]
    if run.system.skips_stage(run.config, options.kind):
        return True
    return not is_fit(run.config, name) and options.steps == 0


def check_config(config: ConfigDict):
    """Raises UserError for a config that cannot run, before anything is read or written."""
    values = config.to_dict()
    system = choose(SYSTEMS, values.get("system", ""), "system")
    kinds = _kinds(values)
    for name, kind in kinds.items():
        choose(system.STAGES, kind, f"kind of stage {name}")
    kinds = set(kinds.values())
    learns_from = {system.STAGES[kind] for kind in kinds}
    labelled = "labelled" in learns_from
    allowed = {**COMMON, **system.OPTIONS, **(LABELLED if labelled else {})}
    allowed |= UNLABELLED if "unlabelled" in learns_from or "unlabelled" in values else {}
    for kind in kinds:
        allowed |= system.OPTIONS_OF.get(kind, {})
    check_options(values, allowed)
    for place, name in enumerate(config.run):
        choose(config.stages, name, "stage in config.run")
        if name in config.run[:place]:
            raise UserError(
                f"config.run names {name} twice. Write each stage once, all in one --config.run."
            )
        if name in STARTS:
            raise UserError(f"a stage is named {name}, which is a start. Take another name.")
    system.check(config)
    for name in config.run:
        if is_fit(config, name):
            continue
        stage = config.stages[name]
        check_batch(stage.batch_size, stage.accumulate, f"stages.{name}.batch_size")
        evaluate, checkpoint = stage.every.evaluate, stage.every.checkpoint
        if labelled and config.evaluate.checkpoint == "best" and evaluate % checkpoint:
            raise UserError(
                f"stages.{name}.every.evaluate is {evaluate}, but to keep the best checkpoint it "
                f"must be a multiple of every.checkpoint, {checkpoint}. "
                f"Try --config.stages.{name}.every.checkpoint={evaluate}."
            )
    if labelled:
        protocol_of(config.evaluate)


def _kinds(values):
    """Stage -> kind, of a config that is not checked yet; what is no text is left to the check."""
    stages = values.get("stages")
    stages = stages if isinstance(stages, Mapping) else {}
    stages = {name: stage for name, stage in stages.items() if isinstance(stage, Mapping)}
    kinds = {name: stage.get("kind") for name, stage in stages.items()}
    return {name: kind for name, kind in kinds.items() if isinstance(kind, str)}


def start_run(config: ConfigDict, workdir: Path) -> Run:
    """Checks the config; what the stages read and the workdir are checked by the caller."""
    check_config(config)
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    return Run(config, workdir, Log(workdir, processes.is_first()), mesh)


def find_devices(mesh: jax.sharding.Mesh) -> str:
    """What a mesh consists of, in words."""
    said = counted(mesh.size, "device")
    if mesh.size > 1:
        said += f" (data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']})"
    if jax.process_count() > 1:
        said += f" of {jax.process_count()} processes"
    return said
