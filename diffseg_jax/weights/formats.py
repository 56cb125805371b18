"""Arrays from checkpoint files of other programs: PyTorch, NumPy and safetensors."""

import functools
import io
import math
import mmap
import os
import re
import struct
import tokenize
import warnings
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from diffseg_jax.errors import UserError, choose, shortened
from diffseg_jax.storage.similar import similar_path
from diffseg_jax.weights.pickles import Refused, Tensor, type_name, unpickle
from diffseg_jax.weights.recognised import (
    HEAD,
    WEIGHTS,
    file_type,
    local_path,
    way_out,
    weight_files,
)

# Where training programs put the network, in the order in which it is looked for.
STATE_KEYS = (
    "state_dict", "model_state_dict", "model", "model_state", "module", "network", "net", "params",
)  # fmt: skip
NOT_NETWORKS = re.compile(r".*(optim|sched|scaler|rng|loss|callback|loops|hook|buffer|message).*")
MAX_DEPTH = 3  # of networks inside dictionaries
WRAPPERS = (  # what programs put before all names of a network
    "module.", "_orig_mod.", "_forward_module.", "model.", "net.", "network.", "backbone.",
    "encoder.", "ema_model.",
)  # fmt: skip
INNER_WRAPPERS = r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
COUNTERS = {"steps", "step", "n_averaged", "num_updates", "decay", "initted"}  # of averages

MAX_REPEATED = 2**26  # bytes of a tensor that repeats a smaller storage
MAX_UNPACKED = 2**30  # bytes of all compressed arrays together ...
MAX_RATIO = 100  # ... unless this many times the size of the file is more

MAX_HEADER = 100_000_000  # bytes of the names in a safetensors file, its library's own limit
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file from before PyTorch 1.6

# Exceptions that zipfile, numpy and the functions below raise when bytes are wrong.
DAMAGE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError, TypeError,
    LookupError, ArithmeticError, RuntimeError, SyntaxError, tokenize.TokenError, MemoryError,
    SafetensorError,
)  # fmt: skip


def read_arrays(path, part: str = "") -> dict[str, np.ndarray]:
    """The named arrays of a checkpoint; the content tells the format, not the suffix.

    path   PyTorch .pt/.pth (zip, or the format from before 1.6), NumPy .npz, or safetensors; the
           index of files that hold a share each, or a folder that holds one of all these
    part   which network of a training checkpoint: an entry such as "model_ema", or what the names
           of a larger network begin with, such as "backbone"; "" takes the only network, or the
           first of STATE_KEYS with a warning that names the others

    Arrays keep their dtype; bfloat16 is `ml_dtypes.bfloat16`. Those of a PyTorch file are read-only
    views of the mapped file: copy what must outlive a change of it. A number in a state dict
    becomes an array without axes. What wrappers put before every name, such as "module.", is
    dropped.

    Raises UserError for a missing, unknown, cut or altered file, and for a pickle that asks for
    anything but tensors, plain containers and numbers. Parts of a PyTorch zip file are compared
    with their checksums; the older format has none.
    """
    arrays = {}
    for file in weight_files(local_path(path, "files of weights")):
        arrays |= _read_file(file, part)
    return without_wrappers(arrays)


def naming(part: str) -> str:
    """What to type to name the part of a file."""
    return (
        f"name it: python -m diffseg_jax.convert --part={part} writes it for any use; where the "
        f"file is config.weights, --config.weights_part={part} reads it"
    )


def _read_file(path: Path, part: str) -> dict:
    with _explained(path):
        data = _mapped(path)
        tree, locate = _format(path, data)(path, data)
        arrays = _arrays(_state_dict(path, tree, part), locate)
    if not arrays:
        raise UserError(f"{path} holds no arrays. Give the file with the weights.")
    if not any(array.size for array in arrays.values()):
        raise UserError(
            f"{path} holds empty arrays only, as each part of a DeepSpeed checkpoint whose "
            "parameters are split. Join the parts with the zero_to_fp32.py beside their folder, "
            "and give the file that it writes."
        )
    return arrays


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
            f"{way_out(str(error), path, error.in_dict)}"
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
        near = similar_path(path, fits=lambda near: near.is_dir() or near.suffix in WEIGHTS)
        raise UserError(
            f"there is no file {path}. Give the path of a checkpoint.{near}"
        ) from error
    except PermissionError as error:
        raise UserError(f"{path} may not be read. Change its permissions.") from error


