"""Folders that commands write: made when something is written, and apart from what they read."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diffseg_jax.errors import UserError
from diffseg_jax.storage.paths import make_folder


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
