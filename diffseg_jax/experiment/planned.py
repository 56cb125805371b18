"""What each stage of a run needs to know, read and checked; made by `experiment.plan`."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import optax
from jax.sharding import Mesh
from ml_collections import FrozenConfigDict

from diffseg_jax.experiment.target import Target
from diffseg_jax.inference.views import Protocol
from diffseg_jax.storage.workdir import stage_directory
from diffseg_jax.systems.system import System
from diffseg_jax.systems.task import Task
from diffseg_jax.training.log import Log


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """How the network of a labelled stage is measured.

    stage              its name
    target             what it learns and is measured by
    source             the validation images
    indices            of the images for the final numbers
    quick_indices      of the images that are measured during training
    protocol           for the final numbers
    quick_protocol     during training: one scale, not mirrored
    examples           number of images on a sheet
    crop               name of the part of an image that is measured, for depth
    absent             how classes without labels count, see `metrics.segmentation`
    convention         of the paper's numbers, reported beside ours unless it is "default"
    keep_best          whether the best checkpoint counts instead of the last one
    held_out           whether the images are others than those with which stages learn
    learned            (source, indices) of those with which they learn; None: not known
    folds              index -> the number of the fold in which it is held out, in turn; None for
                       validation images that are always the same
    note               a sentence about the validation images, or ""
    step_folds         parts of them, each of which chooses a step that the others test; 0: none
    own_images         whether the images are those by which its run is measured: else they
                       calibrate nothing
    recorded           JSON values that stand beside the results
    timed              protocol -> seconds of an image, as the last `results.measure` found
    image_counts       index of an image -> its counts, as the last `results.measure` found
    """

    stage: str
    target: Target
    task: Task
    source: Sequence
    indices: np.ndarray
    quick_indices: np.ndarray
    protocol: Protocol
    quick_protocol: Protocol
    batch_size: int
    examples: int
    absent: str
    convention: str
    keep_best: bool
    held_out: bool
    recorded: dict
    workdir: Path
    mesh: Mesh
    log: Log
    learned: tuple[Sequence, np.ndarray] | None = None
    folds: Mapping[int, int] | None = None
    note: str = ""
    step_folds: int = 0
    crop: str = "none"
    own_images: bool = True
    timed: dict[Protocol, float] = dataclasses.field(default_factory=dict)
    image_counts: dict[int, np.ndarray] = dataclasses.field(default_factory=dict)

    @property
    def first_example(self) -> dict:
        """The first example that is measured; in folds that is not always the first of `source`."""
        return self.source[int(self.indices[0])]


@dataclasses.dataclass(frozen=True)
class StagePlan:
    """What one stage does, from which data and arrays it starts, and how it is monitored.

    options      the stage's part of the config
    target       what it learns, if it learns from labels
    source       the images it learns from;  indices  those of them that are used
    threads, workers  that read them
    start        "random", "weights", the name of a stage or a directory
    loaded       () -> arrays that replace random ones of a fresh stage; None where there are none
    meta         the metadata that is saved beside every checkpoint
    note         a sentence for the user before it runs, or ""
    subset       which labelled images are used, JSON values; None for an unlabelled stage
    evaluation   None for an unlabelled stage
    examples     number of images on a sheet of an unlabelled stage
    optimizer    and the learning-rate schedule inside it; None for a fit, which has its own
    reader       the fit that starts from this stage, which learns without labels; None for none
    numbers      index -> the number by which changed copies of that image are drawn for a fit,
                 where that is not the index
    keep_best    whether later stages and the results take its best checkpoint, not the last
    """

    name: str
    target: Target
    system: System
    options: FrozenConfigDict
    seed: int
    source: Sequence
    indices: np.ndarray
    threads: int
    workers: int
    task: Task
    start: str
    loaded: Callable[[], dict] | None
    meta: dict
    note: str
    subset: dict | None
    evaluation: Evaluation | None
    examples: int
    optimizer: optax.GradientTransformation | None
    schedule: Callable | None
    keep_best: bool
    workdir: Path
    mesh: Mesh
    log: Log
    reader: "Reader | None" = None
    numbers: Mapping[int, int] = dataclasses.field(default_factory=dict)

    @property
    def directory(self) -> Path:
        """Where its checkpoints are."""
        return stage_directory(self.workdir, self.name)


@dataclasses.dataclass(frozen=True)
class Reader:
    """A fit that reads the network of a stage that learns without labels.

    fit    the plan of the fit
    adopt  network of the other stage -> the arrays that the fit takes over from it
    given  () -> the arrays that files give the fit
    """

    fit: StagePlan
    adopt: Callable[[dict], dict]
    given: Callable[[], dict]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The stages of a run, in their order.

    target   what its labelled stages learn
    skipped  names of stages that the system skips or that have no steps
    order    names of all stages of the run, those that are skipped too
    """

    target: Target
    stages: tuple[StagePlan, ...]
    skipped: tuple[str, ...]
    order: tuple[str, ...]
    workdir: Path
    mesh: Mesh
    log: Log
