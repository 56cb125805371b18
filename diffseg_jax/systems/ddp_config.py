"""DDP in a config: its options and checks, where a stage starts, and foreign weights."""

import dataclasses

import jax
from flax.traverse_util import flatten_dict as flatten
from flax.traverse_util import unflatten_dict as unflatten

from diffseg_jax.config.options import MASK_LOSS
from diffseg_jax.config.schema import Flag, Number, Optional, Several, Text
from diffseg_jax.diffusion.label_codes import CODES, code_width
from diffseg_jax.diffusion.schedules import LOG_SNRS
from diffseg_jax.errors import UserError
from diffseg_jax.models.ddp_network import MIN_SIDE, DDPSettings
from diffseg_jax.systems.ddp import (
    SAMPLERS,
    make_settings,
    make_task,
    settings_of_meta,
)
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
from diffseg_jax.weights.formats import read_arrays

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
    here, there = settings_of_meta(task.meta), settings_of_meta(meta)
    require_same_settings(here, there, SETTINGS_THAT_MATTER)
    pairs = {key: (getattr(here, key), getattr(there, key)) for key in ("code", "code_scale")}
    pairs["schedule"] = task.meta["sampling"]["schedule"], meta["sampling"]["schedule"]
    for key, (mine, theirs) in pairs.items():
        if mine != theirs:
            raise UserError(_other_code(key, mine, theirs))
    if not task.meta["new_head"]:
        if there.num_classes != here.num_classes:
            new = "a stage of kind train and " if task.meta["kind"] == "align" else ""
            raise UserError(
                f"the data have {here.num_classes} classes, but the checkpoint to start from has "
                f"{there.num_classes}. To train it further with a new head takes {new}--mode=train "
                "--config.new_head=True."
            )
        require_same_network(abstract, previous)
        return previous
    kept = _without_classes(previous)
    require_same_network(_without_classes(abstract), kept)
    return kept


SETTINGS_THAT_MATTER = (  # for the shapes of the arrays and their meaning
    "backbone", "channels", "depths", "heads", "window", "down_epsilon", "width", "layers",
    "decoder_heads", "points", "mlp", "groups",
)  # fmt: skip
DEDUCED = (  # from the arrays of a file
    "backbone", "channels", "depths", "heads", "window", "width", "layers", "mlp",
)  # fmt: skip


def require_same_settings(here: DDPSettings, there: DDPSettings, names):
    """Raises UserError that lists the options of config.model in which two networks differ."""
    differing = [name for name in SETTINGS_THAT_MATTER if name in names]
    differing = [name for name in differing if getattr(here, name) != getattr(there, name)]
    if differing:
        listed = ", ".join(f"{name}={getattr(there, name)}" for name in differing)
        raise UserError(
            f"the checkpoint to start from has another network: {listed}, where config.model has "
            f"{', '.join(str(getattr(here, name)) for name in differing)}. Take the config, or the "
            "preset after its colon, that it was trained with."
        )


def _other_code(key, mine, theirs):
    return (
        f"diffusion.{key} is {mine}, but the checkpoint to start from was trained with {theirs}. "
        f"Try --config.diffusion.{key}={theirs}."
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
    settings, classes, diffuses = settings_of_meta(meta), tuple(names), meta["kind"] != "plain"
    rows = {
        ("params", *head, leaf): (-1, classes)
        for head in (HEADS if diffuses else HEADS[1:])
        for leaf in ("kernel", "bias")
    }
    coded = (*classes, None)
    if diffuses and settings.code == "embedding":
        rows["params", "embedding", "table"] = 0, coded
    elif diffuses:
        if settings.code == "bits":
            bits = code_width("bits", len(classes), settings.width)
            coded = tuple(f"{2**bit}s" for bit in reversed(range(bits)))
        rows["params", "transform", "kernel"] = 0, (*range(settings.width), *coded)
    return rows


def load_weights(config, abstract: dict, task: Task) -> dict:
    """The arrays that the file config.weights gives a stage.

    An official DDP checkpoint gives all of them, an ImageNet classifier those of its backbone.
    Raises UserError for arrays that are missing, extra or of another shape.
    """
    settings = settings_of_meta(task.meta)
    part = config.get("weights_part", "")
    arrays = read_arrays(config.weights, part)
    if is_ddp(arrays):
        found = settings_of(arrays, config.weights)
        require_same_settings(settings, found, DEDUCED)
        if settings.code != found.code:
            raise UserError(_other_code("code", settings.code, found.code))
        settings = dataclasses.replace(settings, num_classes=found.num_classes)
        network = load_ddp(arrays, settings, config.weights)
        return adopt(abstract, task, network, {**task.meta, "model": dataclasses.asdict(settings)})
    if task.meta["kind"] == "align":
        raise UserError(
            f"{config.weights} holds only a backbone, but a stage of kind align continues from a "
            "trained network. Train first, or give an official DDP checkpoint."
        )
    shapes = jax.tree.map(lambda leaf: tuple(leaf.shape), abstract["params"]["backbone"])
    return {"params": {"backbone": load_backbone(config.weights, shapes, settings, part)}}


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
        "sampler": Text(SAMPLERS),
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
    if problem := make_settings(config, 2).problem():
        raise UserError(f"model: {problem}")
    if config.new_head:
        require_start_of_new_head(config, start_of, continues=("align",))
    for name in config.run:
        stage = config.stages[name]
        start = split_start(stage.start)[0]
        if stage.kind == "align" and start_of(config, stage.kind, start) == "random":
            raise UserError(
                f"stages.{name} is of kind align, which continues from a trained network, but "
                f"starts at random. Try --config.stages.{name}.start=runs/a/checkpoints/train."
            )
        crop = tuple(stage.augment.crop)
        if min(crop) < MIN_SIDE:
            raise UserError(
                f"stages.{name}.augment.crop is {crop}, but both sides must be {MIN_SIDE} or more, "
                f'the stride of the backbones. Try --config.stages.{name}.augment.crop="(64, 64)", '
                f"and for images smaller than that also {enlarging(name, stage.augment, 64)}."
            )


def further(config):
    """The config with which trained stages go on, with their heads."""
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
    """The settings of config.sweep with which a trained network is measured; one for `plain`."""
    config = config.copy_and_resolve_references()
    config.new_head = False  # nothing is trained
    if kind == "plain":
        return [Setting(0, 1, config, {"sampling": config.sampling.to_dict()})]
    pairs = [(steps, draws) for draws in config.sweep.draws for steps in config.sweep.steps]
    configs = [with_steps(config, *pair) for pair in pairs]
    return [
        Setting(*pair, changed, {"sampling": changed.sampling.to_dict()})
        for pair, changed in zip(pairs, configs, strict=True)
    ]


DDP = System(
    stages={"train": "labelled", "align": "labelled", "plain": "labelled"},
    make_task=make_task,
    adopt=adopt,
    load_weights=load_weights,
    class_rows=class_rows,
    options=OPTIONS,
    origin=(
        "a decoder that denoises a label map, conditioned on the image (DDP)",
        "DDP: Diffusion Model for Dense Visual Prediction",
        "https://arxiv.org/abs/2303.17559",
    ),
    check=check,
    start_of=start_of,
    further=further,
    note=note,
    with_steps=with_steps,
    sweep=sweep,
    prediction=("sampling", "sweep"),
)
