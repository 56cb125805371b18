"""Small street scenes drawn by a seeded generator: image, exact labels and exact depth.

A scene is a street in metres (x right, y up, z ahead; the camera stands at (0, height, 0)), made of
a ground plane and of two kinds of solids: blocks (boxes that may taper) and balls (ellipsoids). A
pinhole camera with a shifted principal point looks along z, so that uprights stay upright. Rays are
written (x, -y, 1): what is met at t has depth t, and 1 / t of a plane is linear in x and y, so
solids are compared by inverse depth. Colours are chosen last, per visible sample, from the
material, the place on the solid, and the light. All lengths are metric: another image size shows
the same street.
"""

import functools
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from diffseg_jax.config import UserError

# fmt: off
NAMES = ("road", "sidewalk", "building", "fence", "pole", "vegetation", "sky", "person", "car")
PALETTE = (  # Cityscapes, but a brighter pole and sky: they differ in lightness or blue
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (190, 153, 153), (255, 221, 51),
    (107, 142, 35), (70, 160, 220), (220, 20, 60), (0, 0, 142),
)
ROAD, SIDEWALK, BUILDING, FENCE, POLE, VEGETATION, SKY, PERSON, CAR = range(9)
SKY_DEPTH = 200.0  # metres, stored where nothing is hit; everything else is nearer

FINE_FROM, FINE_TO = 160 * 200, 240 * 320  # pixels of images that are sampled twice as finely
WALL, ROOF, LEAF, BODY, CABIN, DISC, HEAD, PLANKS, PLAIN, LAMP = range(10)  # materials

# One row per solid: what it is, where, how large, its colour, four numbers for its material.
FIELDS = (
    "ball", "label", "material", "x", "y", "z", "heading", "half_a", "half_c", "top_a", "top_c",
    "shift", "height", "red", "green", "blue", "s0", "s1", "s2", "s3",
)
WALL_COLOURS = (  # sRGB in 0..1, as are the others
    (0.55, 0.27, 0.2), (0.8, 0.7, 0.55), (0.85, 0.84, 0.8), (0.5, 0.5, 0.52), (0.42, 0.32, 0.25),
    (0.78, 0.6, 0.35), (0.5, 0.58, 0.48), (0.45, 0.52, 0.62), (0.7, 0.45, 0.38), (0.3, 0.31, 0.34),
)
CAR_COLOURS = (
    (0.9, 0.9, 0.9), (0.6, 0.62, 0.64), (0.1, 0.1, 0.11), (0.35, 0.36, 0.38), (0.65, 0.08, 0.08),
    (0.1, 0.2, 0.5), (0.12, 0.3, 0.18), (0.8, 0.6, 0.1), (0.4, 0.28, 0.18), (0.45, 0.6, 0.7),
    (0.75, 0.7, 0.6), (0.3, 0.45, 0.2),
)
LEAF_COLOURS = (
    (0.27, 0.42, 0.14), (0.2, 0.34, 0.15), (0.38, 0.46, 0.16), (0.4, 0.44, 0.22),
    (0.65, 0.42, 0.13), (0.55, 0.27, 0.13), (0.5, 0.47, 0.3), (0.24, 0.36, 0.25),
)
SKIN_COLOURS = ((0.9, 0.72, 0.6), (0.8, 0.6, 0.45), (0.6, 0.42, 0.3), (0.38, 0.25, 0.18))
PAVING_COLOURS = ((0.6, 0.58, 0.55), (0.5, 0.5, 0.52), (0.62, 0.52, 0.45), (0.4, 0.38, 0.37))
ROOF_COLOURS = ((0.45, 0.22, 0.16), (0.3, 0.3, 0.33), (0.35, 0.25, 0.2))
POLE_COLOURS = ((0.45, 0.46, 0.47), (0.2, 0.24, 0.22), (0.6, 0.6, 0.58), (0.3, 0.25, 0.2))
BOARD_COLOURS = ((0.1, 0.3, 0.65), (0.1, 0.45, 0.25), (0.9, 0.88, 0.8), (0.85, 0.65, 0.1))
# fmt: on


class Solids:
    """The blocks and balls of a scene, in metres.

    `heading` in radians: 0 looks along z, positive to the right. In its own frame a solid has
    axis a to its right, b up, c ahead.
    """

    def __init__(self):
        self.rows = []

    def block(self, label, material, at, heading, bottom, top, height, colour, shift=0.0,
              style=(0, 0, 0, 0)):
        """A box on `at`, half sizes (a, c) `bottom` and `top`, its top moved by `shift` along c."""
        self.rows.append((0, label, material, *at, heading, *bottom, *top, shift, height, *colour,
                          *style))

    def ball(self, label, material, at, heading, radii, colour, style=(0, 0, 0, 0)):
        """An ellipsoid around `at` with radii (a, b, c)."""
        a, b, c = radii
        self.rows.append((1, label, material, *at, heading, a, c, a, c, 0, b, *colour, *style))

    def table(self):
        """All rows as a dict of float64[N], plus `base` [N,3] and `colour` float32[3,N]."""
        columns = dict(zip(FIELDS, np.array(self.rows, np.float64).T))
        columns["base"] = np.stack([columns[k] for k in ("x", "y", "z")], -1)
        columns["colour"] = (np.stack([columns[k]
                                       for k in ("red", "green", "blue")]).astype(np.float32) ** 2)
        return columns


@dataclass(frozen=True)
class Street:
    """The ground plan; `d` is the distance to the right of x = offset + slope z + bend z^2."""

    offset: float
    slope: float
    bend: float
    half_width: float
    walks: tuple  # sidewalk width left, right
    suburb: tuple  # left, right: gardens and fences between sidewalk and houses
    crossing: tuple  # z where the side street begins and ends
    dash: float  # length of a dash
    tone: float  # brightness of the asphalt
    warmth: float  # its tint, -1..1
    paving: np.ndarray  # f32[3,1]
    lawn: np.ndarray  # f32[3,1], linear

    def middle(self, z):
        return self.offset + self.slope * z + self.bend * z * z

    def place(self, d, z, y=0.0):
        return (self.middle(z) + d, y, z)

    def heading(self, z):
        return float(np.arctan(self.slope + 2 * self.bend * z))


@dataclass(frozen=True)
class Light:
    """Sun and sky; colours are linear RGB, f32[3,1]."""

    to_sun: np.ndarray  # unit vector
    sun: np.ndarray  # zero when it is overcast or dark
    zenith: np.ndarray
    horizon: np.ndarray
    ambient: np.ndarray
    clouds: float  # 0 clear .. 1 covered
    dark: float  # 0 day .. 1 nightfall
    visibility: float  # metres
    texture: float  # where in the noise this scene begins


@dataclass(frozen=True)
class Camera:
    height: float  # metres above the road
    focal: float  # in image heights
    horizon: float  # its row, in image heights from the top

    def rays(self, rows, columns, height, width):
        """(x [columns], y [rows]) of the rays through pixel coordinates."""
        x = (columns - width / 2) / (self.focal * height)
        y = (rows / height - self.horizon) / self.focal
        return x.astype(np.float32), y.astype(np.float32)


