"""The street of a scene, in metres: buildings, plants, cars, people, poles, light and camera.

x points right, y up, z ahead; the camera is at (0, height, 0). Solids are blocks (boxes that may
taper) and balls (ellipsoids), one row of FIELDS each.
"""

from dataclasses import dataclass

import numpy as np

from diffseg_jax.data.scene_textures import mixed

# fmt: off
NAMES = ("road", "sidewalk", "building", "fence", "pole", "vegetation", "sky", "person", "car")
PALETTE = (  # the result of a search: at least 24 apart in CIE Lab for every type of colour vision,
    # also from black (ignored pixels) and vermillion (errors)
    (69, 65, 85), (219, 206, 212), (113, 55, 19), (147, 117, 104), (250, 191, 0),
    (123, 181, 99), (31, 201, 255), (210, 90, 172), (71, 66, 228),
)
ROAD, SIDEWALK, BUILDING, FENCE, POLE, VEGETATION, SKY, PERSON, CAR = range(9)
SKY_DEPTH = 200.0  # metres, the depth of the sky; everything else is nearer

WALL, ROOF, LEAF, BODY, CABIN, DISC, HEAD, PLANKS, PLAIN, LAMP = range(10)  # materials

# The columns of a solid: shape, class, material, position, size, colour, and four numbers that
# depend on the material.
FIELDS = (
    "ball", "label", "material", "x", "y", "z", "heading", "half_a", "half_c", "top_a", "top_c",
    "shift", "height", "red", "green", "blue", "s0", "s1", "s2", "s3",
)
WALL_COLOURS = (  # sRGB in 0..1, as the other colours
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

    `heading` is in radians: 0 faces along z, positive is to the right. The frame of a solid has
    axis a to its right, b up and c ahead.
    """

    def __init__(self):
        self.rows = []

    def block(self, label, material, at, heading, bottom, top, height, colour, shift=0.0,
              style=(0, 0, 0, 0)):
        """A box on `at` with half sizes (a, c) `bottom` and `top`; the top is shifted along c."""
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
    warmth: float  # tint of the asphalt, -1..1
    paving: np.ndarray  # f32[3,1]
    lawn: np.ndarray  # f32[3,1], linear

    def middle(self, z):
        return self.offset + self.slope * z + self.bend * z * z

    def point(self, d, z, y=0.0):
        return (self.middle(z) + d, y, z)

    def heading(self, z):
        return float(np.arctan(self.slope + 2 * self.bend * z))


@dataclass(frozen=True)
class Light:
    """Sun and sky; colours are linear RGB, f32[3,1]."""

    to_sun: np.ndarray  # unit vector
    sun: np.ndarray  # zero if overcast or dark
    zenith: np.ndarray
    horizon: np.ndarray
    ambient: np.ndarray
    clouds: float  # 0 clear .. 1 covered
    dark: float  # 0 day .. 1 nightfall
    visibility: float  # metres
    texture: float  # offset of this scene in the noise


@dataclass(frozen=True)
class Camera:
    height: float  # metres above the road
    focal: float  # in image heights
    horizon: float  # row of the horizon, in image heights from the top

    def rays(self, rows, columns, height, width):
        """(x [columns], y [rows]) of the rays through pixel coordinates."""
        x = (columns - width / 2) / (self.focal * height)
        y = (rows / height - self.horizon) / self.focal
        return x.astype(np.float32), y.astype(np.float32)


# ---------------------------------------------------------------- the solids of a street


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
    at, heading = street.point(d, z + length / 2), street.heading(z + length / 2)
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
            solids.block(FENCE, PLANKS, street.point(d, middle), street.heading(middle),
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
                add_tree(solids, rng, street.point(d, z),
                         np.clip(leaf + rng.normal(0, 0.03, 3), 0.05, 0.9))
    for z in rng.uniform(4, 35, 4 if suburb else 1):
        radii = rng.uniform(0.5, 1.1, 3)
        d = side * (edge + (1.2 if suburb else -0.4))
        if not street.crossing[0] - 1 < z < street.crossing[1] + 1:
            solids.ball(VEGETATION, LEAF, street.point(d, z, 0.3), 0.0, radii,
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
                add_car(solids, rng, street.point(side * (w - 1.0), z), street.heading(z)
                        + rng.choice((0, np.pi)))
            z += rng.uniform(5.8, 9)
        lane = side * (w * 0.5 if not parked or w < 4.2 else w * 0.5 - 0.9)
        for z in np.cumsum(rng.uniform(9, 26, rng.integers(0, 3))):
            if not parked or w > 4.2:
                add_car(solids, rng, street.point(lane, z), street.heading(z)
                        + (0 if side > 0 else np.pi))
    if rng.random() < 0.35:
        z = sum(street.crossing) / 2
        add_car(solids, rng, street.point(rng.uniform(-9, 9), z), rng.choice((-1, 1)) * np.pi / 2)


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
    """People on both sidewalks, mostly near the camera, and some that cross the road."""
    for _ in range(rng.integers(2, 9)):
        side, z = rng.integers(0, 2), 4.5 + 22 * rng.random() ** 1.5
        d = (2 * side - 1) * (street.half_width + rng.uniform(0.6, street.walks[side] - 0.3))
        add_person(solids, rng, street.point(d, z), street.heading(z) + rng.choice((0, np.pi))
                   + rng.normal(0, 0.2))
    for _ in range(rng.integers(0, 3)):
        z = street.crossing[0] - rng.uniform(1.4, 3.6)
        d = rng.uniform(-0.9, 0.9) * street.half_width
        add_person(solids, rng, street.point(d, z), rng.choice((-1, 1)) * np.pi / 2)


def add_pole(solids, rng, at, side, heading):
    """A street lamp with its arm over the road, a traffic light, or a sign facing the camera."""
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
                add_pole(solids, rng, street.point(side * (street.half_width + 0.4), z), side,
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
    """The light of an hour from noon to nightfall, clear or overcast, sometimes with fog."""
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
