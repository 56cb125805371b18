"""Reading the pickles inside PyTorch files; nothing that a file contains is ever run.

A pickle is a program. The machine here knows the few instructions that put tensors, plain
containers and numbers together. Names in the file stay names: none is imported, and a name outside
the lists below ends the reading. `pickle.Unpickler` with `find_class` and `persistent_load` refuses
names as well, but it hashes any key and allocates any memo index: 2 MB of nested tuples as a key
crash the process, tuples that share their parts in 200 bytes keep it busy for hours, and a memo
index of 2**31 takes more than 8 GB.
"""

import pickletools
from dataclasses import dataclass

import ml_dtypes
import numpy as np

STORAGES = {
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}

# Names that training checkpoints hold beside the tensors; objects of them become empty stand-ins.
INERT = {f"torch.{dtype}" for dtype in (
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
    "double", "float", "half", "long", "int", "short",
)} | {
    "torch.device", "torch.Generator", "torch.torch_version.TorchVersion", "argparse.Namespace",
    "types.SimpleNamespace", "typing.Any", "collections.deque", "collections.Counter",
    "copyreg._reconstructor", "copy_reg._reconstructor", "enum.Enum",
    "numpy.dtype", "numpy.ndarray", "_codecs.encode", "__builtin__.long",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core")
      for name in ("scalar", "_reconstruct")),
    "numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer",
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in (
        "object", "int", "float", "complex", "bool", "str", "bytes", "bytearray", "list", "tuple",
        "dict", "frozenset", "slice", "range", "unicode")),
}  # fmt: skip
INERT_LIBRARIES = (  # of training programs, whose settings and logs stand beside the tensors
    "accelerate", "addict", "apex", "datetime", "deepspeed", "detectron2", "easydict", "fvcore",
    "hydra", "iopath", "lightning", "lightning_fabric", "lightning_utilities", "ml_collections",
    "mmcv", "mmengine", "omegaconf", "pathlib", "pytorch_lightning", "torch.amp", "torch.cuda.amp",
    "torch.optim", "torchmetrics", "transformers", "wandb", "yacs",
)  # fmt: skip

# No file of tensors reaches these limits; larger values would take hours or exhaust the memory.
MAX_STEPS = 2**22  # instructions of a pickle; a tensor takes about 60
MAX_AXES = 64  # axes of a tensor, as in numpy
MAX_BITS = 128  # bits of a size, stride or offset


class Refused(Exception):
    """The file asks for something that tensors never need.

    in_dict  whether that is an entry of a dictionary, not the whole content
    """

    in_dict = False


@dataclass(frozen=True)
class Storage:
    """A named run of bytes: `numel` numbers, of which those from `start` to `stop` may be used."""

    key: str
    dtype: np.dtype
    numel: int
    start: int
    stop: int


