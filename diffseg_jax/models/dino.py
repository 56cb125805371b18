"""DINOv2 and DINOv3: vision transformers trained without labels, as sources of features.

Oquab et al., "DINOv2: Learning Robust Visual Features without Supervision" (2023); Darcet et al.,
"Vision Transformers Need Registers" (2023); Simeoni et al., "DINOv3" (2025). DINOv2 adds a table of
positions to the patches, DINOv3 rotates queries and keys by positions.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from diffseg_jax.errors import UserError, require_known
from diffseg_jax.layers.norm import in_float32
from diffseg_jax.layers.resize import cubic_matrix
from diffseg_jax.layers.vit_block import VitBlock, layer_norm

# Of the weights trained on satellite images (SAT-493M), RGB in 0..255; all others take ImageNet's.
SATELLITE_MEAN = (109.65, 104.805, 75.48)
SATELLITE_STD = (54.315, 39.78, 36.465)

OFFSET = 0.1  # added to the size of a resized table of positions in DINOv2's program
ROTARY_BASE = 100.0  # quotient of the longest and the shortest period, nearly


@dataclasses.dataclass(frozen=True)
class DinoSettings:
    """Sizes of the network; the defaults are DINOv2's ViT-S/14.

    patch       pixels per side of a patch
    width       channels, a multiple of the heads
    depth       blocks
    heads       of each attention
    hidden      channels within each feed-forward part
    registers   tokens beside those of the class and the patches
    gated       whether the feed-forward part is SwiGLU
    qkv_bias    whether queries, keys and values have a bias
    rotary      DINOv3: positions rotate queries and keys, and no table is added
    grid        rows and columns of the table of positions; 0 where there is none
    epsilon     of the layer norms
    layout      the program whose resizing of the table is followed, "official" or "transformers"
    """

    patch: int = 14
    width: int = 384
    depth: int = 12
    heads: int = 6
    hidden: int = 1536
    registers: int = 0
    gated: bool = False
    qkv_bias: bool = True
    rotary: bool = False
    grid: int = 37
    epsilon: float = 1e-6
    layout: str = "official"

    @property
    def stride(self) -> int:
        """Pixels per side of what becomes one position of a feature map."""
        return self.patch


def dino_taps(settings: DinoSettings) -> tuple[str, ...]:
    """All names of features: "block0", ..., outputs of the blocks after the final norm."""
    return tuple(f"block{i}" for i in range(settings.depth))


def dino_default_taps(settings: DinoSettings) -> tuple[str, ...]:
    """The last block of each quarter of the depth, as the authors evaluate dense predictions.

    Of 24 blocks they take block 4 instead of block 5.
    """
    depth = settings.depth
    last = [4, 11, 17, 23] if depth == 24 else [i * depth // 4 - 1 for i in range(1, 5)]
    return tuple(f"block{i}" for i in sorted({i for i in last if i >= 0}))


# ---- positions ---------------------------------------------------------------------------------


def resized_positions(table: jax.Array, size: tuple[int, int], settings: DinoSettings) -> jax.Array:
    """The table f32[1 + M^2, D] of a grid of M x M for another one, f32[1 + h * w, D]; cubic.

    The row of the class token stays. Networks with registers antialias. Those without, in DINOv2's
    own program, take the scale M / (h + 0.1) in place of M / h: their outputs away from the size of
    the table differ from those of transformers.
    """
    side = settings.grid
    if size == (side, side):
        return table
    grid = table[1:].reshape(side, side, -1)
    if settings.registers:
        resized = jax.image.resize(grid, (*size, grid.shape[2]), "cubic", antialias=True)
    else:
        offset = OFFSET if settings.layout == "official" else 0.0
        rows, columns = (jnp.asarray(cubic_matrix(side, n, offset), table.dtype) for n in size)
        resized = jnp.einsum("yh,hwc,xw->yxc", rows, grid, columns, precision="highest")
    return jnp.concatenate([table[:1], resized.reshape(-1, grid.shape[2])])


def rotary_periods(channels: int) -> np.ndarray:
    """f32[channels / 4]: periods of the angles in heads of so many channels."""
    exponents = np.arange(channels // 4) / (channels // 4)
    return (ROTARY_BASE**exponents).astype(np.float32)


def rotary_angles(rows: int, columns: int, periods: jax.Array) -> jax.Array:
    """f32[rows * columns, 4 * len(periods)]: angles by which patches rotate.

    The first half is for rows, then columns, the second repeats it: a channel of the first half
    turns with the one of the second half in the same position. Coordinates lie in -1..1 on each
    axis, whatever its length.
    """
    y, x = (2 * (np.arange(n, dtype=np.float32) + 0.5) / n - 1 for n in (rows, columns))
    grid = np.stack(np.meshgrid(y, x, indexing="ij"), -1).reshape(-1, 2, 1)
    angles = 2 * np.pi * jnp.asarray(grid, jnp.float32) / periods
    return jnp.tile(angles.reshape(rows * columns, -1), (1, 2))


def rotation(angles: jax.Array, fixed: int) -> Callable:
    """What rotates f[B, N, heads, d] by the angles f32[N - fixed, d], not the first tokens.

    fixed  number of tokens at the start that have no position
    """
    angles = jnp.pad(angles, ((fixed, 0), (0, 0)))[:, None]
    cosine, sine = jnp.cos(angles), jnp.sin(angles)

    def rotate(x):
        first, second = jnp.split(x, 2, -1)
        turned = jnp.concatenate([-second, first], -1)
        return (x * cosine + turned * sine).astype(x.dtype)

    return rotate


# ---- network -----------------------------------------------------------------------------------


class Dino(nnx.Module):
    """DINOv2 or DINOv3, without a head.

    images  f[B, H, W, 3], normalised; H and W multiples of the patch
    taps    names of `dino_taps`; blocks after the last of them are not computed
    out     {name: f[B, H/p, W/p, D]} after the final norm, without class token and registers

    Raises UserError for other sizes of images.
    """

    def __init__(self, settings: DinoSettings, *, dtype=jnp.float32, rngs: nnx.Rngs):
        s = settings
        normal = lambda *shape: nnx.Param(0.02 * jax.random.normal(rngs.params(), shape))
        size = (s.patch, s.patch)
        self.patch_embedding = nnx.Conv(
            3, s.width, size, strides=size, padding="VALID", dtype=dtype, rngs=rngs
        )
        self.class_token = normal(s.width)
        self.registers = normal(s.registers, s.width) if s.registers else None
        self.position_embedding = None if s.rotary else normal(1 + s.grid**2, s.width)
        self.periods = nnx.BatchStat(rotary_periods(s.width // s.heads)) if s.rotary else None
        for name in dino_taps(s):
            block = VitBlock(
                s.width, s.heads, s.hidden, epsilon=s.epsilon, gated=s.gated, layer_scale=True,
                qkv_bias=s.qkv_bias, dtype=dtype, rngs=rngs,
            )  # fmt: skip
            setattr(self, name, block)
        self.norm = layer_norm(s.width, s.epsilon, rngs)
        self.settings = s
        self.dtype = dtype

    def __call__(self, images: jax.Array, taps: Sequence[str]) -> dict[str, jax.Array]:
        known = dino_taps(self.settings)
        for tap in taps:
            require_known(tap, known, "feature")
        size, found, missing = self._grid(images), {}, set(taps)
        blocks = self.tokens(images)
        while missing:
            name, x = next(blocks)
            if name in missing:
                patches = in_float32(self.norm, x[:, 1 + self.settings.registers :])
                found[name] = patches.reshape(len(x), *size, -1)
                missing.remove(name)
        return {tap: found[tap] for tap in taps}

    def tokens(self, images: jax.Array) -> Iterator[tuple[str, jax.Array]]:
        """The tokens before the first block, "embedded", then the output of every block.

        They are f[B, 1 + registers + N, D]: the class token, the registers, then the patches row by
        row, not normalised.
        """
        size, rotate = self._grid(images), None
        if self.periods is not None:
            angles = rotary_angles(*size, self.periods[...])
            rotate = rotation(angles, 1 + self.settings.registers)
        x = self._embedded(images.astype(self.dtype), size)
        yield "embedded", x
        for name in dino_taps(self.settings):
            x = getattr(self, name)(x, rotate)
            yield name, x

    def _grid(self, images):
        """Rows and columns of patches."""
        patch, (height, width) = self.settings.patch, images.shape[1:3]
        if height % patch or width % patch or not height * width:
            below, above = (f"{patch * n(height)}x{patch * n(width)}" for n in (
                lambda side: max(side // patch, 1), lambda side: max(-(-side // patch), 1)
            ))  # fmt: skip
            raise UserError(
                f"an image has {height}x{width} pixels (rows, columns), which are no multiples of "
                f"the patch, {patch}. Resize it to {below} or pad it to {above}."
            )
        return height // patch, width // patch

    def _embedded(self, images, size):
        patches = self.patch_embedding(images)
        patches = patches.reshape(len(patches), -1, patches.shape[-1])
        first = self.class_token[...][None]
        if self.position_embedding is not None:
            table = resized_positions(self.position_embedding[...], size, self.settings)
            first, patches = first + table[:1], patches + table[1:].astype(patches.dtype)
        if self.registers is not None:
            first = jnp.concatenate([first, self.registers[...]])
        first = jnp.broadcast_to(first.astype(patches.dtype), (len(patches), *first.shape))
        return jnp.concatenate([first, patches], 1)
