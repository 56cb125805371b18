"""A drawn street seen by several cameras around a car, and the same street seen from above.

The car stands in the street of `scene_street`, somewhere along it and in either direction. Its axes
are x ahead, y left and z up, in metres, with the origin on the ground below the cameras, which look
outwards at even angles. All matrices are exact, and so is the map.
"""

import dataclasses
import functools

import numpy as np

from diffseg_jax.data.scene_colours import paint
from diffseg_jax.data.scene_rays import ground_labels, trace
from diffseg_jax.data.scene_street import (
    BUILDING,
    CAR,
    PERSON,
    ROAD,
    Camera,
    Street,
    build_solids,
    draw_light,
    plan_street,
)
from diffseg_jax.data.scenes import photograph

LAYERS_ABOVE = ("road", "sidewalk", "crossing", "divider", "building", "car")
COLOURS_ABOVE = (
    (69, 65, 85), (219, 206, 212), (31, 201, 255), (250, 191, 0), (113, 55, 19), (71, 66, 228),
)  # fmt: skip
FREE = 4.5  # metres around the car without other cars and people
LINE = 0.4  # metres on both sides of a divider's middle
FOCAL = 0.714  # of a camera, in image widths: 70 degrees of view
HORIZON = 0.42  # row of the horizon, in image heights from the top


@dataclasses.dataclass(frozen=True)
class Pose:
    """Where the car is: world (x, z) of its origin, and its heading in radians."""

    x: float
    z: float
    heading: float

    def world(self, ahead, left):
        """World (x, z) of points in the car's axes."""
        sin, cos = np.sin(self.heading), np.cos(self.heading)
        return self.x + ahead * sin - left * cos, self.z + ahead * cos + left * sin

    def turned(self, angle):
        """The pose after a turn to the left."""
        return dataclasses.replace(self, heading=self.heading - angle)

    def solids(self, t):
        """The table of solids in axes (right, up, ahead) of the pose."""
        sin, cos = np.sin(self.heading), np.cos(self.heading)
        dx, dz = t["x"] - self.x, t["z"] - self.z
        x, z = dx * cos - dz * sin, dx * sin + dz * cos
        base = np.stack([x, t["y"], z], -1)
        return {**t, "x": x, "z": z, "base": base, "heading": t["heading"] - self.heading}


@dataclasses.dataclass(frozen=True)
class SceneGround:
    """The ground of a drawn street around a car, from which its map follows."""

    street: Street
    solids: dict
    pose: Pose
    output: tuple[float, float, float]  # (lower, upper, size) of both axes, in metres

    def raster(self, world: np.ndarray) -> np.ndarray:
        """u8[6, n, n], layers of LAYERS_ABOVE at the centres of cells, axes x and y.

        world  f[4, 4], the change of the car's axes that the map shows
        """
        x, z = self.pose.world(*centres_before(world, self.output))
        label, d, outside = ground_labels(self.street, x, z)
        begin, end = self.street.crossing
        walk = np.where(d > 0, *self.street.walks[::-1])
        beside = np.minimum(np.abs(d) - self.street.half_width - walk,
                            np.maximum(begin - z, z - end) - 2) <= 0  # fmt: skip
        zebra = (np.abs(z - begin + 2.4) < 1.4) & (np.abs(d) < self.street.half_width)
        line = (np.abs(d) < LINE) & ((z < begin - 4.5) | (z > end + 4.5))
        blocks = [self._inside(x, z, kind) for kind in (BUILDING, CAR)]
        layers = [label == ROAD, (outside > 0) & beside, zebra, line, *blocks]
        return np.stack(layers).astype(np.uint8)

    def _inside(self, x, z, kind):
        """Whether points lie in the base of a block of that label."""
        t, found = self.solids, np.zeros(x.shape, bool)
        for n in np.flatnonzero((t["label"] == kind) & (t["ball"] == 0)):
            dx, dz = x - t["x"][n], z - t["z"][n]
            cos, sin = np.cos(t["heading"][n]), np.sin(t["heading"][n])
            a, c = dx * cos - dz * sin, dx * sin + dz * cos
            found |= (np.abs(a) < t["half_a"][n]) & (np.abs(c) < t["half_c"][n])
        return found


