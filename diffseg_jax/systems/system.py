"""What a segmentation method provides, as a plain value."""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from flax.traverse_util import flatten_dict as flatten

from diffseg_jax.errors import UserError
from diffseg_jax.systems.task import Task


@dataclasses.dataclass(frozen=True)
class Setting:
    """Options with which a trained network is measured.

    steps     reverse steps; 0 for a prediction without them
    draws     draws of noise
    config    a copy of the config with these options
    recorded  options that stand beside the numbers, JSON values
    """

    steps: int
    draws: int
    config: Mapping
    recorded: dict


@dataclasses.dataclass(frozen=True)
class TapGrid:
    """The features that are compared with each other, to choose some for the config.

    steps   noise levels
    widths  channels of every output block, in the order of the features
    config  a copy of the config whose task extracts all blocks
    """

    steps: tuple[int, ...]
    widths: tuple[int, ...]
    config: Mapping


@dataclasses.dataclass(frozen=True)
class System:
    """A segmentation method; the defaults are what most methods need.

    stages         kind of stage -> "labelled" or "unlabelled", the data that it learns from
    make_task      (config, kind, crop (height, width), number of classes) -> Task
    adopt          (abstract, task, previous, meta) -> the arrays that a stage takes over from
                   another stage's network `previous`, whose `Task.meta` is `meta`; raises UserError
                   when the networks differ
    load_weights   (config, abstract, task) -> the arrays that the file config.weights gives a stage
    class_rows     (`Task.meta`, names of the classes) -> {path: (axis, names)} of the arrays that
                   depend on the classes, see `with_classes`
    given_arrays   (config, kind, abstract) -> arrays from other files that replace random ones of a
                   fresh stage
    options        the options that its configs hold besides `config.options.COMMON`
    origin         what its network is, the title of its paper, and a link to that
    networks       task -> what its network is, where that is not the one of `origin`
    tasks          what it predicts -> options in place of those of `options`; None: it has none
    stage_options  kind of stage -> further options that a config with such a stage holds
    check          raises UserError for option values that do not go together
    complete       (config, kept) -> the config with what its files say, such as sizes of networks;
                   kept: stage -> `Task.meta` of its checkpoint, {} without one
    files          (config, kind, start) -> paths of the files, of weights and others, that a fresh
                   stage with that `start_of` reads; UserError for a package that holds one
    start_of       (config, kind, start) -> "random", "weights", a stage's name or a directory
    skips          (config, kind) -> whether the config skips stages of this kind
    note           (config, kind, start) -> a sentence for the user before the stage runs, or ""
    with_steps     (config, reverse steps, draws of noise) -> a changed copy of the config; None
                   where predictions have no reverse steps
    sweep          (config, kind) -> list of `Setting`, to compare numbers of reverse steps and
                   draws; None where predictions have no reverse steps
    tap_grid       config -> `TapGrid`, or None where no network computes the features; None for a
                   method that fits no ensemble
    further        config -> a changed copy, with which finished stages are trained further
    prediction     groups of options that only predictions read, which may change after training
    convention     of the paper's numbers, see `metrics.segmentation.CONVENTIONS`
    """

    stages: Mapping[str, str]
    make_task: Callable[..., Task]
    adopt: Callable[..., dict]
    load_weights: Callable[..., dict]
    options: Mapping
    origin: tuple[str, str, str]
    class_rows: Callable[..., Mapping] = lambda meta, names: {}
    given_arrays: Callable[..., dict] = lambda config, kind, abstract: {}
    networks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tasks: Mapping[str, Mapping] = dataclasses.field(default_factory=lambda: {"segmentation": {}})
    stage_options: Mapping[str, Mapping] = dataclasses.field(default_factory=dict)
    check: Callable = lambda config: None
    complete: Callable[..., Mapping] = lambda config, kept: config
    files: Callable[..., Sequence] = lambda config, kind, start: weights_of(config, start)
    start_of: Callable[..., str] = lambda config, kind, start: start
    skips: Callable[..., bool] = lambda config, kind: False
    note: Callable[..., str] = lambda config, kind, start: ""
    with_steps: Callable[..., Mapping] | None = None
    sweep: Callable[..., list[Setting]] | None = None
    tap_grid: Callable[[Mapping], TapGrid | None] | None = None
    further: Callable[..., Mapping] = lambda config: config
    prediction: tuple[str, ...] = ()
    convention: str = "default"