# ---------------------------------------------------------------- what stands in the street


def pick(rng, colours, spread=0.06):
    return np.clip(colours[rng.integers(len(colours))] + rng.normal(0, spread, 3), 0.03, 0.97)


def plan_street(rng):
    half = rng.uniform(3.2, 6.0)
    camera_at = (rng.uniform(-0.6, 0.6) * half if rng.random() < 0.8 else rng.choice((-1, 1))
                 * (half + 1.0))
    start = rng.uniform(14, 45)
    return Street(-camera_at, rng.normal(0, 0.05), rng.normal(0, 0.0009), half,
                  tuple(rng.uniform(2.0, 4.0, 2)), tuple(rng.random(2) < 0.45),
                  (start, start + rng.uniform(6, 9)), rng.uniform(2, 4), rng.uniform(0.22, 0.62),
                  rng.normal(0, 0.5), np.float32(pick(rng, PAVING_COLOURS, 0.04))[:, None],
                  np.float32(pick(rng, LEAF_COLOURS, 0.03))[:, None] ** 2)


def add_buildings(solids, street, rng, side):
    """A row of houses along one side; the side street and some gardens interrupt it."""
    suburb = street.suburb[side > 0]
    z, tall = rng.uniform(-4, 2), rng.uniform(3, 6)
    while z < 105:
        length = rng.uniform(8, 13) if suburb else rng.uniform(9, 20)
        if z < street.crossing[1] + 3 and z + length > street.crossing[0] - 3:
            z = street.crossing[1] + 3
        floors = rng.integers(1, 4) if suburb else max(2, int(rng.normal(tall, 1.2)))
        add_building(solids, street, rng, side, z, length, int(floors), suburb)
        z += length + (rng.uniform(2, 7) if suburb or rng.random() < 0.12 else 0.02)


def add_building(solids, street, rng, side, z, length, floors, suburb):
    depth, storey = rng.uniform(4, 6), rng.uniform(2.9, 3.6)
    setback = rng.uniform(2.5, 6) if suburb else rng.choice((0.0, 0.0, 0.4))
    d = side * (street.half_width + street.walks[side > 0] + setback + depth)
    at, heading = street.place(d, z + length / 2), street.heading(z + length / 2)
    height, colour, half = floors * storey + 0.6, pick(rng, WALL_COLOURS, 0.05), (depth, length / 2)
    shop = 0 if suburb else rng.random() < 0.6
    style = (storey, rng.uniform(1.6, 3.2), rng.uniform(0.2, 0.42), 2 * rng.integers(0, 3) + shop)
    solids.block(BUILDING, WALL, at, heading, half, half, height, colour, style=style)
    if suburb or rng.random() < 0.4:
        eaves, ridge = (depth + 0.4, length / 2 + 0.3), (0.05, length / 2 - rng.choice((0.0, 2.5)))
        solids.block(BUILDING, ROOF, (at[0], height, at[2]), heading, eaves, ridge,
                     rng.uniform(1.5, 3.2), pick(rng, ROOF_COLOURS, 0.05))


def add_fences(solids, street, rng, side):
    """Panels along the gardens, or a shorter row at the kerb of a city street."""
    suburb = street.suburb[side > 0]
    if not suburb and rng.random() < 0.8:
        return
    d = side * (street.half_width + (street.walks[side > 0] + 0.1 if suburb else 0.35))
    colour, height, step = pick(rng, WALL_COLOURS + LEAF_COLOURS), rng.uniform(0.9, 1.7), 5.0
    start = 1.5 if suburb else rng.uniform(5, 15)
    style = (rng.uniform(0.12, 0.3), rng.integers(0, 2), 0, 0)
    for z in np.arange(start, 60 if suburb else start + 18, step):
        if (not street.crossing[0] - 3 < z + step / 2 < street.crossing[1] + 3
            and rng.random() < 0.85):
            middle = z + step / 2
            solids.block(FENCE, PLANKS, street.place(d, middle), street.heading(middle),
                         (0.05, step / 2), (0.05, step / 2), height, colour, style=style)


def add_tree(solids, rng, at, colour):
    trunk, size = rng.uniform(1.6, 2.8), rng.uniform(1.3, 2.4)
    solids.block(VEGETATION, PLAIN, at, 0.0, (0.16, 0.16), (0.1, 0.1), trunk + size,
                 pick(rng, ((0.35, 0.27, 0.2),)))
    for turn in rng.uniform(0, 0.8) + np.arange(4) * 1.6:
        out = size * 0.55
        where = (at[0] + out * np.cos(turn), trunk + size * rng.uniform(0.5, 1.5),
                 at[2] + out * np.sin(turn))
        solids.ball(VEGETATION, LEAF, where, turn, size * rng.uniform(0.6, 0.9, 3),
                    colour * rng.uniform(0.85, 1.12))
    top = (at[0], trunk + size * 1.5, at[2])
    solids.ball(VEGETATION, LEAF, top, 0.0, (size * 0.85, size, size * 0.85), colour)


def add_plants(solids, street, rng, side):
    """Street trees, garden trees and bushes."""
    leaf, spacing = pick(rng, LEAF_COLOURS, 0.04), rng.uniform(8, 15)
    suburb, edge = street.suburb[side > 0], street.half_width + street.walks[side > 0]
    if suburb or rng.random() < 0.6:
        for z in np.arange(rng.uniform(5, 14), 62, spacing):
            d = side * (edge + rng.uniform(1, 2.5) if suburb else street.half_width + 0.7)
            if not street.crossing[0] - 1 < z < street.crossing[1] + 1:
                add_tree(solids, rng, street.place(d, z),
                         np.clip(leaf + rng.normal(0, 0.03, 3), 0.05, 0.9))
    for z in rng.uniform(4, 35, 4 if suburb else 1):
        radii = rng.uniform(0.5, 1.1, 3)
        d = side * (edge + (1.2 if suburb else -0.4))
        if not street.crossing[0] - 1 < z < street.crossing[1] + 1:
            solids.ball(VEGETATION, LEAF, street.place(d, z, 0.3), 0.0, radii,
                        pick(rng, LEAF_COLOURS, 0.04))


def add_backdrop(solids, street, rng):
    """Houses and trees across the end of the street, and a line of woods that hides the horizon."""
    for x in street.middle(125.0) + np.arange(-60, 61, 20):
        half, height = (rng.uniform(6, 11), 5.0), rng.uniform(6, 26)
        if rng.random() < 0.6:
            solids.block(BUILDING, WALL, (x, 0, rng.uniform(115, 145)), rng.normal(0, 0.3), half,
                         half, height, pick(rng, WALL_COLOURS), style=(3.2, 2.5, 0.3, 0))
        else:
            solids.ball(VEGETATION, LEAF, (x, 4, 112), 0.0, (9, rng.uniform(5, 9), 5),
                        pick(rng, LEAF_COLOURS))
    for x in np.arange(-240, 241, 32):
        solids.ball(VEGETATION, LEAF, (x, 0, 170), 0.0, (30, rng.uniform(6, 13), 9),
                    pick(rng, LEAF_COLOURS[:4]))


