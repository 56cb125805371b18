"""A trained model as an ONNX file, which onnxruntime and others run in many languages."""

import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

import diffseg_jax
from diffseg_jax.errors import UserError
from diffseg_jax.inference.bands import DESCRIPTOR, named_maps
from diffseg_jax.inference.exported_rigs import intrinsics_of_views, rig_function
from diffseg_jax.inference.output import OutputKind
from diffseg_jax.inference.views import predict_whole
from diffseg_jax.metrics.calibrator import Calibrator
from diffseg_jax.onnx_writer.convert import add_function
from diffseg_jax.onnx_writer.graph import Graph, UnsupportedError, Value, symbolic_input
from diffseg_jax.onnx_writer.model_files import model_files
from diffseg_jax.onnx_writer.resizing import resized, resized_images, views_of_photographs
from diffseg_jax.systems.task import Task


def onnx_model(
    task: Task, network: dict, size: tuple[int, int], seed: int, calibrator: Calibrator | None,
    description: Mapping[str, str], name: str, sizes: Mapping[str, str], output: OutputKind,
) -> dict[str, bytes]:  # fmt: skip
    """The files of a model of the arrays of `OutputKind.form`: {name: bytes}.

    size         (height, width) at which the network sees images, which the file resizes, and
                 whose maps it resizes back, both as `inference.views.predict` does
    seed         of the noise, which the file draws for each image as jax does
    description  texts that the file holds
    sizes        letters of `FileForm` -> names of sizes that are known when the file runs
    output       whose `exported` maps are the outputs

    Raises UserError for a network that has no such form.
    """
    try:
        graph = Graph()
        inputs = [
            symbolic_input(graph, given, dtype, tuple(sizes.get(side, side) for side in shape))
            for given, (dtype, shape, _) in output.form.takes(task.meta).items()
        ]
        write = written_rigs if len(inputs) > 1 else written
        outputs = write(graph, inputs, task, network, size, seed, calibrator, output)
        return model_files(
            graph, inputs, outputs, description, ("diffseg_jax", diffseg_jax.__version__), name
        )
    except UnsupportedError as error:
        raise UserError(
            f"this network cannot be written as ONNX: {error} is not known here. Try "
            "--format=stablehlo."
        ) from None


def written(
    graph: Graph, inputs: Sequence[Value], task: Task, network: dict, size: tuple[int, int],
    seed: int, calibrator: Calibrator | None, output: OutputKind,
) -> dict[str, Value]:  # fmt: skip
    """The outputs for images of any size, as nodes of a graph."""
    (images,) = inputs
    batch, *sides, _ = images.shape
    shown = resized_images(graph, images, size)
    maps = add_function(graph, maps_function(task, network, size, seed), shown)
    maps = {name: resized(graph, values, sides) for name, values in maps.items()}

    def decide(*arrays):
        found = predict_whole(dict(zip(maps, arrays)), jnp, calibrator, output.decision)
        return dict(output.exported(found))

    return add_function(graph, decide, *maps.values())


def written_rigs(
    graph: Graph, inputs: Sequence[Value], task: Task, network: dict, size: tuple[int, int],
    seed: int, *_,
) -> dict[str, Value]:  # fmt: skip
    """The outputs for rigs with photographs of any size, as nodes of a graph."""
    photographs, intrinsics, *others = inputs
    factor = task.meta["resize"]
    views, corner = views_of_photographs(graph, photographs, size, factor)
    moved = functools.partial(intrinsics_of_views, factor=factor)
    intrinsics = add_function(graph, moved, intrinsics, corner)
    function = rig_function(task, network, size, seed)
    return add_function(graph, function, views, intrinsics, *others)


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
