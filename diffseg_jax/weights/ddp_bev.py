"""Published DDP checkpoints for maps seen from above: their networks and their parameters."""

import functools
from collections.abc import Mapping

import jax
import numpy as np

from diffseg_jax.errors import UserError
from diffseg_jax.layers.bev_pooling import depth_bins, frustum
from diffseg_jax.models.bev_network import BEVNetwork, BEVSettings
from diffseg_jax.models.network import Network
from diffseg_jax.weights.backbones import SWIN, check_indices
from diffseg_jax.weights.ddp import (
    DECODER_LAYER,
    POINTS,
    UNUSED,
    count_in,
    other_task,
    size_in,
    swin_sizes,
    task_of,
)
from diffseg_jax.weights.tables import convert, within
from diffseg_jax.weights.torch_rows import conv, linear_rows, norm, statistics

STAGE_STRIDES = (2, 2, 1)  # of the residual stages, which no shape tells
CAMERA = "encoders.camera."
DECODER_LAYERS = "heads.map.encoder.layers."


def _conv_norm(kernel, norm_name, ours):
    """The rows of a convolution without bias and its batch norm."""
    return (
        (kernel + r"\.weight", f"params.{ours}.kernel", "oihw->hwio"),
        *norm(norm_name, f"params.{ours}.norm"),
        *statistics(norm_name, f"stats.{ours}.norm"),
    )


BEV_TABLE = (
    *within(r"encoders\.camera\.backbone\.", "params.camera.backbone.", SWIN),
    *within(r"encoders\.camera\.neck\.", "", (
        *_conv_norm(
            r"lateral_convs\.(\d)\.conv", r"lateral_convs\.(\d)\.bn", "camera.neck.lateral{0}"
        ),
        *_conv_norm(r"fpn_convs\.(\d)\.conv", r"fpn_convs\.(\d)\.bn", "camera.neck.out{0}"),
    )),
    *within(r"encoders\.camera\.vtransform\.", "", (
        *conv("depthnet", "params.camera.lift.conv"),
        *_conv_norm(r"downsample\.0", r"downsample\.1", "camera.down0"),
        *_conv_norm(r"downsample\.3", r"downsample\.4", "camera.down1"),
        *_conv_norm(r"downsample\.6", r"downsample\.7", "camera.down2"),
    )),
    *within(r"decoder\.", "", (
        *_conv_norm(
            r"backbone\.(\d)\.(\d+)\.conv([12])", r"backbone\.(\d)\.(\d+)\.bn([12])",
            "bev.backbone.stage{0}.block{1}.conv{2}",
        ),
        *_conv_norm(
            r"backbone\.(\d)\.(\d+)\.downsample\.0", r"backbone\.(\d)\.(\d+)\.downsample\.1",
            "bev.backbone.stage{0}.block{1}.shortcut",
        ),
        *_conv_norm(r"neck\.fuse\.0", r"neck\.fuse\.1", "bev.neck.fuse0"),
        *_conv_norm(r"neck\.fuse\.3", r"neck\.fuse\.4", "bev.neck.fuse1"),
        *_conv_norm(r"neck\.upsample\.1", r"neck\.upsample\.2", "bev.neck.up"),
    )),
    *within("", "params.", (
        *conv(r"transform\.conv", "transform"),
        (r"embedding_table\.weight", "embedding.table", "ke->ke"),
        (r"time_mlp\.0\.weights", "time.weights", "f->f"),
        *linear_rows(r"time_mlp\.1", "time.fc1"),
        *linear_rows(r"time_mlp\.3", "time.fc2"),
        *conv(r"heads\.map\.conv_seg", "head"),
    )),
    *within(r"heads\.map\.encoder\.layers\.(\d+)\.", "params.decoder.layer{0}.", DECODER_LAYER),
)  # fmt: skip
BEV_UNUSED = (*UNUSED, r".*\.vtransform\.(dx|bx|nx|frustum)")
BEV_ADVICE = (
    "Give a checkpoint of DDP for maps seen from above, such as "
    "ddp-camera-bev256d2-lss-scale001-d5-lr5e-5.pth."
)


