"""The port and the token of a page: a command that starts again has both, if the port is free.

So a tab that stayed open goes on, perhaps with strokes that the server did not get any more. On
another port there is a new token, and so there is in a folder that came from somebody else, who
knows the old one.
"""

import contextlib
import json
import os
import re
import socket
import stat
from pathlib import Path

from diffseg_jax.errors import UserError
from diffseg_jax.server.listening import bound_socket
from diffseg_jax.server.security import new_token

ADDRESS_FILE = "address.json"  # in the folder of the project; only its owner can read it
OWNER_ALONE = 0o600
NO_LINKS = os.O_NOFOLLOW if os.name == "posix" else 0


def bound_as_before(folder: Path, host: str, port: int) -> tuple[socket.socket, str]:
    """A bound socket and a token: those of the last start, where there was one.

    port  0: that of the last start, or any free one if that is taken

    On another port there is a new token: a tab that stayed open goes on asking at the old port, and
    tells the old token to whoever listens there now. Raises UserError as `bound_socket` does.
    """
    last = _last_address(folder)
    before, token = last.get("port"), last.get("token")
    is_port = type(before) is int and 1024 <= before < 2**16
    is_token = isinstance(token, str) and re.fullmatch(r"[\w-]{32,64}", token, re.ASCII)
    if is_port and is_token and port in (0, before):
        with contextlib.suppress(UserError):  # somebody else has it now
            return bound_socket(host, before), token
    return bound_socket(host, port), new_token()


def _last_address(folder):
    """What `keep_address` wrote in this folder for this user; {} for a file from elsewhere."""
    try:
        descriptor = os.open(folder / ADDRESS_FILE, os.O_RDONLY | NO_LINKS)
        with open(descriptor) as file:
            found, content = os.fstat(descriptor), json.load(file)
    except (OSError, ValueError, RecursionError):
        return {}
    is_own = os.name != "posix" or (
        found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) == OWNER_ALONE
    )
    is_here = isinstance(content, dict) and content.get("folder") == _number_of(folder)
    return content if is_own and is_here else {}


def keep_address(folder: Path, port: int, token: str):
    """Writes what `bound_as_before` reads, for the eyes of this user alone."""
    address = {"port": port, "token": token, "folder": _number_of(folder)}
    write_for_owner(folder / ADDRESS_FILE, f"{json.dumps(address)}\n")


def _number_of(folder) -> int:
    """The number by which the file system knows a folder: a copy or an archive has another one."""
    return folder.stat().st_ino


def write_for_owner(file: Path, text: str):
    """Writes a file atomically that nobody else can read."""
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    partial.unlink(missing_ok=True)
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    with open(os.open(partial, flags, OWNER_ALONE), "w", encoding="utf-8") as stream:
        stream.write(text)
    os.replace(partial, file)
