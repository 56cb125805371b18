"""Published DDP segmentation checkpoints: their networks and their parameters."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping

import jax
import numpy as np

from diffseg_jax.errors import UserError
from diffseg_jax.models.ddp_network import DDPNetwork, DDPSettings
from diffseg_jax.models.network import Network
from diffseg_jax.weights.backbones import (
    CONVNEXT,
    INDEX,
    SWIN,
    check_indices,
    find_format,
    table_window,
)
from diffseg_jax.weights.recognised import described
from diffseg_jax.weights.tables import convert, within
from diffseg_jax.weights.torch_rows import conv, linear_rows, norm, statistics

POINTS = 4  # points per head and cell; a file only tells heads times points

DECODER_LAYER = (  # rows of one layer of the map decoder
    *linear_rows(r"attentions\.0\.sampling_offsets", "attention.offsets"),
    *linear_rows(r"attentions\.0\.attention_weights", "attention.weights"),
    *linear_rows(r"attentions\.0\.value_proj", "attention.value"),
    *linear_rows(r"attentions\.0\.output_proj", "attention.out"),
    *norm(r"norms\.0", "norm1"),
    *linear_rows(r"ffns\.0\.layers\.0\.0", "mlp.fc1"),
    *linear_rows(r"ffns\.0\.layers\.1", "mlp.fc2"),
    *norm(r"norms\.1", "norm2"),
    *linear_rows(r"time_mlp\.1", "time"),
)
DDP_TABLE = (
    *within(r"backbone\.", "params.backbone.", (*SWIN, *CONVNEXT)),
    *within("", "params.", (
        *conv(r"neck\.0\.lateral_convs\.(\d+)\.conv", "neck.lateral{0}.conv"),
        *norm(r"neck\.0\.lateral_convs\.(\d+)\.gn", "neck.lateral{0}.norm"),
        *conv(r"neck\.0\.fpn_convs\.(\d+)\.conv", "neck.out{0}.conv"),
        *norm(r"neck\.0\.fpn_convs\.(\d+)\.gn", "neck.out{0}.norm"),
        *conv(r"neck\.1\.down\.conv", "neck.merge.conv"),
        *norm(r"neck\.1\.down\.gn", "neck.merge.norm"),
        *conv(r"transform\.conv", "transform"),
        (r"embedding_table\.weight", "embedding.table", "ke->ke"),
        (r"time_mlp\.0\.weights", "time.weights", "f->f"),
        *linear_rows(r"time_mlp\.1", "time.fc1"),
        *linear_rows(r"time_mlp\.3", "time.fc2"),
        *conv(r"decode_head\.conv_seg", "head"),
        *conv(r"down\.conv", "transform"),  # these two for depth
        *conv(r"decode_head\.conv_depth", "head"),
    )),
    *within(
        r"decode_head\.encoder\.layers\.(\d+)\.", "params.decoder.layer{0}.", DECODER_LAYER
    ),
    *within(r"auxiliary_head\.", "", (
        *conv(r"convs\.0\.conv", "params.auxiliary.conv"),
        *norm(r"convs\.0\.bn", "params.auxiliary.norm"),
        *statistics(r"convs\.0\.bn", "stats.auxiliary.norm"),
        *conv(r"conv_seg", "params.auxiliary.head"),
    )),
)  # fmt: skip
UNUSED = (INDEX, r".*\.num_batches_tracked")
BACKBONES = {
    "swin": "backbone.patch_embed.projection.weight",
    "convnext": "backbone.downsample_layers.0.0.weight",
}
NEEDED = ("decode_head.conv_seg.weight", "transform.conv.weight", "embedding_table.weight")
ADVICE = (
    "Give a segmentation checkpoint of DDP, such as "
    "ddp_convnext_t_4x4_512x1024_160k_cityscapes.pth."
)


def is_ddp(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether a state dict belongs to a DDP network, for segmentation or another task."""
    return "time_mlp.0.weights" in arrays


