"""Weights of ResNets of bottlenecks: torchvision, timm, Hugging Face, SwAV, MoCo and DINO."""

import functools
import re
from collections.abc import Mapping

import jax
import numpy as np

from diffseg_jax.errors import UserError
from diffseg_jax.models.network import Network
from diffseg_jax.models.resnet import ResNet, ResNetSettings
from diffseg_jax.weights.batch_norms import fold_norms
from diffseg_jax.weights.recognised import described
from diffseg_jax.weights.tables import convert
from diffseg_jax.weights.torch_rows import conv

RESNET_NORMS = (  # a convolution and its batch norm, in torchvision's names
    (r"conv1", r"bn1"),
    (r"(layer\d\.\d+\.)conv(\d)", r"\1bn\2"),
    (r"(layer\d\.\d+\.downsample\.)0", r"\g<1>1"),
)
RESNET = (
    *conv(r"conv1", "stem"),
    *conv(r"layer(\d)\.(\d+)\.(conv\d)", "layer{0}.block{1}.{2}"),
    *conv(r"layer(\d)\.(\d+)\.downsample\.0", "layer{0}.block{1}.shortcut"),
)
HUGGING_RESNET = re.compile(
    r"(?:resnet\.)?(?:embedder\.embedder|encoder\.stages\.(\d)\.layers\.(\d+)\."
    r"(?:layer\.(\d)|shortcut))\.(convolution|normalization)\.(\w+)"
)
RESNET_PREFIXES = ("", "encoder_q.", "base_encoder.", "backbone.")  # the last ones: MoCo, DINO
RESNET_UNUSED = (
    r"fc\..*|classifier\.1\.(weight|bias)",  # of the classes
    r"projection_head\..*|prototypes\..*",  # SwAV
    r"encoder_k\..*|queue|queue_ptr|momentum_encoder\..*|predictor\..*",  # MoCo
    r"head\..*",  # DINO
)
RESNET_ADVICE = "Give a ResNet-50 of torchvision, timm (resnet50), Hugging Face or SwAV."


def with_torchvision_names(arrays):
    """The arrays of the network in torchvision's names, and all others as they are."""
    prefix = next((p for p in RESNET_PREFIXES if f"{p}layer1.0.conv1.weight" in arrays), "")
    return {_torchvision(name.removeprefix(prefix)): array for name, array in arrays.items()}


def _torchvision(name: str) -> str:
    """torchvision's name of an entry of Hugging Face's ResNet; any other name as it is."""
    match = HUGGING_RESNET.fullmatch(name)
    if match is None:
        return name
    stage, block, number, kind, entry = match.groups()
    is_norm = kind == "normalization"
    layer = f"layer{int(stage) + 1}.{block}." if stage else ""
    if stage and not number:
        return f"{layer}downsample.{int(is_norm)}.{entry}"
    return f"{layer}{'bn' if is_norm else 'conv'}{int(number or 0) + 1}.{entry}"


def resnet_settings(arrays: Mapping[str, np.ndarray], source: str) -> ResNetSettings:
    """The sizes of the network in a file; UserError for another network."""
    named = with_torchvision_names(arrays)
    _require_bottlenecks(named, arrays, source)
    sizes = lambda layer: tuple(
        _outputs(named, f"layer{stage}.0.{layer}.weight", source) for stage in range(1, 5)
    )
    blocks = {match[0] for name in named if (match := re.match(r"layer\d\.\d+\.", name))}
    depths = tuple(sum(block[5] == str(stage) for block in blocks) for stage in range(1, 5))
    stem = _outputs(named, "conv1.weight", source)
    return ResNetSettings(stem, inner=sizes("conv1"), channels=sizes("conv3"), depths=depths)


def _require_bottlenecks(named, arrays, source):
    """Raises UserError, which says what the file is, for networks of other parts."""
    first = named.get("layer1.0.conv1.weight")
    if first is None:
        raise UserError(
            f"{source} is in no known format of a ResNet: {described(arrays)}. {RESNET_ADVICE}"
        )
    second = named.get("layer1.0.conv2.weight", first)
    what = ""
    if "layer1.0.conv3.weight" not in named:
        what = "of basic blocks, such as ResNet-18 and ResNet-34"
    elif "conv1.0.weight" in named:
        what = "with three convolutions in its stem, such as ResNet-50-D"
    elif second.shape[1:2] != second.shape[:1]:
        what = "with grouped convolutions, such as ResNeXt"
    if what:
        raise UserError(f"{source} is a ResNet {what}, which is not supported. {RESNET_ADVICE}")


def _outputs(named, name, source):
    """The output channels of a convolution."""
    if name not in named or named[name].ndim != 4:
        raise UserError(f"{source} has no convolution {name}. {RESNET_ADVICE}")
    return len(named[name])


def load_resnet(arrays: Mapping[str, np.ndarray], settings: ResNetSettings, source: str) -> dict:
    """{"params", "stats"} of the network, float32, with batch norms folded into convolutions.

    Raises UserError as `fold_norms` and `convert`.
    """
    shapes = jax.tree.map(lambda leaf: tuple(leaf.shape), _abstract(settings)["params"])
    folded = fold_norms(with_torchvision_names(arrays), RESNET_NORMS, 1e-5, source)
    params = convert(folded, RESNET, shapes, ignore=RESNET_UNUSED, source=source)
    return {"params": params, "stats": {}}


@functools.cache
def _abstract(settings):
    return Network(lambda rngs: ResNet(settings, rngs=rngs)).abstract
