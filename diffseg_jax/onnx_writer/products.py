"""Products and sums over axes, as nodes: (graph, equation, inputs) -> Value."""

import functools
import math
from collections.abc import Callable

import numpy as np

from diffseg_jax.onnx_writer.elementwise import WRAPPED, elementwise
from diffseg_jax.onnx_writer.graph import UnsupportedError, constant_of

REDUCTIONS = {
    "reduce_max": "ReduceMax", "reduce_min": "ReduceMin", "reduce_prod": "ReduceProd",
    "reduce_sum": "ReduceSum",
}  # fmt: skip


def _reduce(op, graph, equation, x):
    axes = [int(axis) for axis in equation.params["axes"]]
    shape, dtype = equation.outvars[0].aval.shape, str(equation.outvars[0].aval.dtype)
    if not axes:
        return x
    computed = "int64" if dtype in WRAPPED else dtype
    names = [graph.whole(graph.cast(x, computed)), graph.integers(*axes)]
    found = graph.make(op, names, shape, computed, keepdims=0)
    if computed != dtype:
        found = elementwise(graph, "Mod", [found, constant_of(np.int64(2**32))], shape, computed)
    return graph.cast(found, dtype)


def _reduce_logical(op, graph, equation, x):
    axes = graph.integers(*(int(axis) for axis in equation.params["axes"]))
    names = [graph.whole(graph.cast(x, "int32")), axes]
    shape = equation.outvars[0].aval.shape
    return graph.cast(graph.make(op, names, shape, "int32", keepdims=0), "bool")


def _arg(op, graph, equation, x):
    (axis,) = equation.params["axes"]
    shape, dtype = equation.outvars[0].aval.shape, str(equation.outvars[0].aval.dtype)
    made = graph.make(op, [graph.whole(x)], shape, "int64", axis=int(axis), keepdims=0)
    return graph.cast(made, dtype)


def _cumulative_sum(graph, equation, x):
    p = equation.params
    axis = graph.initializer(np.array(p["axis"], np.int64))
    return graph.make(
        "CumSum", [graph.whole(x), axis], x.shape, x.dtype, reverse=int(p["reverse"])
    )  # fmt: skip


def _dot(graph, equation, left, right):
    """MatMul of [batch..., rows, inner] and [batch..., inner, columns]."""
    (left_inner, right_inner), (left_batch, right_batch) = equation.params["dimension_numbers"]
    free = lambda x, *used: [axis for axis in range(len(x.shape)) if axis not in sum(used, ())]
    left_free = free(left, tuple(left_inner), tuple(left_batch))
    right_free = free(right, tuple(right_inner), tuple(right_batch))
    size = lambda x, axes: math.prod(x.shape[axis] for axis in axes)
    batch = tuple(left.shape[axis] for axis in left_batch)
    rows, columns = [left.shape[axis] for axis in left_free], [right.shape[a] for a in right_free]
    shape, dtype = equation.outvars[0].aval.shape, str(equation.outvars[0].aval.dtype)
    left, right = graph.cast(left, dtype), graph.cast(right, dtype)
    inner = size(left, left_inner)
    a = graph.transpose(left, [*left_batch, *left_free, *left_inner])
    b = graph.transpose(right, [*right_batch, *right_inner, *right_free])
    b = graph.reshape(b, (*batch, inner, math.prod(columns)))
    if batch:
        rows_as_one = [*batch, math.prod(rows), inner]
    else:  # a matrix on the right serves any number of rows
        rows_as_one = [*rows, inner] if rows else [1, inner]
    a = graph.reshape(a, rows_as_one)
    made = [*rows_as_one[:-1], math.prod(columns)]
    product = graph.make("MatMul", [graph.whole(a), graph.whole(b)], made, dtype)
    return graph.reshape(product, shape)


def _convolution(graph, equation, x, kernel):
    """Conv, which takes images as [B, C, H, W] and kernels as [out, in, H, W]."""
    p = equation.params
    numbers = p["dimension_numbers"]
    if p["batch_group_count"] != 1 or any(n != 1 for n in p["lhs_dilation"]):
        raise UnsupportedError("a transposed convolution")
    if any(n < 0 for pair in p["padding"] for n in pair):
        raise UnsupportedError("a convolution with negative padding")
    shape, dtype = equation.outvars[0].aval.shape, str(equation.outvars[0].aval.dtype)
    x = graph.transpose(graph.cast(x, dtype), numbers.lhs_spec)
    kernel = graph.transpose(graph.cast(kernel, dtype), numbers.rhs_spec)
    made = [shape[axis] for axis in numbers.out_spec]
    y = graph.make(
        "Conv", [graph.whole(x), graph.whole(kernel)], made, dtype,
        strides=list(p["window_strides"]), dilations=list(p["rhs_dilation"]),
        group=p["feature_group_count"], kernel_shape=[int(n) for n in kernel.shape[2:]],
        pads=[low for low, _ in p["padding"]] + [high for _, high in p["padding"]],
    )  # fmt: skip
    return graph.transpose(y, np.argsort(numbers.out_spec))


def _pool(graph, equation, x, sums):
    """The maximum or sum over windows along two axes."""
    p = equation.params
    window, shape = p["window_dimensions"], equation.outvars[0].aval.shape
    if any(n != 1 for n in (*p["base_dilation"], *p["window_dilation"])):
        raise UnsupportedError("pooling with gaps")
    used = [
        axis for axis, side in enumerate(window)
        if side != 1 or p["window_strides"][axis] != 1 or any(p["padding"][axis])
    ]  # fmt: skip
    others = [axis for axis in range(len(window)) if axis not in used]
    order = [*others, *used]
    moved = graph.transpose(x, order)
    flat = graph.reshape(moved, (math.prod(moved.shape[: len(others)]), 1, *_last(moved, used)))
    pads = [p["padding"][axis][side] for side in (0, 1) for axis in used]
    options = dict(
        kernel_shape=[window[axis] for axis in used], pads=pads,
        strides=[p["window_strides"][axis] for axis in used],
    )  # fmt: skip
    made = [*flat.shape[:2], *(shape[axis] for axis in used)]
    if sums:
        found = graph.make(
            "AveragePool", [graph.whole(flat)], made, x.dtype, count_include_pad=1, **options
        )  # fmt: skip
        count = constant_of(np.array(math.prod(window), x.dtype))
        found = elementwise(graph, "Mul", [found, count], made, x.dtype)
    else:
        found = graph.make("MaxPool", [graph.whole(flat)], made, x.dtype, **options)
    back = graph.reshape(found, [shape[axis] for axis in order])
    return graph.transpose(back, np.argsort(order))


def _last(value, axes):
    return value.shape[len(value.shape) - len(axes) :]


PRODUCTS: dict[str, Callable] = {
    **{name: functools.partial(_reduce, op) for name, op in REDUCTIONS.items()},
    "argmax": functools.partial(_arg, "ArgMax"), "argmin": functools.partial(_arg, "ArgMin"),
    "conv_general_dilated": _convolution, "cumsum": _cumulative_sum, "dot_general": _dot,
    "reduce_and": functools.partial(_reduce_logical, "ReduceMin"),
    "reduce_or": functools.partial(_reduce_logical, "ReduceMax"),
    "reduce_window_max": functools.partial(_pool, sums=False),
    "reduce_window_sum": functools.partial(_pool, sums=True),
}  # fmt: skip
