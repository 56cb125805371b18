"""Reading pickles of plain containers, numbers, text and numpy arrays; nothing in them is run.

Lists of samples that programs in numpy prepare, such as those of BEVFusion, are such pickles. The
machine of `weights.pickles` carries them out; here names of numpy mean arrays, not nothing.
"""

import pickletools

import numpy as np

from diffseg_jax.weights.pickles import Refused, _Machine, _Name

MAX_LIST_STEPS = 2**28  # instructions; a sample of nuScenes takes about 1,500
KINDS = "biufU"  # of numpy's dtypes: whole numbers, floats and text
BYTES = ("__builtin__.bytes", "builtins.bytes")  # called without arguments by protocol 2: b""
CORES = ("numpy.core", "numpy._core")
RECONSTRUCT = tuple(f"{core}.multiarray._reconstruct" for core in CORES)
FROM_BUFFER = tuple(f"{core}.numeric._frombuffer" for core in CORES)
SCALARS = tuple(f"{core}.multiarray.scalar" for core in CORES)


def unpickle_arrays(file):
    """The value of one pickle from a binary file: containers, numbers, text and arrays.

    Tuples become lists.

    Raises Refused for anything else, and one of Python's own exceptions for wrong bytes.
    """
    machine = _ArrayMachine()
    for step, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if step > MAX_LIST_STEPS:
            raise ValueError(f"its pickle has more than {MAX_LIST_STEPS} steps")
        machine.step(opcode.name, argument)
    (value,) = machine.stack
    return _plain(value)


class _Given:
    """A dtype, or an array whose content comes with the next instruction BUILD."""

    def __init__(self, dtype=None):
        self.dtype, self.is_dtype, self.array = dtype, dtype is not None, None


class _ArrayMachine(_Machine):
    """The machine of `weights.pickles` with numpy's arrays."""

    def _build(self, opcode, argument):
        stack = self.stack
        if opcode == "REDUCE" and isinstance(stack[-2], _Name):
            made = _made(stack[-2].name, stack[-1])
            if made is not None:
                del stack[-2:]
                stack.append(made)
                return
        if opcode == "BUILD" and isinstance(stack[-2], _Given):
            _fill(stack[-2], stack.pop())
            return
        super()._build(opcode, argument)


def _made(name, arguments):
    """What a call of numpy means, or None for another call."""
    if name == "_codecs.encode":
        text, encoding = arguments
        if encoding not in ("latin1", "latin-1"):
            raise Refused(f"text encoded as {encoding}")
        return text.encode("latin1")
    if name in BYTES and not arguments:
        return b""
    if name == "numpy.dtype":
        return _Given(_dtype(arguments[0]))
    if name in RECONSTRUCT:
        return _Given()
    if name in FROM_BUFFER:
        raw, given, shape, order = arguments
        made = _Given()
        made.array = np.frombuffer(_bytes(raw), given.dtype).reshape(shape, order=order)
        return made
    if name in SCALARS:
        given, raw = arguments
        return np.frombuffer(_bytes(raw), given.dtype, 1)[0].item()
    return None


def _dtype(text):
    dtype = np.dtype(str(text)) if len(str(text)) < 16 else np.dtype(object)
    if dtype.kind not in KINDS:
        raise Refused(f"an array of dtype {str(text)[:16]}")
    return dtype


def _bytes(value):
    if not isinstance(value, bytes):
        raise TypeError("an array without its bytes")
    return value


def _fill(given, state):
    """Carries out BUILD: byte order of a dtype, or shape, dtype and bytes of an array."""
    if given.is_dtype:
        order = state[1]
        given.dtype = given.dtype.newbyteorder(order if order in ("<", ">") else "=")
        return
    _, shape, of_array, fortran, raw = state
    order = "F" if fortran else "C"
    given.array = np.frombuffer(_bytes(raw), of_array.dtype).reshape(shape, order=order)


def _plain(value):
    """The value with arrays in place of what stood for them, however deep they lie."""
    holder, seen = [value], set()
    waiting = [holder]
    while waiting:
        container = waiting.pop()
        items = container.items() if isinstance(container, dict) else enumerate(container)
        for key, each in list(items):
            if isinstance(each, _Given):
                container[key] = each.array
            elif isinstance(each, tuple) and each:
                container[key] = each = list(each)
            if isinstance(each, (dict, list)) and id(each) not in seen:
                seen.add(id(each))
                waiting.append(each)
    return holder[0]
