"""ResNet of bottlenecks: ImageNet's ResNet-50, SwAV and SwAVw2; with dilation, DeepLab's backbone.

He et al., "Deep Residual Learning" (CVPR 2016), with the stride in the 3x3 convolution; Caron et
al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments" (NeurIPS 2020).
"""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from diffseg_jax.errors import require_known
from diffseg_jax.layers.conv import Conv
from diffseg_jax.models.network import call


@dataclasses.dataclass(frozen=True)
class ResNetSettings:
    """Sizes of a ResNet of bottlenecks; the defaults are those of ResNet-50.

    stem      channels of the first convolution
    inner     channels inside the bottlenecks of the four stages
    channels  channels of their outputs
    depths    blocks of the four stages
    """

    stem: int = 64
    inner: tuple[int, ...] = (64, 128, 256, 512)
    channels: tuple[int, ...] = (256, 512, 1024, 2048)
    depths: tuple[int, ...] = (3, 4, 6, 3)

    @property
    def stride(self) -> int:
        """Of the last map; other sides of images are rounded up at each of the five halvings."""
        return 32


def resnet_taps(settings: ResNetSettings) -> tuple[str, ...]:
    """Names of all maps in the order of depth.

    stem           output of the first convolution, at stride 2
    layer1.0.in    what enters block 0 of stage 1, here the pooled stem
    layer1         output of stage 1, which is also layer2.0.in
    """
    names = ["stem"]
    for number, depth in enumerate(settings.depths, 1):
        names += [*(f"layer{number}.{block}.in" for block in range(depth)), f"layer{number}"]
    return tuple(names)


def resnet_default_taps(settings: ResNetSettings) -> tuple[str, ...]:
    """The outputs of the four stages."""
    return tuple(f"layer{number}" for number in range(1, 5))


def swav_default_taps(settings: ResNetSettings) -> tuple[str, ...]:
    """What enters every second block, as Baranchuk et al. (ICLR 2022) take the features of SwAV."""
    return tuple(
        f"layer{number}.{block}.in"
        for number, depth in enumerate(settings.depths, 1)
        for block in range(0, depth, 2)
    )


class Bottleneck(nnx.Module):
    """1x1 to few channels, 3x3, 1x1 to many, and the sum with x: f[B,H,W,in] -> f[B,H/s,W/s,out].

    projects  whether x goes through a 1x1 convolution before it is added
    dilation  of the 3x3 convolution
    layer     makes the convolutions; called like `Conv`
    """

    def __init__(
        self, channels_in, inner, channels, *, stride, projects, rngs, dilation=1, layer=Conv
    ):
        spread = {"dilation": dilation} if dilation > 1 else {}
        self.conv1 = layer(channels_in, inner, 1, rngs=rngs)
        self.conv2 = layer(inner, inner, 3, stride=stride, rngs=rngs, **spread)
        self.conv3 = layer(inner, channels, 1, rngs=rngs)
        self.projects = projects
        if projects:
            self.shortcut = layer(channels_in, channels, 1, stride=stride, rngs=rngs)

    def __call__(self, x):
        residual = self.shortcut(x) if self.projects else x
        y = nnx.relu(self.conv2(nnx.relu(self.conv1(x))))
        return nnx.relu(residual + self.conv3(y))


class ResNet(nnx.Module):
    """Named maps of images, computed up to the last one that is asked for.

    images  f[B, H, W, 3], normalised by ImageNet's mean and deviation
    taps    names of `resnet_taps`
    out     the maps f[B, h, w, C] in `dtype` by their names; all are 0 or more

    layer   makes the convolutions. By default batch norms are part of them, as `weights.resnet`
            folds them; `ConvBatchNorm` has its own.
    output_stride  of the last map, 8, 16 or 32: below 32, the last stages are dilated in place of
            a stride, so that the same kernels see the same surroundings
    remat   whether blocks are computed again in the backward pass
    """

    def __init__(
        self, settings: ResNetSettings, *, dtype=jnp.float32, layer: Callable = Conv,
        output_stride: int = 32, remat: bool = False, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.settings, self.dtype, self.remat = settings, dtype, remat
        self.stem = layer(3, settings.stem, 7, stride=2, rngs=rngs)
        channels_in = settings.stem
        for i, depth in enumerate(settings.depths):
            stage = nnx.Module()
            for j in range(depth):
                stride, dilation = _stride_and_dilation(i, j, output_stride)
                block = Bottleneck(
                    channels_in, settings.inner[i], settings.channels[i], stride=stride,
                    projects=j == 0, dilation=dilation, layer=layer, rngs=rngs,
                )  # fmt: skip
                setattr(stage, f"block{j}", block)
                channels_in = settings.channels[i]
            setattr(self, f"layer{i + 1}", stage)

    def __call__(self, images: jax.Array, taps: Sequence[str]) -> dict[str, jax.Array]:
        for tap in taps:
            require_known(tap, resnet_taps(self.settings), "tap")
        found = {}
        for name, values in self._maps(images.astype(self.dtype)):
            found[name] = values
            if set(taps) <= set(found):
                break
        return {tap: found[tap] for tap in taps}

    def _maps(self, x):
        """(name, map) of all maps, each computed when it is taken."""
        x = nnx.relu(self.stem(x))
        yield "stem", x
        x = nnx.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for number, depth in enumerate(self.settings.depths, 1):
            for block in range(depth):
                yield f"layer{number}.{block}.in", x
                x = call(getattr(getattr(self, f"layer{number}"), f"block{block}"), self.remat, x)
            yield f"layer{number}", x


def _stride_and_dilation(stage, block, output_stride):
    """Of the 3x3 convolution; the first block of a dilated stage has the dilation before it."""
    whole = (4, 8, 16, 32)  # strides of the stages without dilation
    dilation = max(whole[stage] // output_stride, 1)
    if block:
        return 1, dilation
    reduces = stage > 0 and whole[stage] <= output_stride
    return (2 if reduces else 1), max(whole[max(stage - 1, 0)] // output_stride, 1)
