"""Writes programs of jax as ONNX graphs, equation by equation.

A program is a jaxpr: what `jax.make_jaxpr` returns. Only the operations that the networks of this
package use at prediction are known; another one is an `UnsupportedError`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from diffseg_jax.onnx_writer.arrays import MOVES, reversed_along
from diffseg_jax.onnx_writer.elementwise import ELEMENTWISE
from diffseg_jax.onnx_writer.graph import (
    FOLDED,
    Graph,
    UnsupportedError,
    Value,
    as_graph,
    constant_of,
    elements,
    same,
    tensor_info,
)
from diffseg_jax.onnx_writer.products import PRODUCTS
from diffseg_jax.onnx_writer.random_numbers import fold_in, inverse_erf, random_bits

INLINED = {  # primitives that call a program, and the name of the program among their parameters
    "jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr", "checkpoint": "jaxpr",
    "remat2": "jaxpr", "custom_vjp_call_jaxpr": "fun_jaxpr", "custom_vmap_call": "call",
}  # fmt: skip


class Key(NamedTuple):
    """A random key of jax, as two words u32[...]."""

    first: Value
    second: Value


def add_function(graph: Graph, function: Callable, *inputs: Value):
    """The output of a function of jax, a tree of values."""
    avals = [jax.ShapeDtypeStruct(value.shape, value.dtype) for value in inputs]
    program, shapes = jax.make_jaxpr(function, return_shape=True)(*avals)
    return jax.tree.unflatten(jax.tree.structure(shapes), inline(graph, program, inputs))


def inline(graph: Graph, program, inputs: Sequence[Value]) -> list[Value]:
    """The outputs of a jaxpr, closed or without constants."""
    closed = hasattr(program, "consts")
    jaxpr, consts = (program.jaxpr, program.consts) if closed else (program, ())
    known = dict(zip(jaxpr.constvars, map(_as_constant, consts)))
    known |= dict(zip(jaxpr.invars, inputs, strict=True))

    def read(variable):
        if isinstance(variable, core.Literal):
            return constant_of(np.asarray(variable.val, variable.aval.dtype))
        return known[variable]

    for equation in jaxpr.eqns:
        found = _outputs(graph, equation, [read(variable) for variable in equation.invars])
        known |= dict(zip(equation.outvars, found, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _as_constant(array):
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        words = np.asarray(jax.random.key_data(array))
        return Key(constant_of(words[..., 0]), constant_of(words[..., 1]))
    return constant_of(np.asarray(array))


def _outputs(graph, equation, inputs):
    name = equation.primitive.name
    if (named := equation.params.get("name")) in NAMED:
        return NAMED[named](graph, equation, inputs)
    if name in INLINED:
        return inline(graph, equation.params[INLINED[name]], inputs)
    if name in CONTROL:
        return CONTROL[name](graph, equation, inputs)
    if any(isinstance(value, Key) for value in inputs):  # moved, word by word
        words = [[x[i] if isinstance(x, Key) else x for x in inputs] for i in (0, 1)]
        first, second = (_plain_outputs(graph, equation, each) for each in words)
        return [Key(*pair) for pair in zip(first, second)]
    return _plain_outputs(graph, equation, inputs)


def _plain_outputs(graph, equation, inputs):
    name = equation.primitive.name
    if (folded := _folded(equation, inputs)) is not None:
        return folded
    if name not in RULES:
        raise UnsupportedError(f"the operation {name} of jax")
    found = RULES[name](graph, equation, *inputs)
    return found if isinstance(found, list) else [found]


def _folded(equation, inputs):
    """The constants that an equation makes of constants; None if there are others."""
    name, avals = equation.primitive.name, [each.aval for each in equation.outvars]
    if not all(value.constant for value in inputs) or name in UNFOLDED:
        return None
    if name in ELEMENTWISE:
        arrays_in = np.broadcast_arrays(*(value.array for value in inputs))
        rank = len(avals[0].shape)
        arrays_in = [array.reshape((1,) * (rank - array.ndim) + array.shape) for array in arrays_in]
    elif sum(elements(each.shape) for each in avals) <= FOLDED:
        arrays_in = [np.broadcast_to(value.array, value.shape) for value in inputs]
    else:
        return None
    if name in NUMPY:
        found = [NUMPY[name](*arrays_in)]
    elif name in RESHAPING:
        found = [arrays_in[0].reshape(avals[0].shape)]
    else:
        found = equation.primitive.bind(*map(jnp.asarray, arrays_in), **equation.params)
        found = found if equation.primitive.multiple_results else [found]
    return [constant_of(np.asarray(array), each.shape) for array, each in zip(found, avals)]


# ---- control -----------------------------------------------------------------------------------


def _platform(graph, equation, inputs):
    """The index of the form for platforms that are not named: a file runs on any."""
    names = equation.params["platforms"]
    if None not in names:
        raise UnsupportedError(f"a function that only {names} can run")
    return [constant_of(np.int32(names.index(None)))]


def _cond(graph, equation, inputs):
    index, *rest = inputs
    if not index.constant:
        raise UnsupportedError("a branch that depends on the image")
    branches = equation.params["branches"]
    return inline(graph, branches[int(np.clip(index.array, 0, len(branches) - 1))], rest)


def _scan(graph, equation, inputs):
    p = equation.params
    consts = p["num_consts"]
    carried = consts + p["num_carry"]
    given, carry, rows = inputs[:consts], inputs[consts:carried], inputs[carried:]
    if isinstance(p["length"], int) and p["length"] == 1:
        return _one_step(graph, p, given, carry, rows, equation)
    body, step = Graph(graph), graph.fresh()
    condition, states = graph.fresh(), [graph.fresh() for _ in carry]
    index = step
    if p["reverse"]:
        last = graph.add("Sub", [graph.size(p["length"]), graph.integers(1)])
        index = body.add("Sub", [graph.add("Squeeze", [last]), step])
    held = [Value(x.shape, x.dtype, x.shape, name) for x, name in zip(carry, states)]
    taken = [
        body.make("Gather", [graph.whole(x), index], x.shape[1:], x.dtype, axis=0) for x in rows
    ]
    found = inline(body, p["jaxpr"], [*given, *held, *taken])
    outputs = [body.add("Identity", [condition])]
    outputs += [body.add("Identity", [body.whole(x)]) for x in found]
    scalars = [Value((), "int64", (), step), Value((), "bool", (), condition)]
    results = [Value(x.shape, x.dtype, x.shape, name) for x, name in zip(found, outputs[1:])]
    made = as_graph(
        body, "body", [tensor_info(value) for value in (*scalars, *held)],
        [tensor_info(value) for value in (Value((), "bool", (), outputs[0]), *results)],
    )  # fmt: skip
    count = graph.add("Squeeze", [graph.size(p["length"])])
    names = graph.add(
        "Loop", [count, "", *(graph.whole(x) for x in carry)], max(len(found), 1), body=made
    )  # fmt: skip
    names = [names] if isinstance(names, str) else names
    avals = [variable.aval for variable in equation.outvars]
    values = [Value(a.shape, str(a.dtype), a.shape, name) for a, name in zip(avals, names)]
    if not p["reverse"]:
        return values
    rows = [reversed_along(graph, x, [0]) for x in values[len(carry) :]]
    return [*values[: len(carry)], *rows]


def _one_step(graph, p, given, carry, rows, equation):
    taken = [graph.reshape(x, x.shape[1:]) for x in rows]
    found = inline(graph, p["jaxpr"], [*given, *carry, *taken])
    avals = [variable.aval for variable in equation.outvars]
    return [graph.reshape(x, aval.shape) for x, aval in zip(found, avals)]


def _scatter_add(graph, equation, inputs):
    """x with rows added at indices, which may repeat; those out of range are dropped."""
    x, _, updates = inputs
    p = equation.params
    numbers = p["dimension_numbers"]
    batch, indexed = numbers.operand_batching_dims, numbers.scatter_dims_to_operand_dims
    rest = [axis for axis in range(len(x.shape)) if axis not in (*batch, *indexed)]
    sizes = [x.shape[axis] for axis in (*batch, *indexed)]
    width = math.prod(x.shape[axis] for axis in rest)
    windows = [int(axis) for axis in numbers.update_window_dims]
    taken = [updates.shape[axis] for axis in windows]
    if p["mode"] == jax.lax.GatherScatterMode.CLIP or not same(taken, [x.shape[a] for a in rest]):
        raise UnsupportedError("a scatter-add of slices")

    def rows(indices, updates):
        of_batch = numbers.scatter_indices_batching_dims
        at = [jax.lax.broadcasted_iota(jnp.int32, indices.shape[:-1], axis) for axis in of_batch]
        at += [indices[..., i] for i in range(len(indexed))]
        row, inside = 0, True
        for each, size in zip(at, sizes, strict=True):
            inside &= (each >= 0) & (each < size)
            row = row * size + each
        ends = range(updates.ndim - len(windows), updates.ndim)
        updates = jnp.moveaxis(updates, windows, ends).reshape(-1, width)
        inside = inside.reshape(-1, 1)
        return jnp.where(inside, row.reshape(-1, 1), 0), jnp.where(inside, updates, 0)

    index, added = add_function(graph, rows, *inputs[1:])
    moved = graph.transpose(x, [*batch, *indexed, *rest])
    table = graph.reshape(moved, (math.prod(sizes), width))
    names = [graph.whole(table), graph.whole(graph.cast(index, "int64")), graph.whole(added)]
    found = graph.make("ScatterND", names, table.shape, x.dtype, reduction="add")
    found = graph.reshape(found, moved.shape)
    return [graph.transpose(found, np.argsort([*batch, *indexed, *rest]))]


def _bilinear_sums(graph, equation, inputs):
    """GridSample of the maps of every head, and sums over its points."""
    maps, locations, weights = inputs
    batch, height, width, heads, channels = maps.shape
    queries, points = locations.shape[1], locations.shape[3]

    def by_head(maps, locations):
        maps = maps.transpose(0, 3, 4, 1, 2).reshape(-1, channels, height, width)
        return maps, 2 * locations.swapaxes(1, 2).reshape(-1, queries, points, 2) - 1

    def summed(samples, weights):
        shares = weights.swapaxes(1, 2).reshape(-1, 1, queries, points)
        sums = jnp.sum(samples * shares, -1).reshape(-1, heads, channels, queries)
        return sums.transpose(0, 3, 1, 2)

    names = [graph.whole(each) for each in add_function(graph, by_head, maps, locations)]
    samples = graph.make(
        "GridSample", names, (batch * heads, channels, queries, points), maps.dtype,
        mode="bilinear", padding_mode="zeros", align_corners=0,
    )  # fmt: skip
    return [add_function(graph, summed, samples, weights)]


# ---- random numbers ----------------------------------------------------------------------------


def _seed(graph, equation, inputs):
    (seed,) = inputs
    if not seed.constant:
        raise UnsupportedError("a seed that is not given when the file is written")
    seeds = np.broadcast_to(seed.array, equation.outvars[0].aval.shape)
    return [_as_constant(equation.primitive.bind(jnp.asarray(seeds), **equation.params))]


def _fold_in(graph, equation, inputs):
    key, data = inputs
    shape = tuple(equation.outvars[0].aval.shape)
    return [Key(*add_function(graph, fold_in, *(_repeated(graph, x, shape) for x in (*key, data))))]


def _repeated(graph, value, shape):
    """The value with axes of 1 in front, still to be repeated to a shape."""
    value = graph.reshape(value, (1,) * (len(shape) - len(value.shape)) + tuple(value.shape))
    return Value(shape, value.dtype, value.held, value.name, value.array)


def _bits(graph, equation, inputs):
    p = equation.params
    if p["bit_width"] != 32:
        raise UnsupportedError(f"random numbers of {p['bit_width']} bits")
    draw = functools.partial(random_bits, shape=tuple(p["shape"]))
    return [add_function(graph, draw, *inputs[0])]


def _wrap(graph, equation, inputs):
    words = add_function(graph, lambda words: (words[..., 0], words[..., 1]), *inputs)
    return [Key(*words)]


def _unwrap(graph, equation, inputs):
    return [add_function(graph, lambda *words: jnp.stack(words, -1), *inputs[0])]


def _inverse_erf(graph, equation, inputs):
    return [add_function(graph, inverse_erf, *inputs)]


# Elementwise operations on constants that numpy computes as jax does; compiling each takes longer.
NUMPY: dict[str, Callable] = {
    "abs": np.abs, "add": np.add, "and": np.bitwise_and, "eq": np.equal, "ge": np.greater_equal,
    "gt": np.greater, "le": np.less_equal, "lt": np.less, "max": np.maximum, "min": np.minimum,
    "mul": np.multiply, "ne": np.not_equal, "neg": np.negative, "or": np.bitwise_or,
    "select_n": lambda which, *cases: np.choose(which, cases), "sqrt": np.sqrt,
    "square": np.square, "sub": np.subtract, "xor": np.bitwise_xor,
}  # fmt: skip
UNFOLDED = {"broadcast_in_dim", "dim_as_value"}
RESHAPING = {"reshape", "squeeze", "expand_dims"}
NAMED: dict[str, Callable] = {"bilinear_sums": _bilinear_sums}  # functions under jax.jit
CONTROL: dict[str, Callable] = {
    "cond": _cond, "erf_inv": _inverse_erf, "platform_index": _platform, "random_bits": _bits,
    "random_fold_in": _fold_in, "random_seed": _seed, "random_unwrap": _unwrap,
    "random_wrap": _wrap, "scan": _scan, "scatter-add": _scatter_add,
}  # fmt: skip
RULES: dict[str, Callable] = {**ELEMENTWISE, **MOVES, **PRODUCTS}