def weights_of(config, start: str) -> list[str]:
    """The path config.weights, if a stage with that `System.start_of` reads it."""
    return [config.weights] if start == "weights" and config.get("weights") else []


def split_start(start: str) -> tuple[str, str]:
    """("train", "best") of "train@best"; the second part is best, last, a step, or "" for none."""
    match = re.fullmatch(r"(.+)@(best|last|\d{1,9})", start, re.DOTALL)
    return match.groups() if match and not os.path.exists(start) else (start, "")


def require_start_of_new_head(config, start_of: Callable, continues: Sequence[str] = ()):
    """Raises UserError when new_head is set, but every stage starts at random anyway.

    start_of   as of `System`
    continues  kinds of stages that keep the head of the stage before them
    """
    kinds = {name: config.stages[name].kind for name in config.run}
    given = {name: split_start(config.stages[name].start)[0] for name in kinds}
    starts = [start_of(config, kind, given[name]) for name, kind in kinds.items()]
    within = [kind for kind, start in zip(kinds.values(), starts) if start in config.stages]
    if set(within) - set(continues):
        raise UserError(
            "new_head is True, but a stage continues from another one of this run, whose head it "
            "would lose. Run them in two commands, the second one without new_head."
        )
    if set(starts) <= {"random", *config.stages}:
        raise UserError(
            "new_head is True, but no stage starts from a checkpoint whose head could be replaced. "
            "Try --config.stages.train.start=runs/a/checkpoints/train, or new_head=False."
        )


def enlarging(name: str, augment: Mapping, short: int) -> str:
    """The flags by which a stage enlarges images until their shorter side has `short` pixels."""
    flags = f"--config.stages.{name}.augment.short={short}"
    limited = any(augment["limit"])  # which excludes short
    return flags + (f' --config.stages.{name}.augment.limit="(0, 0)"' if limited else "")


def with_classes(old: Mapping, fresh: Mapping, before: Mapping, after: Mapping) -> dict:
    """The arrays of a network for other classes: rows of the same name are the old ones.

    old, fresh     path -> array, of the network and of a random one for the new classes
    before, after  path -> (axis, a name for every index along it), for the old and the new classes;
                   arrays of other paths stay as they are
    """
    changed = {}
    for path, (axis, names) in after.items():
        index = {name: i for i, name in enumerate(before[path][1])}
        kept = [i for i, name in enumerate(names) if name in index]
        changed[path] = array = np.array(fresh[path])
        rows = np.moveaxis(np.asarray(old[path]), axis, 0)
        np.moveaxis(array, axis, 0)[kept] = rows[[index[names[i]] for i in kept]]
    return {**old, **changed}


def require_same_network(abstract: dict, taken: dict, may_lack: str = ""):
    """Raises UserError unless `taken` has the paths and shapes of `abstract`.

    may_lack  name below "params" that may be absent from what is taken
    """
    advice = 'Use the same model settings in both, or start from "random".'
    flat, expected = flatten(taken), flatten(abstract)
    extra = [path for path in flat if path not in expected]
    if extra:
        raise UserError(
            f"the stage to start from has another network: this stage has no {'.'.join(extra[0])} "
            f"({len(extra)} such arrays). {advice}"
        )
    for path, leaf in expected.items():
        if path[1] == may_lack and path not in flat:
            continue
        if path not in flat or flat[path].shape != leaf.shape:
            found = flat[path].shape if path in flat else "missing"
            raise UserError(
                f"the stage to start from has another network: {'.'.join(path)} is {found} "
                f"there and {leaf.shape} here. {advice}"
            )
