"""The page of one project: opens its folder, starts the worker, and serves until it is stopped."""

import contextlib
import os
import sys
import threading
import webbrowser
from collections.abc import Sequence
from html import escape
from pathlib import Path

from diffseg_jax.data.files import BUCKET
from diffseg_jax.data.scenes import NAMES
from diffseg_jax.errors import UserError, counted, visible
from diffseg_jax.experiment.stroke_fit import StrokeFit
from diffseg_jax.experiment.stroke_network import require_labels_of
from diffseg_jax.inference.batch import require_apart
from diffseg_jax.inference.images import matching
from diffseg_jax.server.drawn_scenes import SCENES, draw_scenes
from diffseg_jax.server.fit_worker import MODEL, FitWorker
from diffseg_jax.server.label_store import LabelStore, read_project
from diffseg_jax.server.listening import bound_socket, make_server, serve_until_stopped
from diffseg_jax.server.page_address import (
    ADDRESS_FILE,
    bound_as_before,
    keep_address,
    write_for_owner,
)
from diffseg_jax.server.page_app import page_routes
from diffseg_jax.server.page_classes import CLASSES_FILE, read_project_classes
from diffseg_jax.server.page_events import PageEvents
from diffseg_jax.server.page_images import list_images
from diffseg_jax.server.security import LOOPBACK, Access, Guarded, new_token
from diffseg_jax.storage.lock import locked
from diffseg_jax.storage.paths import in_bucket, make_folder, open_path

TASK = "annotate"  # of the lock
FEATURE_CACHE = "features"  # the folder of cached features in that of the project
SECONDS_TO_STOP = 2  # for requests in flight, and for the worker
OPENED_FILE = "open.html"  # in the folder of the project; leads a browser to the page
SCREENS = ("DISPLAY", "WAYLAND_DISPLAY")  # variables of a Linux that can show a browser


class PageServer:
    """The page of the images, and the thread of its worker. Use it in a `with`.

    url     the address to open, with the token
    folder  what it writes
    """

    def __init__(
        self, images: Sequence[str], classes: Sequence[str] | str | None = None,
        output: str = "", source: str = "", host: str = "127.0.0.1", port: int = 0,
        every: int = 1, in_path: bool = False,
    ):  # fmt: skip
        """
        images   files, folders and patterns; "scenes" draws some where there is no such path
        classes  names, also as "sky,road", or the path of a classes.json; None: those in the folder
        output   the folder; "": beside the images
        source   where features come from, as of `StrokeFit`
        in_path  whether the token stands in the path, see `Access`

        Raises UserError for what cannot be opened, and while another process has the folder.
        """
        self._exits = contextlib.ExitStack()
        with self._exits:
            self._open(images, classes, output, source, host, port, every, in_path)
            self._exits = self._exits.pop_all()

    def _open(self, images, classes, output, source, host, port, every, in_path):
        require_labels_of(source)
        if are_scenes := list(images) == [SCENES]:
            draw_scenes(SCENES)
        self.folder = open_path(output) if output else beside(matching(images))
        if in_bucket(self.folder):
            raise UserError(
                f"strokes are written to this machine only, but --output is {self.folder}. Give a "
                "folder, such as --output=annotated."
            )
        images = matching(images, output=str(self.folder))
        require_apart(images, str(self.folder))
        known = read_project(self.folder)["images"]
        if are_scenes and not classes and not (self.folder / CLASSES_FILE).exists():
            classes = NAMES
        labels = read_project_classes(self.folder, classes)
        if in_path:  # a notebook keeps the address among its outputs, for all who get its file
            bound, token = bound_socket(host, port), new_token()
        else:
            bound, token = bound_as_before(self.folder, host, port)
        self._exits.enter_context(bound)
        make_folder(self.folder)
        self._exits.enter_context(locked(self.folder, TASK, "--output"))
        found, self.notes = list_images(images, known, every)
        self.store, self.events = LabelStore(self.folder, found, labels), PageEvents()
        self.notes += self.store.notes
        make_engine = lambda labels: StrokeFit(source, labels, self.folder / FEATURE_CACHE)
        self.worker = FitWorker(self.store, self.events, make_engine)
        self._exits.callback(self.worker.stop, SECONDS_TO_STOP)
        self.worker.start()
        self.access = Access(token, host, bound.getsockname()[1], in_path)
        if in_path:  # an older version kept the token of a notebook
            (self.folder / ADDRESS_FILE).unlink(missing_ok=True)
        else:
            keep_address(self.folder, self.access.port, token)
        self.bound, self.url = bound, self.access.url
        routes = page_routes(self.store, self.worker, self.events)
        self.server = make_server(Guarded(routes, self.access), SECONDS_TO_STOP)
        end = self.server.handle_exit
        self.server.handle_exit = lambda *signal: (self.events.close(), end(*signal))
        bound.listen()  # so that a browser that comes before the server waits for it

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._exits.close()

    def run(self):
        """Serves until SIGTERM, or Ctrl-C, which raises KeyboardInterrupt."""
        serve_until_stopped(self.server, self.bound)

    def run_in_thread(self):
        """Serves in a thread until `stop`."""
        serve = lambda: self.server.run(sockets=[self.bound])
        self._thread = threading.Thread(target=serve, name="page server", daemon=True)
        self._thread.start()

    def stop(self, seconds: float):
        """Ends the thread, the worker, for which it waits some seconds, and the lock."""
        self.events.close()
        self.worker.stop(seconds)
        self.server.should_exit = True
        self._thread.join(2 * SECONDS_TO_STOP)
        self._exits.close()

    @property
    def model(self) -> Path:
        """The folder of the checkpoint of the last fit."""
        return self.folder / MODEL

    def described(self) -> list[str]:
        """Lines about it, for people."""
        count, painted = counted(len(self.store.images), "image"), len(self.store.painted())
        have = f", {painted} with strokes" if painted else ""
        lines = [f"note: {visible(note)}" for note in self.notes]
        if self.access.host not in LOOPBACK:
            lines.append(
                f"warning: --host={self.access.host} lets other machines reach the page, without "
                "encryption; only the token in the address protects it."
            )
        return [*lines, f"{count}{have}; labels are written to {visible(str(self.folder))}"]


def beside(images: Sequence[str]) -> Path:
    """The folder <images>_annotated beside the first folder of images."""
    first = images[0]
    if first.startswith(BUCKET):
        raise UserError("the images are in a bucket, so give --output, such as --output=annotated.")
    path = Path(first).absolute()
    folder = Path(os.path.normpath(path if path.is_dir() else path.parent))
    annotated = folder.with_name(f"{folder.name}_annotated")
    return Path(os.path.relpath(annotated)) if annotated.is_relative_to(Path.cwd()) else annotated


def open_browser(url: str, folder: Path):
    """Opens the address in a browser with windows, if there is one.

    The browser is given a file in the folder that leads to the address, for the eyes of this user
    alone: what stands on a command line is seen by all users of the machine.
    """
    if sys.platform.startswith("linux") and not any(map(os.environ.get, SCREENS)):
        return
    file = folder.absolute() / OPENED_FILE
    target = escape(url)
    write_for_owner(
        file, f'<!doctype html><meta name="referrer" content="no-referrer">'
        f'<meta http-equiv="refresh" content="0;url={target}"><a href="{target}">Open the page</a>'
    )  # fmt: skip
    with contextlib.suppress(webbrowser.Error):
        webbrowser.open(file.as_uri())
