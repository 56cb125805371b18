"""A writer of PyTorch checkpoint files, one pickle instruction at a time."""

import math
import struct
import zipfile

import numpy as np

from diffseg_jax.weights.formats import LEGACY_MAGIC
from diffseg_jax.weights.pickles import STORAGES

TYPE_NAMES = {dtype: name.removeprefix("torch.") for name, dtype in STORAGES.items()}
WEIGHT = np.arange(12, dtype=np.float32).reshape(3, 4)


class Code(bytes):
    """Pickle instructions that leave one value on the stack."""


def name(module, attribute):
    return Code(f"c{module}\n{attribute}\n".encode())


def call(function, *arguments):
    return Code(function + code(arguments) + b"R")


def code(value):
    """The instructions that build plain containers, numbers, text and `Code` inside them."""
    match value:
        case Code():
            return value
        case None | True | False:
            return {None: b"N", True: b"\x88", False: b"\x89"}[value]
        case int():
            raw = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return b"\x8a" + bytes([len(raw)]) + raw
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            return b"X" + struct.pack("<I", len(value.encode())) + value.encode()
        case tuple():
            return b"(" + b"".join(map(code, value)) + b"t"
        case list():
            return b"](" + b"".join(map(code, value)) + b"e"
        case dict():
            return b"}(" + b"".join(code(part) for item in value.items() for part in item) + b"u"


def pickled(value):
    return b"\x80\x02" + code(value) + b"."


def tensor(storage, size, stride, offset=0):
    arguments = (storage, offset, size, stride, False, call(name("collections", "OrderedDict")))
    return call(name("torch._utils", "_rebuild_tensor_v2"), *arguments)


def storage(key, dtype, numel, *view):
    kind = name("torch", TYPE_NAMES[np.dtype(dtype)])
    return Code(code(("storage", kind, key, "cpu", numel, *view)) + b"Q")


def whole(key, array):
    """A tensor that covers storage `key` in row-major order."""
    stride = tuple(math.prod(array.shape[i + 1:]) for i in range(array.ndim))
    return tensor(storage(key, array.dtype, array.size), array.shape, stride)


def write_zip(path, tree, storages, compression=zipfile.ZIP_STORED, order=b"little"):
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("archive/data.pkl", pickled(tree))
        file.writestr("archive/byteorder", order)
        for key, array in storages.items():
            file.writestr(f"archive/data/{key}", array.tobytes())
    return path


def write_legacy(path, tree, storages):
    head = [LEGACY_MAGIC, 1001, {"little_endian": True}, tree, list(storages)]
    tail = [struct.pack("<q", array.size) + array.tobytes() for array in storages.values()]
    path.write_bytes(b"".join(map(pickled, head)) + b"".join(tail))
    return path
