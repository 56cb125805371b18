"""Feature pyramid and the merging of its levels into one map.

Lin et al., "Feature Pyramid Networks for Object Detection" (2017), with group norms; the merging is
that of Ji et al., "DDP: Diffusion Model for Dense Visual Prediction" (2023).
"""

import jax
import jax.numpy as jnp
from flax import nnx

from diffseg_jax.errors import UserError
from diffseg_jax.layers.conv import convolve
from diffseg_jax.layers.norm import GroupNorm, in_float32
from diffseg_jax.layers.resize import resize_bilinear, resize_nearest


class Kernel(nnx.Module):
    """Convolution without bias, stride 1: f[B,H,W,in] -> f[B,H,W,out]; Xavier-uniform kernel."""

    def __init__(self, channels_in, channels, size, *, rngs: nnx.Rngs):
        init = nnx.initializers.xavier_uniform()
        self.kernel = nnx.Param(init(rngs.params(), (size, size, channels_in, channels)))

    def __call__(self, x):
        return convolve(x, self.kernel[...].astype(x.dtype))


class ConvNorm(nnx.Module):
    """Convolution, then group norm; no bias and no activation: f[B,H,W,in] -> f[B,H,W,out]."""

    def __init__(self, channels_in, channels, size, *, groups, rngs: nnx.Rngs):
        self.conv = Kernel(channels_in, channels, size, rngs=rngs)
        self.norm = GroupNorm(channels, groups)

    def __call__(self, x):
        return in_float32(self.norm, self.conv(x))


class Merge(ConvNorm):
    """All levels upsampled to the first and concatenated, 1x1 convolution, group norm.

    The convolution commutes with the upsampling, so each level is multiplied by its slice of the
    kernel at its resolution, and four maps of E channels are added instead of one of 4E: a third of
    the products, equal up to rounding.
    """

    def __call__(self, levels):
        kernel = self.conv.kernel[...].astype(levels[0].dtype)
        slices = jnp.split(kernel, len(levels), axis=2)
        size = levels[0].shape[1:3]
        parts = [resize_bilinear(convolve(x, k), size) for x, k in zip(levels, slices)]
        return in_float32(self.norm, sum(parts))


class FPN(nnx.Module):
    """Top-down pyramid over four maps, then one map of its four levels.

    maps    four arrays f[B, h_i, w_i, in_channels[i]], large to small
    merged  f[B, h_0, w_0, width] in `dtype`
    out     merged and a dict of the levels, "fpn0".."fpn3", f[B, h_i, w_i, width]
    groups  groups of every norm; must divide width

    The norms see all pixels of an image, so padding it changes the output everywhere.
    """

    def __init__(self, in_channels, width, groups, *, dtype=jnp.float32, rngs: nnx.Rngs):
        if width % groups:
            raise UserError(
                f"width is {width}, but {groups} groups must share it evenly. "
                f"Try width={-(-width // groups) * groups}."
            )
        self.dtype, self.levels = dtype, len(in_channels)
        for i, channels in enumerate(in_channels):
            setattr(self, f"lateral{i}", ConvNorm(channels, width, 1, groups=groups, rngs=rngs))
            setattr(self, f"out{i}", ConvNorm(width, width, 3, groups=groups, rngs=rngs))
        self.merge = Merge(self.levels * width, width, 1, groups=groups, rngs=rngs)

    def __call__(self, maps) -> tuple[jax.Array, dict]:
        maps = [x.astype(self.dtype) for x in maps]
        laterals = [getattr(self, f"lateral{i}")(x) for i, x in enumerate(maps)]
        for i in range(self.levels - 1, 0, -1):
            below = laterals[i - 1]
            laterals[i - 1] = below + resize_nearest(laterals[i], below.shape[1:3])
        outs = [getattr(self, f"out{i}")(x) for i, x in enumerate(laterals)]
        return self.merge(outs), {f"fpn{i}": x for i, x in enumerate(outs)}
