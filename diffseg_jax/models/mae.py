"""MAE: a vision transformer that learns by reconstructing the patches hidden from it.

He et al., "Masked Autoencoders Are Scalable Vision Learners" (CVPR 2022). The encoder sees the
patches that are kept; a small decoder reconstructs all of them. Features are outputs of encoder
blocks when nothing is hidden.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from diffseg_jax.errors import require_known
from diffseg_jax.layers.mlp import by_rows
from diffseg_jax.layers.norm import in_float32
from diffseg_jax.layers.vit_block import VitBlock, layer_norm
from diffseg_jax.models.network import call


@dataclasses.dataclass(frozen=True)
class MAESettings:
    """Sizes of the network; the published ones are ViT-B, ViT-L and ViT-H.

    patch          pixels per side of a patch
    width          channels of the encoder, a multiple of 4 and of its heads
    depth          blocks of the encoder
    heads          of each attention of the encoder
    mlp            channels within each MLP of the encoder
    decoder_width  channels of the decoder, 0 for an encoder alone; the others likewise
    """

    patch: int = 16
    width: int = 1024
    depth: int = 24
    heads: int = 16
    mlp: int = 4096
    decoder_width: int = 512
    decoder_depth: int = 8
    decoder_heads: int = 16
    decoder_mlp: int = 2048

    @property
    def stride(self) -> int:
        """Pixels per side of what becomes one position of a feature map."""
        return self.patch

    def problem(self) -> str:
        """A sentence if the widths do not fit, else an empty string."""
        parts = ("", self.width, self.heads), ("decoder_", self.decoder_width, self.decoder_heads)
        for part, width, heads in parts:
            unit = math.lcm(heads, 4)
            if width and width % unit:
                return (
                    f"mae.{part}width is {width}, but it must be a multiple of 4 for the "
                    f"positions and of mae.{part}heads, {heads}. "
                    f"Try --config.mae.{part}width={-(-width // unit) * unit}."
                )
        return ""


def encoder_alone(settings: MAESettings) -> MAESettings:
    """The sizes without those of the decoder, which computes no features."""
    return dataclasses.replace(
        settings, decoder_width=0, decoder_depth=0, decoder_heads=0, decoder_mlp=0
    )


def mae_taps(settings: MAESettings) -> tuple[str, ...]:
    """All names of features: "block0", ..., the outputs of the encoder's blocks."""
    return tuple(f"block{i}" for i in range(settings.depth))


def mae_default_taps(settings: MAESettings) -> tuple[str, ...]:
    """The last half of the blocks, as Baranchuk et al. (2022) take 12 of 24."""
    return mae_taps(settings)[settings.depth // 2 :]


# ---- patches and their positions ---------------------------------------------------------------


def to_patches(images: jax.Array, patch: int) -> jax.Array:
    """f[B,H,W,C] -> f[B, H/p * W/p, p*p*C], row by row; within a patch the channel is last."""
    batch, height, width, channels = images.shape
    rows, columns = height // patch, width // patch
    split = images.reshape(batch, rows, patch, columns, patch, channels)
    return split.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, -1)


def from_patches(patches: jax.Array, size: tuple[int, int], patch: int) -> jax.Array:
    """The images f[B,H,W,C] of (H, W) = `size`; the inverse of `to_patches`."""
    rows, columns = size[0] // patch, size[1] // patch
    split = patches.reshape(len(patches), rows, columns, patch, patch, -1)
    return split.transpose(0, 1, 3, 2, 4, 5).reshape(len(patches), *size, -1)