def add_car(solids, rng, at, heading):
    """A saloon, an estate car or a van on four wheels."""
    shape, colour = rng.integers(3), pick(rng, CAR_COLOURS, 0.04)
    half, length = rng.uniform(0.84, 0.94), (2.15, 2.1, 2.4)[shape] * rng.uniform(0.93, 1.07)
    belt, cabin = (0.6, 0.65, 0.85)[shape], (0.56, 0.6, 1.0)[shape]
    x, _, z = at
    solids.block(CAR, BODY, (x, 0.25, z), heading, (half, length), (half - 0.05, length - 0.1),
                 belt, colour, style=(length, half, belt, 0))
    below, above, shift = ((1.35, 0.75, -0.25), (1.5, 1.2, -0.45), (2.1, 1.9, -0.2))[shape]
    solids.block(CAR, CABIN, (x, 0.25 + belt, z), heading, (half - 0.06, below),
                 (half - 0.2, above), cabin, colour, shift=shift)
    right, ahead = (np.array([np.cos(heading), -np.sin(heading)]),
                    np.array([np.sin(heading), np.cos(heading)]))
    for a in (-half + 0.06, half - 0.06):
        for c in (-0.62 * length, 0.62 * length):
            wx, wz = np.array([x, z]) + a * right + c * ahead
            solids.ball(CAR, DISC, (wx, 0.33, wz), heading, (0.13, 0.33, 0.33), (0.1, 0.1, 0.1),
                        (0.6, 0.6, 0.6, 0.62))


def add_cars(solids, street, rng):
    w = street.half_width
    for side in (-1, 1):
        z = rng.uniform(5, 16)
        parked = rng.random() < 0.6
        while z < 55 and parked:
            if not street.crossing[0] - 5 < z < street.crossing[1] + 3 and rng.random() < 0.75:
                add_car(solids, rng, street.place(side * (w - 1.0), z), street.heading(z)
                        + rng.choice((0, np.pi)))
            z += rng.uniform(5.8, 9)
        lane = side * (w * 0.5 if not parked or w < 4.2 else w * 0.5 - 0.9)
        for z in np.cumsum(rng.uniform(9, 26, rng.integers(0, 3))):
            if not parked or w > 4.2:
                add_car(solids, rng, street.place(lane, z), street.heading(z)
                        + (0 if side > 0 else np.pi))
    if rng.random() < 0.35:
        z = sum(street.crossing) / 2
        add_car(solids, rng, street.place(rng.uniform(-9, 9), z), rng.choice((-1, 1)) * np.pi / 2)


def add_person(solids, rng, at, heading):
    tall, stride = rng.uniform(0.86, 1.08), rng.uniform(0.05, 0.28)
    trousers, coat = rng.uniform(0.05, 0.8, 3), rng.uniform(0.08, 0.95, 3)
    if rng.random() < 0.5:  # many clothes are grey, black or denim
        trousers, coat = trousers.mean() * np.array([0.9, 0.95, 1.1]), coat.mean() * np.ones(3)
    skin = pick(rng, SKIN_COLOURS, 0.02)
    right, ahead = (np.array([np.cos(heading), 0, -np.sin(heading)]),
                    np.array([np.sin(heading), 0, np.cos(heading)]))
    at, hip, chest = np.array(at), 0.84 * tall, 0.6 * tall
    for side in (-1, 1):
        foot = at + 0.09 * side * right + side * stride * ahead
        solids.block(PERSON, PLAIN, foot, heading, (0.07, 0.1), (0.1, 0.12), hip, trousers,
                     shift=-side * stride)
        hand = at + 0.27 * side * right - side * 0.7 * stride * ahead + (0, hip - 0.1, 0)
        solids.block(PERSON, PLAIN, hand, heading, (0.045, 0.06), (0.055, 0.07), 0.9 * chest,
                     coat * 0.92, shift=side * 0.7 * stride)
    skirt = rng.choice((0.05, 0.12, 0.4))
    solids.block(PERSON, PLAIN, at + (0, hip - skirt, 0), heading, (0.19, 0.14), (0.17, 0.12),
                 skirt + 0.2, coat)
    solids.ball(PERSON, PLAIN, at + (0, hip + 0.55 * chest, 0), heading, (0.24, 0.5 * chest, 0.14),
                coat)
    solids.ball(PERSON, HEAD, at + (0, hip + chest + 0.14, 0), heading, (0.12, 0.16, 0.13), skin,
                (rng.uniform(0.03, 0.5), rng.uniform(0.6, 1.0), 0, 0))


def add_people(solids, street, rng):
    """On both sidewalks, mostly near, and sometimes crossing the road."""
    for _ in range(rng.integers(2, 9)):
        side, z = rng.integers(0, 2), 4.5 + 22 * rng.random() ** 1.5
        d = (2 * side - 1) * (street.half_width + rng.uniform(0.6, street.walks[side] - 0.3))
        add_person(solids, rng, street.place(d, z), street.heading(z) + rng.choice((0, np.pi))
                   + rng.normal(0, 0.2))
    for _ in range(rng.integers(0, 3)):
        z = street.crossing[0] - rng.uniform(1.4, 3.6)
        d = rng.uniform(-0.9, 0.9) * street.half_width
        add_person(solids, rng, street.place(d, z), rng.choice((-1, 1)) * np.pi / 2)


def add_pole(solids, rng, at, side, heading):
    """A street lamp whose arm reaches over the road, a traffic light, or a sign facing us."""
    colour = pick(rng, POLE_COLOURS, 0.03)
    x, _, z = at
    kind = rng.integers(0, 4)
    height = rng.uniform(5.0, 6.8) if kind == 0 else rng.uniform(2.3, 3.0)
    solids.block(POLE, PLAIN, at, heading, (0.09, 0.09), (0.07, 0.07), height, colour)
    if kind == 0:
        solids.block(POLE, PLAIN, (x - side * 0.7, height - 0.08, z), heading, (0.75, 0.06),
                     (0.75, 0.06), 0.1, colour)
        solids.ball(POLE, LAMP, (x - side * 1.3, height - 0.1, z), heading, (0.32, 0.11, 0.16),
                    (0.85, 0.8, 0.65))
    elif kind == 1:
        solids.block(POLE, LAMP, (x, height, z), heading, (0.17, 0.14), (0.17, 0.14), 0.95,
                     (0.09, 0.1, 0.09), style=(rng.integers(1, 4), 0, 0, 0))
    elif kind == 2:
        rim = pick(rng, ((0.75, 0.08, 0.08), (0.1, 0.25, 0.65)), 0.02)
        face = pick(rng, ((0.92, 0.92, 0.92), (0.95, 0.85, 0.2), (0.15, 0.3, 0.7)), 0.02)
        solids.ball(POLE, DISC, (x, height + 0.2, z - 0.09), heading + np.pi / 2, (0.03, 0.4, 0.4),
                    rim, (0.75, *face))
    else:
        board = pick(rng, BOARD_COLOURS, 0.03)
        solids.block(POLE, PLAIN, (x, height - 0.1, z - 0.1), heading, (0.45, 0.02), (0.45, 0.02),
                     0.6, board)


