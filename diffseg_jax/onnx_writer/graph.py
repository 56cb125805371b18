"""Builds an ONNX graph: values, constants, nodes and runtime sizes of symbolic dimensions.

ONNX is a file format for networks (https://onnx.ai) that runtimes in many languages read.
"""

import ast
import dataclasses
import hashlib
import math
from collections.abc import Sequence

import numpy as np
from jax import export
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

OPSET = 18  # the first with Resize, Reduce* and bitwise operators as used here
FOLDED = 2**26  # maximum number of values of a constant that is computed when the file is written
ONNX_TYPES = {
    "float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bool": TensorProto.BOOL,
    "int32": TensorProto.INT32, "int64": TensorProto.INT64, "uint8": TensorProto.UINT8,
    "uint32": TensorProto.UINT32, "int8": TensorProto.INT8, "float64": TensorProto.DOUBLE,
    "int16": TensorProto.INT16, "uint16": TensorProto.UINT16,
}  # fmt: skip
OPERATIONS = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul"}
FUNCTIONS = {"floordiv": "Div", "mod": "Mod", "max": "Max", "min": "Min"}


class UnsupportedError(Exception):
    """An operation that the writer cannot express; the text names it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """An array of the program: a tensor of the graph, or a constant.

    shape  its dimensions, numbers or symbolic
    dtype  its name, such as "float32"
    held   dimensions of the tensor or constant that stands for it, of equal rank, 1 where it is
           still to be repeated: most operators repeat it themselves
    name   of the tensor;  array  the constant, of shape `held`
    """

    shape: tuple
    dtype: str
    held: tuple
    name: str | None = None
    array: np.ndarray | None = None

    @property
    def constant(self) -> bool:
        return self.array is not None


def constant_of(array, shape=None) -> Value:
    """A constant, repeated to `shape` where its own dimensions are 1."""
    array = np.asarray(array)
    return Value(tuple(shape or array.shape), array.dtype.name, array.shape, array=array)


class Graph:
    """Nodes in their order; those of the body of a loop see the names of the graph around it.

    Equal nodes and equal constants are written once.
    """

    def __init__(self, outer: "Graph | None" = None):
        self.outer, self.nodes, self._known = outer, [], {}
        self.root = outer.root if outer else self
        if not outer:
            self.initializers, self.symbols, self._count = {}, {}, 0
            self.scope = export.SymbolicScope()

    def fresh(self) -> str:
        """A name that nothing else has."""
        self.root._count += 1
        return f"v{self.root._count}"

    def add(self, op: str, inputs: Sequence[str], outputs: int = 1, **attributes):
        """The name of the output of a new node, or a list of the names of several outputs."""
        key = op, tuple(inputs), outputs, repr(sorted(attributes.items())) if op != "Loop" else None
        graph = self
        while graph and op != "Loop":
            if key in graph._known:
                return graph._known[key]
            graph = graph.outer
        names = [self.fresh() for _ in range(outputs)]
        node = helper.make_node(op, list(inputs), names, f"{op}_{names[0]}", **attributes)
        self.nodes.append(node)
        self._known[key] = names[0] if outputs == 1 else names
        return self._known[key]

    def initializer(self, array: np.ndarray) -> str:
        """The name of a constant tensor."""
        array = np.ascontiguousarray(array).reshape(np.shape(array))
        digest = hashlib.sha256(array).hexdigest()
        key = array.dtype.name, array.shape, digest
        known = self.root.initializers
        if key not in known:
            known[key] = self.fresh(), array
        return known[key][0]

    def integers(self, *numbers: int) -> str:
        """The name of a constant i64[n]."""
        return self.initializer(np.array(numbers, np.int64))

    def make(self, op: str, inputs: Sequence[str], shape, dtype, held=None, **attributes) -> Value:
        """The value that a new node returns; a constant where it has no elements."""
        if any(isinstance(size, int) and size == 0 for size in shape):
            sizes = [size if isinstance(size, int) else 1 for size in shape]
            return constant_of(np.zeros(sizes, dtype), shape)
        name = self.add(op, inputs, **attributes)
        return Value(tuple(shape), str(dtype), tuple(shape if held is None else held), name)

    def tensor(self, value: Value) -> str:
        """The name of a tensor that stands for a value, of shape `value.held`."""
        return self.initializer(value.array) if value.constant else value.name

    def full(self, value: Value) -> Value:
        """The value with all its elements."""
        if same(value.held, value.shape):
            return value
        if value.constant and elements(value.shape) <= FOLDED:
            return constant_of(np.broadcast_to(value.array, value.shape))
        name = self.add("Expand", [self.tensor(value), self.dimensions(value.shape)])
        return Value(value.shape, value.dtype, value.shape, name)

    def whole(self, value: Value) -> str:
        """The name of a tensor with all elements of a value."""
        return self.tensor(self.full(value))

    def cast(self, value: Value, dtype: str) -> Value:
        """The value in another dtype."""
        if value.dtype == dtype:
            return value
        if value.constant:
            return constant_of(value.array.astype(dtype), value.shape)
        return self.make(
            "Cast", [value.name], value.shape, dtype, value.held, to=ONNX_TYPES[dtype]
        )  # fmt: skip

    def reshape(self, value: Value, shape: Sequence) -> Value:
        """The elements of a value in another shape."""
        if same(value.shape, shape):
            return value
        value = self.full(value)
        symbolic = [size for size in shape if not isinstance(size, int)]
        if value.constant:
            return constant_of(value.array.reshape(shape))
        if len(symbolic) > 1 or symbolic and 0 in shape:
            target = self.dimensions(shape)
        else:
            target = self.integers(*(n if isinstance(n, int) else -1 for n in shape))
        return self.make("Reshape", [value.name, target], shape, value.dtype)

    def transpose(self, value: Value, order: Sequence[int]) -> Value:
        """The value with its axes in another order."""
        order = [int(axis) for axis in order]
        if order == sorted(order):
            return value
        shape, held = (tuple(d[axis] for axis in order) for d in (value.shape, value.held))
        if value.constant:
            return constant_of(value.array.transpose(order), shape)
        return self.make("Transpose", [value.name], shape, value.dtype, held, perm=order)

    # ---- dimensions that are known when the network runs ---------------------------------------

    def dimensions(self, shape: Sequence) -> str:
        """The name of i64[n], the numbers in a shape."""
        if all(isinstance(size, int) for size in shape):
            return self.integers(*shape)
        return self.add("Concat", [self.size(size) for size in shape], axis=0)

    def size(self, size) -> str:
        """The name of i64[1], a number or a symbolic dimension."""
        if isinstance(size, int):
            return self.integers(size)
        return self._evaluated(ast.parse(str(size), mode="eval").body)

    def _evaluated(self, tree) -> str:
        match tree:
            case ast.Constant(value=int(number)):
                return self.integers(number)
            case ast.Name(id=name):
                return self.root.symbols[name]
            case ast.BinOp(op=ast.Pow(), left=left, right=ast.Constant(value=int(power))):
                name = self._evaluated(left)
                found = name
                for _ in range(power - 1):
                    found = self.add("Mul", [found, name])
                return found
            case ast.BinOp(op=op, left=left, right=right) if type(op) in OPERATIONS:
                inputs = self._evaluated(left), self._evaluated(right)
                return self.add(OPERATIONS[type(op)], inputs)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self.add("Neg", [self._evaluated(operand)])
            case ast.Call(func=ast.Name(id=name), args=args) if name in FUNCTIONS:
                return self.add(FUNCTIONS[name], [self._evaluated(each) for each in args])
        raise UnsupportedError(f"the dimension {ast.unparse(tree)}")


def symbolic_input(graph: Graph, name: str, dtype: str, shape: Sequence) -> Value:
    """An input whose dimensions with names are known when the network runs."""
    symbols = [size for size in shape if isinstance(size, str)]
    known = dict(zip(symbols, export.symbolic_shape(", ".join(symbols), scope=graph.scope)))
    held = graph.add("Shape", [name])
    for axis, size in enumerate(shape):
        if isinstance(size, str):
            ends = graph.integers(axis), graph.integers(axis + 1), graph.integers(0)
            graph.symbols[size] = graph.add("Slice", [held, *ends])
    sizes = tuple(known.get(size, size) for size in shape)
    return Value(sizes, dtype, sizes, name)


def tensor_info(value: Value, name: str | None = None) -> ValueInfoProto:
    """Name, dtype and shape of a tensor, as an input or output of a graph."""
    shape = [size if isinstance(size, int) else str(size) for size in value.shape]
    return helper.make_tensor_value_info(name or value.name, ONNX_TYPES[value.dtype], shape)


def elements(shape: Sequence) -> float:
    """How many elements an array has; infinite if that is not known."""
    return math.prod(shape) if all(isinstance(size, int) for size in shape) else math.inf


def same(first: Sequence, second: Sequence) -> bool:
    """Whether two shapes are certainly equal."""
    return len(first) == len(second) and all(
        type(a) is type(b) and a == b for a, b in zip(first, second)
    )


def used_nodes(nodes: Sequence[NodeProto], outputs: Sequence[str]) -> list[NodeProto]:
    """The nodes on which outputs depend, in their order."""
    needed, kept = set(outputs), []
    for node in reversed(nodes):
        if needed & set(node.output):
            kept.append(node)
            needed |= names_read(node)
    return kept[::-1]


def names_read(node: NodeProto) -> set[str]:
    """The tensors that a node reads, also in the body of a loop."""
    names = set(node.input)
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                names |= names_read(inner)
            names |= {output.name for output in attribute.g.output}
    return names


def as_graph(graph: Graph, name: str, inputs, outputs) -> GraphProto:
    """The graph of the nodes on which `outputs`, ValueInfoProto each, depend."""
    nodes = used_nodes(graph.nodes, [output.name for output in outputs])
    made = helper.make_graph(nodes, name, list(inputs), list(outputs))
    if graph is graph.root:
        read = {read for node in nodes for read in names_read(node)}
        read |= {output.name for output in outputs}
        for given, array in graph.initializers.values():
            if given in read:
                made.initializer.append(numpy_helper.from_array(array, given))
    return made
