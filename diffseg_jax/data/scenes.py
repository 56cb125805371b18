"""Small street scenes drawn by a seeded generator: image, exact labels and exact depth.

A scene is a street of a ground plane and solids, in metres, seen by a pinhole camera that looks
along z with a shifted principal point, so that vertical edges stay vertical. All lengths are
metric: other image sizes show the same street. scene_street plans it, scene_rays finds what each
ray hits, scene_colours paints the hits, and scene_textures holds the noise for it.
"""

import numpy as np

from diffseg_jax.data.scene_colours import paint
from diffseg_jax.data.scene_rays import ground_labels, trace
from diffseg_jax.data.scene_street import NAMES as NAMES
from diffseg_jax.data.scene_street import PALETTE as PALETTE
from diffseg_jax.data.scene_street import SKY, Camera, build_solids, draw_light, plan_street
from diffseg_jax.data.scene_street import SKY_DEPTH as SKY_DEPTH
from diffseg_jax.data.scene_textures import mixed
from diffseg_jax.errors import UserError

FINE_FROM, FINE_TO = 160 * 200, 240 * 320  # pixels; sampling is twice as fine between them


def photograph(colour, light, rng):
    """The image uint8[H,W,3] of a camera: exposure, white balance, vignette, tone curve, noise."""
    _, height, width = colour.shape
    exposure = rng.uniform(0.6, 1.0) * (0.6 if light.dark else 1.0) / (colour.mean() + 0.03)
    balance = np.exp(rng.normal(0, 0.06, (3, 1, 1))) * exposure
    rows, columns = (np.linspace(-1, 1, n, dtype=np.float32) ** 2 for n in (height, width))
    vignette = 1 - rng.uniform(0.05, 0.3) * (rows[:, None] + columns) / 2
    image = np.sqrt(1 - np.exp(-0.85 * np.maximum(colour, 0) * vignette.astype(np.float32)
                                 * np.float32(balance)))
    image = mixed(
        image, image * image * (3 - 2 * image), np.float32(rng.uniform(0.3, 0.8))
    )  # contrast
    image = 255 * image.transpose(1, 2, 0)
    image += np.float32(rng.uniform(1, 5)) * rng.standard_normal(image.shape, np.float32)
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def soften(colour):
    """The odd rows and columns, each smoothed with its neighbours by (1, 2, 1) / 4."""
    colour = 0.5 * colour[:, 1:-1:2] + 0.25 * (colour[:, :-2:2] + colour[:, 2::2])
    return 0.5 * colour[..., 1:-1:2] + 0.25 * (colour[..., :-2:2] + colour[..., 2::2])


def draw_scene(seed: int, index: int, height: int, width: int) -> dict:
    """Scene `index` of the family `seed`: a pure function of its arguments.

    Returns image uint8[H,W,3], mask int32[H,W] with ids into NAMES, and depth float32[H,W]: metres
    along the viewing direction at the centre of each pixel, SKY_DEPTH for the sky. Seed and index
    determine the scene; the size determines how finely it is sampled. Raises UserError if seed or
    index is negative or a side is below 8 pixels.
    """
    if min(seed, index) < 0 or min(height, width) < 8:
        raise UserError(
            f"cannot draw scene {index} of seed {seed} at {height} x {width} pixels: seed and "
            "index must be at least 0 and sides at least 8. Try draw_scene(0, 0, 96, 128).")
    rng = np.random.default_rng(np.random.SeedSequence((seed, index)))
    street, light = plan_street(rng), draw_light(rng)
    camera = Camera(rng.uniform(1.4, 2.5), rng.uniform(0.85, 1.2), rng.uniform(0.4, 0.54))
    t, fine = build_solids(street, rng), FINE_FROM <= height * width <= FINE_TO
    step, first = (
        (2, 0.0) if fine else (1, 0.5)
    )  # if fine: the centres, edges and corners of pixels
    rows, columns = (np.arange(step * n + step - 1) / step + first for n in (height, width))
    x, y = camera.rays(rows, columns, height, width)
    seen = trace(t, camera, x, y)
    colour = paint(street, camera, light, t, seen, x, y)
    centres = slice(step - 1, None, step)
    near, solid = seen[0][centres, centres], seen[1][centres, centres]
    ground = ground_labels(street, x[centres] / near, 1 / near)[0]
    labels = np.append(t["label"], (0, SKY)).astype(np.int32)  # the last entry belongs to solid -1
    mask = np.where(solid == -2, ground, labels[solid]).astype(np.int32)
    return {"image": photograph(soften(colour) if fine else colour, light, rng), "mask": mask,
            "depth": 1 / near}
