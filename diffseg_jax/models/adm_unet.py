"""The ADM UNet of guided diffusion, every block of which can be tapped.

Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis" (NeurIPS 2021), section 3; the
blocks whose features Baranchuk et al., "Label-Efficient Semantic Segmentation with Diffusion
Models" (ICLR 2022), read. L levels of resolution, R residual blocks a level on the way down.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from diffseg_jax.errors import UserError
from diffseg_jax.layers.attention import attend
from diffseg_jax.layers.conv import Conv, convolve_enlarged, enlarge
from diffseg_jax.layers.dropout import dropout
from diffseg_jax.layers.embeddings import sinusoid
from diffseg_jax.layers.norm import in_float32
from diffseg_jax.models.network import call

GROUPS = 32  # groups of every norm; every width is a multiple of it


@dataclasses.dataclass(frozen=True)
class ADMSettings:
    """The configuration of the network.

    channels            base width
    channel_mult        width of each level, as a multiple of the base; its length is L
    res_blocks          R; the way up has R + 1 a level
    attention_factors   downsampling factors at which blocks attend; the middle always does
    heads               in the input and middle blocks; heads_up in the output blocks, -1 = as heads
    head_channels       channels per head, which then fixes the number of heads; -1 = by `heads`
    resample_in_blocks  resizing inside residual blocks, else by a strided and an extra convolution
    scale_shift         the embedded timestep scales and shifts after a norm, else it is added
    num_classes         classes of a class-conditional network; 0 = unconditional
    learn_sigma         six output channels, the last three for the variance, else three
    dropout             rate in residual blocks
    """

    channels: int
    channel_mult: tuple[float, ...]
    res_blocks: int
    attention_factors: tuple[int, ...]
    heads: int = 4
    heads_up: int = -1
    head_channels: int = -1
    resample_in_blocks: bool = True
    scale_shift: bool = True
    num_classes: int = 0
    learn_sigma: bool = True
    dropout: float = 0.0

    @property
    def levels(self) -> int:
        return len(self.channel_mult)

    @property
    def stride(self) -> int:
        """Factor to whose multiples heights and widths are padded."""
        return 2 ** (self.levels - 1)

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(int(multiple * self.channels) for multiple in self.channel_mult)

    @property
    def output_blocks(self) -> int:
        """The number of output blocks."""
        return self.levels * (self.res_blocks + 1)

    @property
    def output_widths(self) -> tuple[int, ...]:
        """Channels of the feature of each output block."""
        return tuple(width for width in reversed(self.widths) for _ in range(self.res_blocks + 1))

    @property
    def blocks(self) -> tuple[str, ...]:
        """Names of all features, in the order in which they are computed."""
        numbers = range(self.output_blocks)
        down, up = ([f"{way}_{i}" for i in numbers] for way in ("input", "output"))
        return (*down, "middle", *up)

    def num_heads(self, width: int, up: bool) -> int:
        """Heads of the attention in a block of that width."""
        if self.head_channels != -1:
            return width // self.head_channels
        return self.heads_up if up and self.heads_up != -1 else self.heads

    def problem(self) -> str:
        """Why no network has these settings, as a sentence; or an empty string."""
        for width in self.widths:
            if width < GROUPS or width % GROUPS:
                return (
                    f"channels {self.channels} times channel_mult {self.channel_mult} gives a "
                    f"level of {width} channels, but each must be a multiple of {GROUPS}."
                )
        attended = {
            width for level, width in enumerate(self.widths) if 2**level in self.attention_factors
        }
        for width in sorted(attended | {self.widths[-1]}):
            for up in (False, True):
                split = self.head_channels if self.head_channels != -1 else 1
                heads = self.num_heads(width, up) if split > 0 else 0
                if heads < 1 or width % split or width % heads:
                    return (
                        f"{width} channels cannot be shared evenly by heads (heads {self.heads}, "
                        f"heads_up {self.heads_up}, head_channels {self.head_channels})."
                    )
        known = [2**level for level in range(self.levels)]
        for factor in self.attention_factors:
            if factor not in known:
                return (
                    f"attention_factors holds {factor}, but {self.levels} levels reduce by "
                    f"{', '.join(map(str, known))} only."
                )
        return ""


class ResidualBlock(nnx.Module):
    """Two convolutions, the embedded timestep between them: f[B,h,w,in] -> f[B,h',w',out].

    emb     f32[B, E], after its SiLU
    resize  "", "down" (2x2 means) or "up" (nearest), inside the block and on its shortcut
    """

    def __init__(self, channels_in, channels, emb_dim, resize, settings, rngs):
        self.resize = resize
        self.scale_shift = settings.scale_shift
        self.rate = settings.dropout
        self.norm1 = _group_norm(channels_in, rngs)
        self.conv1 = Conv(channels_in, channels, 3, rngs=rngs)
        self.emb = _dense(emb_dim, channels * (2 if settings.scale_shift else 1), rngs)
        self.norm2 = _group_norm(channels, rngs)
        self.conv2 = Conv(channels, channels, 3, zero=True, rngs=rngs)
        same = channels_in == channels
        self.skip = None if same else Conv(channels_in, channels, 1, rngs=rngs)

    def __call__(self, x, emb, key):
        h = nnx.silu(self.norm1(x.astype(jnp.float32))).astype(x.dtype)
        if self.resize == "down":
            h, x = _halve(h), _halve(x)
        if self.resize == "up":
            h, x = convolve_enlarged(h, self.conv1), enlarge(x)
        else:
            h = self.conv1(h)
        modulation = self.emb(emb)[:, None, None]
        if self.scale_shift:
            scale, shift = jnp.split(modulation, 2, -1)
            h = self.norm2(h.astype(jnp.float32)) * (1 + scale) + shift
        else:
            h = self.norm2(h + modulation)
        h = dropout(nnx.silu(h).astype(x.dtype), self.rate, key)
        h = self.conv2(h)
        return (x if self.skip is None else self.skip(x)) + h


class Attention(nnx.Module):
    """Every pixel attends to all others: f[B,h,w,C] -> f[B,h,w,C]; softmax in float32.

    The channels of `qkv` are queries, keys, values, each with its heads in order: the "new" order
    of the original program. The converter reorders the other.
    """

    def __init__(self, channels, heads, rngs):
        self.heads = heads
        self.norm = _group_norm(channels, rngs)
        self.qkv = Conv(channels, 3 * channels, 1, rngs=rngs)
        self.out = Conv(channels, channels, 1, zero=True, rngs=rngs)

    def __call__(self, x):
        batch, height, width, channels = x.shape
        qkv = self.qkv(in_float32(self.norm, x)).reshape(batch, height * width, 3, self.heads, -1)
        # Both are scaled, as the product of raw queries and keys may leave float16's range.
        root = qkv.shape[-1] ** -0.25
        query, key, value = qkv[:, :, 0] * root, qkv[:, :, 1] * root, qkv[:, :, 2]
        mixed = attend(query, key, value)
        return x + self.out(mixed.reshape(batch, height, width, channels))


class ADMBlock(nnx.Module):
    """One numbered block: a residual block, optional attention, and optional upsampling."""

    def __init__(self, channels_in, channels, emb_dim, settings, rngs, *, heads=0, enlarges=False):
        self.residual = ResidualBlock(channels_in, channels, emb_dim, "", settings, rngs)
        self.attention = Attention(channels, heads, rngs) if heads else None
        if enlarges and settings.resample_in_blocks:
            self.enlarge = ResidualBlock(channels, channels, emb_dim, "up", settings, rngs)
        else:
            self.enlarge = Conv(channels, channels, 3, rngs=rngs) if enlarges else None

    def __call__(self, x, emb, key):
        keys = (None, None) if key is None else jax.random.split(key)
        x = self.residual(x, emb, keys[0])
        if self.attention is not None:
            x = self.attention(x)
        if isinstance(self.enlarge, ResidualBlock):
            return self.enlarge(x, emb, keys[1])
        return x if self.enlarge is None else convolve_enlarged(x, self.enlarge)


class Reduction(nnx.Module):
    """The last block of a level on the way down: f[B,h,w,C] -> f[B,h/2,w/2,C]."""

    def __init__(self, channels, emb_dim, settings, rngs):
        self.in_block = settings.resample_in_blocks
        if self.in_block:
            self.residual = ResidualBlock(channels, channels, emb_dim, "down", settings, rngs)
        else:
            self.conv = Conv(channels, channels, 3, stride=2, rngs=rngs)

    def __call__(self, x, emb, key):
        return self.residual(x, emb, key) if self.in_block else self.conv(x)


class Middle(nnx.Module):
    """Residual block, attention, residual block at the lowest resolution."""

    def __init__(self, channels, emb_dim, settings, rngs):
        self.residual1 = ResidualBlock(channels, channels, emb_dim, "", settings, rngs)
        self.attention = Attention(channels, settings.num_heads(channels, up=False), rngs)
        self.residual2 = ResidualBlock(channels, channels, emb_dim, "", settings, rngs)

    def __call__(self, x, emb, key):
        keys = (None, None) if key is None else jax.random.split(key)
        x = self.attention(self.residual1(x, emb, keys[0]))
        return self.residual2(x, emb, keys[1])


class ADMUNet(nnx.Module):
    """The ADM UNet, for images of any size.

    x       f32[B, H, W, 3] in about [-1, 1]; its right and lower edges are repeated up to multiples
            of `settings.stride`, and the output is cropped
    t       i32[B] or f32[B], from `Process.network_time`; 0 is clean
    y       i32[B], given if and only if the network is class-conditional
    key     turns dropout on; without one the network is deterministic
    until   name of the last block that is computed; the output is then None
    out     f32[B, H, W, 3], or 6 channels with `learn_sigma`: first the noise, then the weight
            between the bounds of the variance
    and a dict of the outputs of all blocks, f[B, h, w, C] in `dtype`, named input_0, ..., middle,
    output_0, ... (`settings.blocks`), for the padded image and after any resizing in the block.

    A fresh network outputs 0 everywhere: its last convolutions start at 0. `dtype` is the dtype of
    convolutions and attention; norms, softmax and the embedding run in float32. Raises UserError
    for invalid settings, a missing or unexpected class, and an unknown block.
    """

    def __init__(self, settings: ADMSettings, *, dtype=jnp.float32, remat=False, rngs: nnx.Rngs):
        if problem := settings.problem():
            raise UserError(problem)
        self.settings = settings
        self.dtype = dtype
        self.remat = remat
        widths, emb_dim = settings.widths, 4 * settings.channels
        self.time1 = _dense(settings.channels, emb_dim, rngs)
        self.time2 = _dense(emb_dim, emb_dim, rngs)
        self.classes = nnx.Param(
            jax.random.normal(rngs.params(), (settings.num_classes, emb_dim))
        ) if settings.num_classes else None  # fmt: skip
        self.input_0 = Conv(3, widths[0], 3, rngs=rngs)
        skips = self._make_input(widths, emb_dim, rngs)
        self.middle = Middle(widths[-1], emb_dim, settings, rngs)
        self._make_output(widths, emb_dim, skips, rngs)
        self.norm = _group_norm(widths[0], rngs)
        self.head = Conv(widths[0], 6 if settings.learn_sigma else 3, 3, zero=True, rngs=rngs)

    def _make_input(self, widths, emb_dim, rngs):
        """Makes the input blocks; returns the channels of each, for the skips."""
        settings, skips = self.settings, [widths[0]]
        for level, width in enumerate(widths):
            attends = 2**level in settings.attention_factors
            heads = settings.num_heads(width, up=False) if attends else 0
            for _ in range(settings.res_blocks):
                block = ADMBlock(skips[-1], width, emb_dim, settings, rngs, heads=heads)
                setattr(self, f"input_{len(skips)}", block)
                skips.append(width)
            if level < settings.levels - 1:
                setattr(self, f"input_{len(skips)}", Reduction(width, emb_dim, settings, rngs))
                skips.append(width)
        return skips

    def _make_output(self, widths, emb_dim, skips, rngs):
        """Makes the output blocks; each also reads the input block of its level."""
        settings, channels = self.settings, widths[-1]
        for index, skip in enumerate(reversed(skips)):
            up, block = divmod(index, settings.res_blocks + 1)
            level = settings.levels - 1 - up
            width = widths[level]
            attends = 2**level in settings.attention_factors
            made = ADMBlock(
                channels + skip, width, emb_dim, settings, rngs,
                heads=settings.num_heads(width, up=True) if attends else 0,
                enlarges=block == settings.res_blocks and level > 0,
            )  # fmt: skip
            setattr(self, f"output_{index}", made)
            channels = width

    def embed(self, t: jax.Array, y: jax.Array | None = None) -> jax.Array:
        """The embedded timestep, and class: f32[B, 4 channels]."""
        emb = self.time2(nnx.silu(self.time1(sinusoid(t, self.settings.channels))))
        if (y is None) != (self.classes is None):
            came = "no class was given" if y is None else "a class was given"
            raise UserError(
                f"{came}, but this network has {self.settings.num_classes or 'no'} classes."
            )
        if y is None:
            return emb
        if not isinstance(y, jax.core.Tracer):  # inside jit the caller must check
            check_classes(y, self.settings.num_classes)
        return emb + self.classes[...][y]

    def __call__(self, x, t, y=None, key=None, until=None):
        names = self.settings.blocks
        if until is not None and until not in names:
            raise UserError(f'there is no block "{until}". Known: {", ".join(names)}.')
        height, width = x.shape[1:3]
        stride = self.settings.stride
        padding = ((0, 0), (0, -height % stride), (0, -width % stride), (0, 0))
        emb = nnx.silu(self.embed(t, y))
        h = jnp.pad(x, padding, mode="edge").astype(self.dtype)
        features, skips = {}, []
        for index, name in enumerate(names):
            if name.startswith("output"):
                h = jnp.concatenate([h, skips.pop()], -1)
            if name == "input_0":
                h = self.input_0(h)
            else:
                block_key = None if key is None else jax.random.fold_in(key, index)
                h = call(getattr(self, name), self.remat, h, emb, block_key)
            if name.startswith("input"):
                skips.append(h)
            features[name] = h
            if name == until:
                return None, features
        h = nnx.silu(self.norm(h.astype(jnp.float32)))
        return self.head(h)[:, :height, :width], features


def _group_norm(channels, rngs):
    return nnx.GroupNorm(
        channels, num_groups=GROUPS, epsilon=1e-5, use_fast_variance=False, rngs=rngs
    )


def _dense(features_in, features, rngs):
    """A linear layer in float32 with PyTorch's initial values."""
    bound = 1 / math.sqrt(features_in)
    draw = lambda key, shape, dtype: jax.random.uniform(key, shape, dtype, -bound, bound)
    return nnx.Linear(features_in, features, kernel_init=draw, bias_init=draw, rngs=rngs)


def _halve(x):
    """Means of 2x2: f[B,h,w,C] -> f[B,h/2,w/2,C]."""
    batch, height, width, channels = x.shape
    parts = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    return jnp.mean(parts, (2, 4), dtype=jnp.float32).astype(x.dtype)


def check_classes(y, num_classes: int):
    """Raises UserError unless y are whole numbers in 0 .. num_classes - 1."""
    wrong = [value for value in np.ravel(y).tolist() if value not in range(num_classes)]
    if wrong and num_classes:
        raise UserError(
            f"class {wrong[0]} was given, but this network knows 0 to {num_classes - 1}."
        )
    if wrong:
        raise UserError("a class was given, but this network has none. Leave it out.")
