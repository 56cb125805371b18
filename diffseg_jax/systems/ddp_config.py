"""DDP in a config: its options and checks, where a stage starts, and foreign weights."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
from flax.traverse_util import flatten_dict as flatten
from flax.traverse_util import unflatten_dict as unflatten

from diffseg_jax.config.options import MASK_LOSS
from diffseg_jax.config.schema import Flag, Number, Optional, Several, Text, lacking
from diffseg_jax.diffusion.label_codes import CODES, code_width
from diffseg_jax.diffusion.schedules import LOG_SNRS
from diffseg_jax.errors import UserError
from diffseg_jax.models.bev_network import BEVSettings
from diffseg_jax.models.ddp_network import DDPSettings
from diffseg_jax.models.dense_network import MIN_SIDE
from diffseg_jax.models.depth_network import DepthSettings
from diffseg_jax.systems import ddp
from diffseg_jax.systems.ddp_bev import BEV
from diffseg_jax.systems.ddp_depth import DEPTH, DEPTH_SCHEDULES
from diffseg_jax.systems.ddp_query import query_task
from diffseg_jax.systems.ddp_segmentation import SEGMENTATION
from diffseg_jax.systems.dense_task import DenseTask
from diffseg_jax.systems.system import (
    Setting,
    System,
    enlarging,
    require_same_network,
    require_start_of_new_head,
    split_start,
)
from diffseg_jax.systems.task import Task
from diffseg_jax.weights.backbones import load_backbone
from diffseg_jax.weights.ddp import is_ddp, load_ddp, settings_of
from diffseg_jax.weights.ddp_bev import bev_settings_of, load_bev
from diffseg_jax.weights.ddp_depth import depth_settings_of, load_ddp_depth
from diffseg_jax.weights.formats import read_arrays

TASKS = {task.name: task for task in (SEGMENTATION, DEPTH, BEV)}


def dense_task_of(values: Mapping) -> DenseTask:
    """The task that a config, or the metadata of a checkpoint, names."""
    return TASKS[values.get("task", lacking("")["task"])]


def make_task(config, kind: str, crop: tuple[int, int], num_classes: int) -> Task:
    """The task of one stage, as of `ddp.make_task`."""
    dense = dense_task_of(config)
    if kind == "decoder":
        dense = dataclasses.replace(dense, plain=query_task)
    return ddp.make_task(dense, config, kind, crop, num_classes)


# ---- where a stage starts ----------------------------------------------------------------------


def start_of(config, kind: str, start: str) -> str:
    """Where a stage starts: "random", "weights", the name of a stage, or a stage's directory."""
    return "random" if start == "weights" and not config.weights else start


def adopt(abstract: dict, task: Task, previous: dict, meta: dict) -> dict:
    """The arrays that a stage takes over from another one: all of them.

    abstract  shapes of this stage's network
    previous  {"params", "stats"} of arrays, meta its `Task.meta`

    With `new_head` the arrays that depend on the classes start at random. Raises UserError when
    label codes, classes or networks differ.
    """
    if "sampling" not in meta:
        raise UserError(
            "the checkpoint to start from is of another system. Give a stage of a ddp run, or what "
            "python -m diffseg_jax.convert --source=ddp wrote."
        )
    dense = dense_task_of(task.meta)
    if (other := dense_task_of(meta)) is not dense:
        raise UserError(
            f"the checkpoint to start from is of DDP for {other.name}, but this config is for "
            f"{dense.name}. Give a checkpoint of its task."
        )
    here, there = dense.settings_of(task.meta), dense.settings_of(meta)
    require_same_settings(here, there, STARTS[dense.name].settings)
    free = dense.adjustable if task.meta["kind"] == "train" else ()
    pairs = {
        option: (getattr(here, name), getattr(there, name))
        for name, option in dense.options.items() if name not in free
    }  # fmt: skip
    pairs["diffusion.schedule"] = task.meta["sampling"]["schedule"], meta["sampling"]["schedule"]
    for option, (mine, theirs) in pairs.items():
        if mine != theirs:
            raise UserError(_other_code(option, mine, theirs))
    if not task.meta.get("new_head"):
        mine, theirs = (each["model"].get("num_classes") for each in (task.meta, meta))
        if theirs != mine:
            new = "a stage of kind train and " if task.meta["kind"] == "align" else ""
            raise UserError(
                f"the data have {mine} classes, but the checkpoint to start from has "
                f"{theirs}. To train it further with a new head takes {new}--mode=train "
                "--config.new_head=True."
            )
        require_same_network(abstract, previous)
        return previous
    kept = _without_classes(previous)
    require_same_network(_without_classes(abstract), kept)
    return kept