def add_poles(solids, street, rng):
    for side in (-1, 1):
        for z in np.arange(rng.uniform(4.5, 11), 50, rng.uniform(8, 14)):
            if not street.crossing[0] < z < street.crossing[1]:
                add_pole(solids, rng, street.place(side * (street.half_width + 0.4), z), side,
                         street.heading(z))


def build_solids(street, rng):
    solids = Solids()
    add_backdrop(solids, street, rng)
    for side in (-1, 1):
        for add in (add_buildings, add_fences, add_plants):
            add(solids, street, rng, side)
    for add in (add_cars, add_people, add_poles):
        add(solids, street, rng)
    return solids.table()


def draw_light(rng):
    """Any hour from noon to nightfall under any sky, sometimes with fog."""
    elevation, azimuth = np.radians(rng.uniform(14, 62)), rng.uniform(0, 2 * np.pi)
    clouds, dark = rng.beta(0.6, 0.7), float(rng.random() < 0.12)
    low = np.exp(-np.degrees(elevation) / 16)
    grey = np.float32(rng.uniform(0.5, 0.8)) * np.float32([1, 1.02, 1.06])
    zenith, horizon, sun, dusk = (np.float32(colour)
                                  for colour in (mixed(np.array((0.1, 0.26, 0.7)),
                                                       np.array((0.22, 0.3, 0.6)), low),
                                                 mixed(np.array((0.5, 0.67, 0.9)),
                                                       np.array((0.98, 0.62, 0.38)), low),
                                                 mixed(np.array((2.8, 2.6, 2.3)),
                                                       np.array((2.9, 1.7, 0.8)), low),
                                                 mixed(np.ones(3), np.array((0.12, 0.13, 0.2)),
                                                       dark)))
    zenith, horizon = mixed(zenith, grey, clouds) * dusk, mixed(horizon, grey * 1.1, clouds) * dusk
    sun = sun * np.float32(max(0.0, 1 - 1.35 * clouds) * (1 - dark))
    to_sun = np.float32([np.cos(elevation) * np.sin(azimuth), np.sin(elevation),
                         np.cos(elevation) * np.cos(azimuth)])
    ambient = 0.4 * (zenith + horizon) + 0.1 * sun.mean()
    visibility = rng.uniform(60, 150) if rng.random() < 0.2 else rng.uniform(250, 1500)
    return Light(to_sun, *(np.float32(v)[:, None] for v in (sun, zenith, horizon, ambient)), clouds,
                 dark, np.float32(visibility), np.float32(rng.uniform(0, 200)))


# ---------------------------------------------------------------- which solid does a ray meet first


def in_frame(t, a, b, c):
    """World vectors [..., 3] of vectors (a, b, c), each [N, ...], in the frames of the N solids."""
    cos, sin = (f(t["heading"]).reshape((-1,) + (1,) * (a.ndim - 1)) for f in (np.cos, np.sin))
    return np.stack([a * cos + c * sin, b, c * cos - a * sin], -1)


def block_planes(t, camera):
    """Six planes per solid: normals [N,6,3]; inverse depth as factors [N,6,3] of (1, x, y).

    Faces: 0 right, 1 left, 2 far end, 3 near end, 4 top, 5 bottom. A plane n.p = k (p from the
    camera) is met where 1 / t = n.(x, -y, 1) / k; it faces the camera where k < 0 [N,6].
    """
    h, zero, one = t["height"], 0 * t["height"], 1 + 0 * t["height"]
    side, end = t["half_a"] - t["top_a"], t["half_c"] - t["top_c"]
    a = np.stack([h, -h, zero, zero, zero, zero], 1)
    b = np.stack([side, side, end - t["shift"], end + t["shift"], one, -one], 1)
    c = np.stack([zero, zero, h, -h, zero, zero], 1)
    k = np.stack([h * t["half_a"], h * t["half_a"], h * t["half_c"], h * t["half_c"], h, zero], 1)
    normals, size = in_frame(t, a, b, c), np.sqrt(a * a + b * b + c * c)
    k = (k + np.einsum("nfi,ni->nf", normals, t["base"] - (0, camera.height, 0))) / size
    normals, k = normals / size[..., None], np.where(np.abs(k) < 1e-6, 1e-6, k)
    coefficients = normals[..., [2, 0, 1]] * (1, 1, -1) / k[..., None]
    return normals.astype(np.float32), coefficients.astype(np.float32), k < 0


def ball_quadratics(t, camera):
    """Coefficients [N,9] that make rays into quadratics.

    In coordinates where the ball is a unit sphere, |o + t d| = 1 is a t^2 + 2 b t + e = 0 with
    a = a0 + a1 x + a2 x^2 + a3 y^2 and b = b0 + b1 x + b2 y.
    """
    cos, sin, to_ball = (np.cos(t["heading"]), np.sin(t["heading"]),
                         t["base"] - (0, camera.height, 0))
    ra, rb, rc = t["half_a"], t["height"], t["half_c"]
    oa = -(to_ball[:, 0] * cos - to_ball[:, 2] * sin) / ra
    oc = -(to_ball[:, 0] * sin + to_ball[:, 2] * cos) / rc
    ob = -to_ball[:, 1] / rb
    return np.stack([(sin / ra) ** 2 + (cos / rc) ** 2, 2 * cos * sin * (rc**-2 - ra**-2),
                     (cos / ra) ** 2 + (sin / rc) ** 2, rb**-2, oc * cos / rc - oa * sin / ra,
                     oa * cos / ra + oc * sin / rc, -ob / rb, oa**2 + ob**2 + oc**2 - 1,
                     to_ball[:, 2]], 1).astype(np.float32)


def ball_inverse_depth(x, y, quadratic, ragged):
    """Inverse depth [h,w] of a ball along rays x [w], y [h,1]: 1 / t = (root - b) / e.

    It is negative where the ball is missed. A positive `ragged` is the number of a crown, whose rim
    is frayed by noise.
    """
    a0, a1, a2, a3, b0, b1, b2, e, z = quadratic
    if e <= 0:  # the camera is inside
        return np.full((len(y), len(x)), -1, np.float32)
    a, b = (a0 + x * (a1 + x * a2)) + a3 * y * y, (b0 + b1 * x) + b2 * y
    square = b * b - a * e
    if ragged:  # square / a is 1 in the middle and 0 at the rim
        square -= a * (0.32 + 0.3 * noise(x * (14 * z) + 7 * ragged, y * (14 * z) + 31 * ragged))
    return np.where(square > 0, (np.sqrt(np.abs(square)) - b) / e, -1)


def block_corners(t):
    """World corners [N,8,3]: four below, then four above; of a ball, those of the box around it."""
    a = np.stack([t["half_a"], t["top_a"]], 1)[..., None] * (1, -1, -1, 1)
    c = np.stack([t["half_c"], t["top_c"]], 1)[..., None] * (1, 1, -1, -1)
    c[:, 1] += t["shift"][:, None]
    b = np.stack([np.where(t["ball"] > 0, -t["height"], 0), t["height"]], 1)[..., None] + 0 * a
    return in_frame(t, a, b, c).reshape(-1, 8, 3) + t["base"][:, None]


