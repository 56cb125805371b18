"""Operations on each element of arrays, as nodes: (graph, equation of a jaxpr, inputs) -> Value."""

import functools
from collections.abc import Callable

import numpy as np

from diffseg_jax.onnx_writer.graph import Graph, UnsupportedError, Value, constant_of

OPERATORS = {  # primitives of jax for which ONNX has the same operator
    "abs": "Abs", "add": "Add", "add_any": "Add", "ceil": "Ceil", "cos": "Cos", "div": "Div",
    "eq": "Equal", "erf": "Erf", "exp": "Exp", "floor": "Floor", "ge": "GreaterOrEqual",
    "gt": "Greater", "le": "LessOrEqual", "log": "Log", "logistic": "Sigmoid", "lt": "Less",
    "max": "Max", "min": "Min", "mul": "Mul", "neg": "Neg", "pow": "Pow", "sign": "Sign",
    "sin": "Sin", "sqrt": "Sqrt", "sub": "Sub", "tanh": "Tanh",
}  # fmt: skip
LOGICAL = {"and": ("And", "BitwiseAnd"), "or": ("Or", "BitwiseOr"), "xor": ("Xor", "BitwiseXor")}
SHIFTS = {"shift_left": "LEFT", "shift_right_logical": "RIGHT"}
WRAPPED = {"uint32": "int32"}  # runtimes lack arithmetic on the first, and the second has its bits


def elementwise(graph: Graph, op: str, inputs, shape, dtype: str, **attributes) -> Value:
    """The value of an operator, which repeats inputs along their dimensions of 1."""
    rank = len(shape)
    held = [1] * rank
    for value in inputs:
        for axis, size in enumerate(value.held, rank - len(value.held)):
            held[axis] = size if not isinstance(size, int) or size != 1 else held[axis]
    names = [graph.tensor(value) for value in inputs]
    return graph.make(op, names, shape, dtype, held, **attributes)


def _result(equation):
    aval = equation.outvars[0].aval
    return aval.shape, str(aval.dtype)


def _same_operator(op, graph, equation, *inputs):
    shape, dtype = _result(equation)
    if inputs[0].dtype not in WRAPPED:
        return elementwise(graph, op, inputs, shape, dtype)
    computed = WRAPPED[inputs[0].dtype] if op in ("Add", "Equal", "Mul", "Sub") else "int64"
    inputs = [graph.cast(value, computed) for value in inputs]
    made = elementwise(graph, op, inputs, shape, "bool" if dtype == "bool" else computed)
    return graph.cast(made, dtype)


def _logical(ops, graph, equation, *inputs):
    shape, dtype = _result(equation)
    return elementwise(graph, ops[dtype != "bool"], inputs, shape, dtype)


def _shift(direction, graph, equation, *inputs):
    shape, dtype = _result(equation)
    if dtype != "uint32":
        raise UnsupportedError(f"a shift of {dtype}")
    return elementwise(graph, "BitShift", inputs, shape, dtype, direction=direction)


def _not(graph, equation, x):
    return elementwise(graph, "Not" if x.dtype == "bool" else "BitwiseNot", [x], *_result(equation))


def _not_equal(graph, equation, *inputs):
    equal = elementwise(graph, "Equal", inputs, *_result(equation))
    return elementwise(graph, "Not", [equal], *_result(equation))


def chosen(graph: Graph, which: Value, yes: Value, no: Value, shape) -> Value:
    """The elements of `yes` where `which` is true, else those of `no`, of the same dtype."""
    computed = {**WRAPPED, "bool": "int32"}.get(yes.dtype, yes.dtype)
    cases = [graph.cast(case, computed) for case in (yes, no)]
    return graph.cast(elementwise(graph, "Where", [which, *cases], shape, computed), yes.dtype)


def _select(graph, equation, which, *cases):
    shape, dtype = _result(equation)
    if which.constant and which.array.size and (which.array == which.array.flat[0]).all():
        case = cases[int(which.array.flat[0])]
        return Value(shape, dtype, case.held, case.name, case.array)
    if which.dtype != "bool":
        raise UnsupportedError("a choice between more than two arrays")
    return chosen(graph, which, *cases[::-1], shape)


def _cast(graph, equation, x):
    return graph.cast(x, str(equation.params["new_dtype"]))


def _square(graph, equation, x):
    return elementwise(graph, "Mul", [x, x], *_result(equation))


def _rsqrt(graph, equation, x):
    root = elementwise(graph, "Sqrt", [x], *_result(equation))
    return elementwise(graph, "Reciprocal", [root], *_result(equation))


def _log1p(graph, equation, x):
    """log(u) x / (u - 1) with u = 1 + x, in which the rounding of u cancels; x where u is 1.

    That is Goldberg's, "What Every Computer Scientist Should Know About Floating-Point Arithmetic"
    (ACM Computing Surveys 1991), theorem 4. Far from 0, log(u), which needs no correction.
    """
    shape, dtype = _result(equation)
    make = lambda op, *inputs, to=dtype: elementwise(graph, op, inputs, shape, to)
    one = constant_of(np.array(1, x.dtype))
    u = make("Add", x, one)
    log, rounded = make("Log", u), make("Sub", u, one)
    near = make("Less", make("Abs", x), one, to="bool")
    is_one = make("Equal", u, one, to="bool")
    corrected = make("Where", is_one, x, make("Mul", log, make("Div", x, rounded)))
    return make("Where", near, corrected, log)


