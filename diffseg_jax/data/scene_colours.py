"""The colours of a scene: textures, shadows, sky, and the surface of every material.

Colours are linear, f32[3, P] for P visible samples, and depend on the material, the position on the
solid, and the light.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from diffseg_jax.data.scene_rays import block_corners, ground_labels
from diffseg_jax.data.scene_street import (
    BODY,
    CABIN,
    DISC,
    HEAD,
    LAMP,
    LEAF,
    PLAIN,
    PLANKS,
    ROAD,
    ROOF,
    SIDEWALK,
    VEGETATION,
    WALL,
)
from diffseg_jax.data.scene_textures import band, mixed, noise, smooth_noise, soft

# ---------------------------------------------------------------- shadows and textures


def draw_on_ground(shape, polygons, values, camera, x, y):
    """Star-shaped ground polygons, points (x, z) [N,P,2], drawn in order on f32 of ones."""
    middle = polygons.mean(1, keepdims=True)
    turn = np.arctan2(*np.moveaxis(polygons - middle, -1, 0)).argsort(1)
    polygons = np.take_along_axis(polygons, turn[..., None], 1)
    z = np.maximum(polygons[..., 1], 0.4)
    column = np.clip((polygons[..., 0] / z - x[0]) / (x[1] - x[0]), -9999, 9999)
    row = (camera.height / z - y[0]) / (y[1] - y[0])
    canvas = Image.new("L", shape[::-1], 255)
    pen = ImageDraw.Draw(canvas)
    for points, value in zip(np.stack([column, row], -1).reshape(len(z), -1).tolist(), values):
        pen.polygon(points, fill=int(255 * value))
    return np.asarray(canvas, np.float32) / 255


def shadow_points(t, light):
    """Ground points (x, z) [N,8,2] around the shadow of each solid; a ball casts an ellipse."""
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
    """Sunlight and skylight on the ground, f32 in 0..1, and the sunlight on each solid [N].

    Houses cast shadows on solids; solids darken the skylight below and beside them.
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


# ---------------------------------------------------------------- colours, linear, f32[3,P]


def sky_colour(light, x, y):
    """A gradient, clouds and the glow around the sun, for rays above the horizon."""
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


def ground_colour(street, camera, light, sunlit, skylit, x, depth, width, place=None):
    """The colour f32[3,P] of ground points in sunlight and skylight.

    x, depth   to the right of the camera and ahead of it
    place      (x, depth) -> (x, z) of the street, where the camera does not look along z
    """
    x, z = place(x, depth) if place else (x, depth)
    label, d, outside = ground_labels(street, x, z)
    colour = np.empty((3, len(x)), np.float32)
    for ground, texture in ((ROAD, asphalt), (SIDEWALK, paving), (VEGETATION, lawn)):
        at = np.flatnonzero(label == ground)
        along = width[at] * depth[at] / camera.height
        colour[:, at] = texture(street, light, d[at], z[at], width[at], along, outside[at])
    return colour * skylit * (light.ambient + light.sun * light.to_sun[1] * sunlit)


@dataclass(frozen=True)
class Hits:
    """P samples on solids `n`, at (a, b, c) in the frame of each."""

    n: np.ndarray
    row: dict  # column name -> [P], of the table of solids
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

    def along(self, ends, sides):
        """The column `sides` on faces 0 and 1, the column `ends` elsewhere."""
        return np.where(self.face < 2, self.row[sides], self.row[ends])


class Rows(dict):
    """Columns of the table of solids for each sample, gathered when first read."""

    def __init__(self, t, n):
        self.t, self.n = t, n

    def __missing__(self, name):
        self[name] = self.t[name].astype(np.float32, copy=False)[..., self.n]
        return self[name]


def hits_on_solids(t, camera, n, face, x, y, z, normals, pixel):
    """Hits of rays (x, -y, 1) on solids `n` at depth z."""
    row = Rows(t, n)
    rx, b, rz = x * z - row["x"], camera.height - y * z - row["y"], z - row["z"]
    cos, sin = (f(t["heading"]).astype(np.float32)[n] for f in (np.cos, np.sin))
    a, c = rx * cos - rz * sin, rx * sin + rz * cos
    normal = np.ascontiguousarray(normals[n, face].T)
    on = np.flatnonzero(face < 0)
    la, lb, lc = (v[on] / row[r][on] ** 2 for v, r in ((a, "half_a"), (b, "height"), (c, "half_c")))
    outward = np.stack([la * cos[on] + lc * sin[on], lb, lc * cos[on] - la * sin[on]])
    normal[:, on] = outward / np.sqrt((outward * outward).sum(0))
    facing = np.abs(normal[0] * x - normal[1] * y + normal[2]) / np.sqrt(x * x + y * y + 1)
    return Hits(n, row, face, a, b, c, normal, z * pixel, np.maximum(facing, 0.06))