def bev_settings_of(arrays: Mapping[str, np.ndarray], source: str = "the file") -> BEVSettings:
    """The settings of the network of a state dict, from its names, shapes and grids.

    Those that a file does not tell are as published (`points`, strides of `stages`, `output`,
    `code_scale`), and `drop_path` is 0.

    Raises UserError for anything but a BEV checkpoint of DDP that reads cameras alone.
    """
    if task_of(arrays) != "bev":
        raise UserError(f"{source} is {other_task(arrays, 'bev', ())}. {BEV_ADVICE}")
    size = functools.partial(size_in, arrays, source, advice=BEV_ADVICE)
    if any(name.startswith("encoders.lidar.") for name in arrays):
        raise UserError(
            f"{source} is a checkpoint of DDP for cameras and LiDAR, whose sparse encoder this "
            f"program does not have. {BEV_ADVICE}"
        )
    channels = size(f"{CAMERA}backbone.patch_embed.norm.weight", 0)
    lifted = size(f"{CAMERA}vtransform.downsample.0.weight", 0)
    heads_points = size(f"{DECODER_LAYERS}0.attentions.0.attention_weights.weight", 0)
    x, y, z = _bounds(arrays, source)
    settings = BEVSettings(
        num_classes=size("heads.map.conv_seg.weight", 0),
        **swin_sizes(
            arrays, source, BEV_ADVICE, f"{CAMERA}backbone.", lambda i: channels * 2**i
        ),
        neck=size(f"{CAMERA}neck.lateral_convs.0.conv.weight", 0),
        lifted=lifted,
        x=x, y=y, z=z,
        depth=_depths(arrays, source, size(f"{CAMERA}vtransform.depthnet.weight", 0) - lifted),
        stages=_stages(arrays, source),
        features=size("decoder.neck.upsample.1.weight", 0),
        width=size("transform.conv.weight", 0),
        layers=count_in(arrays, source, DECODER_LAYERS, BEV_ADVICE),
        decoder_heads=max(heads_points // POINTS, 1),
        points=POINTS,
        mlp=size(f"{DECODER_LAYERS}0.ffns.0.layers.0.0.weight", 0),
        timed=f"{DECODER_LAYERS}0.time_mlp.1.weight" in arrays,
    )  # fmt: skip
    if problem := settings.problem():
        raise UserError(f"{source} does not match any supported DDP network: {problem}")
    return settings


def _stages(arrays, source):
    """(blocks, channels, stride) of the residual stages."""
    found = []
    for i, stride in enumerate(STAGE_STRIDES):
        blocks = count_in(arrays, source, f"decoder.backbone.{i}.", BEV_ADVICE)
        name = f"decoder.backbone.{i}.0.conv1.weight"
        channels = size_in(arrays, source, name, 0, BEV_ADVICE)
        found.append((blocks, channels, stride))
    return tuple(found)


def _bounds(arrays, source):
    """The bounds of x, y and z: a file has cells' sizes, centres of the first ones and numbers."""
    names = [f"{CAMERA}vtransform.{name}" for name in ("dx", "bx", "nx")]
    entries = [np.float64(_entry(arrays, source, name, 1)) for name in names]
    bounds = []
    for size, centre, number in np.stack(entries, -1).tolist():
        lower, size = round(centre - size / 2, 5), round(size, 5)
        bounds.append((lower, round(lower + number * size, 5), size))
    return bounds


def _depths(arrays, source, number):
    """The bound of the depths of a file's frustum, of which there must be `number`."""
    entry = f"{CAMERA}vtransform.frustum"
    array = _entry(arrays, source, entry, 4)
    depths = np.float64(array[:, 0, 0, 2])
    if len(depths) != number or number < 2:
        raise UserError(
            f"{source}: {entry} has {len(depths)} depths, but depthnet {number}. {BEV_ADVICE}"
        )
    lower, size = round(depths[0], 5), round((depths[-1] - depths[0]) / (number - 1), 5)
    bound = (float(lower), float(round(lower + number * size, 5)), float(size))
    image = tuple(int(round(array[0, -1, -1, axis])) + 1 for axis in (1, 0))
    expected = frustum(image, array.shape[1:3], depth_bins(bound))
    if not np.allclose(array, expected, atol=1e-3):
        raise UserError(
            f"{source}: {entry} holds other pixels and depths than the original program computes. "
            f"{BEV_ADVICE}"
        )
    return bound


def _entry(arrays, source, name, axes):
    array = arrays.get(name)
    if array is None or array.ndim != axes:
        found = "no such entry" if array is None else f"it of shape {array.shape}"
        raise UserError(f"{source} should hold {name}, but has {found}. {BEV_ADVICE}")
    return array


@functools.cache
def abstract_bev(settings: BEVSettings) -> dict:
    """{"params", "stats"}: shapes and dtypes of the network's values, as nested dicts."""
    return Network(lambda rngs: BEVNetwork(settings, rngs=rngs)).abstract


def load_bev(
    arrays: Mapping[str, np.ndarray], settings: BEVSettings, source: str = "the file"
) -> dict:
    """{"params", "stats"} of a BEVNetwork from a published state dict, float32.

    Raises UserError when something is missing, left over or of another shape.
    """
    check_indices(arrays, source)
    shapes = jax.tree.map(lambda leaf: tuple(leaf.shape), abstract_bev(settings))
    return convert(arrays, BEV_TABLE, shapes, ignore=BEV_UNUSED, source=source)