def trace(t, camera, x, y):
    """The first solid along every ray.

    Returns inverse depth f32, solid i16 (-1 sky, -2 ground) and its face i8 (-1 on a ball), each
    [rows, columns], and the normals of all faces [N,6,3].
    """
    normals, coefficients, front = block_planes(t, camera)
    corners = block_corners(t) - (0, camera.height, 0)
    z = np.maximum(corners[..., 2], 0.3)  # corners behind the camera lie outside the picture
    u, v = corners[..., 0] / z, -corners[..., 1] / z
    left, right, top, bottom = (np.searchsorted(*pair)
                                for pair in ((x, u.min(1)), (x, u.max(1)), (y, v.min(1)),
                                             (y, v.max(1))))
    visible = (corners[..., 2].max(1) > 0.3) & (left < right) & (top < bottom)
    shape, below = (len(y), len(x)), y / camera.height
    near = np.broadcast_to(np.maximum(below, 1 / SKY_DEPTH)[:, None], shape).copy()
    solid = np.broadcast_to(np.where(below > 1 / SKY_DEPTH, -2, -1)[:, None],
                            shape).astype(np.int16)
    face = np.full(shape, -1, np.int8)
    quadratics, counts = ball_quadratics(t, camera).tolist(), front.sum(1)
    order = np.argsort(~front, axis=1, kind="stable")
    coefficients = np.take_along_axis(coefficients, order[..., None], 1)[..., None, None]
    ragged = (np.arange(len(t["ball"])) * (t["material"] == LEAF)).tolist()
    seen = np.flatnonzero(visible & ((t["ball"] > 0) | (counts > 0)))
    left, right, top, bottom, balls = (v.tolist() for v in (left, right, top, bottom, t["ball"]))
    for n in seen.tolist():
        part = (slice(top[n], bottom[n]), slice(left[n], right[n]))
        xs, ys = x[part[1]], y[part[0], None]
        if balls[n]:
            inverse = ball_inverse_depth(xs, ys, quadratics[n], ragged[n])
            closer, which = inverse > near[part], -1
        else:  # inside where the farthest of the front planes comes before the first of the others
            faces, count = order[n], counts[n]
            k = coefficients[n]
            planes = (k[:, 0] + k[:, 1] * xs) + k[:, 2] * ys
            inverse = planes[:count].min(0)
            closer = (inverse > planes[count:].max(0)) & (inverse > near[part])
            which = faces[planes[:count].argmin(0)] if count > 1 else faces[0]
        np.copyto(near[part], inverse, where=closer)
        np.copyto(solid[part], n, where=closer)
        np.copyto(face[part], which, where=closer, casting="unsafe")
    return near, solid, face, normals


def ground_labels(street, x, z):
    """Labels of ground points, their distance d from the middle of the street and from the road."""
    d = x - street.middle(z)
    begin, end = street.crossing
    over = np.abs(d) - street.half_width
    outside = np.minimum(over, np.maximum(begin - z, z - end))
    beyond = np.minimum(over - np.where(d > 0, *street.walks[::-1]), np.maximum(begin - z, z - end)
                        - 2)
    away = np.where(np.where(d > 0, *street.suburb[::-1]), VEGETATION, SIDEWALK)
    return np.where(outside <= 0, ROAD, np.where(beyond > 0, away, SIDEWALK)), d, outside


# ---------------------------------------------------------------- shadows and textures


def draw_on_ground(shape, polygons, values, camera, x, y):
    """Picture f32 of star-shaped ground polygons, points (x, z) [N,P,2], painted over 1 in turn."""
    middle = polygons.mean(1, keepdims=True)
    turn = np.arctan2(*np.moveaxis(polygons - middle, -1, 0)).argsort(1)
    polygons = np.take_along_axis(polygons, turn[..., None], 1)
    z = np.maximum(polygons[..., 1], 0.4)
    column = np.clip((polygons[..., 0] / z - x[0]) / (x[1] - x[0]), -9999, 9999)
    row = (camera.height / z - y[0]) / (y[1] - y[0])
    picture = Image.new("L", shape[::-1], 255)
    pen = ImageDraw.Draw(picture)
    for points, value in zip(np.stack([column, row], -1).reshape(len(z), -1).tolist(), values):
        pen.polygon(points, fill=int(255 * value))
    return np.asarray(picture, np.float32) / 255


def shadow_points(t, light):
    """Ground points (x, z) [N,8,2] around the shadow of each solid; a ball throws an ellipse."""
    slope = light.to_sun[[0, 2]] / light.to_sun[1]
    corners = block_corners(t)
    length, turn = np.linalg.norm(slope), np.linspace(0, 2 * np.pi, 8, endpoint=False)
    wide = np.maximum(t["half_a"], t["half_c"])[:, None, None]
    long = np.hypot(wide, t["height"][:, None, None] * length)
    ahead, across = slope / length, slope[::-1] * (1, -1) / length
    oval = long * np.cos(turn)[:, None] * ahead + wide * np.sin(turn)[:, None] * across
    middle = t["base"][:, None, [0, 2]] - t["base"][:, None, 1:2] * slope
    return np.where(t["ball"][:, None, None] > 0, middle + oval, corners[..., [0, 2]]
                    - corners[..., 1:2] * slope)


def ground_light(t, camera, light, x, y):
    """Sunlight and skylight on the ground, f32 in 0..1, and the sun that houses leave solids [N].

    Skylight fades under and beside what stands on the ground.
    """
    shape, close = (len(y), len(x)), t["z"] < 70
    house = np.isin(t["material"], (WALL, ROOF))
    points = shadow_points(t, light) if light.sun.any() else np.zeros((len(house), 8, 2))
    city, rest = (draw_on_ground(shape, points[who], 0 * points[who][:, 0, 0], camera, x, y)
                  for who in (house & close, close & ~house & (t["material"] != DISC)))
    row = np.searchsorted(y, camera.height / np.maximum(t["z"], 1)).clip(0, shape[0] - 1)
    column = np.searchsorted(x, t["x"] / np.maximum(t["z"], 1)).clip(0, shape[1] - 1)
    reach = np.where((t["y"] > 3.5) | house, 1, city[row, column]).astype(np.float32)
    foot = block_corners(t)[close & (t["y"] < 0.5) & np.isin(t["material"], (BODY, PLAIN, PLANKS)),
                            :4][..., [0, 2]]
    middle = foot.mean(1, keepdims=True)
    rings = np.concatenate([middle + (foot - middle) * grow for grow in (1.35, 1.2, 1.05)])
    skylight = draw_on_ground(shape, rings, np.repeat((0.85, 0.65, 0.4), len(foot)), camera, x, y)
    return city * rest, skylight, reach