def _format(path: Path, data: mmap.mmap):
    """The function that reads this file, chosen by its first bytes."""
    head = data[:9]
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER:
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
    what = file_type(path, data[:HEAD], len(data))
    raise UserError(
        f"{path} is {what or 'none of the formats read here'}. Those read here are PyTorch "
        "(.pt, .pth), NumPy (.npz) and safetensors."
    )


def without_wrappers(arrays: dict) -> dict:
    """The arrays without what wrappers put before every name or inside names."""
    arrays = {re.sub(INNER_WRAPPERS, "", name): array for name, array in arrays.items()}
    names = [name for name in arrays if name not in COUNTERS]
    for wrapper in WRAPPERS:
        if names and all(name.startswith(wrapper) for name in names):
            return without_wrappers({name.removeprefix(wrapper): arrays[name] for name in names})
    return arrays


# --- formats that hold nothing but arrays ---------------------------------------------------------


def _read_npz(path: Path, data: mmap.mmap) -> tuple[dict, None]:
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
    return arrays, None


def _read_safetensors(path: Path, data: mmap.mmap) -> tuple[dict, None]:
    try:
        with safe_open(str(path), framework="numpy") as file:
            names = list(file.keys())  # `file` itself is no mapping
            return {name: file.get_tensor(name) for name in names}, None
    except AttributeError as error:  # the library looks up small floats in numpy
        raise _unread_type(path, error.name) from error
    except SafetensorError as error:
        if "Dtype not understood" not in str(error):
            raise
        raise _unread_type(path, str(error)) from error


def _unread_type(path, name):
    advice = "Give the weights from before the quantisation."
    if name.startswith("float8"):
        advice = (
            "Where PyTorch is: from safetensors.torch import load_file, save_file; save_file({name:"
            f" tensor.float() for name, tensor in load_file({str(path)!r}).items()}}, "
            "'weights.safetensors')."
        )
    return UserError(f"{path} holds numbers of a type that is not read here ({name}). {advice}")


# --- PyTorch files --------------------------------------------------------------------------------


def _is_pickle(name: str) -> bool:
    return name == "data.pkl" or (name.endswith("/data.pkl") and name.count("/") == 1)


def _read_zip(path: Path, data: mmap.mmap):
    """PyTorch 1.6 and later: ROOT/data.pkl, and one uncompressed entry ROOT/data/KEY a storage."""
    with zipfile.ZipFile(path) as file:
        entries = {entry.filename: entry for entry in file.infolist()}
    view = memoryview(data)
    pickled = next(name for name in entries if _is_pickle(name))
    root = pickled.removesuffix("data.pkl")
    if f"{root}byteorder" in entries:
        _need_little_endian(_entry(view, entries[f"{root}byteorder"]) == b"little")
    tree, _ = unpickle(io.BytesIO(_entry(view, entries[pickled])))
    return tree, functools.cache(lambda key: _entry(view, entries[f"{root}data/{key}"]))


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


def _read_legacy(path: Path, data: mmap.mmap):
    """Before PyTorch 1.6: five pickles (the fourth holds the tree), then the storages in turn."""
    first, _ = unpickle(data)
    if first != LEGACY_MAGIC:
        opened = f"pickle.load(open({str(path)!r}, 'rb'), encoding='latin1')"
        raise UserError(
            f"{path} is a pickle, but not one that torch.save wrote. "
            + (_as_npz(first, opened) or "Save the network with torch.save or numpy.savez.")
        )
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
    return tree, found.__getitem__


def _as_npz(tree, opened: str) -> str:
    """What to type if a pickle holds NumPy arrays; "" if it certainly holds none.

    opened  the expression that opens the file in its program
    """
    found = {"": tree}
    found |= {f"[{key!r}]": value for key, value in tree.items()} if isinstance(tree, dict) else {}
    for key, arrays in found.items():
        types = {type_name(value) for value in arrays.values()} if isinstance(arrays, dict) else ()
        if types == {"inert"}:
            return (
                "If it holds NumPy arrays, and you trust its source, as opening it can run code: "
                f"numpy.savez('weights.npz', **{opened}{key})."
            )
    return ""


def _need_little_endian(little: bool):
    if not little:
        raise UserError("a checkpoint from a big-endian machine cannot be read. Save it elsewhere.")


