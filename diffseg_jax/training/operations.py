"""Matrix products of a traced program, and what its gradient keeps, on accelerators.

Both are read from the jaxpr, before a compiler for some device has changed it. Where a layer has
several programs, the one for TPUs counts, else the one for GPUs, else the one for all other
devices. Loops count as often as they run.
"""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from diffseg_jax.devices.accelerators import EXACT_FLOAT32

COUNTED_PLATFORMS = "tpu", "cuda"  # the first for which a layer has a program; else its default


@dataclasses.dataclass
class Products:
    """Matrix products and convolutions.

    operations  dtype, or EXACT_FLOAT32 for float32 of the highest precision -> FLOP, 2 for a
                product and its sum; those with padding count, those with zeros between values do
                not
    bytes       that they read and write if each does so in memory; a compiler that fuses two of
                them, as in attention, moves less
    """

    operations: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    bytes: float = 0.0

    def add(self, other: "Products", times: float = 1):
        """Adds those of another program that runs so many times."""
        for dtype, count in other.operations.items():
            self.operations[dtype] += count * times
        self.bytes += other.bytes * times

    @property
    def total(self) -> float:
        """FLOP of all dtypes."""
        return sum(self.operations.values())


def products_of(jaxpr: Jaxpr) -> Products:
    """The products of one run: of branches those with the most, of loops of unknown length one."""
    found = Products()
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name in ("dot_general", "conv_general_dilated"):
            found.operations[_dtype(equation)] += _operations(equation)
            found.bytes += sum(map(_bytes, (*equation.invars, *equation.outvars)))
        elif name == "cond":
            branches = [products_of(branch.jaxpr) for branch in _branches(params)]
            found.add(max(branches, key=lambda branch: branch.total))
        else:
            times = params["length"] if name == "scan" else 1
            times = params["mesh"].size if name == "shard_map" else times
            for inner in _inner(params.values()):
                found.add(products_of(inner), times)
    return found


def activation_bytes(loss: Callable, params: dict, *others) -> int:
    """Bytes that stay in memory from the forward to the backward half of a gradient.

    loss    (params, *others) -> loss, other results; the gradient is that of the parameters
    params  their shapes;  others  shapes of the rest, such as the batch

    What is given does not count. As jax keeps them: a compiler may compute some again.
    """

    def backward(params, *others):
        return jax.vjp(lambda params: loss(params, *others), params, has_aux=True)[1]

    jaxpr = jax.make_jaxpr(backward)(params, *others).jaxpr
    given = {*jaxpr.invars, *jaxpr.constvars, None}
    origins = _origins(jaxpr)
    kept = {origins.get(var, var) for var in jaxpr.outvars if not isinstance(var, Literal)}
    return sum(map(_bytes, kept - given))


def _origins(jaxpr) -> dict:
    """Variable -> the one that holds its value first, or None if it has no content.

    A gradient keeps the values of all programs of a layer: each hands on what it was given, and
    leaves empty what only the others keep.
    """
    origins = {}
    for equation in jaxpr.eqns:
        for out, source in zip(equation.outvars, _sources(equation, origins)):
            origins[out] = origins.get(source, source)
    return origins


def _sources(equation, origins):
    """For each output of an equation itself, an input or output of the same value, or None."""
    name, params, outs = equation.primitive.name, equation.params, equation.outvars
    inputs = equation.invars
    if name in ("empty2", "platform_index"):
        return [None]
    if name == "broadcast_in_dim" and not isinstance(inputs[0], Literal):
        return [None] if origins.get(inputs[0], inputs[0]) is None else outs
    if params.get("branches_platforms"):
        (inner,), inputs = _branches(params), inputs[1:]
    elif name in ("jit", "scan"):
        inner = params["jaxpr"]
    else:
        return outs
    summed = params["num_carry"] if name == "scan" else 0  # outputs of a loop that are not stacked
    single = params["num_consts"] + summed if name == "scan" else 0  # inputs of it
    inside, known = _origins(inner.jaxpr), {None: None}
    for index, (value, given) in enumerate(zip(inner.jaxpr.invars, inputs)):
        if isinstance(given, Literal):
            continue
        if origins.get(given, given) is None:
            known[value] = None
        elif index >= single:
            known[value] = given
    values = zip(outs[summed:], inner.jaxpr.outvars[summed:])
    return outs[:summed] + [
        out if isinstance(value, Literal) else known.setdefault(inside.get(value, value), out)
        for out, value in values
    ]


def _bytes(var):
    aval = var.aval
    return math.prod(aval.shape) * getattr(aval.dtype, "itemsize", 0)


def _dtype(equation):
    dtype, precision = str(equation.invars[0].aval.dtype), equation.params["precision"]
    highest = precision is not None and "HIGHEST" in str(precision)
    return EXACT_FLOAT32 if highest and dtype == "float32" else dtype


def _operations(equation) -> float:
    left, right = (var.aval.shape for var in equation.invars)
    outputs = math.prod(equation.outvars[0].aval.shape)
    numbers = equation.params["dimension_numbers"]
    if equation.primitive.name == "dot_general":
        return 2 * outputs * math.prod(left[axis] for axis in numbers[0][0])
    _, inputs, *sides = numbers.rhs_spec
    summed = right[inputs] * math.prod(right[side] for side in sides)
    return 2 * outputs * summed / math.prod(equation.params["lhs_dilation"])


def _branches(params):
    """The branches of a choice; of one between platforms, the one that counts."""
    branches, platforms = params["branches"], params.get("branches_platforms")
    if platforms is None:
        return branches
    for wanted in COUNTED_PLATFORMS:
        for branch, given in zip(branches, platforms):
            if given is not None and wanted in given:
                return [branch]
    return [branches[platforms.index(None)]] if None in platforms else branches[:1]


def _inner(values) -> Iterator[Jaxpr]:
    for value in values:
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _inner(value)
