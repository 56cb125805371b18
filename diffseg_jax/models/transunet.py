"""TransUNet: a hybrid ResNet + ViT encoder and a convolutional decoder with skips.

Chen et al., "TransUNet" (2021), with the encoder of Dosovitskiy et al., "An Image is Worth 16x16
Words" (2021); used by Brempong et al., "(Decoder) Denoising Pretraining for Semantic Segmentation"
(2022). H and W below are the image padded to multiples of 16.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from diffseg_jax.layers.attention import SelfAttention
from diffseg_jax.layers.conv import Arithmetic, StdConv, convolve, stop_fusion
from diffseg_jax.layers.dropout import dropout
from diffseg_jax.layers.embeddings import TimeModulation, sinusoid
from diffseg_jax.layers.mlp import by_rows
from diffseg_jax.layers.norm import BatchNorm, in_float32
from diffseg_jax.layers.resize import resize_aligned, upsample2_aligned
from diffseg_jax.models.network import call

STRIDE = 16
LEVEL_WIDTH = 128  # width of the embedded noise level


def _group_norm(channels, *, groups=32, epsilon=1e-6, scale_init=nnx.initializers.ones, rngs):
    return nnx.GroupNorm(
        channels, num_groups=groups, epsilon=epsilon, use_fast_variance=False,
        scale_init=scale_init, rngs=rngs,
    )  # fmt: skip


def _layer_norm(dim, rngs):
    return nnx.LayerNorm(dim, epsilon=1e-6, use_fast_variance=False, rngs=rngs)


class Root(nnx.Module):
    """7x7/2 convolution, norm, ReLU: f[B,H,W,3] -> f[B,H/2,W/2,C]."""

    def __init__(self, channels, *, arithmetic, rngs):
        self.conv = StdConv(3, channels, 7, stride=2, arithmetic=arithmetic, rngs=rngs)
        self.norm = _group_norm(channels, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(in_float32(self.norm, self.conv(x)))


class Unit(nnx.Module):
    """Bottleneck residual unit, norm and ReLU after the sum: f[B,h,w,in] -> f[B,h/s,w/s,4c]."""

    def __init__(self, in_channels, channels, stride, *, arithmetic, rngs):
        def conv(features_in, features_out, size, stride=1):
            return StdConv(
                features_in, features_out, size, stride=stride, arithmetic=arithmetic, rngs=rngs
            )

        out = 4 * channels
        self.conv1, self.norm1 = conv(in_channels, channels, 1), _group_norm(channels, rngs=rngs)
        self.conv2 = conv(channels, channels, 3, stride)
        self.norm2 = _group_norm(channels, rngs=rngs)
        self.conv3 = conv(channels, out, 1)
        self.norm3 = _group_norm(out, rngs=rngs, scale_init=nnx.initializers.zeros_init())
        self.has_projection = stride != 1 or in_channels != out
        if self.has_projection:
            self.conv_proj = conv(in_channels, out, 1, stride)
            port = arithmetic is Arithmetic.PORT  # the port normalises each channel separately
            groups, epsilon = (out, 1e-5) if port else (32, 1e-6)
            self.norm_proj = _group_norm(out, groups=groups, epsilon=epsilon, rngs=rngs)

    def __call__(self, x):
        residual = in_float32(self.norm_proj, self.conv_proj(x)) if self.has_projection else x
        y = nnx.relu(in_float32(self.norm1, self.conv1(x)))
        y = nnx.relu(in_float32(self.norm2, self.conv2(y)))
        return nnx.relu(residual + in_float32(self.norm3, self.conv3(y)))


class ResNetStage(nnx.Module):
    """A stage of the ResNet: units 1..n, the first one with the stride."""

    def __init__(self, in_channels, channels, units, stride, *, arithmetic, remat, rngs):
        self.units = units
        self.remat = remat
        for u in range(1, units + 1):
            unit = Unit(
                in_channels, channels, stride if u == 1 else 1, arithmetic=arithmetic, rngs=rngs
            )
            setattr(self, f"unit{u}", unit)
            in_channels = 4 * channels

    def __call__(self, x):
        for u in range(1, self.units + 1):
            x = call(getattr(self, f"unit{u}"), self.remat, x)
        return x


class DropoutMlp(nnx.Module):
    """Two linear layers with a GELU between: f[B,N,D] -> f[B,N,D]."""

    def __init__(self, dim, hidden, *, rate, approximate, dtype, rngs):
        options = dict(
            kernel_init=nnx.initializers.xavier_uniform(),
            bias_init=nnx.initializers.normal(1e-6), dot_general=by_rows, dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.fc1 = nnx.Linear(dim, hidden, **options)
        self.fc2 = nnx.Linear(hidden, dim, **options)
        self.rate = rate
        self.approximate = approximate

    def __call__(self, x, key):
        inner, outer = (None, None) if key is None else jax.random.split(key)
        x = nnx.gelu(self.fc1(x), approximate=self.approximate)
        return dropout(self.fc2(dropout(x, self.rate, inner)), self.rate, outer)


class EncoderLayer(nnx.Module):
    """Pre-norm transformer layer: f[B,N,D] -> f[B,N,D]."""

    def __init__(self, dim, heads, mlp_dim, *, rate, arithmetic, dtype, rngs):
        official = arithmetic is Arithmetic.OFFICIAL
        self.norm1 = _layer_norm(dim, rngs)
        self.attention = SelfAttention(dim, heads, dtype=dtype, rngs=rngs)
        self.norm2 = _layer_norm(dim, rngs)
        self.mlp = DropoutMlp(dim, mlp_dim, rate=rate, approximate=official, dtype=dtype, rngs=rngs)
        self.attention_rate = rate if official else 0.0  # the port uses its attention rate, 0

    def __call__(self, x, key):
        first, second = (None, None) if key is None else jax.random.split(key)
        attended = self.attention(in_float32(self.norm1, x))
        x = x + dropout(attended, self.attention_rate, first)
        x = stop_fusion(x)
        return stop_fusion(x + self.mlp(in_float32(self.norm2, x), second))


class Encoder(nnx.Module):
    """Hybrid encoder: ResNet to stride 16, then a vision transformer on its tokens.

    image     f[B, H, W, 3] in [-1, 1], H and W multiples of 16
    out       f[B, H/16, W/16, D] and a dict of named features; skips at strides 2, 4, 8 among them

    The position table has the grid it was made for and is resized with aligned corners to the grid
    of each image, as the released loader does.
    """

    def __init__(
        self, *, resnet_width, resnet_units, hidden, layers, heads, mlp, grid, dropout_rate,
        arithmetic, dtype, remat, rngs,
    ):  # fmt: skip
        width = round(64 * resnet_width)
        self.root = Root(width, arithmetic=arithmetic, rngs=rngs)
        channels = width
        for b, units in enumerate(resnet_units):
            block = ResNetStage(
                channels, width * 2**b, units, 1 if b == 0 else 2,
                arithmetic=arithmetic, remat=remat, rngs=rngs,
            )  # fmt: skip
            setattr(self, f"block{b + 1}", block)
            channels = 4 * width * 2**b
        self.patch_embedding = nnx.Conv(channels, hidden, (1, 1), dtype=dtype, rngs=rngs)
        table = nnx.initializers.normal(0.02)(rngs.params(), (1, grid[0] * grid[1], hidden))
        self.position_embedding = nnx.Param(table)
        for l in range(layers):
            layer = EncoderLayer(
                hidden, heads, mlp, rate=dropout_rate, arithmetic=arithmetic, dtype=dtype, rngs=rngs
            )
            setattr(self, f"layer{l}", layer)
        self.norm = _layer_norm(hidden, rngs)
        self.layers = layers
        self.grid = tuple(grid)
        self.dropout_rate = dropout_rate
        self.arithmetic = arithmetic
        self.remat = remat

    def __call__(self, image, key=None):
        features = {}
        x = features["root"] = self.root(image)
        x = features["block1"] = self.block1(self._pool(x))
        features["skip2"], features["skip4"] = features["root"], self._full(x, image.shape)
        x = features["block2"] = features["skip8"] = self.block2(x)
        x = features["block3"] = self.block3(x)
        x = features["embedding"] = self._embed(x)
        batch, rows, columns, dim = x.shape
        keys = [None] * (self.layers + 1) if key is None else jax.random.split(key, self.layers + 1)
        x = x + self._positions((rows, columns)).astype(x.dtype)
        x = features["embedded"] = dropout(x.reshape(batch, -1, dim), self.dropout_rate, keys[0])
        for l in range(self.layers):
            x = features[f"layer{l}"] = call(getattr(self, f"layer{l}"), self.remat, x, keys[l + 1])
        x = features["encoded"] = in_float32(self.norm, x).reshape(batch, rows, columns, dim)
        return x, features

    def _embed(self, x):
        kernel = self.patch_embedding.kernel[...].astype(x.dtype)
        return convolve(x, kernel) + self.patch_embedding.bias[...].astype(x.dtype)

    def _pool(self, x):
        """3x3/2 maximum: SAME, or without any padding in the port."""
        padding = "SAME" if self.arithmetic is Arithmetic.OFFICIAL else "VALID"
        return nnx.max_pool(x, (3, 3), (2, 2), padding)

    def _full(self, x, shape):
        """The stride-4 skip; the port's map lacks a row and a column, which are padded with 0."""
        rows, columns = shape[1] // 4 - x.shape[1], shape[2] // 4 - x.shape[2]
        return jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0)))

    def _positions(self, grid):
        table = self.position_embedding[...].reshape(1, *self.grid, -1)
        return resize_aligned(table, grid)


