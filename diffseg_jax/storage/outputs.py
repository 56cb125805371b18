"""Folders that commands write: on which machine, made when needed, and apart from what is read."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diffseg_jax.errors import UserError
from diffseg_jax.storage.paths import make_folder, open_path


def open_local(path: str, flag: str, example: str) -> Path:
    """A path on this machine; UserError for an address, where a command writes to disks only.

    flag, example  the flag of the command, and a value that is allowed
    """
    if "://" in path:
        raise UserError(
            f"{flag} is {path}, but this command writes to a folder of this machine. Give one, "
            f"such as {flag}={example}."
        )
    return open_path(path)


@contextmanager
def made_folder(folder: Path) -> Iterator[Path]:
    """Makes a folder, and removes it and its parents again where nothing was written into them."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    make_folder(folder)
    try:
        yield folder
    finally:
        with suppress(OSError):  # it is not empty
            for each in made:
                each.rmdir()


def require_outside(output: Path, folder: Path, flag: str, mistaken: str):
    """Raises UserError for an output in a folder that a command reads; links are followed.

    flag      of the folder
    mistaken  what the next command would take for what, if it read the output too
    """
    if output.resolve().is_relative_to(folder.resolve()):
        raise UserError(
            f"--output={output} lies in --{flag}={folder}, so the next command would take "
            f"{mistaken}. Give another folder."
        )
