"""Operations that move elements of arrays, as nodes: (graph, equation, inputs) -> Value(s)."""

from collections.abc import Callable, Sequence

import numpy as np

from diffseg_jax.onnx_writer.elementwise import chosen, elementwise
from diffseg_jax.onnx_writer.graph import Graph, UnsupportedError, Value, constant_of, same

END = 2**31 - 1  # of a slice that goes to the last element


def _broadcast(graph, equation, x, *sizes):
    """Axes of 1 are inserted; the rest is left to the operators that read the value."""
    axes = [int(axis) for axis in equation.params["broadcast_dimensions"]]
    shape = tuple(equation.outvars[0].aval.shape)
    held = [1] * len(shape)
    for axis, size in zip(axes, x.held):
        held[axis] = size
    if x.constant:
        return constant_of(x.array.reshape(held), shape)
    inserted = [axis for axis in range(len(shape)) if axis not in axes]
    if not inserted:
        return Value(shape, x.dtype, tuple(held), x.name)
    return graph.make(
        "Unsqueeze", [x.name, graph.integers(*inserted)], shape, x.dtype, held
    )  # fmt: skip


def _reshape(graph, equation, x, *sizes):
    return graph.reshape(x, equation.outvars[0].aval.shape)


def _squeeze(graph, equation, x):
    axes = [int(axis) for axis in equation.params["dimensions"]]
    shape = equation.outvars[0].aval.shape
    held = tuple(size for axis, size in enumerate(x.held) if axis not in axes)
    if x.constant:
        return constant_of(x.array.reshape(held), shape)
    return graph.make("Squeeze", [x.name, graph.integers(*axes)], shape, x.dtype, held)


def _expand_dims(graph, equation, x):
    return graph.reshape(x, equation.outvars[0].aval.shape)


def _transpose(graph, equation, x):
    return graph.transpose(x, equation.params["permutation"])