def position_table(rows: int, columns: int, width: int) -> np.ndarray:
    """f32[1 + rows * columns, width]: the class token's zeros, then the patches row by row.

    A patch has the sine and cosine of its column in the first half, those of its row in the second.
    """
    omega = 10_000.0 ** (-np.arange(width // 4) / (width // 4))
    row, column = np.divmod(np.arange(rows * columns), columns)
    angles = [axis[:, None] * omega for axis in (column, row)]
    waves = [wave(axis) for axis in angles for wave in (np.sin, np.cos)]
    return np.pad(np.concatenate(waves, 1), ((1, 0), (0, 0))).astype(np.float32)


# ---- network -----------------------------------------------------------------------------------


def _token(width, rngs):
    return nnx.Param(0.02 * jax.random.normal(rngs.params(), (width,)))


def _linear(dim, features, dtype, rngs):
    xavier = nnx.initializers.xavier_uniform()
    options = dict(kernel_init=xavier, dot_general=by_rows, dtype=dtype, rngs=rngs)
    return nnx.Linear(dim, features, **options)


def _take(tokens, indices):
    """f[B,N,D] and i32[B,K] -> f[B,K,D]."""
    return jnp.take_along_axis(tokens, indices[..., None], 1)


class MAEDecoder(nnx.Module):
    """Reconstructs patches from the tokens of those that are kept.

    latent   f[B, 1 + K, E], the class token first
    restore  i32[B, N], for each patch its index among the K kept and N - K hidden ones
    table    f32[1 + N, D] of positions
    out      f[B, N, p*p*3]
    """

    def __init__(self, settings: MAESettings, *, dtype, remat, rngs):
        s = settings
        self.embedding = _linear(s.width, s.decoder_width, dtype, rngs)
        self.mask_token = _token(s.decoder_width, rngs)
        for i in range(s.decoder_depth):
            block = VitBlock(
                s.decoder_width, s.decoder_heads, s.decoder_mlp, dtype=dtype, rngs=rngs
            )
            setattr(self, f"block{i}", block)
        self.norm = layer_norm(s.decoder_width, 1e-6, rngs)
        self.prediction = _linear(s.decoder_width, 3 * s.patch**2, dtype, rngs)
        self.depth = s.decoder_depth
        self.remat = remat

    def __call__(self, latent: jax.Array, restore: jax.Array, table: np.ndarray) -> jax.Array:
        x = self.embedding(latent)
        hidden = restore.shape[1] + 1 - x.shape[1]
        mask = self.mask_token[...].astype(x.dtype)
        masks = jnp.broadcast_to(mask, (len(x), hidden, x.shape[2]))
        patches = _take(jnp.concatenate([x[:, 1:], masks], 1), restore)
        x = jnp.concatenate([x[:, :1], patches], 1) + jnp.asarray(table, x.dtype)
        for i in range(self.depth):
            x = call(getattr(self, f"block{i}"), self.remat, x)
        return self.prediction(in_float32(self.norm, x)[:, 1:])


class MAE(nnx.Module):
    """The encoder, and the decoder if the settings have one.

    images  f[B, H, W, 3], normalised; H and W multiples of the patch
    taps    names of `mae_taps`; blocks after the last of them are not computed
    out     {name: f[B, H/p, W/p, D]}, without the class token

    Positions are computed for the grid of each image, and no parameter holds them.
    """

    def __init__(self, settings: MAESettings, *, dtype=jnp.float32, remat=False, rngs: nnx.Rngs):
        s = settings
        self.patch_embedding = _linear(3 * s.patch**2, s.width, dtype, rngs)
        self.class_token = _token(s.width, rngs)
        for i in range(s.depth):
            block = VitBlock(s.width, s.heads, s.mlp, dtype=dtype, rngs=rngs)
            setattr(self, f"block{i}", block)
        self.norm = layer_norm(s.width, 1e-6, rngs)
        if s.decoder_width:
            self.decoder = MAEDecoder(s, dtype=dtype, remat=remat, rngs=rngs)
        self.settings = s
        self.remat = remat

    def __call__(self, images: jax.Array, taps: Sequence[str]) -> dict[str, jax.Array]:
        known = mae_taps(self.settings)
        for tap in taps:
            require_known(tap, known, "feature")
        rows, columns = self._grid(images)
        x, found = self._embedded(images), {}
        for name in known[: max(map(known.index, taps), default=-1) + 1]:
            x = call(getattr(self, name), self.remat, x)
            found[name] = x[:, 1:].reshape(len(x), rows, columns, -1)
        return {tap: found[tap] for tap in taps}

    def encode(self, images: jax.Array, keep: jax.Array | None = None) -> jax.Array:
        """The normalised output of the last block, f[B, 1 + K, D], the class token first.

        keep  i32[B, K] indices of the patches that the encoder sees; None = all
        """
        x = self._embedded(images, keep)
        for name in mae_taps(self.settings):
            x = call(getattr(self, name), self.remat, x)
        return in_float32(self.norm, x)

    def reconstruct(self, images: jax.Array, keep: jax.Array, restore: jax.Array) -> jax.Array:
        """f[B, N, p*p*3]: the decoder's output for all patches, the `keep` of which are seen."""
        table = position_table(*self._grid(images), self.settings.decoder_width)
        return self.decoder(self.encode(images, keep), restore, table)

    def _grid(self, images):
        return tuple(side // self.settings.patch for side in images.shape[1:3])

    def _embedded(self, images, keep=None):
        """Tokens f[B, 1 + K, D] of the class and of the patches."""
        table = position_table(*self._grid(images), self.settings.width)
        patches = self.patch_embedding(to_patches(images, self.settings.patch))
        patches = patches + jnp.asarray(table[1:], patches.dtype)
        patches = patches if keep is None else _take(patches, keep)
        token = jnp.broadcast_to(
            self.class_token[...].astype(patches.dtype), (len(patches), 1, patches.shape[2])
        )
        return jnp.concatenate([token, patches], 1)
