"""DDP for maps seen from above (BEV): images of several cameras, and a map decoder over a grid.

Ji et al., "DDP: Diffusion Model for Dense Visual Prediction" (ICCV 2023), on the camera encoder of
BEVFusion (Liu et al., ICRA 2023). Every class is a layer of its own: a cell may have several.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from diffseg_jax.layers.bev_pooling import Bound, Grid, count_cells
from diffseg_jax.layers.embeddings import TimeEmbedding
from diffseg_jax.layers.mlp import linear
from diffseg_jax.models import swin
from diffseg_jax.models.bev_decoder import BEVDecoder, FusedDecoder
from diffseg_jax.models.camera_encoder import CameraEncoder
from diffseg_jax.models.ddp_network import ClassEmbedding
from diffseg_jax.models.dense_network import DenseNetwork, combination
from diffseg_jax.models.map_decoder import XAVIER, MapDecoder

MAX_LAYERS = 10  # each of 2^K combinations has a row in a table


@dataclasses.dataclass(frozen=True)
class BEVSettings:
    """The configuration of the network; the defaults are the published ones for six cameras.

    channels, depths, heads, window, drop_path    of the Swin, as in `DDPSettings`
    neck         channels of the camera neck
    lifted       channels that are lifted into the map
    x, y, z      bounds of the pooled map, in metres: lower and upper end, size of a cell
    depth        bounds of the depths
    stages       (blocks, channels, stride) of the three residual stages
    lidar        channels of given features of a LiDAR; 0: cameras alone
    fused, fusion  channels after both are joined, and (further convolutions, channels, stride) of
                 two stages, which take the place of the residual ones
    features     channels of the features that the map decoder reads
    output       bound of the predicted map, of both axes
    width, layers, decoder_heads, points, mlp     sizes of the map decoder
    timed        whether its layers depend on the noise level; not so in published files
    code_scale   of the codes, see `codes_of_layers`
    num_classes  K
    """

    num_classes: int
    channels: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    drop_path: float = 0.0
    neck: int = 256
    lifted: int = 80
    x: Bound = (-51.2, 51.2, 0.4)
    y: Bound = (-51.2, 51.2, 0.4)
    z: Bound = (-10.0, 10.0, 20.0)
    depth: Bound = (1.0, 60.0, 0.5)
    stages: tuple[tuple[int, int, int], ...] = ((2, 160, 2), (2, 320, 2), (2, 640, 1))
    lidar: int = 0
    fused: int = 256
    fusion: tuple[tuple[int, int, int], ...] = ((5, 128, 1), (5, 256, 2))
    features: int = 256
    output: Bound = (-50.0, 50.0, 0.5)
    width: int = 256
    layers: int = 5
    decoder_heads: int = 8
    points: int = 4
    mlp: int = 1024
    timed: bool = True
    code_scale: float = 0.01

    @property
    def code_width(self) -> int:
        """n, the channels of a noisy map."""
        return self.width

    @property
    def backbone(self) -> str:
        """The family of the image encoder, as of `DDPSettings`."""
        return "swin"

    @property
    def noisy(self) -> tuple[int, int]:
        """Rows and columns of the features and of a noisy map: half those of the pooled map."""
        return count_cells(self.x) // 2, count_cells(self.y) // 2

    @property
    def side(self) -> int:
        """Rows, and columns, of the predicted map."""
        return count_cells(self.output)

    def problem(self) -> str:
        """Why the settings are invalid, as a sentence with advice, or an empty string."""
        found = swin.problem(self.channels, self.depths, self.heads, self.window)
        if found:
            return found
        if self.num_classes > MAX_LAYERS:
            return (
                f"num_classes is {self.num_classes}, but a BEV map has {MAX_LAYERS} classes at "
                "most. Join some of them."
            )
        if self.width % self.decoder_heads or self.width % 4:
            return (
                f"width is {self.width}; take a multiple of 4 and of decoder_heads "
                f"({self.decoder_heads})."
            )
        if self.lidar and (self.features % 2 or self.fusion[0][2] != 1):
            return (
                f"features is {self.features} and the first stride of fusion {self.fusion[0][2]}; "
                "with a LiDAR take an even number of features, and a first stride of 1."
            )
        return self._problem_of_bounds()

    def _problem_of_bounds(self):
        named = dict(x=self.x, y=self.y, z=self.z, depth=self.depth, output=self.output)
        for name, (lower, upper, size) in named.items():
            if size <= 0 or upper <= lower or abs(count_cells((lower, upper, size)) * size
                                                  - (upper - lower)) > 1e-3 * size:
                return (
                    f"{name} is ({lower}, {upper}, {size}), but the size of a cell must divide the "
                    "range. Give (lower end, upper end, size) in metres, such as (-51.2, 51.2, "
                    "0.4)."
                )
        if count_cells(self.z) != 1:
            return (
                f"z is {self.z}, which makes {count_cells(self.z)} layers, but features are summed "
                "into one. Give the whole height as the size, such as (-10.0, 10.0, 20.0)."
            )
        for name in ("x", "y"):
            if count_cells(named[name]) % 8:
                return (
                    f"{name} is {named[name]}, which makes {count_cells(named[name])} cells; their "
                    "number must be a multiple of 8."
                )
        return ""


class BEVNetwork(DenseNetwork):
    """Encoder and map decoder, as methods that a loss and a sampler combine."""

    def __init__(
        self, settings: BEVSettings, *, dtype=jnp.float32, remat: bool = False, rngs: nnx.Rngs
    ):
        s, width = settings, settings.width
        backbone = dict(
            channels=s.channels, depths=s.depths, heads=s.heads, window=s.window,
            drop_path=s.drop_path,
        )  # fmt: skip
        self.camera = CameraEncoder(
            backbone=backbone, neck=s.neck, channels=s.lifted, grid=Grid(s.x, s.y, s.z),
            depth=s.depth, dtype=dtype, remat=remat, rngs=rngs,
        )  # fmt: skip
        if s.lidar:
            self.bev = FusedDecoder(
                s.lifted, s.lidar, s.fused, s.fusion, s.features // 2, rngs=rngs
            )
        else:
            self.bev = BEVDecoder(s.lifted, s.stages, s.features, rngs=rngs)
        self.transform = combination(settings, s.features, rngs=rngs)
        self.embedding = ClassEmbedding(s.num_classes + 1, width, rngs=rngs)
        self.time = TimeEmbedding(4 * width, rngs=rngs)
        self.decoder = MapDecoder(
            width, layers=s.layers, heads=s.decoder_heads, points=s.points, mlp=s.mlp,
            timed=s.timed, dtype=dtype, remat=remat, rngs=rngs,
        )  # fmt: skip
        self.head = linear(width, s.num_classes, kernel_init=XAVIER, dtype=jnp.float32, rngs=rngs)
        self.settings = settings
        self.dtype = dtype

    def encode(
        self, images: jax.Array, cameras: jax.Array, keys=None, *lidar: jax.Array
    ) -> tuple[jax.Array, dict]:
        """Features f[B,X,Y,C] of normalised images f32[B,N,H,W,3], and a dict of named features.

        cameras  f32[B, N, 2, 3, 4], see `affine_maps`;  keys [B] turn drop path on
        lidar    features f32[B, X, Y, lidar], for networks that read them
        """
        x, features = self.camera(images, cameras, keys)
        features["bev"] = x
        features["feature"] = x = self.bev(x, *lidar)
        return x, features

    def codes(self) -> jax.Array:
        """f32[2^K, n]: the code of every combination of classes, see `combinations`."""
        layers = jnp.asarray(combination_table(self.settings.num_classes))
        return codes_of_layers(layers, self.embedding.table[...], self.settings.code_scale)

    def constants(self, x: jax.Array) -> jax.Array:
        """What the decoder's layers know of the predicted map's cells, whatever the features x."""
        return self.decoder.constants((self.settings.side, self.settings.side))

    def regrid(self, x: jax.Array) -> jax.Array:
        """Maps on the features' grid read at the centres of the output's cells, f[B,h,w,E].

        Bilinear, and 0 outside of the features' grid.
        """
        s = self.settings
        rows, columns = (
            jnp.asarray(grid_matrix(bound, n, s.output), x.dtype)
            for bound, n in zip((s.x, s.y), s.noisy)
        )
        return jnp.einsum("yh,bhwc,xw->byxc", rows, x, columns, precision="highest")

    def decode(self, mixed: jax.Array, constants: jax.Array, modulations: jax.Array) -> jax.Array:
        """Logits f32[B,side,side,K] of the sum of projected features and codes f32[B,h,w,E]."""
        x, _ = self.decoder(self.regrid(mixed).astype(self.dtype), constants, modulations)
        return self.head(x.astype(jnp.float32))


def codes_of_layers(layers: jax.Array, table: jax.Array, scale: float) -> jax.Array:
    """f32[..., n], the code of cells: the mean of K rows of a table, squeezed into +-scale.

    layers  [..., K], 1 where a cell has the class: row k + 1 of the table f32[K + 1, n], else row 0
    """
    layers = layers.astype(jnp.float32)
    rows = jnp.einsum("...k,kn->...n", layers, table[1:] - table[0], precision="highest")
    return (2 * jax.nn.sigmoid(rows / layers.shape[-1] + table[0]) - 1) * scale


def combinations(layers: jax.Array) -> jax.Array:
    """i32[...]: the number of a combination of classes [..., K]; class k counts 2^k."""
    powers = jnp.asarray(2 ** np.arange(layers.shape[-1]), jnp.int32)
    return jnp.sum(layers.astype(jnp.int32) * powers, -1)


def combination_table(num_classes: int) -> np.ndarray:
    """u8[2^K, K]: the combination of every number, the inverse of `combinations`."""
    return (np.arange(2**num_classes)[:, None] >> np.arange(num_classes) & 1).astype(np.uint8)


def grid_matrix(source: Bound, cells: int, target: Bound) -> np.ndarray:
    """f64[target cells, cells]: bilinear weights along an axis, 0 beyond the source's outer cells.

    source, target  (lower, upper, size) in metres; `cells` share the source's range
    """
    lower, upper, size = target
    centres = lower + size * (np.arange(count_cells(target)) + 0.5)
    at = (centres - source[0]) / (source[1] - source[0]) * cells - 0.5
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(cells)))
