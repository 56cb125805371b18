"""Swin, ConvNeXt and the hybrid vision transformer, trained on ImageNet, for their features.

Swin and ConvNeXt are DDP's backbones, the hybrid is TransUNet's encoder (their modules name the
papers). Names of features are those of runs of these systems.
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from diffseg_jax.errors import require_known
from diffseg_jax.layers.conv import Arithmetic
from diffseg_jax.models.convnext import ConvNeXt
from diffseg_jax.models.swin import STAGES, Swin
from diffseg_jax.models.transunet import STRIDE, Encoder

# ---- Swin and ConvNeXt -------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SwinSettings:
    """Sizes of a Swin; the defaults are Swin-T's.

    channels, depths, heads   of the four stages
    window                    tokens per side of a window
    """

    channels: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7

    backbone: ClassVar[str] = "swin"
    stride: ClassVar[int] = 32  # of the last map


@dataclasses.dataclass(frozen=True)
class ConvNeXtSettings:
    """Sizes of a ConvNeXt; the defaults are ConvNeXt-T's.

    channels, depths   of the four stages
    down_epsilon       of the norms before downsampling: 1e-5 in OpenMMLab's program
    """

    channels: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 9, 3)
    down_epsilon: float = 1e-6

    backbone: ClassVar[str] = "convnext"
    window: ClassVar[int] = 0
    stride: ClassVar[int] = 32  # of the last map


def backbone_taps(settings: SwinSettings | ConvNeXtSettings) -> tuple[str, ...]:
    """Names of all maps in the order of depth.

    patch_embedding, stem      the first tokens of Swin, the first map of ConvNeXt
    stage0.block1              output of block 1 of the first stage
    stage0.block1.attention    of Swin: of its attention, before it is added
    merge0, down1              what enters the second stage of Swin, of ConvNeXt
    """
    is_swin = settings.backbone == "swin"
    names = ["patch_embedding" if is_swin else "stem"]
    for i, depth in enumerate(settings.depths):
        names += [f"down{i}"] if i and not is_swin else []
        for j in range(depth):
            block = f"stage{i}.block{j}"
            names += [f"{block}.attention", block] if is_swin else [block]
        names += [f"merge{i}"] if is_swin and i + 1 < STAGES else []
    return tuple(names)


def backbone_default_taps(settings: SwinSettings | ConvNeXtSettings) -> tuple[str, ...]:
    """The last block of each stage."""
    return tuple(f"stage{i}.block{depth - 1}" for i, depth in enumerate(settings.depths))


class BackboneMaps(nnx.Module):
    """Named maps of a Swin or ConvNeXt, without the norms of its four outputs.

    images  f[B, H, W, 3], normalised by ImageNet's mean and deviation; H, W 32 or more
    taps    names of `backbone_taps`
    out     the maps f[B, h, w, C] in `dtype` by their names
    """

    def __init__(
        self, settings: SwinSettings | ConvNeXtSettings, *, dtype=jnp.float32, rngs: nnx.Rngs
    ):
        network = Swin if settings.backbone == "swin" else ConvNeXt
        sizes = dataclasses.asdict(settings)
        self.backbone = network(**sizes, normed=(), dtype=dtype, rngs=rngs)
        self.settings = settings

    def __call__(self, images: jax.Array, taps: Sequence[str]) -> dict[str, jax.Array]:
        for tap in taps:
            require_known(tap, backbone_taps(self.settings), "feature")
        _, found = self.backbone(images)
        return {tap: found[tap] for tap in taps}


# ---- the hybrid vision transformer -------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class HybridSettings:
    """Sizes of a vision transformer on a ResNet; the defaults are R50+ViT-B/16's.

    resnet_width     factor of the ResNet's channels
    resnet_units     units of its three stages
    hidden, layers, heads, mlp   sizes of the transformer
    grid             rows and columns of the table of positions
    arithmetic       the program that is followed, "official" or "port" (see `Arithmetic`)
    """

    resnet_width: float = 1.0
    resnet_units: tuple[int, ...] = (3, 4, 9)
    hidden: int = 768
    layers: int = 12
    heads: int = 12
    mlp: int = 3072
    grid: tuple[int, int] = (14, 14)
    arithmetic: str = "official"

    stride: ClassVar[int] = STRIDE  # of the last map


def hybrid_taps(settings: HybridSettings) -> tuple[str, ...]:
    """Names of all maps in the order of depth.

    root               of the ResNet's first convolution, at stride 2
    block1 to block3   of its stages
    embedding          the tokens before positions are added
    layer0, ...        outputs of the transformer's layers
    encoded            that of the last one, normalised
    """
    stages = (f"block{b}" for b in range(1, len(settings.resnet_units) + 1))
    layers = (f"layer{l}" for l in range(settings.layers))
    return ("root", *stages, "embedding", *layers, "encoded")


def hybrid_default_taps(settings: HybridSettings) -> tuple[str, ...]:
    """The stages of the ResNet, and the output of the transformer."""
    return ("block1", "block2", "block3", "encoded")


class HybridMaps(nnx.Module):
    """Named maps of a vision transformer on a ResNet.

    images  f[B, H, W, 3] in [-1, 1]; H and W multiples of 16
    taps    names of `hybrid_taps`
    out     the maps f[B, h, w, C] in `dtype` by their names
    """

    def __init__(self, settings: HybridSettings, *, dtype=jnp.float32, rngs: nnx.Rngs):
        sizes = dataclasses.asdict(settings)
        sizes["arithmetic"] = Arithmetic(settings.arithmetic)
        self.encoder = Encoder(**sizes, dropout_rate=0.0, dtype=dtype, remat=False, rngs=rngs)
        self.settings, self.dtype = settings, dtype

    def __call__(self, images: jax.Array, taps: Sequence[str]) -> dict[str, jax.Array]:
        for tap in taps:
            require_known(tap, hybrid_taps(self.settings), "feature")
        encoded, found = self.encoder(images.astype(self.dtype))
        grid = encoded.shape[1:3]
        return {
            tap: found[tap] if found[tap].ndim == 4 else found[tap].reshape(len(images), *grid, -1)
            for tap in taps
        }
