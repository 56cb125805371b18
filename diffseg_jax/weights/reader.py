"""Arrays out of other people's checkpoint files; nothing that a file contains is ever run.

PyTorch files are pickles, and a pickle is a program. The machine here knows the dozen steps that
put tensors, plain containers and numbers together. Names in the file stay names: none is imported,
and every name outside the lists below ends the reading.
"""

import functools
import io
import math
import mmap
import os
import pickletools
import struct
import tokenize
import zipfile
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from diffseg_jax.errors import UserError, choose, shortened

# Where training programs put the state dict, in the order in which it is looked for.
PARTS = ("state_dict", "model_state_dict", "model")

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

# Names that training checkpoints carry beside the tensors; here they become empty stand-ins.
INERT = {f"torch.{dtype}" for dtype in (
    "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool",
    "double", "float", "half", "long", "int", "short",
)} | {"torch.device", "argparse.Namespace"} | {  # and numpy's numbers, such as a best score
    "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
    "_codecs.encode",
}

# What no file of tensors reaches, and what would take hours or more memory than there is.
MOST_STEPS = 2**22  # of a pickle; a tensor takes about 60
MOST_AXES = 64  # of a tensor, as in numpy
MOST_BITS = 128  # of a size, stride or offset
REPEATED = 2**26  # bytes that a tensor may have, if it repeats a smaller storage
UNPACKED = 2**30, 100  # bytes that compressed arrays may have in all, or times those of the file

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C      # the first pickle of a file from before PyTorch 1.6

# What zipfile, numpy and the steps below raise when bytes are wrong.
DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, TypeError,
    LookupError, ArithmeticError, RuntimeError, SyntaxError, tokenize.TokenError, MemoryError,
    SafetensorError,
)


def read_arrays(path, part: str = "") -> dict[str, np.ndarray]:
    """The named arrays of a checkpoint file; the content tells the format, not the suffix.

    path   PyTorch .pt/.pth (zip, or the format from before 1.6), NumPy .npz, or safetensors
    part   entry of a PyTorch training checkpoint that holds the state dict; "" looks for
           "state_dict", "model_state_dict", "model" in this order, also one inside another,
           and otherwise takes the file itself

    Arrays keep their dtype; bfloat16 is `ml_dtypes.bfloat16`. Those of a PyTorch file are read-only
    views of the mapped file: copy what must outlive a change of it. A number in a state dict
    becomes an array without axes. If every name starts with "module." (a network saved inside
    DataParallel), that prefix is dropped.

    Raises UserError for a missing, unknown, cut or altered file, and for a pickle that asks for
    anything but tensors, plain containers and numbers. Parts of a PyTorch zip file are compared
    with their checksums; the older format has none.
    """
    path = Path(path)
    with _explained(path):
        data = _mapped(path)
        form = _format(path, data)
        if part and form not in (_read_zip, _read_legacy):
            raise UserError(f'{path} is flat and has no part "{part}". Leave the part empty.')
        arrays = form(path, data, part)
    if not arrays:
        raise UserError(f"{path} holds no arrays.")
    return _without_wrapper(arrays)


def forget_pages(array: np.ndarray) -> None:
    """Gives back the memory of the file that an array of `read_arrays` looks into.

    The array stays as it is: what is read again comes from the file again. For an array with memory
    of its own, and where the system has no such call, nothing happens.
    """
    below = array
    while isinstance(below, (np.ndarray, memoryview)):
        below = below.base if isinstance(below, np.ndarray) else below.obj
    if isinstance(below, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        below.madvise(mmap.MADV_DONTNEED)


class _Refused(Exception):
    """The file asks for something that tensors never need."""


@contextmanager
def _explained(path: Path):
    """Turns what goes wrong while reading `path` into one sentence."""
    try:
        yield
    except UserError:
        raise
    except _Refused as error:
        raise UserError(
            f"{path} is not tensors only: it asks for {shortened(str(error), 200)}. "
            "Nothing of it was run; "
            "give a file with the plain state dict."
        ) from error
    except DAMAGE as error:
        raise UserError(
            f"{path} is damaged or cut short ({shortened(str(error), 200)}). "
            "Copy or download it again."
        ) from error


def _mapped(path: Path) -> mmap.mmap:
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UserError(f"{path} is not a file. Give the path of one checkpoint file.")
    try:
        with open(path, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise ValueError("it is empty")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}. Give the path of a checkpoint.") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder. Give the path of one checkpoint file.") from error
    except PermissionError as error:
        raise UserError(f"{path} may not be read. Change its permissions.") from error


