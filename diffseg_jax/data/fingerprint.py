"""Which data a stage learns from: names, classes, and a digest of the content of every file.

Sets of at most WHOLE bytes are read completely, which takes about a second. Of the files of larger
sets, size, beginning and end are read, 16 kB a file: the cost is bounded by their number, but a
change in the middle of an uncompressed file is not seen. In a bucket, one listing gives sizes and
checksums. Times are not used, as copying changes them. Colours of classes do not matter.
"""

import dataclasses
import errno
import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from diffseg_jax.data.depth_source import DepthSource
from diffseg_jax.data.folder_source import FolderSource
from diffseg_jax.data.generated_sets import GeneratedSource
from diffseg_jax.data.pipeline import Cached
from diffseg_jax.data.sources import CroppedSquares
from diffseg_jax.data.tfds import TfdsSource
from diffseg_jax.errors import UserError, counted, shortened
from diffseg_jax.storage.paths import BUCKET, in_bucket, reachable

WHOLE = 2**30  # bytes of all files up to which they are read completely
PART = 8192  # bytes read at the beginning and at the end of each file of a larger set
READ = 3  # masks of which the classes are compared, too
THREADS = 16  # a network file system answers many requests at a time
NAMED = 5  # files in one line of a message


def fingerprint(source: Sequence, indices: np.ndarray, whole: bool | None = None) -> dict:
    """What the images at some indices of a source are; JSON values.

    {"whole": bool, "classes": [names], "ids": [digests], "files": {name: digest}}, in order; "ids"
    are how the content of masks becomes classes: the table, and a few masks as they are read; of
    depth maps, how what they store becomes metres. Drawn scenes have no files: their config
    describes them.

    whole  whether files are read completely; None decides by their size
    """
    inner = source
    while isinstance(inner, (Cached, CroppedSquares)):
        inner = inner.source
    names, paths = _files(inner, indices)
    flat = list(dict.fromkeys(path for group in paths for path in group))
    with ThreadPoolExecutor(THREADS) as pool:
        if flat and in_bucket(flat[0]):
            whole, digests = bool(whole), _digests_in_bucket(flat)
        else:
            if whole is None:
                whole = sum(pool.map(_size, flat)) <= WHOLE
            found = pool.map(lambda path: _digest_of_file(path, whole), flat)
            digests = dict(zip(flat, found, strict=True))
    files = {name: "".join(digests[path] for path in group) for name, group in zip(names, paths)}
    labels = source.labels
    classes = list(labels.names if labels else source.classes)
    return {"whole": whole, "classes": classes, "ids": _ids(inner, indices), "files": files}


def digest_of_data(found: dict) -> bytes:
    """32 bytes that are the same for the same fingerprint."""
    return hashlib.sha256(json.dumps(found).encode()).digest()


def changes_of_data(old: dict, new: dict) -> list[str]:
    """A line for every way in which two fingerprints differ."""
    lines = _changed_files(old["files"], new["files"])
    # Replaced masks are read differently, too.
    if old["ids"] != new["ids"] and (not lines or old["ids"][:1] != new["ids"][:1]):
        masks = "masks are read as other classes (classes.json, or options of the data)"
        lines.append(masks if new["classes"] else "depth is read as other metres (depth.json)")
    if old["classes"] != new["classes"]:
        before, after = (", ".join(found["classes"]) for found in (old, new))
        lines.append(f"classes: {shortened(before, 200)} -> {shortened(after, 200)}")
    return lines


def _changed_files(before, after):
    shared, lines = before.keys() & after.keys(), []
    groups = {
        "removed": [name for name in before if name not in after],
        "added": [name for name in after if name not in before],
        "changed": [name for name in after if name in shared and before[name] != after[name]],
    }
    for verb, names in groups.items():
        if names:
            more = ", ..." if len(names) > NAMED else ""
            lines.append(f"{counted(len(names), 'file')} {verb}: {', '.join(names[:NAMED])}{more}")
    return lines


def _files(source, indices):
    """Names, and for each the paths of its files."""
    if isinstance(source, TfdsSource):
        files = sorted(source.files())
        return [file.rpartition("/")[2] for file in files], [(file,) for file in files]
    if isinstance(source, GeneratedSource):
        return [source.names[index] for index in indices], [source.paths[i] for i in indices]
    if isinstance(source, DepthSource):
        groups = [source.images, source.depths]
    elif isinstance(source, FolderSource):
        groups = [source.images, source.masks] if source.masks else [source.images]
    else:
        return [source.names[index] for index in indices], [()] * len(indices)
    paths = [tuple(str(group[index]) for group in groups) for index in indices]
    return [source.names[index] for index in indices], paths


def _ids(source, indices):
    """Digests of the table of ids and of some masks as classes; of depth, of the rules for it."""
    if isinstance(source, DepthSource):
        rules = repr(dataclasses.replace(source.rules, file=""))
        return [hashlib.blake2b(rules.encode(), digest_size=8).hexdigest()]
    if not isinstance(source, (FolderSource, TfdsSource, GeneratedSource)) or source.labels is None:
        return []
    some = np.unique(indices[np.linspace(0, len(indices) - 1, READ).astype(int)])
    masks = [source[int(index)]["mask"] for index in some]
    table = source.rules.table.tobytes() + repr(source.labels.unscored).encode()
    contents = [table, *(np.asarray(mask, np.int32).tobytes() for mask in masks)]
    return [hashlib.blake2b(content, digest_size=8).hexdigest() for content in contents]


def _size(path):
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise _gone(path, error) from None


def _digest_of_file(path, whole):
    """Sixteen hexadecimal digits of the size and the content of a file."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            found = hashlib.blake2b(str(size).encode(), digest_size=8)
            if whole or size <= 2 * PART:
                found.update(file.read())
            else:
                found.update(file.read(PART))
                file.seek(-PART, os.SEEK_END)
                found.update(file.read())
    except OSError as error:
        raise _gone(path, error) from None
    return found.hexdigest()


def _gone(path, error):
    return UserError(f"cannot read {path} ({error.strerror}). Restore the file, or remove it.")


def _digests_in_bucket(paths):
    """{path: size and checksum}, by one listing of their folder, which also lists other splits."""
    import fsspec

    names = {path: path.removeprefix(BUCKET) for path in paths}
    folder = os.path.commonpath([os.path.dirname(name) for name in names.values()])
    with reachable(f"{BUCKET}{folder}"):
        listed = fsspec.filesystem("gs").find(folder, detail=True)
    for path, name in names.items():
        if name not in listed:
            raise _gone(path, OSError(errno.ENOENT, os.strerror(errno.ENOENT)))
    return {path: _checksum(listed[name]) for path, name in names.items()}


def _checksum(entry):
    content = next((entry[key] for key in ("md5Hash", "crc32c", "etag") if key in entry), "")
    return f"{entry.get('size', '')}-{content} "
