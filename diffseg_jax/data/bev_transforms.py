"""What happens to the images of a car's cameras and to its map before a network reads them.

The changes are those of BEVFusion (Liu et al., ICRA 2023). Each image changes by itself, by a
matrix that undoing the projection needs; a change of the world moves the map and all cameras.
"""

import dataclasses
import itertools
import math

import numpy as np
from PIL import Image

from diffseg_jax.errors import UserError

REQUIRED = ("intrinsics", "camera_to_world")


@dataclasses.dataclass(frozen=True)
class RigView:
    """The size at which a network reads images, and the part of a photograph that it sees.

    size    (height, width) of the result; the bottom of the photograph, and its middle
    resize  factor by which photographs are made smaller before they are cut
    """

    size: tuple[int, int]
    resize: float

    def matrix(self, height: int, width: int) -> np.ndarray:
        """f64[4, 4], from pixels (u, v) of a photograph to those of its view."""
        return _image_matrix(self.resize, *self._corner(height, width, self.resize, 0.5))

    @property
    def smallest(self) -> tuple[int, int]:
        """The (height, width) of the smallest photographs that fill the view."""
        least = lambda side: (n for n in itertools.count(int(side / self.resize))
                              if int(n * self.resize) >= side)  # fmt: skip
        return next(least(self.size[0])), next(least(self.size[1]))

    def require(self, height: int, width: int, name: str):
        """Raises UserError for photographs that are too small to fill the view; name: of a rig."""
        small, (rows, columns) = (int(height * self.resize), int(width * self.resize)), self.size
        if small[0] < rows or small[1] < columns:
            least = self.smallest
            raise UserError(
                f"{name} has photographs of {width}x{height} pixels, but the network sees "
                f"{columns}x{rows} of them after making them {self.resize:g} times as large, which "
                f"takes {least[1]}x{least[0]} pixels or more. Give photographs of the size "
                "of the training ones, and intrinsics for that size."
            )

    def _corner(self, height, width, factor, across):
        """(left, top) of the part in the smaller photograph; `across` 0.5 is its middle."""
        left = int(across * max(0, int(width * factor) - self.size[1]))
        return left, int(height * factor) - self.size[0]


def view_images(images: np.ndarray, matrices: np.ndarray, view: RigView) -> np.ndarray:
    """u8[N,h,w,3]: photographs u8[N,H,W,3] moved by matrices f[N,4,4]; black where there is none.

    Photographs are first made smaller with averaging, as far as a matrix does so.
    """
    height, width = view.size
    return np.stack([_moved(Image.fromarray(image), matrix, (width, height))
                     for image, matrix in zip(images, matrices)])  # fmt: skip


def _moved(image, matrix, size):
    factor = math.sqrt(abs(np.linalg.det(matrix[:2, :2])))
    small = int(image.width * factor), int(image.height * factor)
    if small != image.size:
        image = image.resize(small, Image.BILINEAR)
    inverse = np.linalg.inv(matrix[:3, :3])
    corner = matrix[:2, 3]
    a = factor * inverse[:2, :2]  # from pixels of the result to those of the smaller photograph
    shift = -a @ corner
    if np.allclose(a, np.round(a), atol=1e-6):  # nothing to interpolate
        a, shift = np.round(a), np.round(shift)
        return _copied(np.asarray(image), a, shift, size)
    coefficients = (*a[0], shift[0] + a[0].sum() / -2 + 0.5, *a[1], shift[1] - a[1].sum() / 2 + 0.5)
    return np.asarray(image.transform(size, Image.AFFINE, coefficients, Image.BILINEAR))


def _copied(image, a, shift, size):
    """Pixels u8[h,w,3] of an image at whole coordinates, black beyond it."""
    rows, columns = np.arange(size[1]), np.arange(size[0])
    x = (a[0, 0] * columns[None] + a[0, 1] * rows[:, None] + shift[0]).astype(int)
    y = (a[1, 0] * columns[None] + a[1, 1] * rows[:, None] + shift[1]).astype(int)
    inside = (x >= 0) & (x < image.shape[1]) & (y >= 0) & (y < image.shape[0])
    found = image[np.clip(y, 0, image.shape[0] - 1), np.clip(x, 0, image.shape[1] - 1)]
    return np.where(inside[..., None], found, 0).astype(np.uint8)


