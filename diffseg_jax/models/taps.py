"""Features of any network, one vector per pixel, upsampled only where they are read.

Baranchuk et al., "Label-Efficient Semantic Segmentation with Diffusion Models" (ICLR 2022),
upsample every tapped map to the size of the image and stack them, which takes gigabytes per image.
Upsampling and the first layer of a classifier are both linear, so their order may be exchanged.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from diffseg_jax.data.interpolation import half_pixel_neighbours


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["maps"], meta_fields=["size", "covered"]
)
@dataclasses.dataclass(frozen=True)
class PixelFeatures:
    """Vectors of D = C_1 + C_2 + ... features for the H x W pixels of N images, stored as maps.

    maps     f[N, h_i, w_i, C_i] each, in the order of their channels; jax or numpy arrays of any
             float type, read as float32. Numpy arrays stay in the host's memory
    size     (H, W)
    covered  a pair per map: the fractions of its height and width that the image fills, in (0, 1];
             the rest covers padding to its right and below it. () = images fill all maps

    Values between the pixels of a map are bilinear, with half-pixel centres and repeated edges, as
    in torch.nn.functional.interpolate(..., align_corners=False).
    """

    maps: tuple
    size: tuple[int, int]
    covered: tuple[tuple[float, float], ...] = ()

    @property
    def width(self) -> int:
        """Features per pixel, D."""
        return sum(values.shape[-1] for values in self.maps)

    @property
    def count(self) -> int:
        """Images, N."""
        return self.maps[0].shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of all maps."""
        return sum(math.prod(values.shape) * values.dtype.itemsize for values in self.maps)

    def gather(self, image, y, x):
        """The features of chosen pixels: three i32[n] in 0..N-1, 0..H-1, 0..W-1 -> f32[n, D].

        Runs in numpy if the maps are numpy arrays; the indices must be too.
        """
        xp = jnp if isinstance(self.maps[0], jax.Array) else np
        return self._gather((image, y, x), xp, lambda values, *at: values[at].astype(xp.float32))

    def gather_to_host(self, image, y, x) -> np.ndarray:
        """The same at numpy indices, for few pixels outside of `jit`, bit for bit as in numpy.

        A device only reads, by one program for each map and number of pixels.
        """
        if isinstance(self.maps[0], np.ndarray):
            return self.gather(image, y, x)
        return self._gather((image, y, x), np, lambda values, *at: np.asarray(_read(values, at)))

    def _gather(self, indices, xp, read):
        parts = [
            _blended(values, *self._neighbours(values, part), *indices, xp, read)
            for values, part in self._with_covered()
        ]
        return xp.concatenate(parts, -1)

    def dense(self) -> jax.Array:
        """The features of all pixels, f32[N, H, W, D]: for small images and for tests."""
        parts = []
        for values, part in self._with_covered():
            rows, columns = self._neighbours(values, part)
            enlarged = _blend(jnp.asarray(values, jnp.float32), rows, axis=1)
            parts.append(_blend(enlarged, columns, axis=2))
        return jnp.concatenate(parts, -1)

    def project(
        self, kernel: jax.Array, after: Callable = lambda h: h, strip: int | None = None
    ):  # fmt: skip
        """A linear layer at every pixel, then `after`: f32[D, O] -> f32[N, H, W, O].

        after  f32[rows, N, W, O] -> a tree of arrays [rows, N, W, ...], returned as [N, H, W, ...];
               a function of each pixel alone
        strip  rows computed at a time, which bounds the memory; None = all

        Equal to `after(dense() @ kernel)` up to rounding. The layer runs on each map at its
        resolution, outputs of equal resolution are summed, and the sums are upsampled.
        """
        sums = self._project_maps(kernel)
        height = self.size[0]
        strip = min(strip or height, height)
        strips = -(-height // strip)
        tables = []
        for values, part in sums:
            matrix = _matrix(*self._neighbours(values, part)[0], values.shape[1])
            matrix = np.pad(matrix, ((0, strips * strip - height), (0, 0)))
            tables.append(matrix.reshape(strips, strip, -1))

        rows_first = [jnp.moveaxis(values, 1, 0) for values, _ in sums]  # no copy if N is 1
        along = [self._neighbours(values, part)[1] for values, part in sums]

        def one(matrices):
            total = 0
            for matrix, values, columns in zip(matrices, rows_first, along, strict=True):
                rows = jnp.tensordot(matrix, values, 1, precision="highest")
                total = total + _blend(rows, columns, axis=2)
            return after(total)

        made = jax.lax.map(one, [jnp.asarray(table) for table in tables])

        def joined(parts):  # [strips, strip, N, W, ...] -> [N, H, W, ...]
            return jnp.moveaxis(parts.reshape(-1, *parts.shape[2:])[:height], 1, 0)

        return jax.tree.map(joined, made)

    def _project_maps(self, kernel):
        """The layer's outputs summed per resolution: (f32[N, h, w, O], covered) each."""
        sums, start = {}, 0
        for values, covered in self._with_covered():
            part = kernel[start : start + values.shape[-1]]
            start += values.shape[-1]
            output = jnp.matmul(jnp.asarray(values, jnp.float32), part, precision="highest")
            grid = values.shape[1:3], covered
            sums[grid] = sums[grid] + output if grid in sums else output
        return [(output, covered) for (_, covered), output in sums.items()]

    def _with_covered(self):
        """Every map with its pair of fractions."""
        return zip(self.maps, self.covered or ((1.0, 1.0),) * len(self.maps), strict=True)

    def _neighbours(self, values, covered):
        """The map's neighbours and weights of the H rows and of the W columns of pixels."""
        return tuple(
            half_pixel_neighbours(length, count, covered=part)
            for length, count, part in zip(values.shape[1:3], self.size, covered, strict=True)
        )


@jax.jit
def _read(values, at):
    return values[at].astype(jnp.float32)


def _blended(values, rows, columns, image, y, x, xp, read):
    """Bilinear values of one map at chosen pixels: f[N,h,w,C], i32[n] -> f32[n,C]."""
    top, bottom, down = (xp.asarray(table)[y] for table in rows)
    left, right, along = (xp.asarray(table)[x] for table in columns)
    down, along = down[:, None], along[:, None]
    read = functools.partial(read, values, image)
    upper = read(top, left) * (1 - along) + read(top, right) * along
    lower = read(bottom, left) * (1 - along) + read(bottom, right) * along
    return upper * (1 - down) + lower * down


def stack(
    maps: Sequence[jax.Array], size: tuple[int, int], covered: tuple[float, float] = (1.0, 1.0),
    dtype=jnp.float32,
) -> PixelFeatures:  # fmt: skip
    """The features of some maps f[N, h, w, C] in their order, stored in `dtype`.

    Consecutive maps of one resolution become one map, to gather from fewer and longer runs of
    memory.
    """
    runs = []
    largest = float(jnp.finfo(dtype).max)  # float16 would be infinite beyond it
    for values in maps:
        values = jnp.clip(values, -largest, largest).astype(dtype)
        if runs and runs[-1][0].shape[1:3] == values.shape[1:3]:
            runs[-1].append(values)
        else:
            runs.append([values])
    joined = tuple(jnp.concatenate(run, -1) if len(run) > 1 else run[0] for run in runs)
    return PixelFeatures(joined, tuple(size), (tuple(covered),) * len(joined))


def side_by_side(features: Sequence[PixelFeatures]) -> PixelFeatures:
    """The features of several networks or scales as one, in their order; sizes must be equal."""
    full = ((1.0, 1.0),)
    return PixelFeatures(
        tuple(values for each in features for values in each.maps),
        features[0].size,
        tuple(pair for each in features for pair in each.covered or full * len(each.maps)),
    )


def _matrix(low, high, part, length):
    """The same weights as a matrix f32[count, length]."""
    matrix = np.zeros((len(low), length), np.float32)
    pixels = np.arange(len(low))
    matrix[pixels, low] += 1 - part
    matrix[pixels, high] += part
    return matrix


def _blend(values, weights, axis):
    """Upsamples along one axis."""
    low, high, part = weights
    part = part.reshape([-1 if a == axis else 1 for a in range(values.ndim)])
    lower = jnp.take(values, low, axis, mode="clip")
    return lower * (1 - part) + jnp.take(values, high, axis, mode="clip") * part