def centres_before(world: np.ndarray, output: tuple[float, float, float]):
    """(x, y), each f64[n, n]: the centres of a map's cells before the change `world` f[4, 4]."""
    lower, upper, size = output
    centres = lower + size * (np.arange(round((upper - lower) / size)) + 0.5)
    x, y = np.meshgrid(centres, centres, indexing="ij")
    back = np.linalg.inv(world)
    return tuple(back[i, 0] * x + back[i, 1] * y + back[i, 3] for i in range(2))


def draw_rig(seed: int, index: int, cameras: int, height: int, width: int, output) -> dict:
    """Scene `index` of the family `seed`: a pure function of its arguments.

    images           u8[N, H, W, 3], of cameras that turn to the left one by one from straight ahead
    intrinsics       f32[N, 3, 3]: (u, v, 1) of the centre of pixel (v, u), times depth
    camera_to_world  f32[N, 4, 4], from axes (right, down, ahead) to the car's
    ground           `SceneGround`, whose map has the bound `output`
    """
    rng = np.random.default_rng(np.random.SeedSequence((seed, index, 1)))
    street, light = plan_street(rng), draw_light(rng)
    at = rng.uniform(30, 62)
    side = rng.uniform(-0.6, 0.6) * street.half_width
    facing = street.heading(at) + rng.choice((0, np.pi)) + rng.normal(0, 0.12)
    pose = Pose(float(street.middle(at) + side), at, float(facing))
    solids = _cleared(build_solids(street, rng), pose)
    camera = Camera(rng.uniform(1.6, 2.0), FOCAL * width / height, HORIZON)
    turns = 2 * np.pi * np.arange(cameras) / cameras
    images = [_view(street, light, camera, solids, pose.turned(turn), rng, height, width)
              for turn in turns]  # fmt: skip
    focal = FOCAL * width
    intrinsics = [[focal, 0, width / 2 - 0.5], [0, focal, HORIZON * height - 0.5], [0, 0, 1]]
    return {
        "images": np.stack(images),
        "intrinsics": np.float32([intrinsics] * cameras),
        "camera_to_world": np.stack([_placed(turn, camera.height) for turn in turns]),
        "ground": SceneGround(street, solids, pose, tuple(output)),
    }


def _cleared(t, pose):
    """The solids without cars and people where the car stands."""
    near = np.hypot(t["x"] - pose.x, t["z"] - pose.z) < FREE
    kept = ~(near & np.isin(t["label"], (CAR, PERSON)))
    return {name: values[..., kept] if name == "colour" else values[kept]
            for name, values in t.items()}  # fmt: skip


def _view(street, light, camera, solids, pose, rng, height, width):
    """The image u8[H,W,3] of a camera that looks along the heading of a pose."""
    sin, cos = np.sin(pose.heading), np.cos(pose.heading)
    x, y, z = light.to_sun
    light = dataclasses.replace(
        light, to_sun=np.float32([x * cos - z * sin, y, x * sin + z * cos])
    )
    t = pose.solids(solids)
    rays = camera.rays(np.arange(height) + 0.5, np.arange(width) + 0.5, height, width)
    seen = trace(t, camera, *rays)
    place = functools.partial(_ground_place, pose)
    return photograph(paint(street, camera, light, t, seen, *rays, place), light, rng)


def _ground_place(pose, right, ahead):
    return pose.world(ahead, -right)


def _placed(turn, height):
    """f32[4, 4]: from (right, down, ahead) of a camera, turned to the left, to the car's axes."""
    matrix = np.eye(4, dtype=np.float32)
    ahead = np.cos(turn), np.sin(turn), 0
    right = np.sin(turn), -np.cos(turn), 0
    matrix[:3, :3] = np.stack([right, (0, 0, -1), ahead], -1)
    matrix[2, 3] = height
    return matrix
