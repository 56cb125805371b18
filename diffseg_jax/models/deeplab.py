"""DeepLabV3: a dilated ResNet, atrous spatial pyramid pooling, and class logits.

Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation" (arXiv 1706.05587), in
the form of torchvision, which DatasetGAN and DatasetDDPM train on generated images.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from diffseg_jax.layers.conv import Conv
from diffseg_jax.layers.conv_norm import ConvBatchNorm
from diffseg_jax.layers.dropout import dropout
from diffseg_jax.layers.resize import resize_bilinear
from diffseg_jax.models.network import call
from diffseg_jax.models.resnet import ResNet, ResNetSettings, resnet_default_taps

OUTPUT_STRIDES = (8, 16, 32)
AUXILIARY_DROPOUT = 0.1  # torchvision's
EXPANSION = 4  # channels of a bottleneck's output for each inside it


@dataclasses.dataclass(frozen=True)
class DeepLabSettings:
    """Sizes of a DeepLabV3; the defaults are those of torchvision's, on ResNet-101.

    width          channels of the stem; stage i has width 2^i inside its blocks, i from 0
    depths         blocks of the four stages: (3, 4, 6, 3) for ResNet-50
    output_stride  pixels of an image per value of the last map
    rates          dilations of the three 3x3 convolutions of the pyramid
    channels       of each branch of the pyramid, and of the head
    dropout        of the joined branches, in training
    auxiliary      whether logits are computed from the third stage too, for a second loss
    """

    num_classes: int
    width: int = 64
    depths: tuple[int, ...] = (3, 4, 23, 3)
    output_stride: int = 8
    rates: tuple[int, ...] = (12, 24, 36)
    channels: int = 256
    dropout: float = 0.5
    auxiliary: bool = False

    @property
    def resnet(self) -> ResNetSettings:
        """The sizes of the backbone."""
        inner = tuple(self.width * 2**stage for stage in range(4))
        return ResNetSettings(self.width, inner, tuple(EXPANSION * c for c in inner), self.depths)


class Pyramid(nnx.Module):
    """Atrous spatial pyramid pooling (section 3.3): f[B,h,w,in] -> f[B,h,w,channels].

    A 1x1 convolution, one 3x3 for each rate, and the mean over the image, side by side; a 1x1
    convolution joins them.
    """

    def __init__(self, channels_in: int, channels: int, rates: Sequence[int], *, rngs: nnx.Rngs):
        self.rates = tuple(rates)
        self.point = ConvBatchNorm(channels_in, channels, 1, rngs=rngs)
        for i, rate in enumerate(self.rates):
            atrous = ConvBatchNorm(channels_in, channels, 3, dilation=rate, rngs=rngs)
            setattr(self, f"atrous{i}", atrous)
        self.pooled = ConvBatchNorm(channels_in, channels, 1, rngs=rngs)
        self.join = ConvBatchNorm((len(self.rates) + 2) * channels, channels, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        branches = [self.point, *(getattr(self, f"atrous{i}") for i in range(len(self.rates)))]
        mean = self.pooled(jnp.mean(x, (1, 2), keepdims=True))
        mean = jnp.broadcast_to(mean, (*x.shape[:3], mean.shape[-1]))
        joined = jnp.concatenate([*(branch(x) for branch in branches), mean], -1)
        return self.join(joined)


class ThirdStageHead(nnx.Module):
    """Logits of the third stage: f[B,h,w,in] -> f32[B,h,w,K]."""

    def __init__(self, channels_in: int, num_classes: int, *, rngs: nnx.Rngs):
        self.conv = ConvBatchNorm(channels_in, channels_in // EXPANSION, 3, rngs=rngs)
        self.logits = Conv(channels_in // EXPANSION, num_classes, 1, rngs=rngs)

    def __call__(self, x: jax.Array, key: jax.Array | None) -> jax.Array:
        x = dropout(self.conv(x), AUXILIARY_DROPOUT, key)
        return self.logits(x).astype(jnp.float32)


class DeepLab(nnx.Module):
    """Class logits of images, and named features.

    images  f[B, H, W, 3], normalised by ImageNet's mean and deviation, of any size
    key     of dropout; None: none is dropped
    out     f32[B, H, W, K] and {name: f[B, h, w, C]}: "stem" and "layer1" to "layer4" of the
            backbone, "pyramid", "logits", and with an auxiliary head "auxiliary", its logits
    """

    def __init__(
        self, settings: DeepLabSettings, *, dtype=jnp.float32, remat: bool = False, rngs: nnx.Rngs
    ):
        self.settings, self.remat = settings, remat
        layer = functools.partial(ConvBatchNorm, active=False)
        self.backbone = ResNet(
            settings.resnet, dtype=dtype, layer=layer, output_stride=settings.output_stride,
            remat=remat, rngs=rngs,
        )  # fmt: skip
        *_, third, last = settings.resnet.channels
        self.pyramid = Pyramid(last, settings.channels, settings.rates, rngs=rngs)
        self.head = ConvBatchNorm(settings.channels, settings.channels, 3, rngs=rngs)
        self.logits = Conv(settings.channels, settings.num_classes, 1, rngs=rngs)
        if settings.auxiliary:
            self.auxiliary = ThirdStageHead(third, settings.num_classes, rngs=rngs)

    def __call__(
        self, images: jax.Array, key: jax.Array | None = None
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        keys = (None, None) if key is None else jax.random.split(key)
        found = self.backbone(images, ("stem", *resnet_default_taps(self.settings.resnet)))
        found["pyramid"] = call(self.pyramid, self.remat, found["layer4"])
        x = dropout(found["pyramid"], self.settings.dropout, keys[0])
        found["logits"] = self.logits(self.head(x)).astype(jnp.float32)
        if self.settings.auxiliary:
            found["auxiliary"] = self.auxiliary(found["layer3"], keys[1])
        return enlarged_logits(found["logits"], images), found


def enlarged_logits(logits: jax.Array, images: jax.Array) -> jax.Array:
    """Logits f32[B, h, w, K] at the size of the images, bilinearly with half-pixel centres."""
    return resize_bilinear(logits, images.shape[1:3])
