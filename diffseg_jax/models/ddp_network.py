"""The network of DDP: an image encoder, run once, and a map decoder, run for every noise level.

Ji et al., "DDP: Diffusion Model for Dense Visual Prediction" (ICCV 2023), figure 2 and section 3.3.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from diffseg_jax.diffusion.label_codes import code_table, code_width
from diffseg_jax.layers.conv import convolve
from diffseg_jax.layers.dropout import drop_channels
from diffseg_jax.layers.embeddings import TimeEmbedding
from diffseg_jax.layers.mlp import linear
from diffseg_jax.layers.norm import BatchNorm
from diffseg_jax.models import convnext, swin
from diffseg_jax.models.fpn import FPN
from diffseg_jax.models.map_decoder import XAVIER, MapDecoder

MIN_SIDE = 32  # pixels; the backbones' last map of a smaller image would be empty


@dataclasses.dataclass(frozen=True)
class DDPSettings:
    """The configuration of the network.

    backbone            "swin" or "convnext"
    channels, depths    widths and numbers of blocks of its four stages
    heads, window       heads of the stages and window of Swin; () and 0 for ConvNeXt
    drop_path           rate of its last block (stochastic depth)
    down_epsilon        epsilon of ConvNeXt's norms before downsampling; 1e-5 in published files
    width               E, the channels of the merged features and of the map decoder
    layers, decoder_heads, points, mlp    sizes of the map decoder
    groups              groups of the neck's norms
    auxiliary_dropout   rate at which channels of the auxiliary head are dropped in training
    code, code_scale    encoding of label maps, see `label_codes`
    num_classes         K
    """

    backbone: str
    channels: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int
    num_classes: int
    drop_path: float = 0.0
    down_epsilon: float = 1e-5
    width: int = 256
    layers: int = 6
    decoder_heads: int = 8
    points: int = 4
    mlp: int = 1024
    groups: int = 32
    auxiliary_dropout: float = 0.1
    code: str = "embedding"
    code_scale: float = 0.01

    @property
    def code_width(self) -> int:
        """n, the channels of a noisy map."""
        return code_width(self.code, self.num_classes, self.width)

    def problem(self) -> str:
        """Why the settings are invalid, as a sentence with advice, or an empty string."""
        if self.backbone == "swin":
            found = swin.problem(self.channels, self.depths, self.heads, self.window)
            if found:
                return found
        elif self.heads or self.window:
            return (
                f"heads is {self.heads} and window {self.window}, which only a Swin has. For "
                "ConvNeXt give () and 0."
            )
        for name, divisor in (("groups", self.groups), ("decoder_heads", self.decoder_heads)):
            if self.width % divisor:
                return (
                    f"width is {self.width}, which {divisor} {name} cannot share evenly. "
                    f"Try --config.model.width={-(-self.width // divisor) * divisor}, or "
                    f"--config.model.{name}={math.gcd(self.width, divisor)}."
                )
        return "" if self.width % 4 == 0 else f"width is {self.width}; take a multiple of 4."


class ClassEmbedding(nnx.Module):
    """One learned row per class, and one for the ignore label: a table f32[K + 1, E]."""

    def __init__(self, rows, width, *, rngs):
        self.table = nnx.Param(jax.random.normal(rngs.params(), (rows, width)))


class AuxiliaryHead(nnx.Module):
    """3x3 convolution, batch norm, ReLU, classes: f[B,h,w,E] -> f32[B,h,w,K]."""

    def __init__(self, width, num_classes, rate, *, rngs):
        init = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
        self.conv = nnx.Conv(width, width, (3, 3), use_bias=False, kernel_init=init, rngs=rngs)
        self.norm = BatchNorm(width)
        small = nnx.initializers.normal(0.01)
        self.head = nnx.Linear(width, num_classes, kernel_init=small, rngs=rngs)
        self.rate = rate

    def __call__(self, x, keys=None):
        x = nnx.relu(self.norm(convolve(x, self.conv.kernel[...].astype(x.dtype))))
        return self.head(drop_channels(x, self.rate, keys, "auxiliary").astype(jnp.float32))


class DDPNetwork(nnx.Module):
    """Encoder, map decoder and auxiliary head, as methods that a loss and a sampler combine.

    diffuses   without it there is no map decoder, and only the auxiliary head predicts
    """

    def __init__(
        self, settings: DDPSettings, *, diffuses: bool = True, dtype=jnp.float32,
        remat: bool = False, rngs: nnx.Rngs,
    ):  # fmt: skip
        width, classes = settings.width, settings.num_classes
        self.backbone = make_backbone(settings, dtype=dtype, remat=remat, rngs=rngs)
        self.neck = FPN(settings.channels, width, settings.groups, dtype=dtype, rngs=rngs)
        self.auxiliary = AuxiliaryHead(width, classes, settings.auxiliary_dropout, rngs=rngs)
        self.settings = settings
        self.dtype = dtype
        if not diffuses:
            return
        self.transform = nnx.Linear(
            width + settings.code_width, width, rngs=rngs,
            kernel_init=nnx.initializers.variance_scaling(2.0, "fan_out", "normal"),
        )  # fmt: skip
        if settings.code == "embedding":
            self.embedding = ClassEmbedding(classes + 1, width, rngs=rngs)
        self.time = TimeEmbedding(4 * width, rngs=rngs)
        self.decoder = MapDecoder(
            width, layers=settings.layers, heads=settings.decoder_heads, points=settings.points,
            mlp=settings.mlp, dtype=dtype, remat=remat, rngs=rngs,
        )  # fmt: skip
        self.head = linear(width, classes, kernel_init=XAVIER, dtype=jnp.float32, rngs=rngs)

    def encode(self, image: jax.Array, keys=None) -> tuple[jax.Array, dict]:
        """Merged features f[B,h,w,E] of images f32[B,H,W,3], and a dict of named features.

        h, w are H/4, W/4, rounded up by Swin and down by ConvNeXt; H, W are 32 or more. keys [B]
        turn drop path on.
        """
        maps, features = self.backbone(image.astype(self.dtype), keys)
        merged, named = self.neck(maps)
        return merged, {**features, **named, "merged": merged}

    def codes(self) -> jax.Array:
        """f32[K + 1, n]: the code of every class, and of the ignore label in the last row."""
        settings = self.settings
        table = self.embedding.table[...] if settings.code == "embedding" else None
        return code_table(settings.code, settings.num_classes, settings.code_scale, table)

    def project_features(self, x: jax.Array) -> jax.Array:
        """The features' part of the decoder's input, f[B,h,w,E] -> f32[B,h,w,E]."""
        kernel, bias = self.transform.kernel[...], self.transform.bias[...]
        product = jnp.einsum("...i,io->...o", x, kernel[: x.shape[-1]].astype(x.dtype))
        return product.astype(jnp.float32) + bias

    def project_codes(self, codes: jax.Array) -> jax.Array:
        """The part of codes or noisy maps, f32[..., n] -> f32[..., E]; linear."""
        kernel = self.transform.kernel[self.settings.width :]
        return jnp.einsum("...i,io->...o", codes, kernel)

    def modulations(self, level: jax.Array) -> jax.Array:
        """Scale and shift of every layer for noise levels, log-SNRs f32[B]: f32[B, layers, 2E]."""
        return self.decoder.modulations(self.time(level))

    def decode(self, mixed: jax.Array, constants: jax.Array, modulations: jax.Array) -> jax.Array:
        """Class logits f32[B,h,w,K] of the sum of projected features and codes f32[B,h,w,E]."""
        x, _ = self.decoder(mixed.astype(self.dtype), constants, modulations)
        return self.head(x.astype(jnp.float32))


def make_backbone(settings: DDPSettings, *, dtype, remat, rngs) -> nnx.Module:
    """The image encoder that the settings name."""
    shared = dict(
        channels=settings.channels, depths=settings.depths, drop_path=settings.drop_path,
        dtype=dtype, remat=remat, rngs=rngs,
    )  # fmt: skip
    if settings.backbone == "swin":
        return swin.Swin(heads=settings.heads, window=settings.window, **shared)
    return convnext.ConvNeXt(down_epsilon=settings.down_epsilon, **shared)