def _erfc(graph, equation, x):
    """1 - erf(x), within 1e-7 of the true value, which is smaller than that itself above x = 3.8.

    Enough for GELU, whose x erfc(-x / sqrt(2)) is near 0 there, and for which runtimes have a fast
    form that they find by this one.
    """
    one = constant_of(np.array(1, x.dtype))
    erf = elementwise(graph, "Erf", [x], *_result(equation))
    return elementwise(graph, "Sub", [one, erf], *_result(equation))


def _expm1(graph, equation, x):
    """2 t / (1 - t) with t = tanh(x / 2) below 1, where exp(x) - 1 loses digits, and that above."""
    shape, dtype = _result(equation)
    make = lambda op, *inputs, to=dtype: elementwise(graph, op, inputs, shape, to)
    number = lambda value: constant_of(np.array(value, x.dtype))
    t = make("Tanh", make("Mul", x, number(0.5)))
    near = make("Div", make("Mul", t, number(2)), make("Sub", number(1), t))
    far = make("Sub", make("Exp", x), number(1))
    return make("Where", make("Less", x, number(1), to="bool"), near, far)


def _integer_pow(graph, equation, x):
    power = equation.params["y"]
    shape, dtype = _result(equation)
    found = x
    for _ in range(abs(power) - 1):
        found = elementwise(graph, "Mul", [found, x], shape, dtype)
    return found if power > 0 else elementwise(graph, "Reciprocal", [found], shape, dtype)


def _remainder(graph, equation, *inputs):
    shape, dtype = _result(equation)
    computed = "int64" if dtype in WRAPPED else dtype
    inputs = [graph.cast(value, computed) for value in inputs]
    return graph.cast(elementwise(graph, "Mod", inputs, shape, computed, fmod=1), dtype)


def _clamp(graph, equation, low, x, high):
    above = elementwise(graph, "Max", [x, low], *_result(equation))
    return elementwise(graph, "Min", [above, high], *_result(equation))


def _is_finite(graph, equation, x):
    shape, dtype = _result(equation)
    wrong = [elementwise(graph, op, [x], shape, dtype) for op in ("IsNaN", "IsInf")]
    either = elementwise(graph, "Or", wrong, shape, dtype)
    return elementwise(graph, "Not", [either], shape, dtype)


def _round(graph, equation, x):
    if int(equation.params["rounding_method"]) != 1:
        raise UnsupportedError("rounding away from zero")
    return elementwise(graph, "Round", [x], *_result(equation))


def _bits_as_float(graph, equation, x):
    """The float32 of the bits of a u32 below 2^31; numbers smaller than 2^-126 become 0."""
    shape, dtype = _result(equation)
    if (x.dtype, dtype) != ("uint32", "float32"):
        raise UnsupportedError(f"the bits of {x.dtype} as {dtype}")
    bits = graph.cast(x, "int32")
    make = lambda op, *inputs, to="int32": elementwise(graph, op, inputs, shape, to)
    exponent = make("Div", bits, constant_of(np.int32(2**23)))
    mantissa = make("Sub", bits, make("Mul", exponent, constant_of(np.int32(2**23))))
    powers = np.ldexp(np.float64(1), np.arange(-127, 128)).astype(np.float32)
    powers[0] = 0
    names = [graph.initializer(powers), graph.tensor(exponent)]
    scale = graph.make("Gather", names, shape, dtype, exponent.held, axis=0)
    part = make("Mul", graph.cast(mantissa, dtype), constant_of(np.float32(2**-23)), to=dtype)
    return make("Mul", make("Add", part, constant_of(np.float32(1)), to=dtype), scale, to=dtype)


def _unchanged(graph, equation, x):
    return x


ELEMENTWISE: dict[str, Callable] = {
    **{name: functools.partial(_same_operator, op) for name, op in OPERATORS.items()},
    **{name: functools.partial(_logical, ops) for name, ops in LOGICAL.items()},
    **{name: functools.partial(_shift, direction) for name, direction in SHIFTS.items()},
    "bitcast_convert_type": _bits_as_float, "clamp": _clamp, "convert_element_type": _cast,
    "copy": _unchanged, "copy_p": _unchanged, "erfc": _erfc, "expm1": _expm1,
    "integer_pow": _integer_pow,
    "is_finite": _is_finite, "log1p": _log1p, "lt_to": functools.partial(_same_operator, "Less"),
    "ne": _not_equal, "not": _not, "optimization_barrier": _unchanged, "rem": _remainder,
    "round": _round, "rsqrt": _rsqrt, "select_n": _select, "square": _square,
    "stop_gradient": _unchanged,
}  # fmt: skip
