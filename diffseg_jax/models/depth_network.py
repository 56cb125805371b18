"""The network of DDP for depth: an image encoder, run once, and a decoder of noisy depth maps.

Ji et al., "DDP: Diffusion Model for Dense Visual Prediction" (ICCV 2023), section 4.3.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from diffseg_jax.layers.conv import convolve
from diffseg_jax.layers.embeddings import TimeEmbedding
from diffseg_jax.models.dense_network import (
    DenseNetwork,
    combination,
    make_backbone,
    problem_of_sizes,
)
from diffseg_jax.models.fpn import FPN
from diffseg_jax.models.map_decoder import XAVIER, MapDecoder


@dataclasses.dataclass(frozen=True)
class DepthSettings:
    """The configuration of the network; sizes of encoder and decoder as in `DDPSettings`.

    low, high    metres: the range of depths; `low` is also the least output
    code_scale   normalised depth lies in [-code_scale, code_scale]
    timed        whether the noise level scales and shifts the decoder's layers: the paper's form.
                 In the released one it does not, and the time embedding is unused
    bounded      whether outputs are high * sigmoid, in place of low + ReLU
    """

    backbone: str
    channels: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    low: float = 1e-3
    high: float = 80.0
    drop_path: float = 0.0
    down_epsilon: float = 1e-5
    width: int = 256
    layers: int = 6
    decoder_heads: int = 8
    points: int = 4
    mlp: int = 1024
    groups: int = 32
    code_scale: float = 0.1
    timed: bool = True
    bounded: bool = False

    @property
    def code_width(self) -> int:
        """The channels of a noisy map."""
        return 1

    def problem(self) -> str:
        """Why the settings are invalid, as a sentence with advice, or an empty string."""
        if not 0 < self.low < self.high:
            return f"depths range from {self.low} to {self.high} metres; the first must be less."
        return problem_of_sizes(self)


class DepthNetwork(DenseNetwork):
    """Encoder and decoder of depth maps, as methods that a loss and a sampler combine."""

    def __init__(
        self, settings: DepthSettings, *, dtype=jnp.float32, remat: bool = False, rngs: nnx.Rngs
    ):  # fmt: skip
        width = settings.width
        self.backbone = make_backbone(settings, dtype=dtype, remat=remat, rngs=rngs)
        self.neck = FPN(settings.channels, width, settings.groups, dtype=dtype, rngs=rngs)
        self.settings = settings
        self.dtype = dtype
        self.transform = combination(settings, rngs=rngs)
        self.time = TimeEmbedding(4 * width, rngs=rngs)
        self.decoder = MapDecoder(
            width, layers=settings.layers, heads=settings.decoder_heads, points=settings.points,
            mlp=settings.mlp, timed=settings.timed, dtype=dtype, remat=remat, rngs=rngs,
        )  # fmt: skip
        self.head = nnx.Conv(width, 1, (3, 3), kernel_init=XAVIER, rngs=rngs)

    def decode(self, mixed: jax.Array, constants: jax.Array, modulations: jax.Array) -> jax.Array:
        """Depths f32[B,h,w,1] in metres of the sum of projected features and maps f32[B,h,w,E]."""
        settings = self.settings
        x, _ = self.decoder(mixed.astype(self.dtype), constants, modulations)
        x = convolve(x.astype(jnp.float32), self.head.kernel[...]) + self.head.bias[...]
        if settings.bounded:
            return settings.high * jax.nn.sigmoid(x)
        return nnx.relu(x) + settings.low

    def normalised(self, depth: jax.Array) -> jax.Array:
        """Metres f32[...] -> [-code_scale, code_scale]; not clipped."""
        settings = self.settings
        unit = (depth - settings.low) / (settings.high - settings.low)
        return (2 * unit - 1) * settings.code_scale
