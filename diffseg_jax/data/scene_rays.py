"""The solid that each ray of a scene hits first, its depth, and the labels of the ground.

Rays are (x, -y, 1): a hit at t has depth t, and 1 / t of a plane is linear in x and y, so solids
are compared by inverse depth.
"""

import numpy as np

from diffseg_jax.data.scene_street import LEAF, ROAD, SIDEWALK, SKY_DEPTH, VEGETATION
from diffseg_jax.data.scene_textures import noise


def in_frame(t, a, b, c):
    """World vectors [..., 3] of vectors (a, b, c), each [N, ...], in the frames of the N solids."""
    cos, sin = (f(t["heading"]).reshape((-1,) + (1,) * (a.ndim - 1)) for f in (np.cos, np.sin))
    return np.stack([a * cos + c * sin, b, c * cos - a * sin], -1)


def block_planes(t, camera):
    """Six planes per solid: normals [N,6,3]; inverse depth as factors [N,6,3] of (1, x, y).

    Faces: 0 right, 1 left, 2 far end, 3 near end, 4 top, 5 bottom. A plane n.p = k (p from the
    camera) is hit where 1 / t = n.(x, -y, 1) / k; it faces the camera where k < 0 [N,6].
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
    """Coefficients [N,9] of the quadratic equations of rays.

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

    Negative where the ray misses the ball. A positive `ragged` is the index of a tree crown, whose
    rim is frayed by noise.
    """
    a0, a1, a2, a3, b0, b1, b2, e, z = quadratic
    if e <= 0:  # the camera is inside the ball
        return np.full((len(y), len(x)), -1, np.float32)
    a, b = (a0 + x * (a1 + x * a2)) + a3 * y * y, (b0 + b1 * x) + b2 * y
    square = b * b - a * e
    if ragged:  # square / a is 1 in the middle and 0 at the rim
        square -= a * (0.32 + 0.3 * noise(x * (14 * z) + 7 * ragged, y * (14 * z) + 31 * ragged))
    return np.where(square > 0, (np.sqrt(np.abs(square)) - b) / e, -1)


def block_corners(t):
    """World corners [N,8,3]: first four at the bottom; of a ball, of its bounding box."""
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
    z = np.maximum(corners[..., 2], 0.3)  # corners behind the camera lie outside the image
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
        else:  # a hit lies where all front planes are hit before all others
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
