"""The files of an ONNX model: one, or two where the constants are more than one can hold."""

from collections.abc import Mapping, Sequence

from onnx import ModelProto, helper
from onnx.external_data_helper import set_external_data

from diffseg_jax.onnx_writer.graph import OPSET, Graph, Value, as_graph, tensor_info

IR_VERSION = 8  # of the file format; read by all runtimes that know the operators
MOST_BYTES = 2**31 - 2**24  # bytes of one file, a limit of protobuf
INSIDE = 1024  # bytes of a constant that stays in the file beside its larger ones


def named_outputs(graph: Graph, outputs: Mapping[str, Value]) -> list[Value]:
    """The values with the names that a user reads."""
    found = []
    for name, value in outputs.items():
        graph.nodes.append(helper.make_node("Identity", [graph.whole(value)], [name], name))
        found.append(Value(value.shape, value.dtype, value.shape, name))
    return found


def model_files(
    graph: Graph, inputs: Sequence[Value], outputs: Mapping[str, Value],
    metadata: Mapping[str, str], producer: tuple[str, str], name: str,
) -> dict[str, bytes]:  # fmt: skip
    """The contents of the files of a model: {name: bytes}, and with `name`.data where needed.

    metadata  texts that a runtime shows;  producer  name and version of the program that wrote it
    """
    output_infos = [tensor_info(value) for value in named_outputs(graph, outputs)]
    made = as_graph(graph, "network", [tensor_info(value) for value in inputs], output_infos)
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION,
        producer_name=producer[0], producer_version=producer[1],
    )  # fmt: skip
    helper.set_model_props(model, dict(metadata))
    if sum(len(tensor.raw_data) for tensor in made.initializer) <= MOST_BYTES:
        return {name: model.SerializeToString()}
    data = _moved_outside(model, f"{name}.data")
    return {name: model.SerializeToString(), f"{name}.data": data}


def _moved_outside(model: ModelProto, name: str) -> bytes:
    """The bytes of all large constants, which the model then finds in the file `name`."""
    parts, position = [], 0
    for tensor in model.graph.initializer:
        content = tensor.raw_data
        if len(content) > INSIDE:
            set_external_data(tensor, name, position, len(content))
            tensor.ClearField("raw_data")
            parts.append(content)
            position += len(content)
    return b"".join(parts)