def mirror(light, hits, shade):
    """The reflection in glass: the sky above, the darker street below."""
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
    """A facade with storeys of windows, ledges between them, and in some shops with awnings."""
    u, half, wide, b = hits.u, hits.along("half_a", "half_c"), hits.width / hits.slant, hits.b
    storey, style, upright = (hits.row["s0"], hits.row["s3"], (hits.face < 4)
                              & (b < hits.row["height"] - 0.5))
    cell = 2 * half / np.maximum(np.round(2 * half / hits.row["s1"]), 1)
    iu, iv = np.floor((u + half) / cell), np.floor(b / storey)
    fu, fv = np.abs((u + half) / cell - iu - 0.5) * cell, b - (iv + 0.52) * storey
    shop = (style % 2 > 0) & (hits.face < 4)
    tall, broad = np.where(shop & (iv == 0), ((0.36,), (0.44,)),
                           np.stack([0 * u + 0.29, hits.row["s2"]]))
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
    length, half, belt, b, width = (hits.row["half_c"], hits.row["half_a"], hits.row["height"],
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
    height, half, top = (hits.row["height"], hits.along("half_a", "half_c"),
                         hits.along("top_a", "top_c"))
    share = hits.b / height
    u = hits.u - (hits.face < 2) * hits.row["shift"] * share
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
    board, position = hits.row["s0"], np.where(hits.row["s1"] > 0, hits.u, hits.b)
    gap = band(position % board, board / 2, 0.03, hits.width)
    return (albedo * (1 - 0.75 * gap + 0.15 * noise(np.floor(position / board) * 23 + hits.n,
                                                    0 * position)), 0, 0)


def disc(light, hits, albedo):
    """A wheel or a round sign, with a hub of another colour."""
    hub = np.stack([hits.row[k] for k in ("s1", "s2", "s3")]) ** 2
    return (np.where(np.hypot(hits.b, hits.c) < hits.row["s0"] * hits.row["height"], hub, albedo),
            0, 0)


def head(light, hits, albedo):
    """Hair above and behind, a face in front."""
    hair = hits.row["s0"] ** 2 * np.float32([[1], [0.8], [0.6]])
    return np.where((hits.b > 0.05) | (hits.c < -0.02), hair, albedo), 0, 0


def lamp(light, hits, albedo):
    """A street lamp that shines at nightfall (s0 = 0), or a traffic light showing light s0."""
    on, height = hits.row["s0"], hits.row["height"]
    which = np.clip(np.floor(3 * hits.b / height), 0, 2)
    colours = np.float32([[0.1, 1, 1], [1, 0.6, 0.08], [0.35, 0.05, 0.05]])[:, which.astype(int)]
    spot = (on > 0) & (np.hypot(hits.a, hits.b - (which + 0.5) * height / 3) < 0.13)
    bulb = np.float32([[1.3], [1], [0.6]])
    return (albedo, np.where(on > 0, colours * np.where(which + 1 == on, 1, 0.08), bulb),
            np.where(on > 0, spot, light.dark))


def plain(light, hits, albedo):
    return albedo * (1 + 0.12 * noise(hits.u * 12 + 9 * hits.n, hits.b * 12)), 0, 0


# Material -> (light, hits, albedo) -> (textured albedo, glow or reflection, share of the latter)
SURFACES = {WALL: wall, ROOF: tiles, LEAF: leaves, BODY: car_body, CABIN: car_cabin, DISC: disc,
            HEAD: head, PLANKS: planks, PLAIN: plain, LAMP: lamp}


def paint(street, camera, light, t, seen, x, y, place=None):
    """Linear colour f32[3, rows, columns] of every sample: texture, sun, sky, then haze.

    place  as of `ground_colour`
    """
    near, solid, face, normals = seen
    sunlit, skylit, reach = ground_light(t, camera, light, x, y)
    xs, ys = (np.broadcast_to(v, near.shape).ravel() for v in (x, y[:, None]))
    z, solid, face = 1 / near.ravel(), solid.ravel(), face.ravel()
    colour, pixel = np.empty((3, len(z)), np.float32), x[1] - x[0]
    at = np.flatnonzero(solid == -1)
    colour[:, at] = sky_colour(light, xs[at], ys[at])
    at = np.flatnonzero(solid == -2)
    colour[:, at] = ground_colour(street, camera, light, sunlit.ravel()[at], skylit.ravel()[at],
                                  xs[at] * z[at], z[at], z[at] * pixel, place)
    material = np.append(t["material"], (-1, -1)).astype(np.int8)[solid]
    for which, surface in SURFACES.items():
        at = np.flatnonzero(material == which)
        hits = hits_on_solids(t, camera, solid[at], face[at], xs[at], ys[at], z[at], normals, pixel)
        albedo, glow, share = surface(light, hits, hits.row["colour"])
        facing = light.to_sun @ hits.normal
        facing = np.maximum((facing + 0.4) / 1.4 if which == LEAF else facing, 0) * reach[hits.n]
        lit = albedo * (light.ambient * (0.7 + 0.3 * hits.normal[1]) + light.sun * facing)
        colour[:, at] = mixed(lit, glow, share)
    haze = (solid != -1) * (1 - np.exp(z / -light.visibility))
    return mixed(colour, light.horizon, haze).reshape(3, *near.shape)
