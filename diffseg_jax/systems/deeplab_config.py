"""DeepLabV3 in a config: its options and checks, where a stage starts, and foreign weights."""

import dataclasses

from flax.traverse_util import flatten_dict as flatten
from flax.traverse_util import unflatten_dict as unflatten

from diffseg_jax.config.options import MASK_LOSS
from diffseg_jax.config.schema import Flag, Number, Optional, Several, Text
from diffseg_jax.errors import UserError
from diffseg_jax.models.deeplab import OUTPUT_STRIDES, DeepLabSettings
from diffseg_jax.systems.deeplab import make_task
from diffseg_jax.systems.system import (
    System,
    require_same_network,
    require_start_of_new_head,
)
from diffseg_jax.systems.task import Task
from diffseg_jax.weights.deeplab import (
    deeplab_settings,
    is_deeplab,
    load_deeplab,
    load_deeplab_backbone,
)
from diffseg_jax.weights.formats import read_arrays

COMPARED = ("width", "depths", "rates", "channels", "auxiliary")  # output strides may differ
IN_FILES = ("width", "depths", "channels")  # of the sizes, those that a file tells
HEADS = (("logits",), ("auxiliary", "logits"))  # parameters with a row for each class

# ---- where a stage starts ----------------------------------------------------------------------


def start_of(config, kind: str, start: str) -> str:
    """Where a stage starts: "random", "weights", the name of a stage, or a stage's directory."""
    return "random" if start == "weights" and not config.weights else start


def adopt(abstract: dict, task: Task, previous: dict, meta: dict) -> dict:
    """The arrays that a stage takes over from another one: all, or with new_head all but the head.

    Raises UserError when the networks differ.
    """
    here, there = (_settings_of(each["model"]) for each in (task.meta, meta))
    _require_same_sizes(here, there, COMPARED, "the checkpoint to start from")
    return _without_head(abstract, task, previous, here, there)


def _without_head(abstract, task, previous, here, there):
    """The arrays that are kept; UserError for other classes without new_head."""
    if task.meta["new_head"]:
        kept = _headless(previous)
        require_same_network(_headless(abstract), kept)
        return kept
    if here.num_classes != there.num_classes:
        raise UserError(
            f"the data have {here.num_classes} classes, but the checkpoint to start from has "
            f"{there.num_classes}. Try --config.new_head=True."
        )
    require_same_network(abstract, previous)
    return previous


def _headless(network):
    flat = flatten(network)
    heads = [("params", *head) for head in HEADS]
    return unflatten({
        path: leaf for path, leaf in flat.items()
        if not any(path[: len(head)] == head for head in heads)
    })  # fmt: skip


def _settings_of(values) -> DeepLabSettings:
    """The settings in the metadata of a checkpoint."""
    lists = ("depths", "rates")
    return DeepLabSettings(**{k: tuple(v) if k in lists else v for k, v in values.items()})


def _require_same_sizes(here, there, names, what):
    """Raises UserError that lists the options of config.model in which two networks differ."""
    differing = [name for name in names if getattr(here, name) != getattr(there, name)]
    if not differing:
        return
    listed = ", ".join(f"{name} {getattr(there, name)}" for name in differing)
    own = ", ".join(str(getattr(here, name)) for name in differing)
    flags = " ".join(_flag(name, getattr(there, name)) for name in differing)
    raise UserError(f"{what} has {listed}, where config.model has {own}. Try {flags}.")


def _flag(name, value):
    value = {True: "0.5", False: "0.0"}[value] if isinstance(value, bool) else value
    return f"--config.model.{name}=" + (f'"{value}"' if isinstance(value, tuple) else f"{value}")


def class_rows(meta: dict, names) -> dict:
    """The arrays that depend on the classes: those of the logits; as of `System.class_rows`."""
    heads = HEADS if meta["model"]["auxiliary"] else HEADS[:1]
    rows = {leaf: (-1, tuple(names)) for leaf in ("kernel", "bias")}
    return {("params", *head, leaf): row for head in heads for leaf, row in rows.items()}


def load_weights(config, abstract: dict, task: Task) -> dict:
    """The arrays that the file config.weights gives a stage.

    A DeepLabV3 of torchvision gives all of them, or with new_head all but the logits; an ImageNet
    ResNet those of the backbone. Raises UserError for arrays that are missing, extra or of another
    shape.
    """
    arrays = read_arrays(config.weights, config.get("weights_part", ""))
    here = _settings_of(task.meta["model"])
    if not is_deeplab(arrays):
        return load_deeplab_backbone(arrays, here, config.weights)
    there = deeplab_settings(arrays, config.weights)
    _require_same_sizes(here, there, IN_FILES, config.weights)
    if here.auxiliary and not there.auxiliary:
        _require_same_sizes(here, there, ("auxiliary",), config.weights)
    in_file = dataclasses.replace(here, num_classes=there.num_classes)
    network = load_deeplab(arrays, in_file, config.weights)
    return _without_head(abstract, task, network, here, there)


# ---- options and checks ------------------------------------------------------------------------


DEEPLAB_OPTIONS = {
    "weights": Text(),
    "weights_part": Optional(Text()),
    "loss": MASK_LOSS,
    "new_head": Flag(),
    "model": {
        "width": Number(int, 1, 4096),
        "depths": Several(Number(int, 1, 1000), 4),
        "output_stride": Number(int, 1, 64),
        "rates": Several(Number(int, 1, 1000), minimum=1, maximum=16),
        "channels": Number(int, 1, 16384),
        "dropout": Number(float, 0, 0.99),
        "auxiliary": Number(float, 0, 100),
    },
}


def check(config):
    """Raises UserError for option values that do not go together."""
    if config.model.output_stride not in OUTPUT_STRIDES:
        raise UserError(
            f"model.output_stride is {config.model.output_stride}, but it must be 8, 16 or 32. "
            "Try --config.model.output_stride=8, as published."
        )
    for name in config.run:
        stage = config.stages[name]
        if stage.batch_size // stage.accumulate < 2:
            raise UserError(
                f"stages.{name} takes {stage.batch_size // stage.accumulate} image at a time "
                f"(batch_size {stage.batch_size}, accumulate {stage.accumulate}), but the batch "
                "norm of the image pooling needs 2 or more. Try "
                f"--config.stages.{name}.batch_size={2 * stage.accumulate}."
            )
    if config.new_head:
        require_start_of_new_head(config, start_of)


def further(config):
    """The config with which trained stages go on, with their heads."""
    config.new_head = False
    return config


def note(config, kind: str, start: str) -> str:
    """A sentence for the user before a stage with that `start` runs, or an empty string."""
    if start == "weights" and not config.weights:
        return (
            "no weights were given (--config.weights=resnet101.pth), so the backbone starts at "
            "random; the published one was trained on ImageNet with labels"
        )
    return ""


DEEPLAB = System(
    stages={"train": "labelled"},
    make_task=make_task,
    adopt=adopt,
    load_weights=load_weights,
    class_rows=class_rows,
    options=DEEPLAB_OPTIONS,
    origin=(
        "a dilated ResNet with a pyramid of dilated convolutions (DeepLabV3)",
        "Rethinking Atrous Convolution for Semantic Image Segmentation",
        "https://arxiv.org/abs/1706.05587",
    ),
    check=check,
    start_of=start_of,
    further=further,
    note=note,
    convention="ddpm_seg",
)