class ConvNormRelu(nnx.Module):
    """3x3 convolution without bias, batch norm, optional noise-level modulation, ReLU."""

    def __init__(self, in_channels, channels, *, condition, rngs):
        self.conv = nnx.Conv(
            in_channels, channels, (3, 3), use_bias=False,
            kernel_init=nnx.initializers.he_normal(), rngs=rngs,
        )  # fmt: skip
        self.norm = BatchNorm(channels)
        self.modulation = TimeModulation(channels, LEVEL_WIDTH, rngs=rngs) if condition else None

    def __call__(self, x, level=None):
        x = self.norm(convolve(x, self.conv.kernel[...].astype(x.dtype)))
        if self.modulation is not None:
            x = self.modulation(x, level)
        return nnx.relu(x)


class DecoderStage(nnx.Module):
    """Doubles the map, joins the skip (decoder first), two convolutions."""

    def __init__(self, in_channels, skip_channels, channels, *, condition, rngs):
        joined = in_channels + skip_channels
        self.conv1 = ConvNormRelu(joined, channels, condition=condition, rngs=rngs)
        self.conv2 = ConvNormRelu(channels, channels, condition=condition, rngs=rngs)

    def __call__(self, x, skip, level):
        x = upsample2_aligned(x)
        x = x if skip is None else jnp.concatenate([x, skip], -1)
        return self.conv2(self.conv1(x, level), level)