SETTINGS = (  # for the shapes of the arrays and their meaning
    "backbone", "channels", "depths", "heads", "window", "down_epsilon", "width", "layers",
    "decoder_heads", "points", "mlp", "groups",
)  # fmt: skip
DEDUCED = (  # from the arrays of a file
    "backbone", "channels", "depths", "heads", "window", "width", "layers", "mlp",
)  # fmt: skip
RIG_SETTINGS = (
    "channels", "depths", "heads", "window", "width", "layers", "decoder_heads", "points", "mlp",
    "neck", "lifted", "stages", "lidar", "fused", "fusion", "features",
)  # fmt: skip
RIG_DEDUCED = (
    "channels", "depths", "heads", "window", "width", "layers", "mlp", "neck", "lifted", "stages",
    "features",
)  # fmt: skip


def require_same_settings(here, there, names):
    """Raises UserError that lists the options of config.model in which two networks differ."""
    differing = [name for name in names if getattr(here, name) != getattr(there, name)]
    if differing:
        listed = ", ".join(f"{name}={getattr(there, name)}" for name in differing)
        raise UserError(
            f"the checkpoint to start from has another network: {listed}, where config.model has "
            f"{', '.join(str(getattr(here, name)) for name in differing)}. Take the config, or the "
            "preset after its colon, that it was trained with."
        )


def _other_code(option, mine, theirs):
    return (
        f"{option} is {mine}, but the checkpoint to start from was trained with {theirs}. "
        f"Try --config.{option}={theirs}."
    )


HEADS = (("head",), ("auxiliary", "head"))
CLASS_PARTS = (*HEADS, ("embedding",))


def _without_classes(network):
    """A network's tree without the parameters whose shape depends on the number of classes."""
    flat = flatten(network)
    return unflatten({
        path: leaf
        for path, leaf in flat.items()
        if not any(path[1 : 1 + len(part)] == part for part in CLASS_PARTS)
    })  # fmt: skip


def class_rows(meta: dict, names) -> dict:
    """The arrays that depend on the classes, and the names of their rows; of `System.class_rows`.

    None is the ignore label, and a number a channel of the features that stand before the codes. A
    code of bits has a row for each power of two.
    """
    settings, classes = SEGMENTATION.settings_of(meta), tuple(names)
    kind, coded = meta["kind"], (*classes, None)
    rows = {
        ("params", *head, leaf): (-1, classes)
        for head in (HEADS[1:] if kind == "plain" else HEADS)
        for leaf in ("kernel", "bias")
    }
    if settings.code == "embedding":
        if kind not in ddp.UNNOISED:
            rows["params", "embedding", "table"] = 0, coded
    elif kind != "plain":
        if settings.code == "bits":
            bits = code_width("bits", len(classes), settings.width)
            coded = tuple(f"{2**bit}s" for bit in reversed(range(bits)))
        rows["params", "transform", "kernel"] = 0, (*range(settings.width), *coded)
        if kind == "decoder":
            rows["params", "query"] = 0, coded
    return rows


def label_network(arrays, settings: DDPSettings, source: str, meta: dict) -> tuple[dict, dict]:
    """The network of a published file for segmentation, and `Task.meta` as of a stage with it."""
    found = settings_of(arrays, source)
    require_same_settings(settings, found, DEDUCED)
    if settings.code != found.code:
        raise UserError(_other_code("diffusion.code", settings.code, found.code))
    settings = dataclasses.replace(settings, num_classes=found.num_classes)
    network = load_ddp(arrays, settings, source)
    return network, {**meta, "model": dataclasses.asdict(settings)}


def depth_network(arrays, settings: DepthSettings, source: str, meta: dict) -> tuple[dict, dict]:
    """The network of a published file for depth, and `Task.meta` as of a stage with it."""
    found = depth_settings_of(arrays, source)
    require_same_settings(settings, found, DEDUCED)
    if settings.timed != found.timed:
        raise UserError(_other_code("depth.timed", settings.timed, found.timed))
    return load_ddp_depth(arrays, settings, source), meta


def rig_network(arrays, settings: BEVSettings, source: str, meta: dict) -> tuple[dict, dict]:
    """The network of a published file for BEV, and `Task.meta` as of a stage with it."""
    found = bev_settings_of(arrays, source)
    require_same_settings(settings, found, RIG_DEDUCED)
    for name in ("x", "y", "z", "depth", "timed"):
        if getattr(settings, name) != getattr(found, name):
            raise UserError(
                _other_code(f"bev.{name}", getattr(settings, name), getattr(found, name))
            )
    if settings.num_classes != found.num_classes:
        raise UserError(
            f"{source} predicts {found.num_classes} classes, but the data have "
            f"{settings.num_classes}. Give the data that it was trained with."
        )
    return load_bev(arrays, settings, source), meta


