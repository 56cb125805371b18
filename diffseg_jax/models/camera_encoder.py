"""The camera encoder of BEV networks: images of several cameras to one map seen from above.

Philion and Fidler, "Lift, Splat, Shoot" (ECCV 2020), in the form of BEVFusion (Liu et al., ICRA
2023), which Ji et al., "DDP" (ICCV 2023), build on.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from diffseg_jax.layers.bev_pooling import (
    Bound,
    Grid,
    cells_of_points,
    depth_bins,
    frustum,
    points_of,
    pool,
)
from diffseg_jax.layers.conv import Conv
from diffseg_jax.layers.conv_norm import ConvBatchNorm
from diffseg_jax.layers.resize import resize_bilinear
from diffseg_jax.models.swin import Swin

READ_STAGES = (1, 2, 3)  # stages of the Swin whose maps are read, at strides 8, 16 and 32


class CameraNeck(nnx.Module):
    """Each map joined with the one below it, from small to large; the largest is the result.

    maps  f[B, h_i, w_i, in_channels[i]], large to small, three or more
    out   f[B, h_0, w_0, width]
    """

    def __init__(self, in_channels, width, *, rngs: nnx.Rngs):
        self.levels = len(in_channels) - 1
        for i in range(self.levels):
            below = in_channels[-1] if i + 1 == self.levels else width
            joined = ConvBatchNorm(in_channels[i] + below, width, 1, rngs=rngs)
            setattr(self, f"lateral{i}", joined)
            setattr(self, f"out{i}", ConvBatchNorm(width, width, 3, rngs=rngs))

    def __call__(self, maps):
        x = maps[-1]
        for i in reversed(range(self.levels)):
            x = jnp.concatenate([maps[i], resize_bilinear(x, maps[i].shape[1:3])], -1)
            x = getattr(self, f"out{i}")(getattr(self, f"lateral{i}")(x))
        return x


class Lift(nnx.Module):
    """Features with a distribution over depths: f[B,h,w,in] -> f32[B,h,w,D], f[B,h,w,C]."""

    def __init__(self, channels_in, depths, channels, *, rngs: nnx.Rngs):
        self.conv = Conv(channels_in, depths + channels, 1, rngs=rngs)
        self.depths = depths

    def __call__(self, x):
        y = self.conv(x)
        depth = jax.nn.softmax(y[..., : self.depths].astype(jnp.float32), -1)
        return depth, y[..., self.depths :]


class CameraEncoder(nnx.Module):
    """Images of N cameras to one map.

    images   f[B, N, H, W, 3], normalised
    cameras  f32[B, N, 2, 3, 4], see `affine_maps`
    keys     one per image set [B], which turn stochastic depth on; None: deterministic
    out      f[B, X/2, Y/2, channels], and a dict of named features: those of the backbone, for
             B N images, "camera_neck" f[B N,h,w,neck], "points" f32[B,N,D,h,w,3] and "pooled"
             f[B,X,Y,channels]

    backbone   keyword arguments of `Swin`
    neck       channels of the neck
    channels   C, of what is lifted
    grid       cells of the map;  depth  bound of the depths, in metres
    """

    def __init__(
        self, *, backbone: dict, neck: int, channels: int, grid: Grid, depth: Bound,
        dtype=jnp.float32, remat: bool = False, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.backbone = Swin(**backbone, normed=READ_STAGES, dtype=dtype, remat=remat, rngs=rngs)
        read = [backbone["channels"][i] for i in READ_STAGES]
        self.neck = CameraNeck(read, neck, rngs=rngs)
        self.lift = Lift(neck, len(depth_bins(depth)), channels, rngs=rngs)
        for i in range(3):
            layer = ConvBatchNorm(channels, channels, 3, stride=2 if i == 1 else 1, rngs=rngs)
            setattr(self, f"down{i}", layer)
        self.grid = grid
        self.depth = depth
        self.dtype = dtype

    def __call__(self, images: jax.Array, cameras: jax.Array, keys: jax.Array | None = None):
        batch, number, *size, _ = images.shape
        if keys is not None:
            of_camera = jax.vmap(jax.random.fold_in, (None, 0))
            keys = jax.vmap(of_camera, (0, None))(keys, jnp.arange(number)).reshape(-1)
        images = images.reshape(batch * number, *images.shape[2:]).astype(self.dtype)
        maps, features = self.backbone(images, keys)
        features["camera_neck"] = x = self.neck(maps)
        depth, lifted = self.lift(x)
        pixels = frustum(tuple(size), x.shape[1:3], depth_bins(self.depth))
        features["points"] = points_of(cameras, pixels)
        depth = jnp.moveaxis(depth.reshape(batch, number, *depth.shape[1:]), -1, 2)
        lifted = lifted.reshape(batch, number, *lifted.shape[1:])
        cells, (rows, columns, _) = cells_of_points(features["points"], self.grid), self.grid.cells
        pooled = pool(depth, lifted, cells, rows * columns).astype(x.dtype)
        features["pooled"] = x = pooled.reshape(batch, rows, columns, -1)
        for i in range(3):
            x = getattr(self, f"down{i}")(x)
        return x, features
