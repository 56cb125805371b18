"""Whether a checkpoint still holds what was saved: sums of the bits of arrays, and a digest.

Orbax reports files that are missing and data that cannot be decoded, but it stores no checksum of
the values: with orbax 0.12, a flipped bit in the data of an array is restored without an error. The
metadata beside each checkpoint therefore holds a sum of the bits of every array, taken in memory
before orbax writes them, and a digest of itself. Both are compared with what is read.
"""

import errno
import hashlib
import json
import math
import operator
import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict as flatten

from diffseg_jax.devices import processes
from diffseg_jax.errors import UserError

FORMAT = 1  # version of the layout on disk; raised when older versions cannot read it any more
CHUNK_WORDS = 2**16  # array elements that are summed at a time


class Damaged(UserError):
    """A checkpoint that was saved completely, and of which a file is now missing, cut or changed.

    step  the step of the checkpoint
    """

    def __init__(self, directory: Path, step: int, reason: str):
        super().__init__(f"checkpoint {directory}/{step} is damaged ({reason})")
        self.step = step


# ---- arrays --------------------------------------------------------------------------------------


def fingerprints(state: Mapping) -> dict[str, dict]:
    """{path: {"shape", "dtype", "sum"}} of every array of nested dicts; paths are joined by "/".

    The sum runs modulo 2**32 over the unsigned 32-bit words of an array, each multiplied by an odd
    number that grows with its index: a change of one word always changes the sum, and a change of
    several almost always. It does not depend on how an array is split over devices. All processes
    must call this together.
    """
    leaves = {"/".join(path): leaf for path, leaf in flatten(state).items()}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        sums = np.array(list(pool.map(_local_sum, leaves.values())), np.uint32)
    local = [isinstance(leaf, np.ndarray) or leaf.is_fully_addressable for leaf in leaves.values()]
    if not all(local):
        sums = np.where(local, sums, processes.sum_over(sums))
    return {
        path: {"shape": list(np.shape(leaf)), "dtype": leaf.dtype.name, "sum": int(total)}
        for (path, leaf), total in zip(leaves.items(), sums, strict=True)
    }


def require_fingerprints(state: Mapping, known: Mapping[str, dict], directory: Path, step: int):
    """Raises Damaged unless every array of `state` has its fingerprint in `known`."""
    for path, found in fingerprints(state).items():
        if found != known[path]:
            raise Damaged(directory, step, f"the values of {dotted(path)} have changed")


def dotted(path: str) -> str:
    """The path of an array as messages show it."""
    return path.replace("/", ".")


def _local_sum(array):
    """The sum over those parts of an array of which this process holds the first replica."""
    if isinstance(array, jax.Array):
        shards = [shard for shard in array.addressable_shards if shard.replica_id == 0]
        starts = [[axis.start or 0 for axis in shard.index] for shard in shards]
        parts = [(np.asarray(shard.data), start) for shard, start in zip(shards, starts)]
    else:
        parts = [(np.asarray(array), [0] * np.ndim(array))]
    return sum(_weighted_sum(*part, np.shape(array)) for part in parts) % 2**32


