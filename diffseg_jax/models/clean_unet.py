"""An ADM UNet for images without noise, and the heads with which it learns.

Stracke et al., "CleanDIFT: Diffusion Features without Noise" (CVPR 2025, arXiv 2412.03439).
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from diffseg_jax.layers.embeddings import TimeEmbedding, TimeModulation
from diffseg_jax.layers.mlp import gelu, linear
from diffseg_jax.layers.norm import in_float32
from diffseg_jax.models.adm_unet import ADMUNet

HEAD_LAYERS = 3  # of each head, as in the paper
TIME_WIDTH = 128  # of the embedded noise level that modulates them


class CleanUNet(ADMUNet):
    """The outputs of blocks for images: f32[B,H,W,3] -> {"output_5": f[B,h,w,C], ...}.

    The network always reads the time of clean images, t = 0. The layers that embed it are trained,
    so that it becomes a learned constant.
    """

    def __call__(self, images: jax.Array, taps: Sequence[str]) -> dict[str, jax.Array]:
        last = max(taps, key=self.settings.blocks.index)
        _, found = super().__call__(images, jnp.zeros(len(images)), until=last)
        return {tap: found[tap] for tap in taps}


class HeadLayer(nnx.Module):
    """A residual point-wise feed-forward layer, modulated by the noise level; first the identity.

    x    f[B,h,w,C] -> f[B,h,w,C] in `dtype`
    emb  f32[B,E]
    """

    def __init__(self, channels, dtype, rngs):
        zeros = nnx.initializers.zeros_init()
        self.norm = nnx.LayerNorm(channels, use_bias=False, use_scale=False, rngs=rngs)
        self.modulation = TimeModulation(channels, TIME_WIDTH, rngs=rngs)
        self.fc1 = linear(channels, channels, dtype=dtype, rngs=rngs)
        self.fc2 = linear(
            channels, channels, kernel_init=zeros, bias_init=zeros, dtype=dtype, rngs=rngs
        )

    def __call__(self, x, emb):
        h = self.modulation(in_float32(self.norm, x), emb)
        return x + self.fc2(gelu(self.fc1(h)))


class AgreementHeads(nnx.Module):
    """Maps without noise -> those that the teacher computes at a noise level, tap by tap.

    channels  tap -> C of its maps
    maps      {tap: f[B,h,w,C]}
    level     f32[B] in [0, 1], 0 is clean

    They are needed in training only.
    """

    def __init__(self, channels: Mapping[str, int], *, dtype=jnp.float32, rngs: nnx.Rngs):
        self.embedding = TimeEmbedding(TIME_WIDTH, rngs=rngs)
        for tap, width in channels.items():
            for layer in range(HEAD_LAYERS):
                setattr(self, f"{tap}_{layer}", HeadLayer(width, dtype, rngs))

    def __call__(self, maps: Mapping[str, jax.Array], level: jax.Array) -> dict[str, jax.Array]:
        emb, found = self.embedding(level), dict(maps)
        for tap in maps:
            for layer in range(HEAD_LAYERS):
                found[tap] = getattr(self, f"{tap}_{layer}")(found[tap], emb)
        return found
