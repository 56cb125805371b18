"""Serves the predictions of a segmenter until it is stopped."""

import contextlib
import socket
import sys

from diffseg_jax.display.console import Display
from diffseg_jax.display.progress import COMPILES
from diffseg_jax.errors import UserError, shortened
from diffseg_jax.inference.outputs import require_segmentation
from diffseg_jax.inference.segmenter import Segmenter
from diffseg_jax.server.listening import make_server, serve_until_stopped
from diffseg_jax.server.predict_app import Limits, PredictApp
from diffseg_jax.server.security import LOOPBACK, Access, Guarded, new_token
from diffseg_jax.server.served_network import ServedNetwork

SHORTEST_TOKEN = 8  # characters
SECONDS_TO_CLOSE = 10  # for a batch that is still predicted when requests were dropped


def require_token(host: str, token: str):
    """UserError for a missing or weak token, where one is needed: on all but this machine."""
    if not token and host not in LOOPBACK:
        raise UserError(
            f"--host={host} lets other machines ask, so a token is needed. Try "
            f"--token={new_token()}, or set DIFFSEG_TOKEN."
        )
    if token and (len(token) < SHORTEST_TOKEN or not all("!" <= each <= "~" for each in token)):
        raise UserError(
            f"the token {shortened(token, 20)!r} must be {SHORTEST_TOKEN} or more letters, digits "
            f"and signs of ASCII, without spaces. Try --token={new_token()}"
        )


def serve_predictions(
    segmenter: Segmenter, bound: socket.socket, host: str = "127.0.0.1", token: str = "",
    batch_size: int | None = None, round_to: int | None = None, sizes: int = 16,
    limits: Limits | None = None, display: Display | None = None,
):  # fmt: skip
    """Serves until SIGTERM, or Ctrl-C, which raises KeyboardInterrupt; compiles a program first.

    bound  the socket, see `listening.bound_socket`;  host  to which it is bound, as Host names it
    token  that requests must send; "": none
    batch_size, round_to, sizes  as of `ServedNetwork`;  limits  None: the defaults
    display  of the command; None: one of its own

    Raises UserError for a network that cannot be served, and when the first prediction fails.
    """
    require_segmentation(segmenter.config, "serve", segmenter.directory)
    display = display or Display()
    limits, access = limits or Limits(), Access(token, host, bound.getsockname()[1])
    address = Access("", host, access.port).url.rstrip("/")
    network = ServedNetwork(segmenter, batch_size, round_to, sizes)
    app = PredictApp(network, limits, address, bool(token))
    server = make_server(Guarded(app.routes, access), limits.seconds)

    if host not in LOOPBACK:
        print(
            f"warning: --host={host} lets other machines ask, without encryption; only the token "
            "protects the server.", file=sys.stderr,
        )  # fmt: skip

    shown = contextlib.ExitStack()

    def report(warm):
        shown.close()
        if warm.cancelled() or not warm.exception():
            display.say("ready")
        else:
            server.should_exit = True

    display.say(f"serving on {address}; {address}/ says how to ask; Ctrl-C stops")
    shown.enter_context(display.progress("first prediction", first=COMPILES))
    app.warm.add_done_callback(report)
    try:
        serve_until_stopped(server, bound)
    finally:
        shown.close()
        app.close(SECONDS_TO_CLOSE)
    if app.warm.done() and app.warm.exception():
        raise app.warm.exception()
