"""The page in a notebook: a frame below a cell, and the fit as a segmenter."""

import atexit
import importlib.util
import os
from collections.abc import Sequence
from html import escape

from diffseg_jax.errors import UserError
from diffseg_jax.inference.images import is_path
from diffseg_jax.inference.segmenter import Segmenter, load
from diffseg_jax.server.page_server import PageServer

HUB_PREFIX = "JUPYTERHUB_SERVICE_PREFIX"  # in the environment of a notebook of JupyterHub
WAITS_FOR_WORKER = 60  # a thread that is compiling when Python ends would crash it
HEIGHT = 800  # pixels of the frame


class Annotation:
    """A page that a thread serves until `stop`; a notebook shows it where this is the last value.

    url     the address, which another window can open
    folder  what the page writes, see .docs/annotate.md
    """

    def __init__(self, server: PageServer, height: int = HEIGHT):
        self.server, self.height = server, height
        self.url, self.folder = server.url, str(server.folder)
        server.run_in_thread()
        atexit.register(self.stop)

    @property
    def segmenter(self) -> Segmenter:
        """The last fit, as `load` opens it; UserError before there is one."""
        if not self.server.store.fits:
            raise UserError("there is no fit yet. Paint a few strokes on the page, and press Fit.")
        return load(str(self.server.model))

    def stop(self):
        """Ends the page, after the step of work it is at; what it wrote stays in the folder."""
        atexit.unregister(self.stop)
        self.server.stop(WAITS_FOR_WORKER)

    def __repr__(self):
        return f"annotation page {self.url} of {self.folder}"

    def _repr_html_(self):
        access = self.server.access
        if importlib.util.find_spec("google.colab"):  # its proxy makes an address of its own
            from google.colab import output

            path = f"/{access.token}/"
            output.serve_kernel_port_as_iframe(access.port, path=path, height=self.height)
            return ""
        address = self.url
        if prefix := os.environ.get(HUB_PREFIX):  # jupyter-server-proxy serves it there
            address = f"{prefix}proxy/{access.port}/{access.token}/"
        shown = escape(address)
        frame = (
            f'<iframe src="{shown}" style="width:100%;height:{self.height}px;border:0"></iframe>'
        )
        return f'{frame}<p><a href="{shown}" target="_blank">Open in a window of its own</a></p>'


def open_in_notebook(
    images: str | os.PathLike | Sequence[str | os.PathLike],
    classes: Sequence[str] | str | None = None,
    output: str = "", features: str = "", every: int = 1, height: int = HEIGHT,
) -> Annotation:  # fmt: skip
    """Opens the page of `python -m diffseg_jax.annotate` in a notebook.

        page = diffseg_jax.annotate("photos", ["sky", "road", "tree"])
        page                                          # shows it; then, after a fit:
        page.segmenter.predict("photos")

    images    files, folders and patterns; "scenes" draws street scenes
    classes   names, also as "sky,road", or the path of a classes.json; None: those in the folder
    output    the folder; "": beside the images
    features  where features come from: a name, or the directory of a checkpoint; "": the default
    every     one in so many frames of a video is taken
    height    of the frame, pixels

    Raises UserError as the command does; one folder has one page at a time.
    """
    paths = [images] if is_path(images) or not isinstance(images, Sequence) else list(images)
    if not all(map(is_path, paths)):
        raise UserError('images must be paths of files or folders, such as "photos".')
    paths = [os.fspath(path) for path in paths]
    server = PageServer(paths, classes, output, features, every=every, in_path=True)
    for line in server.described():
        print(line)
    return Annotation(server, height)
