"""Binds a port and serves an application until Ctrl-C or SIGTERM."""

import errno
import math
import signal
import socket
from collections.abc import Callable

import uvicorn

from diffseg_jax.errors import UserError


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that is bound to the address, with port 0 to any free port.

    Raises UserError for an address that is not of this machine, and for a port that is taken.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, UnicodeError) as error:
        number = error.errno if isinstance(error, OSError) else 0
        if number == errno.EADDRINUSE:
            sentence = f"port {port} of {host} is taken. Try --port={port + 1}, or 0 for any."
        elif number in (errno.EACCES, errno.EPERM):
            sentence = f"port {port} may not be used by this user. Try --port=8000."
        else:
            sentence = f"cannot listen on {host} ({error}). Give an address of this machine."
        raise UserError(sentence) from None
    return bound


def make_server(app: Callable, seconds: float) -> uvicorn.Server:
    """The server of an ASGI application; seconds: for requests in flight when it stops."""
    return uvicorn.Server(uvicorn.Config(
        app, lifespan="off", ws="none", log_level="error", access_log=False,
        server_header=False, proxy_headers=False, timeout_keep_alive=30,
        timeout_graceful_shutdown=math.ceil(seconds),
    ))  # fmt: skip


def serve_until_stopped(server: uvicorn.Server, bound: socket.socket):
    """Serves on a bound socket until SIGTERM, or Ctrl-C, which raises KeyboardInterrupt.

    Requests in flight are finished; a second Ctrl-C drops them.
    """
    ignore = lambda *_: None  # uvicorn raises the signal again when it has stopped
    previous = signal.signal(signal.SIGTERM, ignore)
    try:
        server.run(sockets=[bound])
    finally:
        signal.signal(signal.SIGTERM, previous)
        bound.close()