@functools.cache
def noise_tile():
    """Noise f32[256,256] in [-1, 1] that repeats without a seam, of several octaves."""
    rng, total = np.random.default_rng(7), np.zeros((256, 256), np.float32)
    for octave, weight in ((1, 0.35), (2, 0.4), (4, 0.45), (16, 0.35)):
        layer = np.kron(rng.normal(size=(256 // octave,) * 2), np.ones((octave, octave)))
        for axis in (0, 1):
            layer = sum(np.roll(layer, k, axis) for k in range(octave)) / octave
        total += (weight * layer / layer.std()).astype(np.float32)
    return np.clip(total / 1.6, -1, 1)


def noise(u, v):
    """Noise in [-1, 1] at coordinates that count texels."""
    return noise_tile()[v.astype(np.int32) & 255, u.astype(np.int32) & 255]


def smooth_noise(u, v):
    """The same, linear between the texels."""
    u0, v0 = np.floor(u), np.floor(v)
    fu, fv = u - u0, v - v0
    upper = noise(u0, v0) * (1 - fu) + noise(u0 + 1, v0) * fu
    return upper * (1 - fv) + (noise(u0, v0 + 1) * (1 - fu) + noise(u0 + 1, v0 + 1) * fu) * fv


def soft(inside, width):
    """Share of a sample `width` metres wide that lies within an edge `inside` metres away."""
    return np.clip(inside / width + 0.5, 0, 1)


def band(place, middle, half, width):
    """Share of a sample that lies less than `half` from `middle`."""
    return soft(half - np.abs(place - middle), width)


def mixed(colour, other, share):
    return colour + (other - colour) * share


# ---------------------------------------------------------------- colours, linear, f32[3,P]


def sky_colour(light, x, y):
    """Gradient, clouds and the glow around the sun, for rays above the horizon."""
    up = np.maximum(-y, 0)
    far = 9 / (up + 0.1)
    cloud = smooth_noise(x * far + light.texture,
                         1.6 * far) + 0.5 * smooth_noise(3 * x * far, 5 * far)
    cloud = np.clip(cloud * 1.3 + light.clouds * 1.3 - 0.55, 0, 1) * np.minimum(up * 8, 1) * 0.85
    bright = (light.zenith + light.horizon) * 0.45 + light.sun * 0.22
    colour = mixed(light.horizon, light.zenith, np.sqrt(np.minimum(up * 1.6, 1)))
    colour = mixed(colour, bright * (1 - 0.25 * light.clouds * cloud), cloud)
    toward = (x * light.to_sun[0] - y * light.to_sun[1]
              + light.to_sun[2]) / np.sqrt(x * x + y * y + 1)
    return colour + light.sun * 0.5 * np.maximum(toward, 0) ** 24


def asphalt(street, light, d, z, width, along, _):
    """Grain, repairs, tyre tracks, lane marks and a zebra crossing."""
    grain = 0.09 * noise(d * 40, z * 40) + 0.12 * smooth_noise(d * 2 + light.texture, z * 0.7)
    repair = 0.14 * (noise(np.floor(d / 1.7) * 31 + light.texture, np.floor(z / 4.3) * 17) > 0.55)
    track = 0.08 * np.exp(-(((np.abs(d) - street.half_width * 0.5) / 0.5) ** 2))
    tint = 1 + 0.12 * street.warmth * np.float32([[1], [0.1], [-1]])
    colour = tint * (street.tone * (1 + grain - repair - track)) ** 2
    begin, end = street.crossing
    dash = band(d, 0, 0.08, width) * soft(street.dash - z % (3 * street.dash), along)
    edge = band(np.abs(d), street.half_width - 0.35, 0.06, width)
    marks = np.maximum(dash, edge) * ((z < begin - 4.5) | (z > end + 4.5))
    zebra = band(d % 1.0, 0.5, 0.25, width) * band(z, begin - 2.4, 1.4, along)
    paint = np.maximum(marks, zebra * (np.abs(d) < street.half_width - 0.3))
    return mixed(colour, np.float32(0.7), paint * (0.65 + 0.2 * noise(d * 25, z * 25)))


def paving(street, light, d, z, width, along, outside):
    """Slabs, stains and the kerb."""
    joint = np.maximum(band(d % 0.75, 0.37, 0.02, width), band(z % 0.75, 0.37, 0.02, along))
    slab = 0.1 * noise(np.floor(d / 0.75) * 7,
                       np.floor(z / 0.75) * 13) + 0.08 * noise(d * 30, z * 30)
    tone = (1 + slab + 0.12 * smooth_noise(d * 1.5 + light.texture, z)) * (1 - 0.25 * joint)
    return mixed((street.paving * tone) ** 2, np.float32(0.33), 0.8 * soft(0.16 - outside, width))


def lawn(street, light, d, z, *_):
    return street.lawn * (1 + 0.3 * noise(d * 30, z * 30)
                          + 0.2 * smooth_noise(d * 2, z * 2 + light.texture))


def ground_colour(street, camera, light, sunlit, skylit, x, z, width):
    """Ground points in the light that reaches them."""
    label, d, outside = ground_labels(street, x, z)
    colour = np.empty((3, len(x)), np.float32)
    for kind, texture in ((ROAD, asphalt), (SIDEWALK, paving), (VEGETATION, lawn)):
        at = np.flatnonzero(label == kind)
        along = width[at] * z[at] / camera.height
        colour[:, at] = texture(street, light, d[at], z[at], width[at], along, outside[at])
    return colour * skylit * (light.ambient + light.sun * light.to_sun[1] * sunlit)


@dataclass(frozen=True)
class Hits:
    """P samples of solids: which solid, where on it (a, b, c in its frame), how it lies."""

    n: np.ndarray
    own: dict  # column name -> [P]
    face: np.ndarray  # -1 on balls
    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    normal: np.ndarray  # [3,P], unit
    width: np.ndarray  # metres that a sample covers
    slant: np.ndarray  # cosine between view and normal

    @property
    def u(self):
        """Distance along a side face from its middle."""
        return np.where(self.face < 2, self.c, self.a)

    def along(self, of_ends, of_sides):
        """Column `of_sides` on faces 0 and 1, `of_ends` elsewhere."""
        return np.where(self.face < 2, self.own[of_sides], self.own[of_ends])


class Own(dict):
    """Columns of the table at some samples, gathered when first read."""

    def __init__(self, t, n):
        self.t, self.n = t, n

    def __missing__(self, name):
        self[name] = self.t[name].astype(np.float32, copy=False)[..., self.n]
        return self[name]


def hits_on_solids(t, camera, n, face, x, y, z, normals, pixel):
    """Hits of rays (x, -y, 1) that meet solids `n` at depth z."""
    own = Own(t, n)
    rx, b, rz = x * z - own["x"], camera.height - y * z - own["y"], z - own["z"]
    cos, sin = (f(t["heading"]).astype(np.float32)[n] for f in (np.cos, np.sin))
    a, c = rx * cos - rz * sin, rx * sin + rz * cos
    normal = np.ascontiguousarray(normals[n, face].T)
    on = np.flatnonzero(face < 0)
    la, lb, lc = (v[on] / own[r][on] ** 2 for v, r in ((a, "half_a"), (b, "height"), (c, "half_c")))
    outward = np.stack([la * cos[on] + lc * sin[on], lb, lc * cos[on] - la * sin[on]])
    normal[:, on] = outward / np.sqrt((outward * outward).sum(0))
    facing = np.abs(normal[0] * x - normal[1] * y + normal[2]) / np.sqrt(x * x + y * y + 1)
    return Hits(n, own, face, a, b, c, normal, z * pixel, np.maximum(facing, 0.06))


def mirror(light, hits, shade):
    """What glass shows: the sky from above, the darker street from below."""
    up = np.clip(hits.normal[1] + 0.35 + 0.5 * shade, 0, 1)
    return mixed(0.12 * light.horizon + 0.01, 0.75 * light.horizon, up * (0.75 - 0.5 * hits.slant))


def masonry(hits, u, wide, finish):
    """Brightness of bricks (finish 0) or plaster, with stains, darker near the ground."""
    rows = np.floor(hits.b / 0.09)
    joint = np.maximum(band(hits.b % 0.09, 0.045, 0.012, hits.width),
                       band((u + 0.12 * (rows % 2)) % 0.24, 0.12, 0.012, wide))
    bricks = 0.1 * noise(u * 4.2 + rows * 7, rows * 11) - 0.3 * joint
    grain = np.where(finish == 0, bricks, 0.07 * noise(u * 9, hits.b * 9))
    stain = 0.13 * smooth_noise(u * 0.8 + 5 * hits.n, hits.b * 0.8)
    return (1 + grain + stain) * (0.72 + 0.28 * np.minimum(hits.b / 2.5, 1))


def wall(light, hits, albedo):
    """A facade: storeys of windows, ledges between, perhaps shops with an awning at the foot."""
    u, half, wide, b = hits.u, hits.along("half_a", "half_c"), hits.width / hits.slant, hits.b
    storey, style, upright = (hits.own["s0"], hits.own["s3"], (hits.face < 4)
                              & (b < hits.own["height"] - 0.5))
    cell = 2 * half / np.maximum(np.round(2 * half / hits.own["s1"]), 1)
    iu, iv = np.floor((u + half) / cell), np.floor(b / storey)
    fu, fv = np.abs((u + half) / cell - iu - 0.5) * cell, b - (iv + 0.52) * storey
    shop = (style % 2 > 0) & (hits.face < 4)
    tall, broad = np.where(shop & (iv == 0), ((0.36,), (0.44,)),
                           np.stack([0 * u + 0.29, hits.own["s2"]]))
    tall, broad = tall * storey, broad * cell
    window = soft(broad - fu, wide) * soft(tall - np.abs(fv), hits.width) * upright
    frame = soft(np.minimum(broad - fu, tall - np.abs(fv)) + 0.14, wide) * upright * (style < 4)
    ledge = 0.3 * band(fv, 0.46 * storey, 0.09, hits.width) * (b > 1)
    albedo = albedo * ((1 - ledge) * masonry(hits, u, wide, style // 2))
    albedo = mixed(albedo, albedo * 0.4 + np.float32(0.32), frame * 0.75)
    cloth = (noise(np.float32([[0], [91], [182]]) + 7 * hits.n, 0 * u) * 0.5 + 0.5) ** 2
    albedo = mixed(albedo, cloth, band(b, 0.94 * storey, 0.3, hits.width) * shop)
    luck = noise(iu * 17 + 41 * hits.n, iv * 29 + 3 * hits.n) * 0.5 + 0.5
    curtain = np.where(luck < 0.3, 0.25 + luck, 0)
    pane = mixed(mirror(light, hits, fv / storey + 0.3 * luck), light.ambient * 0.5, curtain)
    lamps = np.float32([[1], [0.72], [0.35]]) * (0.35 + 0.4 * luck)
    return albedo, np.where(luck > (0.45 if light.dark else 0.93), lamps, pane), window * 0.93


def car_body(light, hits, albedo):
    """Paint with sills, wheel arches, bumpers, doors, plates and lights."""
    length, half, belt, b, width = (hits.own["half_c"], hits.own["half_a"], hits.own["height"],
                                    hits.b, hits.width)
    sides, ends, c = hits.face < 2, (hits.face == 2) | (hits.face == 3), np.abs(hits.c)
    arch = sides * soft(0.41 - np.hypot(c - 0.62 * length, b - 0.08), width)
    bumper = ends * 0.8 * band(b, 0.2, 0.13, width)
    door = sides * 0.6 * band(np.abs(hits.c + 0.2), 0.55, 0.015, width)
    dark = np.maximum.reduce([arch, soft(0.12 - b, width), bumper, door])
    plate = ends * soft(0.26 - np.abs(hits.a), width) * band(b, 0.3, 0.07, width)
    albedo = mixed(mixed(albedo, np.float32(0.015), dark), np.float32(0.75), plate)
    lamp = ends * band(np.abs(hits.a), half - 0.2, 0.17, width) * band(b, 0.78 * belt, 0.1, width)
    shine = np.where(hits.face == 2, np.float32([[0.9], [0.9], [0.8]]),
                     np.float32([[0.5], [0.02], [0.02]]))
    gloss = (0.1 + 0.25 * (hits.face == 4) + 0.25 * (1 - hits.slant) ** 2) * (1 - dark)
    return (albedo, mixed(0.8 * light.horizon, shine * (0.55 + 0.9 * light.dark), lamp),
            np.maximum(gloss, lamp))


def car_cabin(light, hits, albedo):
    """Glass between pillars, under a roof."""
    height, half, top = (hits.own["height"], hits.along("half_a", "half_c"),
                         hits.along("top_a", "top_c"))
    share = hits.b / height
    u = hits.u - (hits.face < 2) * hits.own["shift"] * share
    pane = soft(half + (top - half) * share - 0.1 - np.abs(u), hits.width)
    pane = pane * band(share, 0.5, 0.42, hits.width / height) * (hits.face < 4)
    pane = pane * (1 - (hits.face < 2) * band(u, 0, 0.05, hits.width))
    gloss = np.where(hits.face == 4, 0.3, 0.1)
    return (albedo, mixed(0.8 * light.horizon, mirror(light, hits, share - 0.4), pane),
            np.maximum(pane * 0.95, gloss))


def leaves(light, hits, albedo):
    u, v = hits.a + 0.6 * hits.c + 3 * hits.n, hits.b + 0.3 * hits.c
    return (albedo * np.maximum(0.95 + 0.45 * noise(u * 16, v * 16)
                                + 0.3 * smooth_noise(u * 4, v * 4), 0.15), 0, 0)


def tiles(light, hits, albedo):
    row = np.floor(hits.b / 0.22)
    return (albedo * (1 - 0.25 * (hits.b / 0.22 - row)
                      + 0.15 * noise(hits.u * 4 + row * 9, row * 5)), 0, 0)


def planks(light, hits, albedo):
    board, place = hits.own["s0"], np.where(hits.own["s1"] > 0, hits.u, hits.b)
    gap = band(place % board, board / 2, 0.03, hits.width)
    return (albedo * (1 - 0.75 * gap + 0.15 * noise(np.floor(place / board) * 23 + hits.n,
                                                    0 * place)), 0, 0)


def disc(light, hits, albedo):
    """A wheel or a round sign: a hub of another colour."""
    hub = np.stack([hits.own[k] for k in ("s1", "s2", "s3")]) ** 2
    return (np.where(np.hypot(hits.b, hits.c) < hits.own["s0"] * hits.own["height"], hub, albedo),
            0, 0)


def head(light, hits, albedo):
    """Hair above and behind, a face in front."""
    hair = hits.own["s0"] ** 2 * np.float32([[1], [0.8], [0.6]])
    return np.where((hits.b > 0.05) | (hits.c < -0.02), hair, albedo), 0, 0


def lamp(light, hits, albedo):
    """A street lamp that shines at nightfall (s0 = 0), or a traffic light showing light s0."""
    on, height = hits.own["s0"], hits.own["height"]
    which = np.clip(np.floor(3 * hits.b / height), 0, 2)
    colours = np.float32([[0.1, 1, 1], [1, 0.6, 0.08], [0.35, 0.05, 0.05]])[:, which.astype(int)]
    spot = (on > 0) & (np.hypot(hits.a, hits.b - (which + 0.5) * height / 3) < 0.13)
    bulb = np.float32([[1.3], [1], [0.6]])
    return (albedo, np.where(on > 0, colours * np.where(which + 1 == on, 1, 0.08), bulb),
            np.where(on > 0, spot, light.dark))


def plain(light, hits, albedo):
    return albedo * (1 + 0.12 * noise(hits.u * 12 + 9 * hits.n, hits.b * 12)), 0, 0


# Material -> function of (light, hits, albedo): textured albedo, what glows or mirrors, its share.
SURFACES = {WALL: wall, ROOF: tiles, LEAF: leaves, BODY: car_body, CABIN: car_cabin, DISC: disc,
            HEAD: head, PLANKS: planks, PLAIN: plain, LAMP: lamp}


def paint(street, camera, light, t, seen, x, y):
    """Linear colour f32[3, rows, columns] of every sample: texture, sun, sky, then haze."""
    near, solid, face, normals = seen
    sunlit, skylit, reach = ground_light(t, camera, light, x, y)
    xs, ys = (np.broadcast_to(v, near.shape).ravel() for v in (x, y[:, None]))
    z, solid, face = 1 / near.ravel(), solid.ravel(), face.ravel()
    colour, pixel = np.empty((3, len(z)), np.float32), x[1] - x[0]
    at = np.flatnonzero(solid == -1)
    colour[:, at] = sky_colour(light, xs[at], ys[at])
    at = np.flatnonzero(solid == -2)
    colour[:, at] = ground_colour(street, camera, light, sunlit.ravel()[at], skylit.ravel()[at],
                                  xs[at] * z[at], z[at], z[at] * pixel)
    material = np.append(t["material"], (-1, -1)).astype(np.int8)[solid]
    for kind, surface in SURFACES.items():
        at = np.flatnonzero(material == kind)
        hits = hits_on_solids(t, camera, solid[at], face[at], xs[at], ys[at], z[at], normals, pixel)
        albedo, glow, share = surface(light, hits, hits.own["colour"])
        facing = light.to_sun @ hits.normal
        facing = np.maximum((facing + 0.4) / 1.4 if kind == LEAF else facing, 0) * reach[hits.n]
        lit = albedo * (light.ambient * (0.7 + 0.3 * hits.normal[1]) + light.sun * facing)
        colour[:, at] = mixed(lit, glow, share)
    haze = (solid != -1) * (1 - np.exp(z / -light.visibility))
    return mixed(colour, light.horizon, haze).reshape(3, *near.shape)


# ---------------------------------------------------------------- the picture


def photograph(colour, light, rng):
    """uint8[H,W,3] as a camera stores it: exposure, white balance, vignette, tone curve, noise."""
    _, height, width = colour.shape
    exposure = rng.uniform(0.6, 1.0) * (0.6 if light.dark else 1.0) / (colour.mean() + 0.03)
    balance = np.exp(rng.normal(0, 0.06, (3, 1, 1))) * exposure
    rows, columns = (np.linspace(-1, 1, n, dtype=np.float32) ** 2 for n in (height, width))
    vignette = 1 - rng.uniform(0.05, 0.3) * (rows[:, None] + columns) / 2
    picture = np.sqrt(1 - np.exp(-0.85 * np.maximum(colour, 0) * vignette.astype(np.float32)
                                 * np.float32(balance)))
    picture = mixed(
        picture, picture * picture * (3 - 2 * picture), np.float32(rng.uniform(0.3, 0.8))
    )  # contrast
    picture = 255 * picture.transpose(1, 2, 0)
    picture += np.float32(rng.uniform(1, 5)) * rng.standard_normal(picture.shape, np.float32)
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8)


def soften(colour):
    """The odd rows and columns, each mixed with its neighbours as (1, 2, 1) / 4."""
    colour = 0.5 * colour[:, 1:-1:2] + 0.25 * (colour[:, :-2:2] + colour[:, 2::2])
    return 0.5 * colour[..., 1:-1:2] + 0.25 * (colour[..., :-2:2] + colour[..., 2::2])


def draw_scene(seed: int, index: int, height: int, width: int) -> dict:
    """Scene `index` of the family `seed`: a pure function of its arguments.

    Returns image uint8[H,W,3], mask int32[H,W] with ids into NAMES, and depth float32[H,W]: metres
    along the viewing direction at the centre of each pixel, SKY_DEPTH for the sky. Seed and index
    alone choose what stands in the street; the size chooses how finely it is sampled. Raises
    UserError if seed or index is negative or a side is under 8 pixels.
    """
    if min(seed, index) < 0 or min(height, width) < 8:
        raise UserError(
            f"cannot draw scene {index} of seed {seed} at {height} x {width} pixels: seed and "
            "index start at 0, sides at 8; try draw_scene(0, 0, 96, 128).")
    rng = np.random.default_rng(np.random.SeedSequence((seed, index)))
    street, light = plan_street(rng), draw_light(rng)
    camera = Camera(rng.uniform(1.4, 2.5), rng.uniform(0.85, 1.2), rng.uniform(0.4, 0.54))
    t, fine = build_solids(street, rng), FINE_FROM <= height * width <= FINE_TO
    step, first = (
        (2, 0.0) if fine else (1, 0.5)
    )  # twice as fine: centres, edges and corners of pixels
    rows, columns = (np.arange(step * n + step - 1) / step + first for n in (height, width))
    x, y = camera.rays(rows, columns, height, width)
    seen = trace(t, camera, x, y)
    colour = paint(street, camera, light, t, seen, x, y)
    centres = slice(step - 1, None, step)
    near, solid = seen[0][centres, centres], seen[1][centres, centres]
    ground = ground_labels(street, x[centres] / near, 1 / near)[0]
    labels = np.append(t["label"], (0, SKY)).astype(np.int32)  # the last entry is that of solid -1
    mask = np.where(solid == -2, ground, labels[solid]).astype(np.int32)
    return {"image": photograph(soften(colour) if fine else colour, light, rng), "mask": mask,
            "depth": 1 / near}