def settings_of(arrays: Mapping[str, np.ndarray], source: str = "the file") -> DDPSettings:
    """The settings of the network of a state dict, from its names and shapes.

    Settings that no shape determines are as published (`points`, `groups`, `down_epsilon`,
    `code_scale`), and `drop_path` is 0.

    Raises UserError for anything but a segmentation checkpoint of DDP.
    """
    _require_segmentation(arrays, source)
    size = functools.partial(size_in, arrays, source, advice=ADVICE)
    layers = "decode_head.encoder.layers."
    weights = size(f"{layers}0.attentions.0.attention_weights.weight", 0)
    settings = DDPSettings(
        **sizes_of_backbone(arrays, source, ADVICE),
        num_classes=size("decode_head.conv_seg.weight", 0),
        width=size("transform.conv.weight", 0),
        layers=count_in(arrays, source, layers, ADVICE),
        decoder_heads=max(weights // POINTS, 1),
        points=POINTS,
        mlp=size(f"{layers}0.ffns.0.layers.0.0.weight", 0),
    )
    require_supported(settings, source, ADVICE)
    return settings


def require_supported(settings, source: str, advice: str):
    """Raises UserError for sizes that no network has."""
    # A file does not tell its number of groups, so that any is accepted here.
    if problem := dataclasses.replace(settings, groups=1).problem():
        reason, _, _ = problem.partition(". Try --config")  # a file is not changed by an option
        raise UserError(f"{source} does not match any supported DDP network: {reason}. {advice}")


def _require_segmentation(arrays, source):
    """Raises UserError unless the arrays are those of a segmentation checkpoint."""
    if other := other_task(arrays, "segmentation", NEEDED):
        raise UserError(f"{source} is {other}. {ADVICE}")


TASK_HEADS = {  # of published files: the first name of a head that is in a file tells its task
    "bev": "heads.map.conv_seg.weight",
    "depth": "decode_head.conv_depth.weight",
    "segmentation": "decode_head.conv_seg.weight",
}
COMMANDS = {
    "bev": "--source=ddp_bev",
    "depth": "--source=ddp_depth",
    "segmentation": "--source=ddp",
}
PURPOSES = {"bev": "maps seen from above (BEV)", "depth": "depth", "segmentation": "segmentation"}


def task_of(arrays: Mapping[str, np.ndarray]) -> str:
    """The task of a state dict of DDP, "segmentation", "depth" or "bev"; "" if it is of none."""
    if any(name.startswith(("encoders.", "heads.map.")) for name in arrays):
        return "bev"
    return next((task for task, name in TASK_HEADS.items() if name in arrays), "")


def other_task(arrays: Mapping[str, np.ndarray], task: str, needed) -> str:
    """What the state dict is instead of a checkpoint of DDP for the task, or ""."""
    found = task_of(arrays)
    if found and found != task:
        return (
            f"a checkpoint of DDP for {PURPOSES[found]}, not for {PURPOSES[task]}; python -m "
            f"diffseg_jax.convert {COMMANDS[found]} reads it"
        )
    if not any(name.startswith("decode_head.") for name in arrays):
        if find_format(arrays):
            return "a backbone alone, from which a training run may start"
        return f"no checkpoint of DDP: {described(arrays)}"
    missing = [name for name in needed if name not in arrays]
    if not any(name in arrays for name in BACKBONES.values()):
        missing.append(" or ".join(BACKBONES.values()))
    return f"no {task} checkpoint of DDP: it has no {missing[0]}" if missing else ""


def sizes_of_backbone(arrays, source, advice):
    """The backbone's settings as keyword arguments."""
    size = functools.partial(size_in, arrays, source, advice=advice)
    count = functools.partial(count_in, arrays, source, advice=advice)
    channels = tuple(size(f"backbone.norm{i}.weight", 0) for i in range(4))
    if BACKBONES["swin"] not in arrays:
        depths = tuple(count(f"backbone.stages.{i}.") for i in range(4))
        return dict(backbone="convnext", channels=channels, depths=depths, heads=(), window=0)
    sizes = swin_sizes(arrays, source, advice, "backbone.", channels.__getitem__)
    return dict(backbone="swin", **sizes)


def swin_sizes(arrays, source, advice, prefix, channels) -> dict:
    """The settings of a Swin whose entries begin so, as keyword arguments.

    channels  number of a stage -> its channels, which files tell in different ways
    """
    table = (prefix + "stages.{}.blocks.0.attn.w_msa.relative_position_bias_table").format
    depths = [count_in(arrays, source, f"{prefix}stages.{i}.blocks.", advice) for i in range(4)]
    heads = tuple(size_in(arrays, source, table(i), 1, advice) for i in range(4))
    window = table_window(arrays[table(0)], f"{source}: {table(0)}")
    widths = tuple(map(channels, range(4)))
    return dict(channels=widths, depths=tuple(depths), heads=heads, window=window)


def size_in(arrays, source, name, axis, advice):
    """The length of one axis of an entry; UserError that ends with the advice where it has none."""
    array = arrays.get(name)
    if array is None or array.ndim <= axis:
        found = "no such entry" if array is None else f"it of shape {array.shape}"
        raise UserError(f"{source} should hold {name}, but has {found}. {advice}")
    return array.shape[axis]


def count_in(arrays, source, prefix, advice):
    """The number of different indices that follow the prefix in names; UserError for none."""
    pattern = re.compile(re.escape(prefix) + r"(\d+)\.")
    numbers = {match[1] for name in arrays if (match := pattern.match(name))}
    if not numbers:
        raise UserError(f"{source} should hold {prefix}0, but has no such entry. {advice}")
    return len(numbers)


@functools.cache
def abstract_values(settings: DDPSettings) -> dict:
    """{"params", "stats"}: shapes and dtypes of the network's values, as nested dicts."""
    return Network(lambda rngs: DDPNetwork(settings, rngs=rngs)).abstract


def load_ddp(
    arrays: Mapping[str, np.ndarray], settings: DDPSettings, source: str = "the file"
) -> dict:
    """{"params", "stats"} of a DDPNetwork from a published state dict, float32.

    arrays  official name -> array, as `weights.formats.read_arrays` gives them
    source  name of the file in error messages

    Raises UserError for anything but a segmentation checkpoint of DDP, and when something is
    missing, left over or of another shape, or groups do not divide the width.
    """
    _require_segmentation(arrays, source)
    check_indices(arrays, source)
    require_groups(settings, source)
    shapes = jax.tree.map(lambda leaf: tuple(leaf.shape), abstract_values(settings))
    return convert(arrays, DDP_TABLE, shapes, ignore=UNUSED, source=source)


def require_groups(settings, source: str):
    """Raises UserError for groups of the neck that do not divide its width."""
    if settings.width % settings.groups:
        raise UserError(
            f"the neck of {source} has {settings.width} channels, which {settings.groups} groups "
            "cannot share evenly. No file tells its number of groups; give the settings the one "
            f"that it was trained with, such as groups={math.gcd(settings.width, 32)}."
        )
