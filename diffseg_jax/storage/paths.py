"""Files on this machine and in a bucket (gs://), read and written whole."""

import importlib.util
import json
import os
from contextlib import contextmanager
from pathlib import Path

from diffseg_jax.errors import UserError

BUCKET = "gs://"  # how an address in Google's object store begins


def in_bucket(path):
    """Whether a path is an address and not on this machine."""
    return str(path).startswith(BUCKET)


def open_path(path):
    """`path` as a Path on this machine, or as one of etils where it is an address, gs://....

    Raises UserError for other addresses, and where the package that reads a bucket is missing.
    """
    if "://" not in str(path):
        return Path(path)
    if not in_bucket(path) or str(path) == BUCKET:
        raise UserError(
            f"{path} is neither a path on this machine nor in a bucket of Google's, such as "
            f"{BUCKET}bucket/runs/a."
        )
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(
            f'{path} is in a bucket, which needs another package: pip install "diffseg_jax[gcs]".'
        )
    from etils import epath

    return epath.Path(path)


@contextmanager
def reachable(path):
    """`with reachable(path): ...`: what keeps an address from being reached is a UserError.

    Overload and broken connections are tried again below, by gcsfs, for about half a minute.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of network, credentials and service, which have no common base
        if not in_bucket(path):
            raise
        raise UserError(
            f"{path} cannot be reached ({type(error).__name__}: {error}). Check the address, and "
            "who you are: gcloud auth application-default login."
        ) from None


def read_bytes(path):
    """The bytes of a file on this machine or in a bucket."""
    return open_path(path).read_bytes()


def write_atomically(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file that is either the old one or the whole new one, also for who pulls the plug.

    Makes the folder where it is not there yet.
    """
    path = open_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if in_bucket(path):  # objects are only ever replaced whole
        path.write_bytes(content)
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, content) -> None:
    """Writes a JSON file that is either the old one or the new one."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def make_folder(path: str | os.PathLike):
    """Makes the folder of a flag --output; UserError when that cannot be."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{path} cannot be made ({error.strerror}). Give another --output."
        ) from None
