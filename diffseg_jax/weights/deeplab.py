"""Weights of DeepLabV3: torchvision's names, with and without the auxiliary classifier."""

import functools
import re
from collections.abc import Mapping

import jax
import numpy as np

from diffseg_jax.errors import UserError
from diffseg_jax.models.deeplab import DeepLab, DeepLabSettings
from diffseg_jax.models.network import Network
from diffseg_jax.models.resnet import ResNetSettings
from diffseg_jax.weights.recognised import described
from diffseg_jax.weights.resnet import RESNET_UNUSED, resnet_settings, with_torchvision_names
from diffseg_jax.weights.tables import Row, convert
from diffseg_jax.weights.torch_rows import conv, norm, statistics

DEEPLAB_MARK = "classifier.0.convs.0.0.weight"
AUXILIARY_MARK = "aux_classifier.4.weight"
_COUNTERS = r".*\.num_batches_tracked"
DEEPLAB_ADVICE = "Give a deeplabv3_resnet50 or deeplabv3_resnet101 of torchvision."


def _conv_norm(torch_conv: str, torch_norm: str, ours: str) -> tuple[Row, ...]:
    """The rows of a convolution and the batch norm after it; targets start with params or stats."""
    return (
        *conv(torch_conv, f"params.{ours}")[:1],
        *norm(torch_norm, f"params.{ours}.norm"),
        *statistics(torch_norm, f"stats.{ours}.norm"),
    )


def _backbone_rows(prefix: str, ours: str) -> tuple[Row, ...]:
    """The rows of a ResNet in torchvision's names; the groups are stage, block and number."""
    block = prefix + r"layer(\d)\.(\d+)\."
    return (
        *_conv_norm(prefix + "conv1", prefix + "bn1", ours + "stem"),
        *_conv_norm(
            block + r"conv(\d)", block + r"bn(\d)", ours + "layer{0}.block{1}.conv{2}"
        ),
        *_conv_norm(
            block + r"downsample\.0", block + r"downsample\.1", ours + "layer{0}.block{1}.shortcut"
        ),
    )  # fmt: skip


def _head_rows(rates: int) -> tuple[Row, ...]:
    pyramid = r"classifier\.0\."
    branches = {0: "point", **{i + 1: f"atrous{i}" for i in range(rates)}}
    pooled = pyramid + rf"convs\.{rates + 1}\."
    rows = [
        _conv_norm(f"{pyramid}convs\\.{i}\\.0", f"{pyramid}convs\\.{i}\\.1", f"pyramid.{ours}")
        for i, ours in branches.items()
    ]
    rows += [
        _conv_norm(pooled + "1", pooled + "2", "pyramid.pooled"),
        _conv_norm(pyramid + r"project\.0", pyramid + r"project\.1", "pyramid.join"),
        _conv_norm(r"classifier\.1", r"classifier\.2", "head"),
        conv(r"classifier\.4", "params.logits"),
        _conv_norm(r"aux_classifier\.0", r"aux_classifier\.1", "auxiliary.conv"),
        conv(r"aux_classifier\.4", "params.auxiliary.logits"),
    ]
    return tuple(row for each in rows for row in each)


RESNET_WITH_NORMS = _backbone_rows("", "")


def is_deeplab(arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether a file holds a DeepLabV3 in torchvision's names."""
    return DEEPLAB_MARK in arrays


def deeplab_settings(arrays: Mapping[str, np.ndarray], source: str) -> DeepLabSettings:
    """The sizes of the network in a file, which tells neither the output stride nor the rates.

    Those are the published ones; where the pyramid has not three 3x3 convolutions, its rates are
    the multiples of 12. Raises UserError for another network.
    """
    if not is_deeplab(arrays):
        raise UserError(f"{source} is no DeepLabV3: {described(arrays)}. {DEEPLAB_ADVICE}")
    backbone = {
        name.removeprefix("backbone."): array
        for name, array in arrays.items() if name.startswith("backbone.")
    }  # fmt: skip
    resnet = resnet_settings(backbone, source)
    found = (re.match(r"classifier\.0\.convs\.(\d+)\.", name) for name in arrays)
    branches = {match[1] for match in found if match}
    last = arrays.get("classifier.4.weight")
    if last is None or len(branches) < 3:
        raise UserError(
            f"{source} is an incomplete DeepLabV3: it lacks "
            f"{'classifier.4.weight' if last is None else 'branches of its pyramid'}. "
            f"{DEEPLAB_ADVICE}"
        )
    settings = DeepLabSettings(
        num_classes=len(last), width=resnet.stem, depths=resnet.depths,
        rates=tuple(12 * (i + 1) for i in range(len(branches) - 2)),
        channels=len(arrays[DEEPLAB_MARK]), auxiliary=AUXILIARY_MARK in arrays,
    )  # fmt: skip
    require_plain_widths(settings.resnet, resnet, source)
    return settings


def require_plain_widths(expected: ResNetSettings, found: ResNetSettings, source: str):
    """UserError for a backbone whose stages are not 1, 2, 4 and 8 times as wide as its stem."""
    if (found.inner, found.channels) != (expected.inner, expected.channels):
        raise UserError(
            f"{source} has a ResNet of {found.inner} channels inside its blocks and "
            f"{found.channels} outside, but for a stem of {found.stem} {expected.inner} and "
            f"{expected.channels} are expected. Give a ResNet-50 or ResNet-101, not a wide one."
        )


def load_deeplab(
    arrays: Mapping[str, np.ndarray], settings: DeepLabSettings, source: str
) -> dict:
    """{"params", "stats"} of the network, float32.

    A file's auxiliary classifier is left out for settings without one. Raises UserError as
    `convert`.
    """
    table = (*_backbone_rows(r"backbone\.", "backbone."), *_head_rows(len(settings.rates)))
    unused = (_COUNTERS, *(() if settings.auxiliary else (r"aux_classifier\..*",)))
    return convert(arrays, table, _shapes(_abstract(settings)), ignore=unused, source=source)


def load_deeplab_backbone(
    arrays: Mapping[str, np.ndarray], settings: DeepLabSettings, source: str
) -> dict:
    """{"params": {"backbone"}, "stats": {"backbone"}} of an ImageNet ResNet, as `load_resnet`.

    Raises UserError for a ResNet of other sizes than settings has, and as `convert`.
    """
    found, expected = resnet_settings(arrays, source), settings.resnet
    if (found.stem, found.depths) != (expected.stem, expected.depths):
        raise UserError(
            f"{source} is a ResNet of width {found.stem} and depths {found.depths}, but the config "
            f"has model.width {expected.stem} and model.depths {expected.depths}. Try "
            f'--config.model.width={found.stem} --config.model.depths="{found.depths}".'
        )
    require_plain_widths(expected, found, source)
    parts = {part: tree["backbone"] for part, tree in _abstract(settings).items()}
    unused = (_COUNTERS, *RESNET_UNUSED)
    named = with_torchvision_names(arrays)
    loaded = convert(named, RESNET_WITH_NORMS, _shapes(parts), ignore=unused, source=source)
    return {part: {"backbone": tree} for part, tree in loaded.items()}


def _shapes(abstract):
    return jax.tree.map(lambda leaf: tuple(leaf.shape), abstract)


@functools.cache
def _abstract(settings):
    return Network(lambda rngs: DeepLab(settings, rngs=rngs)).abstract