def _image_matrix(factor, left, top):
    matrix = np.eye(4)
    matrix[:2, :2] *= factor
    matrix[:2, 3] = -left, -top
    return matrix


def network_input(example: dict, view: RigView) -> dict:
    """{"images" u8[N,h,w,3], "cameras" f32[N,2,3,4]} of an example, without a random change.

    Its "lidar_bev", if there is one, is passed on. Raises UserError for photographs that do not
    fill the view.
    """
    images = example["images"]
    view.require(*images.shape[1:3], example.get("name", "the images"))
    matrices = np.stack([view.matrix(*image.shape[:2]) for image in images])
    cameras = cameras_of(example, matrices, np.eye(4))
    found = {"images": view_images(images, matrices, view), "cameras": cameras}
    return found | {key: example[key] for key in ("lidar_bev",) if key in example}


def cameras_of(example: dict, matrices: np.ndarray, world: np.ndarray) -> np.ndarray:
    """f32[N,2,3,4], see `affine_maps`; UserError without calibration or with a singular matrix."""
    name = example.get("name", "the images")
    missing = [key for key in REQUIRED if key not in example]
    if missing:
        raise UserError(
            f"{name} comes without {missing[0]}, but a network for maps seen from above needs the "
            "calibration of every camera. Give intrinsics (3x3) and camera_to_world (4x4)."
        )
    number = len(example["images"])
    for key, size in zip(REQUIRED, (3, 4)):
        array = np.asarray(example[key])
        if array.shape[:1] != (number,) or array.shape[1:] != (size, size):
            raise UserError(
                f"{name}: {key} has shape {array.shape}, but {number} images need "
                f"({number}, {size}, {size})."
            )
        if not np.isfinite(array).all() or (np.abs(np.linalg.det(array)) < 1e-9).any():
            which = [n for n, each in enumerate(array)
                     if not np.isfinite(each).all() or abs(np.linalg.det(each)) < 1e-9]  # fmt: skip
            raise UserError(
                f"{name}: {key} of camera {which[0]} is singular or not finite, so no point can be "
                "placed in the world. Correct the calibration."
            )
    return affine_maps(example["intrinsics"], example["camera_to_world"], matrices, world)


def require_lidar(example: dict, shape: tuple[int, int, int], give: str, omit: str):
    """Raises UserError unless "lidar_bev" has the shape (X, Y, C); for C 0 unless it is missing.

    give, omit  advice where features are needed, and where they are not
    """
    name, found = example.get("name", "a rig"), example.get("lidar_bev")
    if found is None and shape[2]:
        raise UserError(
            f"{name} comes without lidar_bev, but the network reads features of a LiDAR beside "
            f"images, [X, Y, C] of shape {shape}. {give}"
        )
    if found is not None and not shape[2]:
        raise UserError(f"{name} comes with lidar_bev, but the network reads cameras alone. {omit}")
    if found is not None and np.shape(found) != shape:
        raise UserError(
            f"{name} has lidar_bev of shape {np.shape(found)}, but the network reads [X, Y, C] of "
            f"shape {shape}. {give}"
        )


