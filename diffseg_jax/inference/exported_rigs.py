"""What exported files take and return for rigs: photographs of a car's cameras, calibrated."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diffseg_jax.figures.bev import layer_uncertainty
from diffseg_jax.inference.output import FileForm
from diffseg_jax.systems.ddp_bev import BEV
from diffseg_jax.systems.task import Task

PHOTOGRAPHS = "the cameras of b rigs, n images each, red green blue, as in image files"
CALIBRATION = {  # name of an input -> shape for each camera, meaning
    "intrinsics": ((3, 3), "of the images, in pixels from the centre of the first one"),
    "camera_to_world": (
        (4, 4), "from right, down and ahead of a camera to x ahead, y left and z up, in metres"
    ),
}  # fmt: skip


def rig_inputs(meta: dict) -> dict:
    """As of `FileForm.takes`."""
    settings = BEV.settings_of(meta)
    found = {"images": ("uint8", ("b", "n", "h", "w", 3), PHOTOGRAPHS)}
    for name, (shape, meaning) in CALIBRATION.items():
        found[name] = "float32", ("b", "n", *shape), meaning
    if settings.lidar:
        shape = "b", *settings.noisy, settings.lidar
        found["lidar_bev"] = "float32", shape, "features of a LiDAR on the ground"
    return found


def rig_shape(name: str, meta: dict, num_classes: int) -> tuple:
    """As of `FileForm.returns`."""
    side = BEV.settings_of(meta).side
    return ("b", num_classes, side, side) if name == "probs" else ("b", side, side)


def ground_of(meta: dict) -> dict:
    """What model.json says of the cells."""
    lower, upper, size = BEV.settings_of(meta).output
    return {
        "ground": {
            "metres": [lower, upper], "cell": size,
            "meaning": "the ends of both axes of a map, x ahead and then y to the left",
        }
    }  # fmt: skip


RIG_FORM = FileForm(takes=rig_inputs, returns=rig_shape, added=ground_of)


def exported_layers(found: dict) -> dict:
    """The outputs for one rig, of what the task predicts for it."""
    probs = jnp.moveaxis(found["probs"], -1, 0)
    return {"probs": probs, "uncertainty": layer_uncertainty(probs, jnp)}


def rig_function(
    task: Task, network: dict, size: tuple[int, int], seed: int, *_
) -> Callable[..., dict]:
    """The arrays of `rig_inputs` -> `exported_layers`; b and n may be symbolic.

    Images are of the size that the network sees, and intrinsics are those of such images. Each rig
    is predicted as a batch of one, all of them at the same time.
    """
    network, valid = jax.tree.map(np.asarray, network), np.array([size], np.int32)

    def predict_one(images, intrinsics, camera_to_world, *lidar):
        values = jax.tree.map(jnp.asarray, network)
        cameras = cameras_of_views(intrinsics, camera_to_world)
        given = {"images": images, "cameras": cameras, **dict(zip(("lidar_bev",), lidar))}
        rig = {name: array[None] for name, array in given.items()}
        found = task.predict(values, rig, valid, seed=seed)
        return exported_layers({"probs": found["probs"][0]})

    return jax.vmap(predict_one)


def cameras_of_views(intrinsics: jax.Array, camera_to_world: jax.Array) -> jax.Array:
    """`affine_maps` f32[N,2,3,4] of images that are not changed, f32[N,3,3] and f32[N,4,4]."""
    rows = [intrinsics[:, i] for i in range(3)]
    products = [jnp.cross(rows[(i + 1) % 3], rows[(i + 2) % 3]) for i in range(3)]
    inverse = jnp.stack(products, -1) / jnp.sum(rows[0] * products[0], -1)[:, None, None]
    turn, at = camera_to_world[:, :3, :3], camera_to_world[:, :3, 3:]
    place = jnp.concatenate([jnp.matmul(turn, inverse, precision="highest"), at], -1)
    return jnp.stack([jnp.broadcast_to(jnp.eye(3, 4), place.shape), place], 1)


def intrinsics_of_views(intrinsics: jax.Array, corner: jax.Array, factor: float) -> jax.Array:
    """f32[...,3,3] of photographs that are made `factor` as large, and cut from f32[2] on."""
    row, column = corner
    moved = jnp.stack([factor * intrinsics[..., 0, :], factor * intrinsics[..., 1, :]], -2)
    moved -= jnp.stack([column, row])[:, None] * intrinsics[..., 2:, :]
    return jnp.concatenate([moved, intrinsics[..., 2:, :]], -2)
