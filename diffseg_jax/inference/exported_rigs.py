"""What exported files take and return for rigs: photographs of a car's cameras, calibrated."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from diffseg_jax.errors import UserError
from diffseg_jax.figures.bev import layer_uncertainty
from diffseg_jax.inference.output import Exportable, FileForm
from diffseg_jax.inference.rig_forward import view_of
from diffseg_jax.systems.ddp_bev import BEV

PHOTOGRAPHS = "the photographs of each rig's cameras, red green blue, as in image files"
CALIBRATION = {  # name of an input -> shape for each camera, meaning
    "intrinsics": ((3, 3), "of the images; pixel (0, 0) is the centre of the upper left pixel"),
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
    """What model.json says of the cells, and of the size of photographs."""
    lower, upper, size = BEV.settings_of(meta).output
    return {
        "ground": {
            "metres": [lower, upper], "cell": size,
            "meaning": "the ends of both axes of a map, x ahead and then y to the left",
        },
        "photographs": {
            "smallest": list(view_of(meta).smallest),
            "meaning": "the smallest height and width of photographs, before they are cropped",
        },
    }  # fmt: skip


def cropped(meta: dict, size: tuple[int, int], inside: bool) -> str:
    """As of `FileForm.seen`."""
    by, factor = "by the file" if inside else "before the call", meta["resize"]
    scaled = "" if factor == 1 else f"scaled by {factor:g}, then "
    return "; {}cropped to {} x {} (bottom, horizontally centred), {}".format(scaled, *size, by)


def require_rig_view(segmenter, size: tuple[int, int]):
    """As of `FileForm.check`."""
    seen = view_of(segmenter.meta["task"]).size
    if size != seen:
        raise UserError(
            "this network sees {} x {} of every photograph, but size is {} x {}. "
            "Try --size={},{}.".format(*seen, *size, *seen)
        )
    if segmenter.calibrator:
        raise UserError(
            f"{segmenter.directory} comes with a calibrator, but a file for rigs holds none, as "
            "their uncertainty is an entropy. Remove calibrator.json from the checkpoint."
        )


def exported_layers(found: dict) -> dict:
    """The outputs for one rig, of what the task predicts for it.

    probs        f32[X,Y,K] -> f32[K,X,Y]
    uncertainty  f32[X,Y]
    """
    probs = jnp.moveaxis(found["probs"], -1, 0)
    return {"probs": probs, "uncertainty": layer_uncertainty(probs, jnp)}


def rig_function(given: Exportable) -> Callable[..., dict]:
    """The arrays of `rig_inputs` -> `exported_layers`; b and n may be symbolic.

    Images are of the size that the network sees, and intrinsics are those of such images. Each rig
    is predicted as a batch of one, all of them at the same time.
    """
    network, valid = jax.tree.map(np.asarray, given.network), np.array([given.size], np.int32)

    def predict_one(images, intrinsics, camera_to_world, *lidar):
        values = jax.tree.map(jnp.asarray, network)
        cameras = cameras_of_views(intrinsics, camera_to_world)
        arrays = {"images": images, "cameras": cameras, **dict(zip(("lidar_bev",), lidar))}
        rig = {name: array[None] for name, array in arrays.items()}
        found = given.task.predict(values, rig, valid, seed=given.seed)
        return exported_layers({"probs": found["probs"][0]})

    return jax.vmap(predict_one)


def written_rigs(graph, inputs: Sequence, given: Exportable) -> dict:
    """As of `FileForm.written`, for photographs that are not smaller than `RigView.smallest`."""
    from diffseg_jax.onnx_writer.convert import add_function
    from diffseg_jax.onnx_writer.resizing import views_of_photographs

    photographs, intrinsics, *others = inputs
    factor = given.task.meta["resize"]
    views, corner = views_of_photographs(graph, photographs, given.size, factor)
    moved = functools.partial(intrinsics_of_views, factor=factor)
    intrinsics = add_function(graph, moved, intrinsics, corner)
    return add_function(graph, rig_function(given), views, intrinsics, *others)


def cameras_of_views(intrinsics: jax.Array, camera_to_world: jax.Array) -> jax.Array:
    """`affine_maps` f32[N,2,3,4] of images that are not changed, f32[N,3,3] and f32[N,4,4].

    A singular matrix of intrinsics, which `data.bev_transforms.cameras_of` refuses, gives numbers
    that are not finite.
    """
    rows = [intrinsics[:, i] for i in range(3)]
    products = [jnp.cross(rows[(i + 1) % 3], rows[(i + 2) % 3]) for i in range(3)]
    inverse = jnp.stack(products, -1) / jnp.sum(rows[0] * products[0], -1)[:, None, None]
    turn, at = camera_to_world[:, :3, :3], camera_to_world[:, :3, 3:]
    place = jnp.concatenate([jnp.matmul(turn, inverse, precision="highest"), at], -1)
    return jnp.stack([jnp.broadcast_to(jnp.eye(3, 4), place.shape), place], 1)


def intrinsics_of_views(intrinsics: jax.Array, corner: jax.Array, factor: float) -> jax.Array:
    """f32[...,3,3] of the views of photographs, from those of the photographs.

    factor  by which photographs are scaled
    corner  f32[2], the (row, column) of the upper left pixel of a view in the scaled photograph
    """
    row, column = corner
    moved = jnp.stack([factor * intrinsics[..., 0, :], factor * intrinsics[..., 1, :]], -2)
    moved -= jnp.stack([column, row])[:, None] * intrinsics[..., 2:, :]
    return jnp.concatenate([moved, intrinsics[..., 2:, :]], -2)


RIG_FORM = FileForm(
    takes=rig_inputs, returns=rig_shape, added=ground_of, only_size=lambda meta: view_of(meta).size,
    seen=cropped, check=require_rig_view, function=rig_function, written=written_rigs,
)  # fmt: skip