def affine_maps(
    intrinsics: np.ndarray, camera_to_world: np.ndarray, image: np.ndarray, world: np.ndarray
) -> np.ndarray:
    """f32[..., N, 2, 3, 4]: the two affine maps of every camera that a network reads.

    The first undoes the change of the photograph, (u, v, depth) to (u, v, depth). The second leads
    from (u depth, v depth, depth) to the world.

    intrinsics       [..., N, 3, 3] or 4x4, K: pixels of the photograph per unit of x / z
    camera_to_world  [..., N, 4, 4], from a camera's axes (right, down, ahead) to the world's
    image            [..., N, 4, 4], the change of the photograph: (u, v) to those of the network
    world            [..., 4, 4], the change of the world, such as a rotation in training

    Computed in float64. Raises np.linalg.LinAlgError for a singular K or image matrix.
    """
    intrinsics, camera_to_world, image, world = (
        np.asarray(each, np.float64) for each in (intrinsics, camera_to_world, image, world)
    )
    undo = np.linalg.inv(image[..., :3, :3])
    shift = -np.einsum("...ij,...j->...i", undo, image[..., :3, 3])
    turn = world[..., None, :3, :3]
    place = turn @ camera_to_world[..., :3, :3] @ np.linalg.inv(intrinsics[..., :3, :3])
    at = np.einsum("...ij,...j->...i", turn, camera_to_world[..., :3, 3])
    at = at + world[..., None, :3, 3]
    maps = [np.concatenate(pair, -1) for pair in ((undo, shift[..., None]), (place, at[..., None]))]
    return np.stack(maps, -3).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class RigChange:
    """A random change of an example: (example, numpy Generator) -> row of a batch.

    view          as of `RigView`
    resize        (lower, upper) of the factor; across it, the part is drawn too
    flip          whether images are mirrored, half of them
    rotate        degrees, the largest rotation of an image
    world_rotate  degrees, the largest rotation of the world;  world_scale (lower, upper)
    world_shift   metres, standard deviation along every axis
    world_flip    whether the world is mirrored along x and y, half of the times each

    Raises UserError for ranges whose ends are not in order.
    """

    view: RigView
    resize: tuple[float, float]
    flip: bool = False
    rotate: float = 0.0
    world_rotate: float = 0.0
    world_scale: tuple[float, float] = (1.0, 1.0)
    world_shift: float = 0.0
    world_flip: bool = False

    def __post_init__(self):
        for name, (lower, upper) in (("resize", self.resize), ("world_scale", self.world_scale)):
            if not 0 < lower <= upper:
                raise UserError(
                    f"augment.{name} is ({lower}, {upper}), but must be the lower and the upper "
                    f"end of a range above 0. Try ({upper}, {lower})."
                    if upper > 0
                    else f"augment.{name} is ({lower}, {upper}), but both must be above 0."
                )

    def __call__(self, example: dict, rng: np.random.Generator) -> dict:
        images = example["images"]
        matrices = np.stack([self.image_matrix(*image.shape[:2], rng) for image in images])
        world = self.world_matrix(rng)
        same = np.array_equal(world, np.eye(4))
        given = {"lidar_bev": flipped(example, world)} if "lidar_bev" in example else {}
        return {
            **given,
            "images": view_images(images, matrices, self.view),
            "cameras": cameras_of(example, matrices, world),
            "bev": example["bev"] if same else example["ground"].raster(world),
            "valid": np.array(self.view.size, np.int32),
        }

    def image_matrix(self, height: int, width: int, rng) -> np.ndarray:
        """f64[4, 4] of one photograph: smaller, cut, mirrored, turned around the middle."""
        factor = rng.uniform(*self.resize)
        corner = self.view._corner(height, width, factor, rng.random())
        matrix = _image_matrix(factor, *corner)
        middle = (np.array(self.view.size[::-1]) - 1) / 2
        around = np.eye(4)
        if self.flip and rng.random() < 0.5:
            around[0, 0] = -1
        angle = math.radians(rng.uniform(-self.rotate, self.rotate))
        around[:2, :2] = _turn(angle) @ around[:2, :2]
        around[:2, 3] = middle - around[:2, :2] @ middle
        return around @ matrix

    def world_matrix(self, rng) -> np.ndarray:
        """f64[4, 4]: turned around z, scaled, shifted, and mirrored."""
        matrix = np.eye(4)
        angle = math.radians(rng.uniform(-self.world_rotate, self.world_rotate))
        matrix[:2, :2] = _turn(angle)
        matrix[:3, :3] *= rng.uniform(*self.world_scale)
        matrix[:3, 3] = rng.normal(0, self.world_shift, 3) if self.world_shift else 0
        if self.world_flip:
            matrix[:2] *= rng.choice((-1.0, 1.0), (2, 1))
        return matrix


def flipped(example: dict, world: np.ndarray) -> np.ndarray:
    """The features of a LiDAR f32[X,Y,C] in a world that is at most mirrored.

    Raises UserError for other changes: features that were computed before cannot follow them.
    """
    signs = np.diag(world)[:2]
    if not np.array_equal(np.abs(world), np.eye(4)):
        raise UserError(
            f"{example['name']} comes with features of a LiDAR, which can be mirrored but not "
            "turned, scaled or shifted. Set world_rotate and world_shift of augment to 0, and "
            "world_scale to (1.0, 1.0)."
        )
    return np.ascontiguousarray(example["lidar_bev"][:: int(signs[0]), :: int(signs[1])])


def _turn(angle):
    return np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
