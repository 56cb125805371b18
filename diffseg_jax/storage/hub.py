"""Folders of the Hugging Face Hub (hf://): downloaded once and then read from a cache; uploaded."""

import contextlib
import glob
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from diffseg_jax.errors import UserError

HUB = "hf://"  # the prefix of addresses in the Hub
FORM = f"{HUB}user/repository[/folder][@revision], such as {HUB}anna/streets/checkpoints/train@v1"
NAME = r"[A-Za-z0-9][\w.-]*"
ADDRESS = re.compile(
    rf"{HUB}(?P<repository>{NAME}/{NAME})(?:/(?P<folder>[^@]*?))?/?(?:@(?P<revision>[^@]+))?",
    re.ASCII,
)


def in_hub(path: str | os.PathLike) -> bool:
    """Whether a path is an address in the Hub, and not on this machine."""
    return str(path).startswith(HUB)


def fetch(address: str) -> Path:
    """The local copy of a model repository, or of one folder in it, downloaded if it is missing.

    address  hf://user/repository[/folder][@revision]; without a revision it is `main`

    An earlier download is checked for updates, and used unchanged if the Hub cannot be reached.
    Raises UserError for other addresses, and for repositories that do not exist, that the user may
    not read, or that cannot be reached.
    """
    repository, folder, revision = split_address(address)
    _require_package(address)
    with _sentences(address, repository, revision), _without_warnings():
        from huggingface_hub import constants, snapshot_download, utils

        page = f"{constants.ENDPOINT}/{repository}/tree/{revision}"
        patterns = [f"{glob.escape(folder)}/*"] if folder else None
        snapshot = snapshot_download(
            repository, revision=revision, allow_patterns=patterns, tqdm_class=_bars(utils.tqdm)
        )
        snapshot = Path(snapshot)
    if not (snapshot / folder).is_dir():
        what = f"no folder {folder}" if folder else "no files"
        raise UserError(
            f"{address}: repository {repository} has {what} at revision {revision}. See {page}, "
            f"and give {FORM}."
        )
    return snapshot / folder


def upload(
    address: str, files: Mapping[str, Path | bytes], is_stale: Callable[[str], bool],
    public: bool = False,
) -> str:  # fmt: skip
    """Writes files to a model repository in one commit; returns the address of its page.

    address  hf://user/repository[@revision]; the repository is created if there is none
    files    path in the repository -> a file, or its content
    is_stale path -> whether a file of an earlier upload is removed that is none of these
    public   whether a new repository can be read by all; an old one stays as it is

    Raises UserError where the login may not write there, and if the Hub cannot be reached.
    """
    repository, _, revision = split_address(address)
    _require_package(address)
    with _sentences(address, repository, revision, "uploaded"), _without_warnings():
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, errors

        api, present = HfApi(), []
        api.create_repo(repository, private=not public, exist_ok=True)
        with contextlib.suppress(errors.RevisionNotFoundError):  # no commit so far
            present = api.list_repo_files(repository, revision=revision)
        operations = [
            CommitOperationAdd(name, file if isinstance(file, bytes) else str(file))
            for name, file in files.items()
        ]
        stale = [name for name in present if name not in files and is_stale(name)]
        operations += [CommitOperationDelete(name, is_folder=False) for name in stale]
        done = api.create_commit(
            repository, operations, commit_message="Add a model of diffseg_jax", revision=revision
        )
    return str(done.repo_url)


def _require_package(address):
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError(
            f'{address} is in the Hub, which needs another package: pip install "diffseg_jax[hf]".'
        )


def split_address(address: str) -> tuple[str, str, str]:
    """(user/repository, folder in it or "", revision) of an address; UserError if invalid."""
    match = ADDRESS.fullmatch(str(address).removesuffix("/"))
    if match is None:
        raise UserError(f"{address} is not an address in the Hub. Give {FORM}.")
    folder, revision = match["folder"] or "", match["revision"] or "main"
    for part in (*(folder.split("/") if folder else ()), *revision.split("/")):
        if part in ("", ".", "..") or "\\" in part or not part.isprintable():
            raise UserError(
                f'{address}: "{part}" is not the name of a folder in a repository or of a '
                f"revision. Give {FORM}."
            )
    return match["repository"], folder, revision


@contextlib.contextmanager
def _sentences(address, repository, revision, what="fetched"):
    """Turns any error of the Hub into a UserError; what: should happen to the address."""
    try:
        yield
    except Exception as error:  # network, disk and service have no common base class
        raise UserError(f"{address}: {_why(error, repository, revision, what)}.") from None


def _why(error, repository, revision, what):
    from huggingface_hub import errors

    login = "log in by `hf auth login` (or set HF_TOKEN) with an account that may read it"
    if isinstance(error, errors.HFValidationError):
        return f"{repository} cannot be the name of a repository. Give {FORM}"
    if isinstance(error, errors.GatedRepoError):
        return f"{repository} is gated: ask its owners for access on its page, and {login}"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"there is no model repository {repository} that you may read. Correct its name or, "
            f"if it is private, {login}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{repository} has no revision {revision}, which would be a branch, a tag or a commit. "
            f"Leave it out for main, or give {FORM}"
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            "the Hub is not reachable, and no complete copy was found in the cache of this machine "
            f"({_reason(error.__cause__ or error)}). Try again with a connection, or give a path "
            "on this machine"
        )
    if what == "uploaded":
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403) or isinstance(error, errors.LocalTokenNotFoundError):
            return (
                f"your login may not write to {repository}. Log in by `hf auth login` (or set "
                "HF_TOKEN) with a token that may write, or give a repository of your own"
            )
        return f"it cannot be uploaded ({_reason(error)}). Check the connection and try again"
    return (
        f"it cannot be fetched ({_reason(error)}). Check the connection and the free disk space, "
        "and try again: complete files are not downloaded again"
    )


def _reason(error):
    """The cause of an error in one line."""
    line = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {line[:200]}" if line else type(error).__name__


def _bars(base):
    """The Hub's progress bars, which only a terminal and a notebook show."""
    hidden = not sys.stderr.isatty() and "ipykernel" not in sys.modules

    class Bars(base):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options | ({"disable": True} if hidden else {}))

    return Bars


@contextlib.contextmanager
def _without_warnings():
    """Hides the advice to log in, which open repositories do not need; errors are still raised."""
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(max(before, logging.ERROR))
    try:
        yield
    finally:
        logging.set_verbosity(before)
