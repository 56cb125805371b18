"""From pixels with depths to a map seen from above: frustum, geometry and pooling.

Philion and Fidler, "Lift, Splat, Shoot: Encoding Images From Arbitrary Camera Rigs by Implicitly
Unprojecting to 3D" (ECCV 2020), as BEVFusion (Liu et al., ICRA 2023) computes it. The first axis
of a map is x (ahead), the second y (left), in metres.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

Bound = tuple[float, float, float]  # lower and upper end, and size of a cell, in metres
BORDER = 1e-3  # cells; more than what float32 loses in the coordinates of a point


@dataclasses.dataclass(frozen=True)
class Grid:
    """The cells of a map: x and y in squares, z in layers, of which there is one."""

    x: Bound
    y: Bound
    z: Bound

    @property
    def cells(self) -> tuple[int, int, int]:
        """The number of cells along x, y and z."""
        return tuple(count_cells(bound) for bound in (self.x, self.y, self.z))


def count_cells(bound: Bound) -> int:
    """The number of cells between both ends."""
    lower, upper, size = bound
    return round((upper - lower) / size)


def depth_bins(bound: Bound) -> np.ndarray:
    """f32[D]: the depths lower, lower + size, ..., below the upper end."""
    lower, _, size = bound
    return (lower + size * np.arange(count_cells(bound))).astype(np.float32)


def frustum(image: tuple[int, int], cells: tuple[int, int], depths: np.ndarray) -> np.ndarray:
    """f32[D, h, w, 3]: (u, v, depth) of every cell of a feature map at every depth.

    image  (height, width) in pixels;  cells  (h, w): u runs from 0 to width - 1, v likewise
    """
    v, u = (np.linspace(0, side - 1, n, dtype=np.float32) for side, n in zip(image, cells))
    shape = len(depths), *cells
    parts = u[None, None, :], v[None, :, None], depths[:, None, None]
    return np.stack([np.broadcast_to(part, shape) for part in parts], -1)


def points_of(cameras: jax.Array, grid_of_pixels: np.ndarray) -> jax.Array:
    """f32[..., N, D, h, w, 3], in metres: where the cells of every camera are in the world.

    cameras         f32[..., N, 2, 3, 4], two affine maps per camera, of `affine_maps`: the first
                    undoes the changes of the image, the second leads to the world
    grid_of_pixels  f32[D, h, w, 3], see `frustum`
    """
    undo, place = cameras[..., 0, :, :], cameras[..., 1, :, :]
    u, v, depth = jnp.moveaxis(_affine(undo, grid_of_pixels), -1, 0)
    return _affine(place, jnp.stack([u * depth, v * depth, depth], -1))


def _affine(matrices, points):
    """f32[..., N, 3, 4] and f32[D,h,w,3], or with [..., N] before: sums of three products."""
    spread = matrices[..., None, None, None, :, :]
    product = sum(spread[..., j] * points[..., j, None] for j in range(3))
    return product + spread[..., 3]


def cells_of_points(points: jax.Array, grid: Grid) -> jax.Array:
    """i32[...]: the index x * Y + y of the cell that holds each point f32[..., 3].

    X * Y for points outside. A quotient is rounded towards zero, as in the original, so that what
    is up to one cell below the lower end counts for the first cell. One thing differs: along x and
    y, a point up to `BORDER` below the border of two cells is of the upper one. Points straight
    ahead lie on such borders, and so have one cell however a platform rounds. Which points are
    outside is as in the original.
    """
    inside, cells = True, []
    for axis, bound in enumerate((grid.x, grid.y, grid.z)):
        (lower, _, size), count = bound, count_cells(bound)
        quotient = (points[..., axis] - lower) / size
        inside &= (quotient > -1) & (quotient < count)
        cells.append(jnp.clip(jnp.trunc(quotient + BORDER), 0, count - 1))
    x, y, _ = grid.cells
    index = jnp.where(inside, cells[0] * y + cells[1], x * y)
    return index.astype(jnp.int32)


def pool(depth: jax.Array, features: jax.Array, cells: jax.Array, size: int) -> jax.Array:
    """f32[B, size, C]: in every cell the sum of depth * features over the points that it holds.

    depth     f32[B, N, D, h, w], the share of a pixel's features at every depth
    features  f[B, N, h, w, C]
    cells     i32[B, N, D, h, w], see `cells_of_points`; `size` stands for no cell

    The products f32[B, N, D, h, w, C] are 640 MB for an image set of the published size. On CPUs
    and in files of ONNX only those of one depth exist at a time (1/118), in the backward pass too.
    On accelerators all of them exist, sorted by cell, and their sums are sums of neighbours.
    """
    inputs = depth.astype(jnp.float32), features.astype(jnp.float32), cells
    by_depth = lambda *inputs: _pool_by_depth(*inputs, size)
    by_sort = lambda *inputs: _pool_sorted(*inputs, size)
    accelerators = dict.fromkeys(("cuda", "rocm", "tpu"), by_sort)
    return jax.lax.platform_dependent(*inputs, **accelerators, default=by_depth)


def _pool_by_depth(depth, features, cells, size):
    batch = jnp.arange(len(depth))[:, None, None, None]

    def add(sums, at_depth):
        share, cell = at_depth
        products = share[..., None] * features
        return sums.at[batch, cell].add(products, mode="drop"), None

    sums = jnp.zeros((len(depth), size, features.shape[-1]))
    by_depth = jnp.moveaxis(depth, 2, 0), jnp.moveaxis(cells, 2, 0)
    return jax.lax.scan(add, sums, by_depth)[0]


def _pool_sorted(depth, features, cells, size):
    shape = depth.shape[1:]  # [N, D, h, w]
    pixel = jnp.arange(shape[0] * shape[2] * shape[3]).reshape(shape[0], 1, *shape[2:])
    pixel = jnp.broadcast_to(pixel, shape).reshape(-1)

    def of_one(depth, features, cells):
        cells, order = jax.lax.sort_key_val(cells.reshape(-1), jnp.arange(pixel.size))
        rows = features.reshape(-1, features.shape[-1])[pixel[order]]
        products = depth.reshape(-1)[order][:, None] * rows
        return jax.ops.segment_sum(products, cells, size, indices_are_sorted=True)

    return jax.vmap(of_one)(depth, features, cells)