def _weighted_sum(part, starts, shape):
    """The sum over the part of an array of that shape which starts at these indices."""
    size = part.dtype.itemsize
    words = np.ascontiguousarray(part).view(f"u{size}").reshape(part.shape or (1,))
    words = words ^ (words >> 32) if size == 8 else words
    strides = np.cumprod([1, *reversed(shape or (1,))])[-2::-1].astype(np.uint32)
    starts = starts or [0]
    first, *rest = (
        (np.arange(start, start + count, dtype=np.uint32) * stride).reshape(-1, *[1] * after)
        for start, count, stride, after in zip(
            starts, words.shape, strides, range(words.ndim - 1, -1, -1), strict=True
        )
    )
    row = sum(rest, np.uint32(0))  # flat index along all axes but the first
    total, rows = 0, max(1, CHUNK_WORDS // max(np.size(row), 1))
    for start in range(0, len(words), rows):
        weights = 2 * (first[start : start + rows] + row) + np.uint32(1)
        chunk = words[start : start + rows].astype(np.uint32)
        total += int(np.sum(chunk * weights, dtype=np.uint32))
    return total


# ---- metadata ------------------------------------------------------------------------------------


def with_digest(meta: dict) -> dict:
    """JSON values with a digest of themselves under the key "sha256"."""
    return {**meta, "sha256": digest(meta)}


def digest(meta: dict) -> str:
    """SHA-256 of JSON values, independent of the order of keys."""
    return hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()


def read_meta(directory: Path, step: int) -> dict:
    """The metadata of a checkpoint without its digest.

    Raises Damaged unless it is what was written, UserError for a checkpoint of another version.
    """
    try:
        meta = json.loads((directory / str(step) / "meta" / "metadata").read_text())
        _require_version(meta, directory, step)
        if meta.pop("sha256", None) != digest(meta):
            raise Damaged(directory, step, "its metadata has changed")
        for entry in meta["arrays"].values():  # a forged file may hold anything here
            jnp.dtype(entry["dtype"]), math.prod(map(operator.index, entry["shape"]))
    except UserError:
        raise
    except Exception as error:
        raise damage_of(error, directory, step) from None
    return meta


def _require_version(meta, directory, step):
    if meta.get("format", 1) > FORMAT:
        raise UserError(
            f"checkpoint {directory}/{step} has format {meta['format']}, written by version "
            f"{meta.get('version', 'unknown')}, but this version reads formats up to {FORMAT}. "
            "Install a newer diffseg_jax."
        )
    if "sha256" not in meta and "arrays" not in meta:
        raise UserError(
            f"checkpoint {directory}/{step} was written by an older version, without checksums. "
            "Train or convert again, or take a new workdir."
        )


# ---- errors in reading ---------------------------------------------------------------------------

TRANSIENT = (  # texts of errors that prevent reading and do not depend on the files
    "RESOURCE_EXHAUSTED", "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED", "INTERNAL",
    "PERMISSION_DENIED", "UNAUTHENTICATED", "Gloo", "arrier",
)  # fmt: skip
MISSING = (errno.ENOENT, errno.EISDIR, errno.ENOTDIR)
OS_CODE = re.compile(r"os_error_code=\W*(\d+)")  # how tensorstore reports the code of the system
UNDECODABLE = "See full TensorStore details"  # how orbax reports that it cannot decode an array


def read_in_all(read: Callable[[int], object], directory: Path, step: int):
    """`read(step)`, called by all processes; where it fails in one of them, it fails in all.

    Otherwise the others would wait for a process that has given up. Raises Damaged in all
    processes where the files are damaged for one of them; another error is raised where it
    occurred, and ProcessesLost in the other processes.
    """
    content = problem = None
    try:
        content = read(step)
    except Exception as error:  # orbax, tensorstore and the file system raise many types
        problem = damage_of(error, directory, step)
    severity = 0 if problem is None else 1 if isinstance(problem, Damaged) else 2
    worst = processes.maximum_over(severity)
    if problem is not None and severity == worst:
        raise problem
    if worst == 1:
        raise Damaged(directory, step, "as another process found")
    if worst == 2:
        where = f"{directory}/{step}"
        raise processes.ProcessesLost(f"another process could not read checkpoint {where}")
    return content


def damage_of(error: Exception, directory: Path, step: int) -> Exception:
    """Damaged, where an error in reading can only come from the files; else the error itself."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError):
        proven = isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError))
    elif found := OS_CODE.search(str(error)):
        proven = int(found[1]) in MISSING
    else:
        proven = not isinstance(error, (MemoryError, jax.errors.JaxRuntimeError))
        proven = proven and not any(text in str(error) for text in TRANSIENT)
    return Damaged(directory, step, reason_of(error)) if proven else error


def reason_of(error: Exception) -> str:
    """The cause of an error in one line; the file system's, where tensorstore passes it on."""
    if found := OS_CODE.search(str(error)):
        return os.strerror(int(found[1]))
    if UNDECODABLE in str(error):
        return "the files of an array cannot be decoded"
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
