"""What exported files take and return for single images, and what such files hold."""

import dataclasses
import warnings
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from diffseg_jax.errors import UserError
from diffseg_jax.inference.bands import DESCRIPTOR, named_maps
from diffseg_jax.inference.output import Exportable, FileForm
from diffseg_jax.inference.views import Protocol, View, predict_whole


def image_shape(name: str, meta: dict, num_classes: int) -> tuple:
    """As of `FileForm.returns`."""
    return ("b", "h", "w", num_classes) if name == "probs" else ("b", "h", "w")


def resized_inside(meta: dict, size: tuple[int, int], inside: bool) -> str:
    """As of `FileForm.seen`."""
    return "; resized to {} x {} by the file".format(*size) if inside else ""


def require_whole_images(segmenter, size: tuple[int, int]):
    """As of `FileForm.check`; warns as `check_protocol`."""
    check_protocol(segmenter.protocol, size)
    segmenter.require_predictions()


def check_protocol(protocol: Protocol, size: tuple[int, int]):
    """Raises UserError if evaluation would resize such images, warns if it averages over views."""
    height, width = size
    resized = dataclasses.replace(protocol, scales=(1.0,)).sizes(size)[0]
    if resized != size:
        wanted = "{},{}".format(*resized)
        raise UserError(
            f"evaluation of this checkpoint first resizes images of {height} x {width} to "
            f"{resized[0]} x {resized[1]}, which an exported model does not. Try --size={wanted}, "
            "and give it images of that size; without --size it is that of the run's images."
        )
    views = []
    if protocol.view is View.SLIDE and protocol.window != size:
        views.append("windows of {} x {}".format(*protocol.window))
    if protocol.view is View.HALVES:
        views.append("a left and a right half")
    if protocol.scales != (1.0,):
        views.append(f"the scales {', '.join(map(str, protocol.scales))}")
    if protocol.flip:
        views.append("the mirror image")
    if views:
        warnings.warn(
            f"evaluation of this checkpoint averages over {' and '.join(views)}; the exported "
            f"model takes images of {height} x {width} as they are, so its predictions differ",
            stacklevel=3,
        )


def dtype_of(name: str) -> str:
    """The dtype of an output of an exported model."""
    return "int32" if name == "labels" else "float32"


def prediction_function(given: Exportable) -> Callable[[jax.Array], dict]:
    """u8[b,H,W,3] -> `OutputKind.exported` of whole images, b being symbolic.

    Each image is predicted as a batch of one, all of them at the same time; but one after another
    with an ensemble, whose features take much memory.
    """
    network, output = jax.tree.map(np.asarray, given.network), given.output
    valid = np.array([given.size], np.int32)

    def predict_one(image):
        values = jax.tree.map(jnp.asarray, network)
        found = given.task.predict(values, image[None], valid, seed=given.seed)
        maps = predict_whole(found, jnp, given.calibrator, output.decision)[0]
        return {
            name: values.astype(dtype_of(name)) for name, values in output.exported(maps).items()
        }

    return over_images(given, predict_one)


def maps_function(given: Exportable) -> Callable[[jax.Array], dict]:
    """u8[b,H,W,3] -> the maps f32[b,H,W,C] of the network by name; b as of the prediction."""
    network, valid = jax.tree.map(np.asarray, given.network), np.array([given.size], np.int32)

    def maps_of_one(image):
        values = jax.tree.map(jnp.asarray, network)
        maps = named_maps(given.task.predict(values, image[None], valid, seed=given.seed))
        maps.pop(DESCRIPTOR, None)
        return {name: each[0].astype(jnp.float32) for name, each in maps.items()}

    return over_images(given, maps_of_one)


def over_images(given: Exportable, function: Callable) -> Callable:
    """The function of one image for several: in turn with an ensemble, else at the same time."""
    return (lambda images: jax.lax.map(function, images)) if given.task.fit else jax.vmap(function)


def written_images(graph, inputs: Sequence, given: Exportable) -> dict:
    """As of `FileForm.written`, for images of any size; maps are resized back."""
    from diffseg_jax.onnx_writer.convert import add_function
    from diffseg_jax.onnx_writer.resizing import resized, resized_images

    (images,) = inputs
    batch, *sides, _ = images.shape
    maps = add_function(graph, maps_function(given), resized_images(graph, images, given.size))
    maps = {name: resized(graph, values, sides) for name, values in maps.items()}

    def decide(*arrays):
        found = dict(zip(maps, arrays))
        found = predict_whole(found, jnp, given.calibrator, given.output.decision)
        return dict(given.output.exported(found))

    return add_function(graph, decide, *maps.values())


IMAGE_FORM = FileForm(
    takes=lambda meta: {
        "images": ("uint8", ("b", "h", "w", 3), "images, upright, red green blue"),
    },
    returns=image_shape, added=lambda meta: {}, only_size=lambda meta: None,
    seen=resized_inside, check=require_whole_images, function=prediction_function,
    written=written_images,
)  # fmt: skip
