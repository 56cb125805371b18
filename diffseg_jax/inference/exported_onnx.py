"""A trained model as an ONNX file, which onnxruntime and others run in many languages."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

import diffseg_jax
from diffseg_jax.errors import UserError
from diffseg_jax.inference.bands import DESCRIPTOR, named_maps
from diffseg_jax.inference.label_output import LABEL_OUTPUT
from diffseg_jax.inference.output import OutputKind
from diffseg_jax.inference.views import predict_whole
from diffseg_jax.metrics.calibrator import Calibrator
from diffseg_jax.onnx_writer.convert import add_function
from diffseg_jax.onnx_writer.graph import Graph, UnsupportedError, Value, symbolic_input
from diffseg_jax.onnx_writer.model_files import model_files
from diffseg_jax.onnx_writer.resizing import resized, resized_images
from diffseg_jax.systems.task import Task


def onnx_model(
    task: Task, network: dict, size: tuple[int, int], seed: int, calibrator: Calibrator | None,
    description: Mapping[str, str], name: str, output: OutputKind = LABEL_OUTPUT,
) -> dict[str, bytes]:  # fmt: skip
    """The files of a model of images u8[b,h,w,3]: {name: bytes}; UserError if it has no such form.

    size         (height, width) at which the network sees images, which the file resizes, and
                 whose maps it resizes back, both as `inference.views.predict` does
    seed         of the noise, which the file draws for each image as jax does
    description  texts that the file holds
    output       whose `exported` maps are the outputs, i32 or f32[b,h,w,...]
    """
    try:
        graph = Graph()
        images = symbolic_input(graph, "images", "uint8", ("batch", "height", "width", 3))
        outputs = written(graph, images, task, network, size, seed, calibrator, output)
        return model_files(
            graph, [images], outputs, description, ("diffseg_jax", diffseg_jax.__version__), name
        )
    except UnsupportedError as error:
        raise UserError(
            f"this network cannot be written as ONNX: {error} is not known here. Try "
            "--format=stablehlo."
        ) from None


def written(
    graph: Graph, images: Value, task: Task, network: dict, size: tuple[int, int], seed: int,
    calibrator: Calibrator | None, output: OutputKind,
) -> dict[str, Value]:  # fmt: skip
    """The outputs for images of any size, as nodes of a graph."""
    batch, *sides, _ = images.shape
    shown = resized_images(graph, images, size)
    maps = add_function(graph, maps_function(task, network, size, seed), shown)
    maps = {name: resized(graph, values, sides) for name, values in maps.items()}

    def decide(*arrays):
        found = predict_whole(dict(zip(maps, arrays)), jnp, calibrator, output.decision)
        return dict(output.exported(found))

    return add_function(graph, decide, *maps.values())


def maps_function(
    task: Task, network: dict, size: tuple[int, int], seed: int
) -> Callable[[jax.Array], dict]:
    """u8[b,H,W,3] -> the maps f32[b,H,W,C] of the network by name, b being symbolic.

    Each image is a batch of one; with an ensemble one after another, as its features are large.
    """
    values, valid = jax.tree.map(np.asarray, network), np.array([size], np.int32)

    def maps_of_one(image):
        arrays = jax.tree.map(jnp.asarray, values)
        maps = named_maps(task.predict(arrays, image[None], valid, seed=seed))
        maps.pop(DESCRIPTOR, None)
        return {name: each[0].astype(jnp.float32) for name, each in maps.items()}

    return (lambda images: jax.lax.map(maps_of_one, images)) if task.fit else jax.vmap(maps_of_one)
