"""Opens a page on which you paint a few strokes, and a network labels all images.

  python -m diffseg_jax.annotate --images=photos --classes=sky,road,tree
  python -m diffseg_jax.annotate --images=scenes        (draws 20 street scenes to try it on)

Paint some strokes of each class, press Fit, look where the prediction is wrong or uncertain, and
paint there; then accept images and export a data set. Every stroke is on disk before the page says
so. The same command goes on where it stopped; Ctrl-C ends it.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType

from diffseg_jax.cli import (
    INTERRUPTED,
    Flags,
    add_cache_flag,
    number,
    truth,
    use_cache,
    user_errors,
)
from diffseg_jax.devices.processes import exit_process
from diffseg_jax.display.console import Display
from diffseg_jax.errors import UserError

NEEDS_PAGE = 'The page needs other packages: pip install "diffseg_jax[page]"'
SAVED = "stopped; all strokes are saved, and the same command goes on"


def make_flags() -> Flags:
    """All flags."""
    flags = Flags("annotate", __doc__)
    add = flags.add_argument
    images = "images, videos, folders with their subfolders, or patterns; scenes draws some"
    add("--images", required=True, nargs="+", action="extend", metavar="PATH", help=images)
    classes = "names, or a classes.json; default: those of the output, to which names may be added"
    add("--classes", metavar="NAME,...", help=classes)
    output = "folder of strokes, predictions and the model; default: PATH_annotated"
    add("--output", default="", metavar="DIR", help=output)
    features = "where features come from, such as colour; default: efficientnet_lite0, if installed"
    add("--features", default="", metavar="NAME", help=features)
    checkpoint = "take the features of a trained network: a workdir or a converted directory"
    add("--checkpoint", default="", metavar="DIR", help=checkpoint)
    frames = "take one in N frames of videos, and pages of TIFFs; default: 1"
    add("--every", type=number(int, 1), default=1, metavar="N", help=frames)
    add("--host", default="127.0.0.1", help="address; default: 127.0.0.1, this machine alone")
    port = "port; default: any free one"
    add("--port", type=number(int, 0, 65535), default=0, metavar="N", help=port)
    window = "False: open no browser"
    add("--open", type=truth, default=True, metavar="True|False", help=window)
    add_cache_flag(add)
    return flags


@contextlib.contextmanager
def page_packages() -> Iterator[None]:
    """Within it, a missing package of the page is a UserError."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is missing. {NEEDS_PAGE}") from None


def main(arguments: Sequence[str] | None = None):
    """The command line."""
    with user_errors():
        given = vars(make_flags().parse_args(arguments))
        display = Display()
        with page_packages(), display.progress("starts"):
            from diffseg_jax.server.page_server import PageServer, open_browser
        use_cache(given.pop("compilation_cache"))
        is_opened, features = given.pop("open"), given.pop("features")
        if features and given["checkpoint"]:
            raise UserError(
                f"--features={features} and --checkpoint={given['checkpoint']} both say where "
                "features come from. Give one of them."
            )
        code = 0
        try:
            with contextlib.ExitStack() as stack:
                with display.progress("opens the images and the network"):
                    page = PageServer(source=given.pop("checkpoint") or features, **given)
                    stack.enter_context(page)
                for line in page.described():
                    display.say(line)
                display.say(f"open {page.url} in a browser; Ctrl-C ends it")
                if is_opened:
                    open_browser(page.url, page.folder)
                page.run()
        except KeyboardInterrupt:
            code = INTERRUPTED
        print(SAVED, file=sys.stderr)
        exit_process(code, immediately=True)  # jax may compile in a thread, which cannot be ended


class _CallableModule(ModuleType):
    """This module, which can be called: the command and `diffseg_jax.annotate` share their name."""

    def __call__(
        self, images: str | os.PathLike | Sequence[str | os.PathLike],
        classes: Sequence[str] | str | None = None, output: str = "", features: str = "", **options,
    ):  # fmt: skip
        """Opens the page in a notebook, see `server.notebook.open_in_notebook`."""
        with page_packages():
            from diffseg_jax.server.notebook import open_in_notebook
        return open_in_notebook(images, classes, output, features, **options)


sys.modules[__name__].__class__ = _CallableModule


if __name__ == "__main__":
    main()
