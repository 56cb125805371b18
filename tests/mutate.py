"""Seeded damage for the tests: to bytes, to the parts of files, and to configs.

Every function is pure: the same arguments give the same cases, so that a failure is reproducible.
"""

import copy
import io
import json
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping

import numpy as np

# ---- bytes ---------------------------------------------------------------------------------------


def damaged(content: bytes, seed: int, count: int) -> Iterator[bytes]:
    """`count` copies with one to three changes each: bits, cuts, holes, insertions, copies."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        data = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            rng.choice(CHANGES)(data, rng)
        yield bytes(data)


def _position(data, rng):
    """A random position in the data; the start, where headers are, is more likely."""
    position = int(rng.integers(len(data) + 1))
    return min(position, int(rng.integers(65))) if rng.random() < 0.3 else position


def _flip(data, rng):
    start = _position(data, rng)
    data[start : start + 1] = bytes(byte ^ int(rng.integers(1, 256)) for byte in data[start:][:1])


def _cut(data, rng):
    del data[_position(data, rng) :]


def _drop(data, rng):
    start = _position(data, rng)
    del data[start : start + int(rng.integers(1, 20))]


def _insert(data, rng):
    start = _position(data, rng)
    data[start:start] = rng.bytes(int(rng.integers(1, 9)))


def _fill(data, rng):
    """Sets four or eight bytes, the size of a length field, to an extreme value."""
    start, size = _position(data, rng), int(rng.choice([4, 8]))
    data[start : start + size] = bytes([int(rng.choice([0, 0x7F, 0x80, 0xFF]))]) * size


def _repeat(data, rng):
    start, size = _position(data, rng), int(rng.integers(1, 40))
    data[start:start] = data[start : start + size]


CHANGES = (_flip, _flip, _cut, _drop, _insert, _fill, _repeat)


# ---- formats, with optional mistakes -------------------------------------------------------------


def chunk(kind: bytes, data: bytes, checksum: int | None = None) -> bytes:
    """A chunk of a PNG file, with the correct checksum or the given one."""
    checksum = zlib.crc32(kind + data) if checksum is None else checksum
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png(width, height, rows: bytes, *, depth=8, colour=2, extra=b"", checksum=None) -> bytes:
    """A PNG file with this size in its header, and with these filtered rows."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = chunk(b"IHDR", header, checksum) + extra + chunk(b"IDAT", zlib.compress(rows, 9))
    return b"\x89PNG\r\n\x1a\n" + parts + chunk(b"IEND", b"")


def npy(data=bytes(20), descr="'|u1'", shape="(4, 5)", fortran="False", version=1, header=None):
    """A .npy file with this header, which need not match its data."""
    if header is None:
        header = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"
    length = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + length + header.encode("latin1") + data


def safetensors(header: Mapping | bytes, data=bytes(48)) -> bytes:
    """A safetensors file with this header, which need not match its data."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + data


def zipped(entries: list[tuple[str, bytes]], compression=zipfile.ZIP_STORED) -> bytes:
    """A zip file of these entries, whose names may repeat."""
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(file, "w", compression) as out:
        for name, content in entries:
            out.writestr(name, content)
    return file.getvalue()


# ---- configs -------------------------------------------------------------------------------------

BAD_VALUES = (
    -1, 0, 1, 3, 10**12, 2**31 - 1, 2**31, 10**400, -(10**5000), 1e30, 1e-30, 0.5, float("nan"),
    float("inf"), "", "x" * 10**6, "a\0b", "\ud800", "9" * 5000, "ddim" + "9" * 5000,
    "a{99999999999}", "(" * 5000, b"x", None, True, (), (0,), (0, 0), (-1, -1), (2**31, 2**31),
    (1e30, 1e30), (float("nan"), 1.0), (1,) * 40, (2,) * 4, (10**12,) * 4, ("(",), (None,),
    (10**400,), [[1]], {}, {"a": 1}, {"a/b": {}}, (1,) * 100_000,
)  # fmt: skip


def options(config: Mapping, above=()) -> Iterator[tuple[tuple[str, ...], object]]:
    """(path, value) of every option and every group of options."""
    for name, value in config.items():
        yield (*above, name), value
        if isinstance(value, Mapping):
            yield from options(value, (*above, name))


def changed(config: Mapping, path: tuple[str, ...], value) -> dict:
    """A copy of nested dicts with another value at a path."""
    config = copy.deepcopy(dict(config))
    branch = config
    for name in path[:-1]:
        branch = branch[name]
    branch[path[-1]] = value
    return config


def neighbours(value) -> tuple:
    """Values of the same type that a rule for it may allow: small, large and uneven ones."""
    match value:
        case bool():
            return (not value,)
        case int():
            return 0, 1, 2, 3, 7, 16, 1024, 16384, 65536
        case float():
            return 0.0, 1e-30, 0.01, 0.5, 0.99, 1.0, 7.3, 64.0, 1000.0
        case (int(), *_):
            sides = tuple((side,) * len(value) for side in (1, 2, 8, 1024, 16384))
            return (*sides, value[:1], value * 2, value * 5, ())
        case tuple():
            return (1.0,) * 10, (64.0,) * 3, (0.1, 0.1), (1, 2), (3, 3, 3, 3)
        case _:
            return "", "x", "ddim5", "1,1", "none", "supervised", "swin", "linear", "image"
