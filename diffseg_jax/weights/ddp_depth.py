"""Depth checkpoints of DDP: their networks and their parameters."""

import functools
from collections.abc import Mapping

import jax
import numpy as np

from diffseg_jax.errors import UserError
from diffseg_jax.models.depth_network import DepthNetwork, DepthSettings
from diffseg_jax.models.network import Network
from diffseg_jax.weights.backbones import check_indices
from diffseg_jax.weights.ddp import (
    DDP_TABLE,
    POINTS,
    UNUSED,
    count_in,
    other_task,
    require_groups,
    require_supported,
    size_in,
    sizes_of_backbone,
)
from diffseg_jax.weights.tables import convert

NEEDED_FOR_DEPTH = ("decode_head.conv_depth.weight", "down.conv.weight")
TIMED_ENTRY = "decode_head.encoder.layers.0.time_mlp.1.weight"  # only the paper's form has it
DEPTH_ADVICE = "Give a depth checkpoint of DDP, such as ddp_swint_1k_w7_kitti_bs2x8_scale01.pth."


def depth_settings_of(
    arrays: Mapping[str, np.ndarray], source: str = "the file"
) -> DepthSettings:
    """The settings of the network of a state dict, from its names and shapes.

    What no shape determines is as published, for KITTI: `low`, `high`, `code_scale`, `groups`,
    `points`; and `drop_path` is 0. Raises UserError for anything but a depth checkpoint of DDP.
    """
    require_depth(arrays, source)
    size = functools.partial(size_in, arrays, source, advice=DEPTH_ADVICE)
    layers = "decode_head.encoder.layers."
    weights = size(f"{layers}0.attentions.0.attention_weights.weight", 0)
    settings = DepthSettings(
        **sizes_of_backbone(arrays, source, DEPTH_ADVICE),
        width=size("down.conv.weight", 0),
        layers=count_in(arrays, source, layers, DEPTH_ADVICE),
        decoder_heads=max(weights // POINTS, 1),
        points=POINTS,
        mlp=size(f"{layers}0.ffns.0.layers.0.0.weight", 0),
        timed=TIMED_ENTRY in arrays,
    )
    require_supported(settings, source, DEPTH_ADVICE)
    return settings


def require_depth(arrays: Mapping[str, np.ndarray], source: str):
    """Raises UserError unless the arrays are those of a depth checkpoint."""
    if other := other_task(arrays, "depth", NEEDED_FOR_DEPTH):
        raise UserError(f"{source} is {other}. {DEPTH_ADVICE}")


@functools.cache
def abstract_depth_values(settings: DepthSettings) -> dict:
    """{"params", "stats"}: shapes and dtypes of the network's values, as nested dicts."""
    return Network(lambda rngs: DepthNetwork(settings, rngs=rngs)).abstract


def load_ddp_depth(
    arrays: Mapping[str, np.ndarray], settings: DepthSettings, source: str = "the file"
) -> dict:
    """{"params", "stats"} of a DepthNetwork from a published state dict, float32.

    arrays, source  as of `weights.ddp.load_ddp`

    Raises UserError for anything but a depth checkpoint of DDP, and when something is missing, left
    over or of another shape, or groups do not divide the width.
    """
    require_depth(arrays, source)
    check_indices(arrays, source)
    require_groups(settings, source)
    shapes = jax.tree.map(lambda leaf: tuple(leaf.shape), abstract_depth_values(settings))
    return {"stats": {}, **convert(arrays, DDP_TABLE, shapes, ignore=UNUSED, source=source)}