@dataclass(frozen=True)
class Tensor:
    """Which numbers of a storage a tensor consists of; offset and strides count numbers."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class _Name:
    """An allowed name. It is never looked up: only BUILDERS says what calling it would mean."""

    name: str


class _Inert:
    """Stands for an object whose content is of no interest."""


def unpickle(file) -> tuple[object, dict[str, Storage]]:
    """One pickle from a binary file (read up to its end): the value, and the storages by key.

    Raises Refused for anything but tensors, plain containers and numbers, and one of Python's own
    exceptions for wrong bytes.
    """
    machine = _Machine()
    for step, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if step > MAX_STEPS:
            raise ValueError(f"its pickle has more than {MAX_STEPS} steps")
        try:
            machine.step(opcode.name, argument)
        except Refused as error:
            error.in_dict = isinstance(machine.first(), dict)
            raise
    (value,) = machine.stack
    return value, machine.storages


def type_name(value) -> str:
    """What an error message calls the type of a value that `unpickle` returned."""
    return "tensor" if isinstance(value, Tensor) else type(value).__name__.strip("_").lower()


class _Machine:
    """Pickle's stack machine, reduced to what torch.save writes for tensors and containers."""

    def __init__(self):
        self.stack, self.outer, self.memo, self.storages = [], [], {}, {}

    def step(self, opcode: str, argument):
        """Carries out one instruction; raises Refused for one that tensors do not need."""
        stack = self.stack
        match opcode:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case (
                "NONE" | "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4"
                | "FLOAT" | "BINFLOAT" | "STRING" | "BINSTRING" | "SHORT_BINSTRING" | "UNICODE"
                | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "BINBYTES"
                | "SHORT_BINBYTES" | "BINBYTES8"
            ):  # fmt: skip
                stack.append(argument)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode == "NEWTRUE")
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_SET":
                stack.append(set())
            case "BYTEARRAY8":
                stack.append(bytes(argument))
            case "EMPTY_TUPLE":
                stack.append(())
            case "MARK":
                self.outer.append(stack)
                self.stack = []
            case "TUPLE" | "LIST":
                self._to_mark().append(tuple(stack) if opcode == "TUPLE" else stack)
            case "DICT":
                self._to_mark().append(_dict(zip(stack[::2], stack[1::2], strict=True)))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(reversed([stack.pop() for _ in range(int(opcode[-1]))])))
            case "APPEND" | "APPENDS":
                values = [stack.pop()] if opcode == "APPEND" else stack
                target = (stack if opcode == "APPEND" else self._to_mark())[-1]
                if not isinstance(target, _Inert):
                    _only(list, target).extend(values)
            case "ADDITEMS":
                _only(set, self._to_mark()[-1]).update(map(_key, stack))
            case "FROZENSET":
                self._to_mark().append(set(map(_key, stack)))
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                if not isinstance(stack[-1], _Inert):
                    _only(dict, stack[-1])[_key(key)] = value
            case "SETITEMS":
                pairs, target = zip(stack[::2], stack[1::2], strict=True), self._to_mark()[-1]
                if not isinstance(target, _Inert):
                    _only(dict, target).update(_dict(pairs))
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "POP":
                stack.pop()
            case _:
                self._build(opcode, argument)

    def _build(self, opcode, argument):
        """Carries out an instruction that names or builds an object."""
        stack = self.stack
        match opcode:
            case "GLOBAL":
                stack.append(_allowed(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_allowed(module, name))
            case "REDUCE" | "NEWOBJ" | "NEWOBJ_EX":
                if opcode == "NEWOBJ_EX":
                    _only(dict, stack.pop())
                arguments, name = stack.pop(), stack.pop()
                stack.append(_built(_only(_Name, name).name, _only(tuple, arguments)))
            case "BUILD":
                stack.pop()  # attributes of an object; no tensor has any
                if not isinstance(stack[-1], (dict, _Inert)):
                    raise Refused(f"attributes on type {type_name(stack[-1])}")
            case "BINPERSID":
                stack.append(_storage(*_only(tuple, stack.pop())))
                self.storages[stack[-1].key] = stack[-1]
            case _:
                raise Refused(f"the pickle instruction {opcode} {argument or ''}".strip())

    def first(self):
        """The value that was put on the stack first; None if there is none yet."""
        return next(iter(self.outer[0] if self.outer else self.stack), None)

    def _to_mark(self) -> list:
        """Forgets the values since the last mark and returns the stack below it."""
        self.stack = self.outer.pop()
        return self.stack


def _only(expected: type | tuple[type, ...], value):
    if not isinstance(value, expected):
        raise TypeError(f"type {type_name(value)} in the wrong position")
    return value


def _key(value):
    """A dictionary key; hashing anything deeper could exhaust the C stack.

    Classes are keys in old checkpoints of Lightning: they become their names.
    """
    return value.name if isinstance(value, _Name) else _only((str, int, float, type(None)), value)


def _dict(pairs) -> dict:
    return {_key(key): value for key, value in pairs}


def _allowed(module: str, name: str) -> _Name:
    full = f"{_only(str, module)}.{_only(str, name)}"
    full = full.replace("torch.cuda.", "torch.", 1)  # older files of tensors on a GPU
    if full not in STORAGES and full not in BUILDERS and not _is_inert(full):
        raise Refused(full)
    return _Name(full)


def _is_inert(full):
    return full in INERT or full.startswith(tuple(f"{library}." for library in INERT_LIBRARIES))


def _built(name: str, arguments: tuple):
    if _is_inert(name):
        return _Inert()
    if name not in BUILDERS:
        raise Refused(f"a call of {name}")
    return BUILDERS[name](*arguments)


def _storage(tag, kind, key, location, numel, view=None) -> Storage:
    """A storage from its persistent id; `view` (older files): (its own key, start, length)."""
    if tag != "storage" or _only(_Name, kind).name not in STORAGES:
        tag = tag if isinstance(tag, str) else type_name(tag)
        raise Refused(f"a storage of kind {tag}, {kind}")
    start, length = (0, numel) if view is None else _only(tuple, view)[1:]
    for count in (numel, start, length):
        _count(count)
    if start + length > numel:
        raise ValueError(f"storage {key} is viewed beyond its end")
    return Storage(_only(str, key), STORAGES[kind.name], numel, start, start + length)


def _count(value) -> int:
    if type(value) is not int or value < 0 or value.bit_length() > MAX_BITS:
        raise ValueError("a size, stride or offset is not a whole number from 0")
    return value


def _tensor(storage, offset, size, stride, requires_grad=False, hooks=None, bits=None) -> Tensor:
    if bits:  # PyTorch negates or conjugates such a tensor only when it is used
        raise Refused("a tensor that is a negative or conjugate view")
    if len(_only(tuple, size)) != len(_only(tuple, stride)) or len(size) > MAX_AXES:
        raise ValueError(f"a tensor has as many strides as axes, at most {MAX_AXES}")
    size, stride = tuple(map(_count, size)), tuple(map(_count, stride))
    return Tensor(_only(Storage, storage), _count(offset), size, stride)


def _parameter(tensor, *gradient) -> Tensor:
    return _only(Tensor, tensor)


def _ordered_dict(pairs=()) -> dict:
    return _dict(_only((list, tuple), pairs))


def _tuple(values=()) -> tuple:
    return tuple(_only((list, tuple), values))


def _set(values=()) -> set:
    return {_key(value) for value in _only((list, tuple), values)}


def _default_dict(*factory) -> dict:
    return {}


def _tensor_of_type(function, kind, arguments, *state) -> Tensor:
    if _only(_Name, function).name not in TENSORS:
        raise Refused(f"a tensor made by {function.name}")
    return BUILDERS[function.name](*_only(tuple, arguments))


TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
BUILDERS = {
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _tensor_of_type,
    "collections.defaultdict": _default_dict,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
    "torch.Size": _tuple,
    "collections.OrderedDict": _ordered_dict,
    "builtins.set": _set,
    "__builtin__.set": _set,
}