def _format(path: Path, data: mmap.mmap):
    """The function that reads this file, chosen by its first bytes."""
    head = data[:9]
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= len(data) - 8:
        return _read_safetensors
    if head[:1] == b"\x80":
        return _read_legacy
    if head[:2] == b"PK":
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
        if len(set(names)) < len(names):
            raise ValueError("two entries have one name")
        if any(_is_pickle(name) for name in names):
            return _read_zip
        if all(name.endswith(".npy") for name in names):
            return _read_npz
    raise UserError(
        f"{path} is none of the formats read here: PyTorch (.pt, .pth), NumPy (.npz), safetensors."
    )


def _without_wrapper(arrays: dict) -> dict:
    if not all(name.startswith("module.") for name in arrays):
        return arrays
    return {name.removeprefix("module."): array for name, array in arrays.items()}


# --- formats that hold nothing but arrays ---------------------------------------------------------


def _read_npz(path: Path, data: mmap.mmap, part: str) -> dict:
    arrays = {}
    with np.load(path, allow_pickle=False) as file:
        unpacked = sum(entry.file_size for entry in file.zip.infolist())
        if unpacked > max(UNPACKED[0], UNPACKED[1] * len(data)):
            raise ValueError(f"its {len(data)} bytes would unpack to {unpacked}")
        for name in file.files:
            try:
                arrays[name] = file[name]
            except ValueError as error:
                if "allow_pickle" in str(error):      # numpy has no kind of its own for this
                    raise _Refused(f"a pickled object in {name}") from error
                raise
            if not isinstance(arrays[name], np.ndarray):
                raise ValueError(f"{name} is not an array")
    return arrays


def _read_safetensors(path: Path, data: mmap.mmap, part: str) -> dict:
    try:
        with safe_open(str(path), framework="numpy") as file:
            names = list(file.keys())                 # `file` itself is no mapping
            return {name: file.get_tensor(name) for name in names}
    except AttributeError as error:                   # how the library looks for 8-bit floats
        raise UserError(
            f"{path} holds numbers of a type that is not read here ({error}). Save it as float32."
        ) from error


# --- PyTorch files --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Storage:
    """A named run of bytes: `numel` numbers, of which those from `start` to `stop` may be used."""

    key: str
    dtype: np.dtype
    numel: int
    start: int
    stop: int


@dataclass(frozen=True)
class _Tensor:
    """Which numbers of a storage a tensor consists of; offset and strides count numbers."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _is_pickle(name: str) -> bool:
    return name == "data.pkl" or (name.endswith("/data.pkl") and name.count("/") == 1)


def _read_zip(path: Path, data: mmap.mmap, part: str) -> dict:
    """PyTorch 1.6 and later: ROOT/data.pkl, and one uncompressed entry ROOT/data/KEY a storage."""
    with zipfile.ZipFile(path) as file:
        entries = {entry.filename: entry for entry in file.infolist()}
    view = memoryview(data)
    pickled = next(name for name in entries if _is_pickle(name))
    root = pickled.removesuffix("data.pkl")
    if f"{root}byteorder" in entries:
        _need_little_endian(_entry(view, entries[f"{root}byteorder"]) == b"little")
    tree, _ = _unpickle(io.BytesIO(_entry(view, entries[pickled])))
    locate = functools.cache(lambda key: _entry(view, entries[f"{root}data/{key}"]))
    return _arrays(_state_dict(path, tree, part), locate)


def _entry(view: memoryview, entry: zipfile.ZipInfo) -> memoryview:
    """The bytes of a zip entry where they lie; a checksum of 0 means that none was written."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise ValueError(f"{entry.filename} is compressed, which torch.save never does")
    header = view[entry.header_offset:entry.header_offset + 30]
    start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))  # name, extra field
    content = view[start:start + entry.file_size]
    if len(content) != entry.file_size or (entry.CRC and zlib.crc32(content) != entry.CRC):
        raise ValueError(f"the checksum of {entry.filename} differs")
    return content