class Decoder(nnx.Module):
    """Bridge and four stages: f[B,h,w,D] and the skips -> f[B,16h,16w,C], named features."""

    SKIPS = ("skip8", "skip4", "skip2")

    def __init__(
        self, hidden, skip_channels, *, channels, bridge, skips, condition, remat, rngs
    ):  # fmt: skip
        self.bridge = ConvNormRelu(hidden, bridge, condition=condition, rngs=rngs)
        joined = [*skip_channels[:skips], *[0] * (len(channels) - skips)]
        for s, (width, skip) in enumerate(zip(channels, joined)):
            stage = DecoderStage(bridge, skip, width, condition=condition, rngs=rngs)
            setattr(self, f"stage{s}", stage)
            bridge = width
        self.stages = len(channels)
        self.skips = skips
        self.remat = remat

    def __call__(self, encoded, features, level=None):
        named = {}
        x = named["bridge"] = self.bridge(encoded, level)
        for s in range(self.stages):
            skip = features[self.SKIPS[s]] if s < self.skips else None
            x = named[f"stage{s}"] = call(getattr(self, f"stage{s}"), self.remat, x, skip, level)
        return x, named


class TransUNet(nnx.Module):
    """TransUNet, for images of any size.

    image   f32[B, h, w, 3] in [-1, 1]; padded with 0 to multiples of 16, the output is cropped
    level   f32[B], the noise level, only read when the network was made with `condition`
    key     turns dropout on; without one the network is deterministic
    out     f32[B, h, w, outputs] and a dict of named features (of the padded image)

    `outputs` is 3 for denoising, the number of classes for segmentation. Widths, depths and the
    position grid are arguments; the defaults are the published R50+ViT-B/16 with decoder width 1.
    Batch norms use batch statistics unless seen by `nnx.view(model, use_running_average=True)`.
    """

    def __init__(
        self, outputs: int, *, resnet_width: float = 1.0, resnet_units=(3, 4, 9),
        hidden: int = 768, layers: int = 12, heads: int = 12, mlp: int = 3072, grid=(14, 14),
        decoder=(256, 128, 64, 16), bridge: int = 512, skips: int = 3, dropout: float = 0.1,
        condition: bool = False, arithmetic: Arithmetic = Arithmetic.OFFICIAL,
        dtype=jnp.float32, remat: bool = False, rngs: nnx.Rngs,
    ):  # fmt: skip
        self.encoder = Encoder(
            resnet_width=resnet_width, resnet_units=resnet_units, hidden=hidden, layers=layers,
            heads=heads, mlp=mlp, grid=grid, dropout_rate=dropout, arithmetic=arithmetic,
            dtype=dtype, remat=remat, rngs=rngs,
        )  # fmt: skip
        width = round(64 * resnet_width)
        self.decoder = Decoder(
            hidden, (8 * width, 4 * width, width), channels=tuple(decoder), bridge=bridge,
            skips=skips, condition=condition, remat=remat, rngs=rngs,
        )  # fmt: skip
        zeros = nnx.initializers.zeros_init()
        self.head = nnx.Conv(decoder[-1], outputs, (3, 3), kernel_init=zeros, rngs=rngs)
        self.level = nnx.Linear(LEVEL_WIDTH, LEVEL_WIDTH, rngs=rngs) if condition else None
        self.dtype = dtype

    def __call__(self, image: jax.Array, level: jax.Array | None = None, key=None):
        height, width = image.shape[1:3]
        padding = ((0, 0), (0, -height % STRIDE), (0, -width % STRIDE), (0, 0))
        encoded, features = self.encoder(jnp.pad(image, padding).astype(self.dtype), key)
        emb = None
        if self.level is not None:  # levels lie in [0, 1], the sinusoid expects 0 to 1000
            emb = self.level(sinusoid(1000.0 * level, LEVEL_WIDTH))
        x, named = self.decoder(encoded, features, emb)
        out = convolve(x, self.head.kernel[...].astype(x.dtype)) + self.head.bias[...]
        return out[:, :height, :width].astype(jnp.float32), {**features, **named}


def resize_positions(params: dict, source: tuple[int, int], target: tuple[int, int]) -> dict:
    """The parameters with `encoder.position_embedding` moved from one token grid to another.

    params  nested dict of a TransUNet, position table f32[1, gh * gw, D]
    """
    table = params["encoder"]["position_embedding"].reshape(1, *source, -1)
    table = resize_aligned(table, target).reshape(1, target[0] * target[1], -1)
    return {**params, "encoder": {**params["encoder"], "position_embedding": table}}
