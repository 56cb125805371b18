"""The network of DDP for segmentation: an image encoder, run once, and a decoder of label maps.

Ji et al., "DDP: Diffusion Model for Dense Visual Prediction" (ICCV 2023), figure 2 and section 3.3.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from diffseg_jax.diffusion.label_codes import code_table, code_width
from diffseg_jax.layers.conv import convolve
from diffseg_jax.layers.dropout import drop_channels
from diffseg_jax.layers.embeddings import TimeEmbedding
from diffseg_jax.layers.mlp import by_rows, linear
from diffseg_jax.layers.norm import BatchNorm
from diffseg_jax.models.dense_network import (
    DenseNetwork,
    combination,
    make_backbone,
    problem_of_sizes,
)
from diffseg_jax.models.fpn import FPN
from diffseg_jax.models.map_decoder import XAVIER, MapDecoder


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
        return problem_of_sizes(self)


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
        self.head = nnx.Linear(
            width, num_classes, kernel_init=small, dot_general=by_rows, rngs=rngs
        )
        self.rate = rate

    def __call__(self, x, keys=None):
        x = nnx.relu(self.norm(convolve(x, self.conv.kernel[...].astype(x.dtype))))
        return self.head(drop_channels(x, self.rate, keys, "auxiliary").astype(jnp.float32))


class DDPNetwork(DenseNetwork):
    """Encoder, map decoder and auxiliary head, as methods that a loss and a sampler combine.

    decodes  without it there is no map decoder, and only the auxiliary head predicts
    queries  in place of codes of labels the decoder has `query` f32[n], one learned vector
    """

    def __init__(
        self, settings: DDPSettings, *, decodes: bool = True, queries: bool = False,
        dtype=jnp.float32, remat: bool = False, rngs: nnx.Rngs,
    ):  # fmt: skip
        width, classes = settings.width, settings.num_classes
        self.backbone = make_backbone(settings, dtype=dtype, remat=remat, rngs=rngs)
        self.neck = FPN(settings.channels, width, settings.groups, dtype=dtype, rngs=rngs)
        self.auxiliary = AuxiliaryHead(width, classes, settings.auxiliary_dropout, rngs=rngs)
        self.settings = settings
        self.dtype = dtype
        if not decodes:
            return
        self.transform = combination(settings, rngs=rngs)
        if queries:
            self.query = nnx.Param(jax.random.normal(rngs.params(), (settings.code_width,)))
        elif settings.code == "embedding":
            self.embedding = ClassEmbedding(classes + 1, width, rngs=rngs)
        self.time = TimeEmbedding(4 * width, rngs=rngs)
        self.decoder = MapDecoder(
            width, layers=settings.layers, heads=settings.decoder_heads, points=settings.points,
            mlp=settings.mlp, dtype=dtype, remat=remat, rngs=rngs,
        )  # fmt: skip
        self.head = linear(width, classes, kernel_init=XAVIER, dtype=jnp.float32, rngs=rngs)

    def codes(self) -> jax.Array:
        """f32[K + 1, n]: the code of every class, and of the ignore label in the last row."""
        settings = self.settings
        table = self.embedding.table[...] if settings.code == "embedding" else None
        return code_table(settings.code, settings.num_classes, settings.code_scale, table)

    def decode(self, mixed: jax.Array, constants: jax.Array, modulations: jax.Array) -> jax.Array:
        """Class logits f32[B,h,w,K] of the sum of projected features and codes f32[B,h,w,E]."""
        x, _ = self.decoder(mixed.astype(self.dtype), constants, modulations)
        return self.head(x.astype(jnp.float32))