def _state_dict(path: Path, tree, part: str) -> dict:
    """The tensors of one network by name, inside what a file holds."""
    if part:
        tree = _part_of(path, tree, part)
    if not isinstance(tree, dict):
        raise UserError(
            f"{path} holds no state dict but an object of type {type_name(tree)}. "
            "Give a file with the plain state dict."
        )
    if {"state", "param_groups"} <= set(map(str, tree)):
        raise UserError(
            f"{path} holds the state of an optimizer and no network. Give the file of the network "
            "that was saved beside it."
        )
    networks = dict(_networks(tree))
    if networks and "" not in networks:
        tree = networks[_chosen(path, networks)]
    if tree and not any(isinstance(value, (Tensor, np.ndarray)) for value in tree.values()):
        names = shortened(", ".join(map(str, list(tree)[:8])), 200)
        opened = f"torch.load({str(path)!r}, weights_only=False)"
        raise UserError(
            f"{path} holds no state dict: no tensor is among its entries ({names}). "
            + (_as_npz(tree, opened) or "Give the file with the weights.")
        )
    others = [key for key in networks if key]
    kept = [name for name, value in tree.items() if _is_entry(path, name, value, others)]
    return {str(name): tree[name] for name in kept}


def _is_entry(path, name, value, networks: list[str]) -> bool:
    """Whether an entry of a state dict is a number; UserError for more than a text beside them."""
    if isinstance(value, (Tensor, np.ndarray, int, float)):
        return True
    if isinstance(value, (str, type(None))):
        return False
    listed = shortened(", ".join(networks), 200)
    part = f" Or choose one of {listed} and {naming(networks[0])}." if networks else ""
    raise UserError(
        f'{path} holds no plain state dict: its entry "{shortened(str(name), 80)}" is of type '
        f"{type_name(value)}. Give a file of tensors alone.{part}"
    )


def _networks(tree: dict, where: str = "", depth: int = 0, seen: set | None = None):
    """(dotted key, state dict) of the networks in what torch.save wrote; "" is `tree` itself.

    Every dictionary is visited once, since it can contain itself or others many times.
    """
    seen = {id(tree)} if seen is None else seen
    found = []
    for key, value in tree.items() if depth < MAX_DEPTH else ():
        is_new = isinstance(value, dict) and id(value) not in seen
        if is_new and not NOT_NETWORKS.fullmatch(shortened(str(key), 80)):
            seen.add(id(value))
            found += _networks(value, f"{where}{key}.", depth + 1, seen)
    yield from found
    has_state_key = any(key.rpartition(".")[2] in STATE_KEYS for key, _ in found)
    if not has_state_key and any(map(_is_weight, tree.values())):
        yield where[:-1], tree


def _is_weight(value):
    """Whether an entry makes a dictionary a network: a tensor of floating-point numbers."""
    dtype = value.storage.dtype if isinstance(value, Tensor) else getattr(value, "dtype", None)
    return dtype is not None and (dtype.kind == "f" or dtype == ml_dtypes.bfloat16)


def _chosen(path, networks: dict) -> str:
    """The key of the network to read; UserError where the file does not tell."""
    last = lambda key: key.rpartition(".")[2]
    usual = [key for name in STATE_KEYS for key in networks if last(key) == name]
    keys = usual or list(networks)
    if usual and len(networks) > 1:
        others = [key for key in networks if key != usual[0]]
        warnings.warn(
            f"{path} holds several networks; {usual[0]} is taken. For another one, "
            f"{naming(others[0])} ({shortened(', '.join(others), 200)})",
            stacklevel=2,
        )
    if len(keys) > 1 and not usual:
        raise UserError(
            f"{path} holds several networks: {shortened(', '.join(keys), 200)}. Choose one and "
            f"{naming(keys[0])}."
        )
    return keys[0]


def _part_of(path, tree, part: str):
    """The entry of what a file holds, or the arrays whose names begin with `part`."""
    if not isinstance(tree, dict):
        return tree
    networks = dict(_networks(tree))
    entries = {str(key): value for key, value in tree.items()} | networks
    if isinstance(entries.get(part), (dict, int)) or part in entries and "." not in part:
        return entries[part]
    flat = all(isinstance(value, np.ndarray) for value in tree.values())
    begin = f"{part}."
    for state in networks.values():
        inside = {str(name): value for name, value in state.items() if str(name).startswith(begin)}
        if inside:
            return {name.removeprefix(begin): value for name, value in inside.items()}
    if flat:
        raise UserError(
            f'{path} is flat and has no part "{part}", nor names that begin with it. Leave the '
            "part empty."
        )
    return choose({key: value for key, value in entries.items() if key}, part, f"part of {path}")


def _arrays(state: dict, locate) -> dict:
    """Arrays for the tensors of `state`; `locate(key)` gives the bytes of a storage."""
    return {
        name: _array(name, value, locate) if isinstance(value, Tensor) else _number(value)
        for name, value in state.items()
    }


def _number(value: bool | int | float | np.ndarray) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
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