def _read_legacy(path: Path, data: mmap.mmap, part: str) -> dict:
    """Before PyTorch 1.6: five pickles (the fourth holds the tree), then the storages in turn."""
    if _unpickle(data)[0] != LEGACY_MAGIC:
        raise UserError(f"{path} is a pickle, but not one that torch.save wrote.")
    _unpickle(data)                                                     # version of the protocol
    _need_little_endian(_only(dict, _unpickle(data)[0]).get("little_endian", True))
    tree, storages = _unpickle(data)
    keys, _ = _unpickle(data)
    view, found, position = memoryview(data), {}, data.tell()
    for key in keys:
        (numel,) = struct.unpack("<q", view[position:position + 8])
        stop = position + 8 + numel * storages[key].dtype.itemsize
        if numel < 0 or stop > len(view):
            raise ValueError(f"storage {key} is incomplete")
        found[key] = view[position + 8:stop]
        position = stop
    return _arrays(_state_dict(path, tree, part), found.__getitem__)


def _need_little_endian(little: bool):
    if not little:
        raise UserError("a checkpoint from a big-endian machine cannot be read. Save it elsewhere.")


def _state_dict(path: Path, tree, part: str) -> dict:
    """The dictionary of tensors within what the pickle held."""
    if part and isinstance(tree, dict):
        tree = choose({str(key): value for key, value in tree.items()}, part, f"part of {path}")
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no state dict but an object of type {_kind(tree)}.")
    for _ in PARTS:                                 # a bound: a dictionary can contain itself
        inner = [tree[key] for key in PARTS if isinstance(tree.get(key), dict)]
        tree = inner[0] if inner else tree
    for name, value in tree.items():
        if not isinstance(name, str) or not isinstance(value, (_Tensor, int, float)):
            names = [shortened(str(name), 80) for name in (name, *list(tree)[:8])]
            raise UserError(
                f'{path} holds no state dict: its entry "{names[0]}" is of type {_kind(value)}. '
                f"Name the part that does ({', '.join(names[1:])})."
            )
    return tree


def _kind(value) -> str:
    return "tensor" if isinstance(value, _Tensor) else type(value).__name__.strip("_").lower()


def _arrays(state: dict, locate) -> dict:
    """Arrays for the tensors of `state`; `locate(key)` gives the bytes of a storage."""
    return {
        name: _array(name, value, locate) if isinstance(value, _Tensor) else _number(value)
        for name, value in state.items()
    }


def _number(value: bool | int | float) -> np.ndarray:
    return np.array(value, {bool: np.bool_, int: np.int64, float: np.float64}[type(value)])


def _array(name: str, tensor: _Tensor, locate) -> np.ndarray:
    """A read-only view of the tensor's bytes; every number of it lies inside the storage."""
    storage, itemsize = tensor.storage, tensor.storage.dtype.itemsize
    content = locate(storage.key)
    if len(content) != storage.numel * itemsize:
        raise ValueError(f"the storage of {name} has another length than announced")
    numbers = math.prod(tensor.size)
    if numbers == 0:
        return np.zeros(tensor.size, storage.dtype)
    if numbers * itemsize > max(len(content), REPEATED):
        raise ValueError(f"{name} repeats {len(content)} bytes {tensor.size} times")
    first = storage.start + tensor.offset
    axes = list(zip(tensor.size, tensor.stride, strict=True))
    last = first + sum((n - 1) * step for n, step in axes)
    if last >= storage.stop:
        raise ValueError(f"{name} points outside its storage")
    # The step along an axis of one entry means nothing and may be of any size.
    strides = [(step if n > 1 else 1) * itemsize for n, step in axes]
    return np.ndarray(tensor.size, storage.dtype, content, first * itemsize, strides)


# --- the pickle machine ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Name:
    """An allowed name. It is never looked up: only BUILDERS says what calling it would mean."""

    name: str


class _Inert:
    """Stands for an object whose content is of no interest."""


def _unpickle(file) -> tuple[object, dict[str, _Storage]]:
    """One pickle from `file` (read up to its end): the value, and the storages by key."""
    machine = _Machine()
    for step, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if step > MOST_STEPS:
            raise ValueError(f"its pickle has more than {MOST_STEPS} steps")
        machine.step(opcode.name, argument)
    (value,) = machine.stack
    return value, machine.storages


