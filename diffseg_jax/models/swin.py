"""Swin: a transformer whose attention stays within windows that shift from block to block.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows" (2021), as the
backbone of dense prediction that OpenMMLab trains: any image size, zeros to fill the windows, and
maps at strides 4, 8, 16 and 32; used by Ji et al., "DDP" (2023). M below is the window.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from diffseg_jax.errors import UserError
from diffseg_jax.layers.attention import attend
from diffseg_jax.layers.dropout import drop_path
from diffseg_jax.layers.mlp import Mlp, by_rows
from diffseg_jax.layers.norm import in_float32
from diffseg_jax.layers.resize import cubic_matrix
from diffseg_jax.models.network import call

STAGES = 4
PATCH = 4
MASKED = -100.0  # added to scores between tokens that were not neighbours before the shift

_trunc = nnx.initializers.truncated_normal(0.02)


def _layer_norm(dim, rngs):
    return nnx.LayerNorm(dim, epsilon=1e-5, use_fast_variance=False, rngs=rngs)


def _pad(x, multiple):
    """f[B,H,W,C] with zeros at the bottom and on the right up to multiples of `multiple`."""
    height, width = x.shape[1:3]
    return jnp.pad(x, ((0, 0), (0, -height % multiple), (0, -width % multiple), (0, 0)))


class PatchEmbedding(nnx.Module):
    """4x4 patches to tokens: f[B,H,W,3] -> f[B,ceil(H/4),ceil(W/4),C].

    Kernel and bias of the convolution start as flax draws them (LeCun normal, 0).
    """

    def __init__(self, channels, *, dtype, rngs):
        size = (PATCH, PATCH)
        self.conv = nnx.Conv(
            3, channels, size, strides=size, padding="VALID", dtype=dtype, rngs=rngs
        )
        self.norm = _layer_norm(channels, rngs)

    def __call__(self, image):
        return in_float32(self.norm, self.conv(_pad(image, PATCH)))


def relative_index(window: int) -> np.ndarray:
    """i32[M^2, M^2]: the row of the bias table for every query (first axis) and key of a window.

    Rows of the table enumerate (yq - yk + M-1, xq - xk + M-1), M-1 being the largest distance.
    """
    y, x = np.divmod(np.arange(window**2), window)
    rows, columns = (axis[:, None] - axis[None, :] + window - 1 for axis in (y, x))
    return (rows * (2 * window - 1) + columns).astype(np.int32)


def regions(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """i32[windows, M^2]: the part of a rolled map that each token comes from, 0 to 3.

    Only the last row and column of windows contain tokens that were not neighbours before the roll
    by `shift`; height and width are multiples of the window.
    """
    wrapped = lambda n: np.arange(n) >= n - shift
    ids = 2 * wrapped(height)[:, None] + wrapped(width)[None, :]
    ids = ids.reshape(height // window, window, width // window, window)
    return ids.transpose(0, 2, 1, 3).reshape(-1, window**2).astype(np.int32)


class WindowAttention(nnx.Module):
    """Self-attention within windows of M x M tokens, with a bias by relative position.

    x    f[B, H, W, C]
    out  f[B, H, W, C] in `dtype`; the softmax runs in float32

    A map that is no multiple of the window is padded with zeros, and these tokens are attended to:
    their query, key and value are the bias of `qkv`. The map is rolled by `shift` before it is
    split into windows, whatever its size; scores between tokens that were not neighbours before
    the roll get -100.
    """

    def __init__(self, dim, heads, window, shift, *, dtype, rngs):
        options = dict(kernel_init=_trunc, dot_general=by_rows, dtype=dtype, rngs=rngs)
        table = _trunc(rngs.params(), ((2 * window - 1) ** 2, heads))
        self.bias_table = nnx.Param(table)
        self.qkv = nnx.Linear(dim, 3 * dim, **options)
        self.out = nnx.Linear(dim, dim, **options)
        self.heads = heads
        self.window = window
        self.shift = shift
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        height, width = x.shape[1:3]
        # Projected before the padding, with the bias added after it: fewer products, same values.
        kernel, bias = (p[...].astype(self.dtype) for p in (self.qkv.kernel, self.qkv.bias))
        projected = _pad(by_rows(x.astype(self.dtype), kernel), self.window) + bias
        attended = self._within_windows(jnp.roll(projected, (-self.shift, -self.shift), (1, 2)))
        attended = jnp.roll(attended, (self.shift, self.shift), (1, 2))
        return self.out(attended[:, :height, :width])

    def _within_windows(self, qkv):
        """f[B,H,W,3C] -> f[B,H,W,C], H and W multiples of the window."""
        batch, height, width, channels = qkv.shape
        size, heads = self.window, self.heads
        grid = (height // size, width // size)
        split = qkv.reshape(batch, grid[0], size, grid[1], size, 3, heads, channels // 3 // heads)
        split = split.transpose(5, 0, 1, 3, 6, 2, 4, 7)  # [3, B, rows, columns, heads, M, M, d]
        query, key, value = split.reshape(3, batch, -1, heads, size**2, split.shape[-1])
        scaled, bias = query * query.shape[-1] ** -0.5, self._bias(height, width)
        y = attend(scaled, key, value, bias, heads_first=True)
        y = y.reshape(split.shape[1:]).transpose(0, 1, 4, 2, 5, 3, 6)
        return y.reshape(batch, height, width, channels // 3)

    def _bias(self, height, width):
        """f32[windows or 1, heads, M^2, M^2] by position and, where shifted, by origin."""
        bias = jnp.moveaxis(self.bias_table[...][relative_index(self.window)], -1, 0)[None]
        if not self.shift:
            return bias
        ids = jnp.asarray(regions(height, width, self.window, self.shift))
        apart = ids[:, None, :, None] != ids[:, None, None, :]
        return bias + jnp.where(apart, MASKED, 0.0)


class SwinBlock(nnx.Module):
    """Window attention and an MLP, each on the normalised map and added to it.

    x     f[B, H, W, C]; keys [B] or None, see `drop_path`
    out   f[B, H, W, C], and the output of the attention before it is added
    """

    def __init__(self, dim, heads, window, shift, *, name, drop_path, dtype, rngs):
        self.norm1 = _layer_norm(dim, rngs)
        self.attention = WindowAttention(dim, heads, window, shift, dtype=dtype, rngs=rngs)
        self.norm2 = _layer_norm(dim, rngs)
        self.mlp = Mlp(
            dim, 4 * dim, kernel_init=_trunc, bias_init=nnx.initializers.zeros_init(),
            dtype=dtype, rngs=rngs,
        )  # fmt: skip
        self.name = name
        self.rate = drop_path

    def __call__(self, x, keys):
        attended = self.attention(in_float32(self.norm1, x))
        x = x + drop_path(attended, self.rate, keys, f"{self.name}.attention")
        y = self.mlp(in_float32(self.norm2, x))
        return x + drop_path(y, self.rate, keys, f"{self.name}.mlp"), attended


class PatchMerging(nnx.Module):
    """2x2 tokens to one: f[B,H,W,C] -> f[B,ceil(H/2),ceil(W/2),2C].

    The 4C values of a patch are ordered by channel, then by (dy, dx) = (0,0), (0,1), (1,0), (1,1),
    as in OpenMMLab. The original program orders them by token, then by channel.
    """

    def __init__(self, dim, *, dtype, rngs):
        self.norm = _layer_norm(4 * dim, rngs)
        self.reduction = nnx.Linear(
            4 * dim, 2 * dim, use_bias=False, kernel_init=_trunc, dot_general=by_rows, dtype=dtype,
            rngs=rngs,
        )  # fmt: skip

    def __call__(self, x):
        x = _pad(x, 2)
        batch, height, width, dim = x.shape
        patches = x.reshape(batch, height // 2, 2, width // 2, 2, dim).transpose(0, 1, 3, 5, 2, 4)
        patches = patches.reshape(batch, height // 2, width // 2, 4 * dim)
        return self.reduction(in_float32(self.norm, patches))


class SwinStage(nnx.Module):
    """Blocks of one width, every second one shifted: f[B,H,W,C] -> f[B,H,W,C], named features."""

    def __init__(self, dim, heads, window, *, name, rates, dtype, remat, rngs):
        for j, rate in enumerate(rates):
            block = SwinBlock(
                dim, heads, window, window // 2 * (j % 2), name=f"{name}.block{j}",
                drop_path=rate, dtype=dtype, rngs=rngs,
            )  # fmt: skip
            setattr(self, f"block{j}", block)
        self.depth = len(rates)
        self.remat = remat

    def __call__(self, x, keys):
        features = {}
        for j in range(self.depth):
            block = getattr(self, f"block{j}")
            x, attended = call(block, self.remat, x, keys)
            features |= {block.name: x, f"{block.name}.attention": attended}
        return x, features


class Swin(nnx.Module):
    """The Swin backbone, for images of any size.

    image   f[B, H, W, 3]; padded with zeros at the bottom and on the right where sizes do not fit
    keys    one per image [B], which turn stochastic depth on; None: deterministic
    out     four normalised maps f[B, h, w, channels[i]] in `dtype`, the first of ceil(H/4) rows,
            each later one of half as many, rounded up; and a dict of named features:
            "patch_embedding", "stage{i}.block{j}", "stage{i}.block{j}.attention" (before it is
            added) and "merge{i}"

    channels, depths, heads   sizes of the four stages; `problem` checks them
    drop_path                 rate of the last block; it grows linearly from 0 at the first
    normed                    stages that have a normalised map; `out` holds these maps, and
                              without any only features

    Kernels and bias tables start as truncated normals of deviation 0.02, biases at 0, norms at 1
    and 0, the patch embedding as flax draws it.
    """

    def __init__(
        self, *, channels, depths, heads, window, drop_path: float = 0.0, dtype=jnp.float32,
        remat: bool = False, normed=tuple(range(STAGES)), rngs: nnx.Rngs,
    ):  # fmt: skip
        self.patch_embedding = PatchEmbedding(channels[0], dtype=dtype, rngs=rngs)
        rates = np.linspace(0.0, drop_path, sum(depths)).tolist()
        for i in range(STAGES):
            first = sum(depths[:i])
            stage = SwinStage(
                channels[i], heads[i], window, name=f"stage{i}",
                rates=rates[first : first + depths[i]], dtype=dtype, remat=remat, rngs=rngs,
            )  # fmt: skip
            setattr(self, f"stage{i}", stage)
            if i in normed:
                setattr(self, f"norm{i}", _layer_norm(channels[i], rngs))
            if i + 1 < STAGES:
                setattr(self, f"merge{i}", PatchMerging(channels[i], dtype=dtype, rngs=rngs))
        self.dtype = dtype
        self.normed = tuple(normed)

    def __call__(self, image: jax.Array, keys: jax.Array | None = None):
        maps, features = [], {}
        x = features["patch_embedding"] = self.patch_embedding(image.astype(self.dtype))
        for i in range(STAGES):
            x, named = getattr(self, f"stage{i}")(x, keys)
            features |= named
            if i in self.normed:
                maps.append(in_float32(getattr(self, f"norm{i}"), x))
            if i + 1 < STAGES:
                x = features[f"merge{i}"] = getattr(self, f"merge{i}")(x)
        return maps, features


def problem(channels, depths, heads, window) -> str:
    """Why the sizes fit no Swin, as a sentence, or an empty string."""
    for name, values in (("channels", channels), ("depths", depths), ("heads", heads)):
        if len(values) != STAGES or min(values) < 1:
            return (
                f"{name} is {tuple(values)}, but a Swin has {STAGES} stages: give {STAGES} numbers "
                "of at least 1."
            )
    doubled = tuple(channels[0] * 2**i for i in range(STAGES))
    if tuple(channels) != doubled:
        return (
            f"channels is {tuple(channels)}, but a Swin doubles them from stage to stage: give "
            f"{doubled}."
        )
    for width, number in zip(channels, heads):
        if width % number:
            return (
                f"heads holds {number}, which does not divide the {width} channels of its stage: "
                f"give a number that does, such as {math.gcd(width, number)}."
            )
    return "" if window >= 1 else f"window is {window}, but it must be at least 1: give 7 or 12."


def resize_bias_table(table: np.ndarray, window: int) -> np.ndarray:
    """Resizes a table of relative positions for another window: bicubic, half-pixel centres.

    table   f32[(2M-1)^2, heads], for windows of M x M tokens
    out     f32[(2N-1)^2, heads], N = window; the table itself where N is M

    Raises UserError where the number of rows is not the square of an odd number.
    """
    side, target = math.isqrt(len(table)), 2 * window - 1
    if side * side != len(table) or side % 2 == 0:
        raise UserError(
            f"a table of relative positions has {len(table)} rows, but windows of M x M tokens "
            "need (2M-1)^2 of them: give a Swin checkpoint, with 169 rows for window 7."
        )
    if side == target:
        return table
    weights = cubic_matrix(side, target)
    image = np.asarray(table, np.float64).reshape(side, side, -1)
    resized = np.einsum("ya,xb,abh->yxh", weights, weights, image, optimize=True)
    return resized.reshape(target**2, -1).astype(np.float32)
