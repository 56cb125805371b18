"""EfficientNet-Lite0: a small convolutional network, trained on ImageNet, for its features.

Tan and Le, "EfficientNet" (ICML 2019), in the variant for devices without squeeze-and-excitation,
as the PyTorch program efficientnet-lite-pytorch computes it.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from diffseg_jax.errors import require_known
from diffseg_jax.layers.conv import Conv
from diffseg_jax.layers.depthwise import DepthwiseConv

EFFICIENTNET_MEAN, EFFICIENTNET_STD = (127.0,) * 3, (128.0,) * 3  # RGB in 0..255
LITE_EXPANSION = 6
LITE_STAGES = (  # kernel, stride of the first block, blocks
    (3, 1, 1), (3, 2, 2), (5, 2, 2), (3, 2, 3), (5, 1, 3), (5, 2, 4), (3, 1, 1),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class EfficientNetSettings:
    """Sizes of an EfficientNet with the depth of Lite0.

    stem      channels of the first convolution
    channels  channels of the outputs of the seven stages
    head      channels of the last convolution
    """

    stem: int = 32
    channels: tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)
    head: int = 1280

    @property
    def stride(self) -> int:
        """Of the last map; other sides of images are rounded down at each of the five halvings."""
        return 32


LITE_BLOCKS = sum(blocks for _, _, blocks in LITE_STAGES)


def efficientnet_taps(settings: EfficientNetSettings) -> tuple[str, ...]:
    """Names of all maps: the stem, the blocks, whose outputs have no activation, and the head."""
    return ("stem", *(f"block{i}" for i in range(LITE_BLOCKS)), "head")


def efficientnet_default_taps(settings: EfficientNetSettings) -> tuple[str, ...]:
    """The last block at each of the strides 2, 4, 8, 16 and 32."""
    return ("block0", "block2", "block4", "block10", "block15")


def relu6(x: jax.Array) -> jax.Array:
    """x clipped to [0, 6]."""
    return jnp.clip(x, 0, 6)


class StridedStem(nnx.Module):
    """3x3 convolution at stride 2, ReLU6: f[B,H,W,3] -> f[B,H//2,W//2,C]; zeros after the image."""

    def __init__(self, channels, *, rngs):
        self.conv = Conv(3, channels, 3, stride=2, padding=(0, 1), rngs=rngs)

    def __call__(self, x):
        return relu6(self.conv(x))


class InvertedBottleneck(nnx.Module):
    """1x1 to more channels, depthwise, 1x1 to few: f[B,H,W,in] -> f[B,H//s,W//s,out].

    expansion  factor of the channels; with 1 the first convolution is absent
    adds       whether x is added to the output
    """

    def __init__(self, channels_in, channels, size, *, stride, expansion, adds, rngs):
        inner, init = expansion * channels_in, nnx.initializers.he_normal()
        self.expands, self.adds = expansion > 1, adds
        if self.expands:
            self.expand = Conv(channels_in, inner, 1, rngs=rngs)
        self.depthwise = DepthwiseConv(inner, size, stride=stride, kernel_init=init, rngs=rngs)
        self.project = Conv(inner, channels, 1, rngs=rngs)

    def __call__(self, x):
        y = relu6(self.expand(x)) if self.expands else x
        y = self.project(relu6(self.depthwise(y)))
        return x + y if self.adds else y


class LiteHead(nnx.Module):
    """1x1 convolution, ReLU6, of which a classifier takes the mean over the pixels."""

    def __init__(self, channels_in, channels, *, rngs):
        self.conv = Conv(channels_in, channels, 1, rngs=rngs)

    def __call__(self, x):
        return relu6(self.conv(x))


class EfficientNetLite(nnx.Module):
    """Named maps of images, computed up to the last one that is asked for.

    images  f[B, H, W, 3], (v - EFFICIENTNET_MEAN) / EFFICIENTNET_STD, sides of 32 or more
    taps    names of `efficientnet_taps`
    out     the maps f[B, h, w, C] in `dtype` by their names

    The padding is that of an image of 224 pixels for every image, as in the PyTorch program. Batch
    norms are part of the convolutions, as `weights.efficientnet_lite` folds them.
    """

    def __init__(self, settings: EfficientNetSettings, *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.settings, self.dtype = settings, dtype
        self.stem = StridedStem(settings.stem, rngs=rngs)
        channels_in, number = settings.stem, 0
        for i, (size, stride, blocks) in enumerate(LITE_STAGES):
            for j in range(blocks):
                block = InvertedBottleneck(
                    channels_in, settings.channels[i], size, stride=1 if j else stride,
                    expansion=LITE_EXPANSION if i else 1, adds=j > 0, rngs=rngs,
                )  # fmt: skip
                setattr(self, f"block{number}", block)
                channels_in, number = settings.channels[i], number + 1
        self.head = LiteHead(channels_in, settings.head, rngs=rngs)

    def __call__(self, images: jax.Array, taps: Sequence[str]) -> dict[str, jax.Array]:
        names, x, found = efficientnet_taps(self.settings), images.astype(self.dtype), {}
        for tap in taps:
            require_known(tap, names, "tap")
        for name in names:
            if not set(taps) <= set(found):
                found[name] = x = getattr(self, name)(x)
        return {tap: found[tap] for tap in taps}