class _Machine:
    """Pickle's stack machine, reduced to what torch.save writes for tensors and containers."""

    def __init__(self):
        self.stack, self.outer, self.memo, self.storages = [], [], {}, {}

    def step(self, opcode: str, argument):
        """Carries out one instruction; raises _Refused for one that tensors do not need."""
        stack = self.stack
        match opcode:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case ("NONE" | "INT" | "BININT" | "BININT1" | "BININT2" | "LONG" | "LONG1" | "LONG4"
                  | "FLOAT" | "BINFLOAT" | "STRING" | "BINSTRING" | "SHORT_BINSTRING" | "UNICODE"
                  | "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "BINBYTES"
                  | "SHORT_BINBYTES" | "BINBYTES8"):
                stack.append(argument)
            case "NEWTRUE" | "NEWFALSE":
                stack.append(opcode == "NEWTRUE")
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_SET":
                stack.append(set())
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
                _only(list, (stack if opcode == "APPEND" else self._to_mark())[-1]).extend(values)
            case "ADDITEMS":
                _only(set, self._to_mark()[-1]).update(map(_key, stack))
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _only(dict, stack[-1])[_key(key)] = value
            case "SETITEMS":
                pairs = zip(stack[::2], stack[1::2], strict=True)
                _only(dict, self._to_mark()[-1]).update(_dict(pairs))
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "POP":
                stack.pop()
            case "GLOBAL":
                stack.append(_allowed(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_allowed(module, name))
            case "REDUCE" | "NEWOBJ":
                arguments, name = stack.pop(), stack.pop()
                stack.append(_built(_only(_Name, name).name, _only(tuple, arguments)))
            case "BUILD":
                stack.pop()                  # attributes of an object; no tensor has any
                if not isinstance(stack[-1], (dict, _Inert)):
                    raise _Refused(f"attributes on type {_kind(stack[-1])}")
            case "BINPERSID":
                stack.append(_storage(*_only(tuple, stack.pop())))
                self.storages[stack[-1].key] = stack[-1]
            case _:
                raise _Refused(f"the pickle instruction {opcode} {argument or ''}".strip())

    def _to_mark(self) -> list:
        """Forgets the values since the last mark and returns the stack below it."""
        self.stack = self.outer.pop()
        return self.stack


def _only(kind: type | tuple[type, ...], value):
    if not isinstance(value, kind):
        raise TypeError(f"type {_kind(value)} in the wrong place")
    return value


def _key(value):
    """A dictionary key; hashing anything deeper could exhaust the C stack."""
    return _only((str, int, float, type(None)), value)


def _dict(pairs) -> dict:
    return {_key(key): value for key, value in pairs}


def _allowed(module: str, name: str) -> _Name:
    full = f"{_only(str, module)}.{_only(str, name)}"
    full = full.replace("torch.cuda.", "torch.", 1)              # older files of tensors on a GPU
    if full not in STORAGES and full not in BUILDERS and full not in INERT:
        raise _Refused(full)
    return _Name(full)


def _built(name: str, arguments: tuple):
    if name in INERT:
        return _Inert()
    if name not in BUILDERS:
        raise _Refused(f"a call of {name}")
    return BUILDERS[name](*arguments)


def _storage(tag, kind, key, location, numel, view=None) -> _Storage:
    """A storage from its persistent id; `view` (older files): (its own key, start, length)."""
    if tag != "storage" or _only(_Name, kind).name not in STORAGES:
        raise _Refused(f"a storage of kind {tag if isinstance(tag, str) else _kind(tag)}, {kind}")
    start, length = (0, numel) if view is None else _only(tuple, view)[1:]
    for count in (numel, start, length):
        _count(count)
    if start + length > numel:
        raise ValueError(f"storage {key} is viewed beyond its end")
    return _Storage(_only(str, key), STORAGES[kind.name], numel, start, start + length)


def _count(value) -> int:
    if type(value) is not int or value < 0 or value.bit_length() > MOST_BITS:
        raise ValueError("a size, stride or offset is not a whole number from 0")
    return value


def _tensor(storage, offset, size, stride, *gradient) -> _Tensor:
    if len(_only(tuple, size)) != len(_only(tuple, stride)) or len(size) > MOST_AXES:
        raise ValueError(f"a tensor has as many strides as axes, at most {MOST_AXES}")
    size, stride = tuple(map(_count, size)), tuple(map(_count, stride))
    return _Tensor(_only(_Storage, storage), _count(offset), size, stride)


def _parameter(tensor, *gradient) -> _Tensor:
    return _only(_Tensor, tensor)


def _ordered_dict(pairs=()) -> dict:
    return _dict(_only((list, tuple), pairs))


def _tuple(values=()) -> tuple:
    return tuple(_only((list, tuple), values))


def _set(values=()) -> set:
    return {_key(value) for value in _only((list, tuple), values)}


BUILDERS = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
    "torch.Size": _tuple,
    "collections.OrderedDict": _ordered_dict,
    "builtins.set": _set,
    "__builtin__.set": _set,
}