def sliced(graph: Graph, x: Value, axis: int, start, stop, step=1, shape=None) -> Value:
    """Elements from start to stop along an axis; names of i64[1] or numbers."""
    as_name = lambda n: n if isinstance(n, str) else graph.integers(n)
    inputs = [graph.whole(x), as_name(start), as_name(stop), graph.integers(axis)]
    inputs += [graph.integers(step)] if step != 1 else []
    if shape is None:
        shape = [*x.shape[:axis], -(-(stop - start) // step), *x.shape[axis + 1 :]]
    return graph.make("Slice", inputs, shape, x.dtype)


def _slice(graph, equation, x):
    p = equation.params
    strides = p["strides"] or (1,) * len(x.shape)
    starts, stops = p["start_indices"], p["limit_indices"]
    changed = [
        axis for axis, size in enumerate(x.shape)
        if strides[axis] != 1 or not same((starts[axis], stops[axis]), (0, size))
    ]  # fmt: skip
    if not changed:
        return x
    pick = lambda values: graph.dimensions([values[axis] for axis in changed])
    inputs = [graph.whole(x), pick(starts), pick(stops), graph.integers(*changed), pick(strides)]
    return graph.make("Slice", inputs, equation.outvars[0].aval.shape, x.dtype)


def _dynamic_slice(graph, equation, x, *starts):
    return _window(graph, x, dict(enumerate(starts)), equation.params["slice_sizes"])


def _window(graph, x, starts, sizes):
    """The elements from `starts` along the axes that it names, moved inside where they are not."""
    found = x
    for axis, start in starts.items():
        size = sizes[axis]
        if same((size,), (x.shape[axis],)):
            continue
        if start.constant and isinstance(x.shape[axis], int):
            first = int(np.clip(start.array, 0, x.shape[axis] - size))
            found = sliced(graph, found, axis, first, first + size)
            continue
        last = constant_of(np.int64(x.shape[axis] - size))
        first = graph.cast(start, "int64")
        first = elementwise(graph, "Max", [first, constant_of(np.int64(0))], (), "int64")
        first = elementwise(graph, "Min", [first, last], (), "int64")
        first = graph.reshape(first, (1,)).name
        stop = graph.add("Add", [first, graph.integers(size)])
        shape = [*found.shape[:axis], size, *found.shape[axis + 1 :]]
        found = sliced(graph, found, axis, first, stop, shape=shape)
    return found


def _pad(graph, equation, x, filling):
    config = equation.params["padding_config"]
    if any(inner for _, _, inner in config):
        raise UnsupportedError("padding between elements")
    for axis, (low, high, _) in enumerate(config):
        if low < 0 or high < 0:
            cut = min(high, 0) or END
            shape = [*x.shape]
            shape[axis] += min(low, 0) + min(high, 0)
            x = sliced(graph, x, axis, -min(low, 0), cut, shape=shape)
    pads = [max(low, 0) for low, _, _ in config] + [max(high, 0) for _, high, _ in config]
    if not any(pads):
        return x
    inputs = [graph.whole(x), graph.integers(*pads), graph.whole(filling)]
    return graph.make("Pad", inputs, equation.outvars[0].aval.shape, x.dtype)


def _concatenate(graph, equation, *parts):
    axis = int(equation.params["dimension"])
    names = [graph.whole(part) for part in parts if not same((part.shape[axis],), (0,))]
    return graph.make(
        "Concat", names, equation.outvars[0].aval.shape, parts[0].dtype, axis=axis
    )  # fmt: skip


def _stack(graph, equation, *parts):
    axis = int(equation.params["axis"])
    shape = equation.outvars[0].aval.shape
    one = [*shape[:axis], 1, *shape[axis + 1 :]]
    names = [graph.whole(graph.reshape(part, one)) for part in parts]
    return graph.make("Concat", names, shape, parts[0].dtype, axis=axis)


def _split(graph, equation, x):
    sizes = graph.integers(*(int(size) for size in equation.params["sizes"]))
    count = len(equation.outvars)
    axis = int(equation.params["axis"])
    if count == 1:
        return [x]
    names = graph.add("Split", [graph.whole(x), sizes], count, axis=axis)
    shapes = [variable.aval.shape for variable in equation.outvars]
    return [Value(s, x.dtype, s, name) for s, name in zip(shapes, names)]


def _tile(graph, equation, x):
    reps = graph.integers(*(int(n) for n in equation.params["reps"]))
    return graph.make("Tile", [graph.whole(x), reps], equation.outvars[0].aval.shape, x.dtype)


def _reverse(graph, equation, x):
    return reversed_along(graph, x, [int(axis) for axis in equation.params["dimensions"]])


def reversed_along(graph: Graph, x: Value, axes: Sequence[int]) -> Value:
    """The elements in reverse order along some axes."""
    each = lambda number: graph.integers(*[number] * len(axes))
    inputs = [graph.whole(x), each(-1), each(-END), graph.integers(*axes), each(-1)]
    return graph.make("Slice", inputs, x.shape, x.dtype)


def _iota(graph, equation, *sizes):
    """Only of symbolic sizes: others are constants."""
    p, shape = equation.params, equation.outvars[0].aval.shape
    axis, dtype = int(p["dimension"]), str(np.dtype(p["dtype"]))
    held = [1] * len(shape)
    held[axis] = shape[axis]
    if isinstance(shape[axis], int):
        return constant_of(np.arange(shape[axis], dtype=dtype).reshape(held), shape)
    end = graph.add("Squeeze", [graph.size(shape[axis])])
    start, step = (graph.initializer(np.array(n, np.int64)) for n in (0, 1))
    length = shape[axis : axis + 1]
    numbers = graph.make("Range", [start, end, step], length, "int64")
    numbers = graph.reshape(graph.cast(numbers, dtype), held)
    return Value(tuple(shape), dtype, tuple(held), numbers.name)


def _gather(graph, equation, x, indices):
    """Slices at indices along some axes: `take`, `take_along_axis`, x[i, j], batched slices."""
    p = equation.params
    numbers, sizes = p["dimension_numbers"], p["slice_sizes"]
    batch = list(numbers.operand_batching_dims)
    mode = str(p["mode"]).rpartition(".")[2]
    starts = [x.shape[axis] - sizes[axis] for axis in numbers.start_index_map]
    if len(indices.shape) == 1 and (mode != "FILL_OR_DROP" or _within(indices, starts)):
        parts = [_component(graph, indices, i) for i in range(indices.shape[0])]
        found = _window(graph, x, dict(zip(numbers.start_index_map, parts)), sizes)
        return graph.reshape(found, equation.outvars[0].aval.shape)
    x = _cut(graph, x, indices, numbers.start_index_map, sizes)
    entire = [axis for axis, size in enumerate(x.shape) if same((sizes[axis],), (size,))]
    used = [i for i, axis in enumerate(numbers.start_index_map) if axis not in entire]
    indexed = [numbers.start_index_map[i] for i in used]
    rest = [axis for axis in entire if axis not in batch]
    if len(batch) + len(indexed) + len(rest) < len(x.shape) or any(sizes[a] != 1 for a in indexed):
        raise UnsupportedError("a gather of slices")
    indices = graph.cast(indices, "int32") if indices.dtype == "uint32" else indices
    indices = _components(graph, indices, used)
    limits = np.array([x.shape[axis] - 1 for axis in indexed], indices.dtype)
    inside = None
    if mode == "CLIP":
        indices = _clipped(graph, indices, limits)
    elif mode == "FILL_OR_DROP" and not _within(indices, limits):
        inside, indices = indices, _clipped(graph, indices, limits)
    found = _gathered(graph, x, indices, numbers, (batch, indexed, rest))
    found = _ordered(graph, equation, found, numbers, rest)
    return found if inside is None else _filled(graph, equation, found, inside, limits)


def _cut(graph, x, indices, axes, sizes):
    """x without what no window reaches, along axes where all windows begin at the same index."""
    for i, axis in enumerate(axes):
        if indices.constant and sizes[axis] != 1 and not same((sizes[axis],), (x.shape[axis],)):
            first = np.unique(indices.array[..., i])
            if len(first) == 1:
                start = int(np.clip(first[0], 0, x.shape[axis] - sizes[axis]))
                x = sliced(graph, x, axis, start, start + sizes[axis])
    return x


def _component(graph, indices, i):
    if indices.constant:
        return constant_of(indices.array[i % len(indices.array)])
    return graph.reshape(sliced(graph, indices, 0, i, i + 1), ())


def _components(graph, indices, used):
    """The chosen numbers of each index vector."""
    if len(used) == indices.shape[-1]:
        return indices
    shape = (*indices.shape[:-1], len(used))
    if not used:
        return constant_of(np.zeros((*[1] * len(shape[:-1]), 0), indices.dtype), shape)
    name = graph.add("Gather", [graph.whole(indices), graph.integers(*used)], axis=-1)
    return Value(shape, indices.dtype, shape, name)


def _clipped(graph, indices, limits):
    low = constant_of(np.zeros((), indices.dtype))
    above = elementwise(graph, "Max", [indices, low], indices.shape, indices.dtype)
    return elementwise(graph, "Min", [above, constant_of(limits)], indices.shape, indices.dtype)


def _within(indices, limits):
    return indices.constant and bool(np.all((indices.array >= 0) & (indices.array <= limits)))


def _gathered(graph, x, indices, numbers, axes):
    """[batch..., other axes of the indices..., rest...]"""
    batch, indexed, rest = axes
    first = list(numbers.start_indices_batching_dims)
    last = len(indices.shape) - 1
    order = [*first, *(axis for axis in range(last) if axis not in first)]
    moved = graph.transpose(indices, [*order, last])
    data = graph.transpose(x, [*batch, *indexed, *rest])
    made = [*moved.shape[:-1], *(x.shape[axis] for axis in rest)]
    if not indexed and not batch:
        data = graph.reshape(data, (*[1] * last, *data.shape))
        return Value(tuple(made), x.dtype, data.held, data.name, data.array)
    if not batch and len(indexed) == 1:
        picked = graph.reshape(moved, moved.shape[:-1])
        return graph.make("Gather", [graph.whole(data), graph.whole(picked)], made, x.dtype)
    names = [graph.whole(data), graph.whole(graph.cast(moved, "int64"))]
    return graph.make("GatherND", names, made, x.dtype, batch_dims=len(batch))


def _ordered(graph, equation, found, numbers, rest):
    """The axes of `_gathered` in the order of the result, without those that are collapsed."""
    shape = equation.outvars[0].aval.shape
    count = len(found.shape) - len(rest)  # of the axes of indices
    first = list(numbers.start_indices_batching_dims)
    order = [*first, *(axis for axis in range(count) if axis not in first)]
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    rank = len(rest) + len({*numbers.start_index_map, *numbers.operand_batching_dims} - {*rest})
    slices = dict(zip(numbers.offset_dims, (a for a in range(rank) if a not in gone)))
    sources, axes = iter(range(count)), []
    for axis in range(len(shape)):
        if axis not in slices:
            axes.append(order.index(next(sources)))
        elif slices[axis] in rest:
            axes.append(count + rest.index(slices[axis]))
    dropped = [count + i for i, axis in enumerate(rest) if axis in gone]
    return graph.reshape(graph.transpose(found, [*axes, *dropped]), shape)


def _filled(graph, equation, found, indices, limits):
    """The given value, or that of `_missing`, where an index is out of range."""
    p, shape = equation.params, found.shape
    filling = _missing(found.dtype) if p["fill_value"] is None else p["fill_value"]
    low = elementwise(
        graph, "GreaterOrEqual", [indices, constant_of(np.zeros((), indices.dtype))],
        indices.shape, "bool",
    )  # fmt: skip
    high = elementwise(graph, "LessOrEqual", [indices, constant_of(limits)], indices.shape, "bool")
    good = elementwise(graph, "And", [low, high], indices.shape, "bool")
    if indices.shape[-1] != 1:
        as_numbers = graph.whole(graph.cast(good, "int32"))
        least = graph.add("ReduceMin", [as_numbers, graph.integers(-1)], keepdims=0)
        good = graph.cast(Value(good.shape[:-1], "int32", good.shape[:-1], least), "bool")
    else:
        good = graph.reshape(good, good.shape[:-1])
    offsets = p["dimension_numbers"].offset_dims
    sizes = iter(good.shape)
    held = [1 if axis in offsets else next(sizes) for axis in range(len(shape))]
    good = graph.reshape(good, held)
    good = Value(tuple(shape), "bool", good.held, good.name, good.array)
    missing = constant_of(np.array(filling, found.dtype))
    return chosen(graph, good, found, missing, shape)


def _missing(dtype):
    """What jax takes for an index that is out of range, of a dtype."""
    if dtype == "bool" or dtype.startswith("float"):
        return True if dtype == "bool" else np.nan
    limits = np.iinfo(dtype)
    return limits.max if dtype.startswith("uint") else limits.min


def _dimension(graph, equation, *sizes):
    """A symbolic dimension as a number."""
    number = graph.add("Squeeze", [graph.size(equation.params["dim"])])
    return graph.cast(Value((), "int64", (), number), str(equation.outvars[0].aval.dtype))


MOVES: dict[str, Callable] = {
    "broadcast_in_dim": _broadcast, "concatenate": _concatenate, "dim_as_value": _dimension,
    "dynamic_slice": _dynamic_slice, "expand_dims": _expand_dims, "gather": _gather,
    "iota": _iota, "pad": _pad, "reshape": _reshape, "rev": _reverse, "slice": _slice,
    "split": _split, "squeeze": _squeeze, "stack": _stack, "tile": _tile,
    "transpose": _transpose,
}  # fmt: skip
