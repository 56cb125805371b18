"""ConvNeXt: a convolutional network with the shape of a transformer.

Liu et al., "A ConvNet for the 2020s" (2022), as a backbone: four normalised maps.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from diffseg_jax.layers.conv import convolve, stop_fusion
from diffseg_jax.layers.depthwise import DepthwiseConv
from diffseg_jax.layers.dropout import drop_path
from diffseg_jax.layers.mlp import Mlp
from diffseg_jax.layers.norm import in_float32
from diffseg_jax.layers.pieces import Piecewise
from diffseg_jax.models.network import call

KERNEL_INIT = nnx.initializers.truncated_normal(0.02)


def _layer_norm(channels, rngs, epsilon=1e-6):
    return nnx.LayerNorm(channels, epsilon=epsilon, use_fast_variance=False, rngs=rngs)


class PatchConv(nnx.Module):
    """Convolution with bias whose stride is its size; pixels that fill no patch are skipped.

    x    f[B, H, W, in]
    out  f[B, H // size, W // size, out] in the dtype of x
    """

    def __init__(self, channels_in, channels, size, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(KERNEL_INIT(rngs.params(), (size, size, channels_in, channels)))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.kernel[...].astype(x.dtype)
        y = convolve(x, kernel, kernel.shape[0], "VALID")
        return y + self.bias[...].astype(x.dtype)


class Stem(nnx.Module):
    """4x4 patches, then their norm: f[B,H,W,3] -> f[B,H//4,W//4,C]."""

    def __init__(self, channels, *, rngs):
        self.conv = PatchConv(3, channels, 4, rngs=rngs)
        self.norm = _layer_norm(channels, rngs)

    def __call__(self, image):
        return in_float32(self.norm, self.conv(image))


class Downsample(nnx.Module):
    """Norm, then 2x2 patches: f[B,H,W,in] -> f[B,H//2,W//2,out]."""

    def __init__(self, channels_in, channels, *, epsilon, rngs):
        self.norm = _layer_norm(channels_in, rngs, epsilon)
        self.conv = PatchConv(channels_in, channels, 2, rngs=rngs)

    def __call__(self, x):
        return self.conv(in_float32(self.norm, x))


class ConvNeXtBlock(Piecewise):
    """Depthwise 7x7, norm, MLP, a factor per channel, and the sum with x: f[B,H,W,C] -> same."""

    def __init__(self, channels, *, rate, name, dtype, rngs):
        self.depthwise = DepthwiseConv(channels, 7, kernel_init=KERNEL_INIT, rngs=rngs)
        self.norm = _layer_norm(channels, rngs)
        self.mlp = Mlp(
            channels, 4 * channels, kernel_init=KERNEL_INIT,
            bias_init=nnx.initializers.zeros_init(), dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.gamma = nnx.Param(jnp.ones(channels))
        self.rate = rate
        self.name = name

    def __call__(self, x, keys=None):
        y = self.over_rows(self._pointwise, self.depthwise(x).reshape(-1, x.shape[-1]))
        return stop_fusion(x + drop_path(y.reshape(x.shape), self.rate, keys, self.name))

    def _pointwise(self, y):
        y = self.mlp(in_float32(self.norm, y))
        return y * self.gamma[...].astype(y.dtype)


class ConvNeXt(nnx.Module):
    """Four stages at strides 4, 8, 16, 32 (sizes round down), for images of 32 pixels or more.

    image         f[B, H, W, 3], normalised as the weights expect
    keys          one per image [B] for drop path, or None
    out           list of four normalised maps f[B, h, w, C_i] in `dtype`, and a dict of features:
                  "stem", "down{i}", "stage{i}.block{j}"
    drop_path     rate of the last block; it grows linearly from 0 at the first
    down_epsilon  epsilon of the norms before downsampling: 1e-5 in mmcls, 1e-6 in the paper's code
    normed        stages that have a normalised map; the list holds these maps
    """

    def __init__(
        self, *, channels, depths, drop_path=0.0, down_epsilon=1e-5, dtype=jnp.float32,
        remat=False, normed=tuple(range(4)), rngs: nnx.Rngs,
    ):  # fmt: skip
        self.normed = tuple(normed)
        self.depths, self.dtype, self.remat = tuple(depths), dtype, remat
        self.stem = Stem(channels[0], rngs=rngs)
        for i in range(1, 4):
            down = Downsample(channels[i - 1], channels[i], epsilon=down_epsilon, rngs=rngs)
            setattr(self, f"down{i}", down)
        step = drop_path / max(sum(depths) - 1, 1)
        for i, depth in enumerate(depths):
            stage = nnx.Module()
            for j in range(depth):
                name, rate = f"stage{i}.block{j}", step * (sum(depths[:i]) + j)
                block = ConvNeXtBlock(channels[i], rate=rate, name=name, dtype=dtype, rngs=rngs)
                setattr(stage, f"block{j}", block)
            setattr(self, f"stage{i}", stage)
            if i in normed:
                setattr(self, f"norm{i}", _layer_norm(channels[i], rngs))

    def __call__(self, image: jax.Array, keys: jax.Array | None = None):
        x = self.stem(image.astype(self.dtype))
        maps, features = [], {"stem": x}
        for i, depth in enumerate(self.depths):
            if i > 0:
                features[f"down{i}"] = x = getattr(self, f"down{i}")(x)
            for j in range(depth):
                block = getattr(getattr(self, f"stage{i}"), f"block{j}")
                features[f"stage{i}.block{j}"] = x = call(block, self.remat, x, keys)
            if i in self.normed:
                maps.append(in_float32(getattr(self, f"norm{i}"), x))
        return maps, features