@dataclasses.dataclass(frozen=True)
class Start:
    """How the networks of a task start from the arrays of others.

    file      (arrays, settings, name of the file, `Task.meta`) -> the network of a published file,
              and `Task.meta` as of a stage with it
    settings  that a network to start from must share
    backbone  its path in the parameters
    """

    file: Callable
    settings: tuple[str, ...] = SETTINGS
    backbone: tuple[str, ...] = ("backbone",)


STARTS = {
    SEGMENTATION.name: Start(label_network),
    DEPTH.name: Start(depth_network),
    BEV.name: Start(rig_network, RIG_SETTINGS, ("camera", "backbone")),
}


def load_weights(config, abstract: dict, task: Task) -> dict:
    """The arrays that the file config.weights gives a stage.

    An official DDP checkpoint gives all of them, an ImageNet classifier those of its backbone.
    Raises UserError for arrays that are missing, extra or of another shape.
    """
    dense = dense_task_of(task.meta)
    settings, own = dense.settings_of(task.meta), STARTS[dense.name]
    part = config.get("weights_part", "")
    arrays = read_arrays(config.weights, part)
    if is_ddp(arrays):
        found = own.file(arrays, settings, config.weights, task.meta)
        return adopt(abstract, task, *found)
    if task.meta["kind"] == "align":
        raise UserError(
            f"{config.weights} holds only a backbone, but a stage of kind align continues from a "
            "trained network. Train first, or give an official DDP checkpoint."
        )
    place, inside = ("params", *own.backbone), abstract
    for key in place:
        inside = inside[key]
    shapes = jax.tree.map(lambda leaf: tuple(leaf.shape), inside)
    found = load_backbone(config.weights, shapes, settings, part)
    for key in reversed(place):
        found = {key: found}
    return found


# ---- options and checks ------------------------------------------------------------------------


OPTIONS = {
    "weights": Text(),
    "weights_part": Optional(Text()),
    "loss": MASK_LOSS,
    "new_head": Flag(),
    "model": {
        "backbone": Text(("swin", "convnext")),
        "channels": Several(Number(int, 4, 16384), 4),
        "depths": Several(Number(int, 1, 64), 4),
        "heads": Several(Number(int, 1, 1024)),
        "window": Number(int, 0, 64),
        "drop_path": Number(float, 0, 0.99),
        "down_epsilon": Number(float, 1e-12, 1),
        "width": Number(int, 4, 16384),
        "layers": Number(int, 1, 64),
        "decoder_heads": Number(int, 1, 1024),
        "points": Number(int, 1, 64),
        "mlp": Number(int, 1, 65536),
        "groups": Number(int, 1, 16384),
        "auxiliary_dropout": Number(float, 0, 0.99),
    },
    "diffusion": {
        "schedule": Text(tuple(LOG_SNRS)),
        "code": Text(CODES),
        "code_scale": Number(float, 1e-6, 100),
        "high": Number(float, 0.001, 1),
        "auxiliary": Number(float, 0),
    },
    "sampling": {
        "steps": Number(int, 1, 1000),
        "sampler": Text(ddp.SAMPLERS),
        "draws": Number(int, 1, 256),
        "time_difference": Number(int, 0, 1000),
        "start": Number(float, 0, 0.99),
        "accumulate": Flag(),
        "uncertainty": Optional(Text(("entropy", "changes", "spread"))),  # of version 0.1.0
    },
    "sweep": {
        "steps": Several(Number(int, 1, 1000), minimum=1),
        "draws": Several(Number(int, 1, 256)),
    },
}


def check(config):
    """Raises UserError for option values that do not go together, and warns of odd ones."""
    dense = dense_task_of(config)
    if problem := dense.settings(config, 2).problem():
        raise UserError(f"model: {problem}")
    if config.get("new_head"):
        require_start_of_new_head(config, start_of, continues=("align",))
    for name in config.run:
        stage = config.stages[name]
        if stage.kind in ddp.UNNOISED and dense.plain is None:
            raise UserError(
                f"stages.{name} is of kind {stage.kind}, which only segmentation has, but the task "
                f"is {dense.name}. Try --config.stages.{name}.kind=train."
            )
        start = split_start(stage.start)[0]
        if stage.kind == "align" and start_of(config, stage.kind, start) == "random":
            raise UserError(
                f"stages.{name} is of kind align, which continues from a trained network, but "
                f"starts at random. Try --config.stages.{name}.start=runs/a/checkpoints/train."
            )
        crop = tuple(stage.augment.crop)
        if min(crop) < MIN_SIDE:
            larger = ""
            if "short" in stage.augment:
                flags = enlarging(name, stage.augment, 64)
                larger = f", and for images smaller than that also {flags}"
            raise UserError(
                f"stages.{name}.augment.crop is {crop}, but both sides must be {MIN_SIDE} or more, "
                f'the stride of the backbones. Try --config.stages.{name}.augment.crop="(64, 64)"'
                f"{larger}."
            )


