"""Predicts images that are sent over HTTP: label maps as PNG, JSON or probabilities.

  python -m diffseg_jax.serve --checkpoint=scenes
  curl -F image=@photo.jpg http://127.0.0.1:8000/predict -o labels.png

It listens on this machine alone and needs no token, unless --token or the environment variable
DIFFSEG_TOKEN gives one; with another --host it needs one. GET / says how to ask, GET /metadata
names classes and limits. Ctrl-C and SIGTERM finish the requests in flight.
"""

import os
import sys
from collections.abc import Sequence

from diffseg_jax.cli import (
    CHECKPOINT_FLAGS,
    INTERRUPTED,
    Flags,
    add_cache_flag,
    add_checkpoint_flags,
    number,
    use_cache,
    user_errors,
)
from diffseg_jax.devices.processes import exit_process
from diffseg_jax.display.console import Display
from diffseg_jax.errors import UserError
from diffseg_jax.inference.segmenter import load

TOKEN = "DIFFSEG_TOKEN"  # environment variable, which other users do not see as they see flags
NEEDS_SERVER = 'The server needs other packages: pip install "diffseg_jax[page]"'


def make_flags() -> Flags:
    """All flags."""
    flags = Flags("serve", __doc__)
    add = flags.add_argument
    add_checkpoint_flags(add)
    add("--host", default="127.0.0.1", help="address; default: 127.0.0.1, this machine")
    port = "port; default 8000; 0: any free one"
    add("--port", type=number(int, 0, 65535), default=8000, metavar="N", help=port)
    token = f"token that requests must send; default: {TOKEN}, or none on this machine"
    add("--token", metavar="TEXT", help=token)
    batch_size = "images of one size in a batch; default: 1 on CPUs, else 4"
    add("--batch_size", type=number(int, 1, 1024), metavar="N", help=batch_size)
    wait = "milliseconds that an image waits for others of its size; default 5"
    add("--wait", type=number(float, 0, 1000), default=5, metavar="X", help=wait)
    round_to = "resize sides to multiples of N, so that many sizes share programs"
    add("--round_to", type=number(int, 1, 4096), metavar="N", help=round_to)
    sizes = "sizes of images whose programs are kept in memory; default 16"
    add("--sizes", type=number(int, 1), default=16, metavar="N", help=sizes)
    requests = "requests at the same time, others are refused with 503; default 32"
    add("--requests", type=number(int, 1), default=32, metavar="N", help=requests)
    seconds = "seconds after which a request is given up; default 60"
    add("--seconds", type=number(float, 1, 86400), default=60, metavar="X", help=seconds)
    pixels = "pixels of an image; default 16777216, 16 megapixels"
    add("--pixels", type=number(int, 1, 178_000_000), default=2**24, metavar="N", help=pixels)
    add("--bytes", type=number(int, 1, 2**31), default=32 * 10**6, metavar="N",
        help="bytes of a request; default 32000000")  # fmt: skip
    add_cache_flag(add)
    return flags


def main(arguments: Sequence[str] | None = None):
    """The command line."""
    with user_errors("stopped"):
        given = vars(make_flags().parse_args(arguments))
        display = Display()
        try:
            from diffseg_jax.server import listening, predict_app, predict_server
        except ModuleNotFoundError as error:
            raise UserError(f"{error.name} is missing. {NEEDS_SERVER}") from None
        use_cache(given.pop("compilation_cache"))
        opened = {name: given.pop(name) for name in CHECKPOINT_FLAGS}
        host, token = given.pop("host"), given.pop("token") or os.environ.get(TOKEN, "")
        predict_server.require_token(host, token)
        wait = given.pop("wait") / 1000
        limits = {name: given.pop(name) for name in ("pixels", "bytes", "requests", "seconds")}
        code = 0
        with listening.bound_socket(host, given.pop("port")) as bound:
            with display.progress("opens the network"):
                segmenter = load(opened.pop("checkpoint"), **opened)
            display.say(str(segmenter))
            limits = predict_app.Limits(**limits, wait=wait)
            try:
                predict_server.serve_predictions(
                    segmenter, bound, host, token, limits=limits, display=display, **given
                )
            except KeyboardInterrupt:
                code = INTERRUPTED
        print("stopped", file=sys.stderr)
        exit_process(code, immediately=True)  # jax may compile in a thread, which cannot be ended


if __name__ == "__main__":
    main()
