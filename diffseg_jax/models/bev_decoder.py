"""Residual stages and a pyramid of two levels over a map seen from above, as in BEVFusion.

He et al., "Deep Residual Learning" (CVPR 2016); Philion and Fidler, "Lift, Splat, Shoot" (2020).
With features of a LiDAR, Yan et al., "SECOND" (2018), and the pyramid of Lang et al.,
"PointPillars" (CVPR 2019).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from diffseg_jax.layers.conv_norm import KAIMING, ConvBatchNorm
from diffseg_jax.layers.norm import BatchNorm
from diffseg_jax.layers.resize import resize_aligned


class TwoConvBlock(nnx.Module):
    """Two 3x3 convolutions and the sum with x: f[B,H,W,in] -> f[B,H/s,W/s,out].

    x goes through a 1x1 convolution where channels or size change.
    """

    def __init__(self, channels_in, channels, stride, *, rngs: nnx.Rngs):
        self.conv1 = ConvBatchNorm(channels_in, channels, 3, stride=stride, rngs=rngs)
        self.conv2 = ConvBatchNorm(channels, channels, 3, active=False, rngs=rngs)
        self.projects = stride > 1 or channels_in != channels
        if self.projects:
            self.shortcut = ConvBatchNorm(
                channels_in, channels, 1, stride=stride, active=False, rngs=rngs
            )

    def __call__(self, x):
        residual = self.shortcut(x) if self.projects else x
        return nnx.relu(self.conv2(self.conv1(x)) + residual)


class ResidualStages(nnx.Module):
    """The outputs of all stages for a map f[B,H,W,in], each (blocks, channels, stride)."""

    def __init__(self, channels_in, stages, *, rngs: nnx.Rngs):
        for i, (blocks, channels, stride) in enumerate(stages):
            stage = nnx.Module()
            for j in range(blocks):
                block = TwoConvBlock(channels_in, channels, 1 if j else stride, rngs=rngs)
                setattr(stage, f"block{j}", block)
                channels_in = channels
            setattr(self, f"stage{i}", stage)
        self.depths = tuple(blocks for blocks, _, _ in stages)

    def __call__(self, x) -> list[jax.Array]:
        maps = []
        for i, blocks in enumerate(self.depths):
            stage = getattr(self, f"stage{i}")
            for j in range(blocks):
                x = getattr(stage, f"block{j}")(x)
            maps.append(x)
        return maps


class TwoLevels(nnx.Module):
    """A small map enlarged to a large one and joined with it, then twice as large.

    small, large  f[B, h, w, a], f[B, H, W, b]
    out           f[B, 2H, 2W, width]

    Both enlargements are bilinear with aligned corners.
    """

    def __init__(self, channels_in, width, *, rngs: nnx.Rngs):
        self.fuse0 = ConvBatchNorm(channels_in, width, 1, rngs=rngs)
        self.fuse1 = ConvBatchNorm(width, width, 3, rngs=rngs)
        self.up = ConvBatchNorm(width, width, 3, rngs=rngs)

    def __call__(self, small, large):
        height, width = large.shape[1:3]
        joined = jnp.concatenate([resize_aligned(small, (height, width)), large], -1)
        x = self.fuse1(self.fuse0(joined))
        return self.up(resize_aligned(x, (2 * height, 2 * width)))


class BEVDecoder(nnx.Module):
    """Residual stages and both levels: f[B,H,W,in] -> f[B,2H',2W',width], H' of the first stage.

    stages  (blocks, channels, stride) of three stages
    """

    def __init__(self, channels_in, stages, width, *, rngs: nnx.Rngs):
        self.backbone = ResidualStages(channels_in, stages, rngs=rngs)
        self.neck = TwoLevels(stages[-1][1] + stages[0][1], width, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        maps = self.backbone(x)
        return self.neck(maps[-1], maps[0])


SECOND_NORM = dict(epsilon=1e-3, momentum=0.99)


class Second(nnx.Module):
    """Plain convolutions in stages: a map f[B,H,W,in] -> the outputs of all stages.

    stages  (further convolutions, channels, stride of the first one)
    """

    def __init__(self, channels_in, stages, *, rngs: nnx.Rngs):
        for i, (further, channels, stride) in enumerate(stages):
            stage = nnx.Module()
            for j in range(further + 1):
                layer = ConvBatchNorm(
                    channels_in, channels, 3, stride=1 if j else stride, norm=SECOND_NORM,
                    rngs=rngs,
                )  # fmt: skip
                setattr(stage, f"conv{j}", layer)
                channels_in = channels
            setattr(self, f"stage{i}", stage)
        self.depths = tuple(further + 1 for further, _, _ in stages)

    def __call__(self, x) -> list[jax.Array]:
        maps = []
        for i, depth in enumerate(self.depths):
            for j in range(depth):
                x = getattr(getattr(self, f"stage{i}"), f"conv{j}")(x)
            maps.append(x)
        return maps


class Enlarged(nnx.Module):
    """A transposed convolution that makes each pixel s x s: f[B,h,w,in] -> f[B,s h,s w,width].

    Windows do not overlap, so it is one product per pixel. Batch norm and ReLU follow.
    """

    def __init__(self, channels_in, width, factor, *, rngs: nnx.Rngs):
        shape = (factor, factor, channels_in, width)
        self.kernel = nnx.Param(KAIMING(rngs.params(), shape))
        self.norm = BatchNorm(width, **SECOND_NORM)

    def __call__(self, x):
        batch, height, width, _ = x.shape
        kernel = self.kernel[...].astype(x.dtype)
        size = kernel.shape[0]
        y = jnp.einsum("nhwi,abio->nhawbo", x, kernel)
        return nnx.relu(self.norm(y.reshape(batch, size * height, size * width, -1)))


class FusedDecoder(nnx.Module):
    """Features of cameras and of a LiDAR on one grid, joined: f[B,H,W,a], f[B,H,W,b] -> f[B,H,W,C].

    fused   channels after they are joined;  stages  as of `Second`, of two of them
    width   channels of each stage in the result, so that C is twice as many
    """

    def __init__(self, cameras, lidar, fused, stages, width, *, rngs: nnx.Rngs):
        self.fuse = ConvBatchNorm(cameras + lidar, fused, 3, rngs=rngs)
        self.backbone = Second(fused, stages, rngs=rngs)
        (_, first, _), (_, second, stride) = stages
        self.large = ConvBatchNorm(first, width, 1, norm=SECOND_NORM, rngs=rngs)
        self.small = Enlarged(second, width, stride, rngs=rngs)

    def __call__(self, x: jax.Array, lidar: jax.Array) -> jax.Array:
        joined = self.fuse(jnp.concatenate([x, lidar.astype(x.dtype)], -1))
        large, small = self.backbone(joined)
        return jnp.concatenate([self.large(large), self.small(small)], -1)