def further(config):
    """The config with which trained stages go on, with their heads."""
    if "new_head" in config:
        config.new_head = False
    return config


def note(config, kind: str, start: str) -> str:
    """A sentence for the user before a stage with that `start` runs, or an empty string."""
    if start == "weights" and not config.weights:
        return (
            "no weights were given (--config.weights=<file>), so the backbone starts at random; "
            "the paper's is pretrained on ImageNet"
        )
    return ""


def with_steps(config, steps: int | None = None, draws: int | None = None):
    """A copy of the config with so many reverse steps and draws of noise; None leaves a number."""
    changed = config.copy_and_resolve_references()
    for key, value in (("steps", steps), ("draws", draws)):
        if value is not None:
            changed.sampling[key] = value
    return changed


def sweep(config, kind: str) -> list[Setting]:
    """The settings of config.sweep with which a trained network is measured; one without noise."""
    config = further(config.copy_and_resolve_references())  # nothing is trained
    if kind in ddp.UNNOISED:
        return [Setting(0, 1, config, {"sampling": config.sampling.to_dict()})]
    pairs = [(steps, draws) for draws in config.sweep.draws for steps in config.sweep.steps]
    configs = [with_steps(config, *pair) for pair in pairs]
    return [
        Setting(*pair, changed, {"sampling": changed.sampling.to_dict()})
        for pair, changed in zip(pairs, configs, strict=True)
    ]


BEV_OPTIONS = {  # likewise
    "new_head": None,
    "loss": None,
    "model": {
        **{key: OPTIONS["model"][key] for key in (
            "channels", "depths", "heads", "window", "drop_path", "width", "layers",
            "decoder_heads", "points", "mlp",
        )},
        "neck": Number(int, 1, 16384),
        "lifted": Number(int, 1, 16384),
        "stages": Several(Several(Number(int, 1, 16384), 3), 3),
        "lidar": Number(int, 0, 16384),
        "fused": Number(int, 1, 16384),
        "fusion": Several(Several(Number(int, 1, 16384), 3), 2),
        "features": Number(int, 1, 16384),
    },
    "bev": {
        **{name: Several(Number(float), 3) for name in ("x", "y", "z", "depth", "output")},
        "timed": Flag(),
        "resize": Number(float, 0.01, 10),
    },
    "diffusion": {
        "schedule": OPTIONS["diffusion"]["schedule"],
        "code_scale": OPTIONS["diffusion"]["code_scale"],
        "high": OPTIONS["diffusion"]["high"],
    },
    "sampling": {
        **{key: OPTIONS["sampling"][key] for key in ("steps", "draws", "time_difference", "start")},
        "sampler": Text(("ddim",)),
    },
}  # fmt: skip
DEPTH_OPTIONS = {  # of a config for depth, in place of those of OPTIONS; None: it has none
    "new_head": None,
    "loss": None,
    "model": {key: rule for key, rule in OPTIONS["model"].items() if key != "auxiliary_dropout"},
    "depth": {
        "low": Number(float, 1e-6, 1e6),
        "high": Number(float, 1e-6, 1e6),
        "timed": Flag(),
        "bounded": Flag(),
        "warmup": Number(int, 0),
    },
    "diffusion": {
        "schedule": Text(tuple(DEPTH_SCHEDULES)),
        "code_scale": OPTIONS["diffusion"]["code_scale"],
        "high": OPTIONS["diffusion"]["high"],
    },
    "sampling": {
        **{key: OPTIONS["sampling"][key] for key in ("steps", "draws", "time_difference", "start")},
        "sampler": Text(("ddim",)),
    },
}

DDP = System(
    stages=dict.fromkeys(("train", "align", *ddp.UNNOISED), "labelled"),
    make_task=make_task,
    adopt=adopt,
    load_weights=load_weights,
    class_rows=class_rows,
    options=OPTIONS,
    origin=(
        SEGMENTATION.described,
        "DDP: Diffusion Model for Dense Visual Prediction",
        "https://arxiv.org/abs/2303.17559",
    ),
    networks={name: task.described for name, task in TASKS.items()},
    tasks={"segmentation": {}, "depth": DEPTH_OPTIONS, "bev": BEV_OPTIONS},
    check=check,
    start_of=start_of,
    further=further,
    note=note,
    with_steps=with_steps,
    sweep=sweep,
    prediction=("sampling", "sweep"),
)
