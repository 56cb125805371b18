"""A trained model as an ONNX file, which onnxruntime and others run in many languages."""

from collections.abc import Mapping

import diffseg_jax
from diffseg_jax.errors import UserError
from diffseg_jax.inference.output import Exportable
from diffseg_jax.onnx_writer.graph import Graph, UnsupportedError, symbolic_input
from diffseg_jax.onnx_writer.model_files import model_files


def onnx_model(
    given: Exportable, description: Mapping[str, str], name: str, sizes: Mapping[str, str]
) -> dict[str, bytes]:
    """The files of a model of the arrays of `OutputKind.form`: {name: bytes}.

    Noise is drawn in the file for each image as jax draws it.

    description  texts that the file holds
    sizes        letters of `FileForm` -> names of sizes that are known when the file runs

    Raises UserError for a network that has no such form.
    """
    form = given.output.form
    try:
        graph = Graph()
        inputs = [
            symbolic_input(graph, name, dtype, tuple(sizes.get(side, side) for side in shape))
            for name, (dtype, shape, _) in form.takes(given.task.meta).items()
        ]
        outputs = form.written(graph, inputs, given)
        return model_files(
            graph, inputs, outputs, description, ("diffseg_jax", diffseg_jax.__version__), name
        )
    except UnsupportedError as error:
        raise UserError(
            f"this network cannot be written as ONNX: {error} is not supported. Try "
            "--format=stablehlo."
        ) from None
