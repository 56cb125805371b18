"""Files on this machine and in a bucket (gs://), behind one interface.

`open_path` turns what a user typed into a path object, once; all other functions take the object.
"""

import importlib.util
import json
import os
from contextlib import contextmanager
from pathlib import Path

from diffseg_jax.errors import UserError

BUCKET = "gs://"  # the prefix of addresses in Google Cloud Storage


def in_bucket(path: str | os.PathLike) -> bool:
    """Whether a path is an address in a bucket, and not on this machine."""
    return str(path).startswith(BUCKET)


def open_path(path: str | os.PathLike) -> Path:
    """A `Path` on this machine, or an `epath.Path` of etils with its interface for gs://...

    "~/" is the home folder, which a shell does not write out in --flag=~/folder.
    Raises UserError for other addresses, and where the package that reads a bucket is missing.
    """
    if "://" not in str(path):
        return Path(path).expanduser() if str(path).startswith("~/") else Path(path)
    if not in_bucket(path) or str(path) == BUCKET:
        raise UserError(
            f"{path} is neither a path on this machine nor in a bucket of Google Cloud Storage, "
            f"such as {BUCKET}bucket/runs/a."
        )
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(
            f'{path} is in a bucket, which needs another package: pip install "diffseg_jax[gcs]".'
        )
    from etils import epath

    return epath.Path(path)


def absolute(path: Path) -> Path:
    """A path on this machine as an absolute path; an address unchanged."""
    return path if in_bucket(path) else path.absolute()


def read_bytes(path: str | os.PathLike) -> bytes:
    """The bytes of a file on this machine or in a bucket."""
    return open_path(path).read_bytes()


@contextmanager
def reachable(path: Path):
    """Within it, an error in reaching a bucket becomes a UserError.

    By then gcsfs has repeated the failed request for about half a minute.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # network, credentials and service have no common base class
        if not in_bucket(path):
            raise
        raise UserError(
            f"{path} cannot be reached ({type(error).__name__}: {error}). Check the address and "
            "your login: gcloud auth application-default login."
        ) from None


def write_atomically(path: Path, content: bytes, sync: bool = True) -> None:
    """Writes a file so that at any time either the old or the new content is there completely.

    Creates the folder if it is missing.

    sync  whether that holds also when the machine fails, for which it waits until the disk is done
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if in_bucket(path):  # the storage replaces an object atomically
        path.write_bytes(content)
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, content) -> None:
    """Writes a JSON file atomically."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def read_object(path: Path) -> dict:
    """The object in a JSON file; {} if there is none that can be read."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def make_folder(path: Path):
    """Creates the folder given by --output; raises UserError if that fails."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path} cannot be created ({error.strerror or error}). Give another --output."
        ) from None
