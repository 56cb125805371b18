"""Arrays from checkpoint files of other programs: PyTorch, NumPy and safetensors."""

import functools
import io
import math
import mmap
import os
import struct
import tokenize
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from diffseg_jax.errors import UserError, choose, shortened
from diffseg_jax.weights.pickles import Refused, Tensor, type_name, unpickle

# Where training programs put the state dict, in the order in which it is looked for.
STATE_KEYS = ("state_dict", "model_state_dict", "model")

MAX_REPEATED = 2**26  # bytes of a tensor that repeats a smaller storage
MAX_UNPACKED = 2**30  # bytes of all compressed arrays together ...
MAX_RATIO = 100  # ... unless this many times the size of the file is more

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file from before PyTorch 1.6

# Exceptions that zipfile, numpy and the functions below raise when bytes are wrong.
DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, TypeError,
    LookupError, ArithmeticError, RuntimeError, SyntaxError, tokenize.TokenError, MemoryError,
    SafetensorError,
)  # fmt: skip


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

    The array stays usable: its pages are read from the file again when needed. Nothing happens for
    an array that has its own memory, or where the system has no such call.
    """
    below = array
    while isinstance(below, (np.ndarray, memoryview)):
        below = below.base if isinstance(below, np.ndarray) else below.obj
    if isinstance(below, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        below.madvise(mmap.MADV_DONTNEED)


@contextmanager
def _explained(path: Path):
    """Turns what goes wrong while reading `path` into one sentence."""
    try:
        yield
    except UserError:
        raise
    except Refused as error:
        raise UserError(
            f"{path} is not tensors only: it asks for {shortened(str(error), 200)}. "
            "Nothing in it was run; give a file with the plain state dict."
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
        if unpacked > max(MAX_UNPACKED, MAX_RATIO * len(data)):
            raise ValueError(f"its {len(data)} bytes would unpack to {unpacked}")
        for name in file.files:
            try:
                arrays[name] = file[name]
            except ValueError as error:
                if "allow_pickle" in str(error):  # numpy raises a bare ValueError here
                    raise Refused(f"a pickled object in {name}") from error
                raise
            if not isinstance(arrays[name], np.ndarray):
                raise ValueError(f"{name} is not an array")
    return arrays


def _read_safetensors(path: Path, data: mmap.mmap, part: str) -> dict:
    try:
        with safe_open(str(path), framework="numpy") as file:
            names = list(file.keys())  # `file` itself is no mapping
            return {name: file.get_tensor(name) for name in names}
    except AttributeError as error:  # the library looks up 8-bit floats in numpy
        raise UserError(
            f"{path} holds numbers of a type that is not read here ({error}). Save it as float32."
        ) from error


# --- PyTorch files --------------------------------------------------------------------------------


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
    tree, _ = unpickle(io.BytesIO(_entry(view, entries[pickled])))
    locate = functools.cache(lambda key: _entry(view, entries[f"{root}data/{key}"]))
    return _arrays(_state_dict(path, tree, part), locate)


def _entry(view: memoryview, entry: zipfile.ZipInfo) -> memoryview:
    """The bytes of a zip entry where they lie; a checksum of 0 means that none was written."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise ValueError(f"{entry.filename} is compressed, which torch.save never does")
    header = view[entry.header_offset : entry.header_offset + 30]
    start = entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:30]))  # name, extra field
    content = view[start : start + entry.file_size]
    if len(content) != entry.file_size or (entry.CRC and zlib.crc32(content) != entry.CRC):
        raise ValueError(f"the checksum of {entry.filename} differs")
    return content


def _read_legacy(path: Path, data: mmap.mmap, part: str) -> dict:
    """Before PyTorch 1.6: five pickles (the fourth holds the tree), then the storages in turn."""
    if unpickle(data)[0] != LEGACY_MAGIC:
        raise UserError(f"{path} is a pickle, but not one that torch.save wrote.")
    unpickle(data)  # version of the protocol
    info, _ = unpickle(data)
    if not isinstance(info, dict):
        raise TypeError(f"type {type_name(info)} in the wrong position")
    _need_little_endian(info.get("little_endian", True))
    tree, storages = unpickle(data)
    keys, _ = unpickle(data)
    view, found, position = memoryview(data), {}, data.tell()
    for key in keys:
        (numel,) = struct.unpack("<q", view[position : position + 8])
        stop = position + 8 + numel * storages[key].dtype.itemsize
        if numel < 0 or stop > len(view):
            raise ValueError(f"storage {key} is incomplete")
        found[key] = view[position + 8 : stop]
        position = stop
    return _arrays(_state_dict(path, tree, part), found.__getitem__)


def _need_little_endian(little: bool):
    if not little:
        raise UserError("a checkpoint from a big-endian machine cannot be read. Save it elsewhere.")


def _state_dict(path: Path, tree, part: str) -> dict:
    """The dictionary of tensors inside the object that was pickled."""
    if part and isinstance(tree, dict):
        tree = choose({str(key): value for key, value in tree.items()}, part, f"part of {path}")
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no state dict but an object of type {type_name(tree)}.")
    for _ in STATE_KEYS:  # a bound, since a dictionary can contain itself
        inner = [tree[key] for key in STATE_KEYS if isinstance(tree.get(key), dict)]
        tree = inner[0] if inner else tree
    for name, value in tree.items():
        if not isinstance(name, str) or not isinstance(value, (Tensor, int, float)):
            names = [shortened(str(name), 80) for name in (name, *list(tree)[:8])]
            raise UserError(
                f'{path} holds no state dict: its entry "{names[0]}" is of type '
                f"{type_name(value)}. Name the part that does ({', '.join(names[1:])})."
            )
    return tree


def _arrays(state: dict, locate) -> dict:
    """Arrays for the tensors of `state`; `locate(key)` gives the bytes of a storage."""
    return {
        name: _array(name, value, locate) if isinstance(value, Tensor) else _number(value)
        for name, value in state.items()
    }


def _number(value: bool | int | float) -> np.ndarray:
    return np.array(value, {bool: np.bool_, int: np.int64, float: np.float64}[type(value)])


def _array(name: str, tensor: Tensor, locate) -> np.ndarray:
    """A read-only view of the tensor's bytes; every number of it lies inside the storage."""
    storage, itemsize = tensor.storage, tensor.storage.dtype.itemsize
    content = locate(storage.key)
    if len(content) != storage.numel * itemsize:
        raise ValueError(f"the storage of {name} has another length than announced")
    numbers = math.prod(tensor.size)
    if numbers == 0:
        return np.zeros(tensor.size, storage.dtype)
    if numbers * itemsize > max(len(content), MAX_REPEATED):
        raise ValueError(f"{name} repeats {len(content)} bytes {tensor.size} times")
    first = storage.start + tensor.offset
    axes = list(zip(tensor.size, tensor.stride, strict=True))
    last = first + sum((n - 1) * step for n, step in axes)
    if last >= storage.stop:
        raise ValueError(f"{name} points outside its storage")
    # The step along an axis of one entry means nothing and may be of any size.
    strides = [(step if n > 1 else 1) * itemsize for n, step in axes]
    return np.ndarray(tensor.size, storage.dtype, content, first * itemsize, strides)
