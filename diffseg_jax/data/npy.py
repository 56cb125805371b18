"""Arrays in .npy and .npz files, read without running code from them."""

import io
import zipfile
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np

from diffseg_jax.errors import UserError, shortened
from diffseg_jax.storage.paths import read_bytes

ARRAY_ENDINGS = (".npy", ".npz")
MAX_UNPACKED = 2**31  # bytes of the arrays that are read from a .npz
HEADER_READERS = {  # by version of the format
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def is_array(path) -> bool:
    """Whether a file is an array by its name."""
    return _ends_with(path, ARRAY_ENDINGS)


def _ends_with(path, endings):
    return str(path).rstrip().lower().endswith(endings)


def read_npy(path, what: str) -> np.ndarray:
    """The array in a .npy, or the only one in a .npz; read-only. A UserError calls it `what`."""
    try:
        content = read_bytes(path)
        is_archive = _ends_with(path, ".npz")
        return _array_from(_unpacked(content) if is_archive else content)
    except Exception as error:  # numpy raises many types on damaged files
        raise UserError(
            f"cannot read {what} {path}: {shortened(str(error), 200)}. "
            "Write it again with numpy.save."
        ) from None


def _unpacked(content: bytes) -> bytes:
    """The bytes of the .npy in a .npz of one array."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        arrays = archive.infolist()
        if len(arrays) != 1 or arrays[0].file_size > MAX_UNPACKED:
            names = ", ".join(array.filename for array in arrays)
            raise ValueError(f"it holds {names or 'nothing'}, but one array is read")
        return archive.read(arrays[0])


def names_in_npz(file: BinaryIO) -> list[str]:
    """The names of the arrays in a .npz; raises exceptions of various types for other files."""
    with zipfile.ZipFile(file) as archive:
        return list(_parts_by_name(archive))


def arrays_in_npz(file: BinaryIO, names: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays in a .npz, by name; read-only.

    names  of those that are read, and no others are unpacked; None: all

    Raises exceptions of various types for other files, and for more than MAX_UNPACKED bytes of
    arrays that are read.
    """
    with zipfile.ZipFile(file) as archive:
        parts = _parts_by_name(archive)
        parts = parts if names is None else {name: parts[name] for name in names}
        if (size := sum(part.file_size for part in parts.values())) > MAX_UNPACKED:
            raise ValueError(f"it unpacks to {size} bytes, but {MAX_UNPACKED} are allowed")
        return {name: _array_from(archive.read(part)) for name, part in parts.items()}


def shapes_in_npz(file: BinaryIO, names: Iterable[str]) -> list[tuple[tuple[int, ...], np.dtype]]:
    """The shapes and dtypes of some arrays in a .npz, whose values are not read."""
    with zipfile.ZipFile(file) as archive:
        parts, found = _parts_by_name(archive), []
        for name in names:
            with archive.open(parts[name]) as part:
                shape, _, dtype = _header(part)
                found.append((shape, dtype))
        return found


def _parts_by_name(archive):
    return {part.filename.removesuffix(".npy"): part for part in archive.infolist()}


def _array_from(content: bytes) -> np.ndarray:
    """The array in the bytes of a .npy file: a read-only view of them.

    Raises exceptions of various types for other bytes, for Python objects, and where the number of
    bytes does not match the header.
    """
    file = io.BytesIO(content)
    shape, fortran, dtype = _header(file)
    data = memoryview(content)[file.tell() :]
    if dtype.hasobject or min(shape, default=1) < 1:
        raise ValueError(f"{len(data)} bytes are not an array of {dtype} {list(shape)}")
    return np.frombuffer(data, dtype).reshape(shape, order="F" if fortran else "C")


def _header(file):
    """(shape, whether its order is Fortran's, dtype) of the .npy that a file begins with."""
    version = np.lib.format.read_magic(file)
    if version not in HEADER_READERS:
        raise ValueError(f"version {version} of the format holds no plain array")
    return HEADER_READERS[version](file)
