"""The port and the token of a page, which stay the same when its command is started again.

So a tab that stayed open goes on, perhaps with strokes that the server did not get any more.
"""

import os
import re
import socket
from pathlib import Path

from diffseg_jax.errors import UserError
from diffseg_jax.server.listening import bound_socket
from diffseg_jax.server.security import new_token
from diffseg_jax.storage.paths import read_object

ADDRESS_FILE = "address.json"  # in the folder of the project; only its owner can read it


def bound_as_before(folder: Path, host: str, port: int) -> tuple[socket.socket, str]:
    """A bound socket and a token: those of the last start, where there was one.

    port  0: that of the last start, or any free one if that is taken

    Raises UserError as `bound_socket` does.
    """
    last = read_object(folder / ADDRESS_FILE)
    token = last.get("token")
    if not (isinstance(token, str) and re.fullmatch(r"[\w-]{32,64}", token, re.ASCII)):
        token = new_token()
    before = last.get("port")
    if not port and type(before) is int and 1024 <= before < 2**16:
        try:
            return bound_socket(host, before), token
        except UserError:  # somebody else has it now
            pass
    return bound_socket(host, port), token


def keep_address(folder: Path, port: int, token: str):
    """Writes what `bound_as_before` reads, for the eyes of this user alone."""
    partial = folder / f".{ADDRESS_FILE}.{os.getpid()}"
    partial.unlink(missing_ok=True)
    with open(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(f'{{"port": {port}, "token": "{token}"}}\n')
    os.replace(partial, folder / ADDRESS_FILE)
