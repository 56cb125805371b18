"""The routes of the page: what the browser asks, and what it is told.

Images are named by their index, so that nothing from the browser names a file. The index of an
image may change when the command is started again while a tab stays open, so that every ETag holds
the key of the image, and a patch of the labels of another one is refused. All addresses in the page
are relative, since in a notebook the token stands before them. Every endpoint is described in
.docs/annotate.md.
"""

import functools
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

import diffseg_jax
from diffseg_jax.metrics.choice import unpainted_regions
from diffseg_jax.server.dataset_export import export_dataset
from diffseg_jax.server.fit_worker import FitWorker
from diffseg_jax.server.label_store import (
    PREDICTIONS,
    UNCERTAINTY,
    LabelStore,
    OtherFit,
    Outdated,
)
from diffseg_jax.server.page_events import PageEvents
from diffseg_jax.server.page_images import MAX_SIDE, encoded_image, thumbnail
from diffseg_jax.server.security import (
    RequestRefused,
    json_response,
    object_in_body,
    read_body,
)

HERE = Path(__file__).parent
STATIC = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}  # the page
MAX_REGIONS = 8  # uncertain regions of an image
THUMBNAIL_BYTES = 32e6  # of thumbnails that are kept
REGIONS_KEPT = 4096  # lists of regions
IMAGES_KEPT = 4  # encoded ones
REVALIDATED = "private, no-cache"  # the browser keeps a copy, and asks whether it is still right


def page_routes(store: LabelStore, worker: FitWorker, events: PageEvents) -> list[Route]:
    """All routes, to be served behind `Guarded`."""
    page = _Page(store, worker, events)
    image = "/api/images/{index}"
    return [
        *(_static_route(file) for file in sorted(HERE.iterdir()) if file.suffix in STATIC),
        Route("/api/project", page.project),
        Route("/api/events", page.listen),
        Route("/api/classes", page.add_class, methods=["POST"]),
        Route("/api/fit", page.fit, methods=["POST"]),
        Route("/api/export", page.export, methods=["POST"]),
        Route(image, page.image),
        Route(f"{image}/labels", page.labels),
        Route(f"{image}/labels", page.patch, methods=["PATCH"]),
        Route(f"{image}/prediction", page.prediction),
        Route(f"{image}/uncertainty", page.uncertainty),
        Route(f"{image}/uncertain", page.uncertain),
        Route(f"{image}/accept", page.accept, methods=["POST"]),
    ]


def _static_route(file):
    """The route of a file of the package, which is sent as it is."""

    def send(request):
        media = f"{STATIC[file.suffix]}; charset=utf-8"
        return Response(file.read_bytes(), media_type=media, headers={"cache-control": "no-cache"})

    return Route("/" if file.name == "page.html" else f"/{file.name}", send)


class KeptBytes:
    """A function that returns bytes, whose results are kept up to a number of bytes together."""

    def __init__(self, most: float, make: Callable[..., bytes]):
        self.most, self.make = most, make
        self._lock, self._kept, self._size = threading.Lock(), OrderedDict(), 0

    def __call__(self, *arguments) -> bytes:
        with self._lock:
            if arguments in self._kept:
                self._kept.move_to_end(arguments)
                return self._kept[arguments]
        content = self.make(*arguments)  # beside others
        with self._lock:
            self._size += len(content) - len(self._kept.pop(arguments, b""))
            self._kept[arguments] = content
            while self._size > self.most:
                self._size -= len(self._kept.popitem(last=False)[1])
        return content


class _Page:
    """The endpoints. Those that are no coroutines run in threads, beside each other."""

    def __init__(self, store, worker, events):
        self.store, self.worker, self.events = store, worker, events
        self.exporting = threading.Lock()
        self.small = KeptBytes(THUMBNAIL_BYTES, thumbnail)
        self.full = functools.lru_cache(IMAGES_KEPT)(encoded_image)
        self.regions = functools.lru_cache(REGIONS_KEPT)(self._regions)

    # ---- the project -----------------------------------------------------------------------------

    def project(self, request):
        store = self.store
        return json_response({
            "version": diffseg_jax.__version__, "classes": self._classes(),
            "images": [store.described(index) for index in range(len(store.images))],
            "fits": store.fits, "state": self.worker.state,
        })  # fmt: skip

    def _classes(self):
        names, palette = self.store.classes.names, self.store.classes.palette
        return [{"name": name, "colour": list(colour)} for name, colour in zip(names, palette)]

    async def listen(self, request):
        events = self.events.listen("state", lambda: self.worker.state)
        headers = {"x-accel-buffering": "no"}
        return StreamingResponse(events, media_type="text/event-stream", headers=headers)

    async def add_class(self, request):
        name = (await object_in_body(request, {"name": str}))["name"]
        await run_in_threadpool(self.store.add_class, name)
        self.events.publish("classes", self._classes())
        return json_response(self._classes())

    def fit(self, request):
        return json_response({"number": self.worker.fit()})

    def export(self, request):
        with self.exporting:
            return json_response(export_dataset(self.store))

    # ---- images ----------------------------------------------------------------------------------

    def _index(self, request):
        text = request.path_params["index"]
        count = len(self.store.images)
        if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) < count):
            raise RequestRefused(
                404, f"there is no such image; they are numbered 0 to {count - 1}."
            )
        image = self.store.images[int(text)]
        _require_key(request.query_params.get("key", image.key), image)
        return int(text)

    def image(self, request):
        index = self._index(request)
        image, side = self.store.images[index], request.query_params.get("side")
        side = None if side is None else _number(request, "side", 1, MAX_SIDE)
        tag = f'"{image.key}-{side or 0}"'
        if _is_known(request, tag):
            return _unchanged(tag)
        content, media = (self.small(image, side), "image/jpeg") if side else self.full(image)
        return _tagged(content, media, tag)

    def labels(self, request):
        index = self._index(request)
        self.worker.show(index)
        content, revision = self.store.labels_png(index)
        tag = f'"{self.store.images[index].key}-{revision}"'
        return _tagged(content, "image/png", tag, "no-store")  # another folder counts anew

    async def patch(self, request):
        index = self._index(request)
        image = self.store.images[index]
        box, revision = _box(request, image), _revision(request, image)
        size = box[2] * box[3]
        body = await read_body(request, image.width * image.height)
        if len(body) != size:
            raise RequestRefused(
                400, f"the body has {len(body):,} bytes, but the box {box[2]}x{box[3]} has "
                f"{size:,} pixels, one byte for each."
            )  # fmt: skip
        values = np.frombuffer(body, np.uint8).reshape(box[3], box[2])
        try:
            done = await run_in_threadpool(self.store.patch, index, box, values, revision)
        except Outdated as error:
            raise RequestRefused(
                409, "the labels were changed by another page. Load the image again.",
                revision=error.revision, key=image.key,
            ) from None  # fmt: skip
        self.worker.show(index)
        self.events.publish("image", self.store.described(index))
        return json_response(done)

    def prediction(self, request):
        return self._map(request, PREDICTIONS)

    def uncertainty(self, request):
        return self._map(request, UNCERTAINTY)

    def _map(self, request, part):
        index = self._index(request)
        self.worker.show(index)
        try:
            content, fit = self.store.prediction_png(index, part)
        except LookupError:
            raise _without_prediction() from None
        tag = f'"{self.store.images[index].key}-{part}-{fit}-{zlib.crc32(content):x}"'
        return _unchanged(tag) if _is_known(request, tag) else _tagged(content, "image/png", tag)

    def uncertain(self, request):
        index = self._index(request)
        entry = self.store.described(index)
        if not entry["fit"]:
            raise _without_prediction()
        return json_response({"regions": self.regions(index, entry["revision"], entry["fit"])})

    def _regions(self, index, revision, fit):
        """The most uncertain regions, without painted pixels; revision, fit: keys of the cache."""
        uncertainty = self.store.predicted(index, UNCERTAINTY)
        labels, _ = self.store.labels(index)
        return unpainted_regions(uncertainty, labels, MAX_REGIONS)

    async def accept(self, request):
        index = self._index(request)
        body = await object_in_body(request, {"accepted": bool})
        if not body["accepted"]:
            image = await run_in_threadpool(self.store.reopen, index)
            self.worker.complete(index)
        elif type(body.get("fit")) is not int:
            raise RequestRefused(
                422, 'to accept, the body must name the "fit" of the prediction that was looked '
                "at, 0 if there was none."
            )  # fmt: skip
        else:
            image = await run_in_threadpool(self._accept, index, body["fit"])
        self.events.publish("image", image)
        return json_response(image)

    def _accept(self, index, fit):
        try:
            return self.store.accept(index, fit)
        except OtherFit:
            raise RequestRefused(
                409, "this image has got the prediction of another fit. Look at it, and accept it "
                "then.", image=self.store.described(index),
            ) from None  # fmt: skip


def _without_prediction():
    return RequestRefused(
        404, "there is no prediction of this image yet. Paint a few strokes and fit."
    )


def _number(request, name, low, high, what="") -> int:
    """A whole number of the address; RequestRefused with 400 for others."""
    text = request.query_params.get(name, "")
    if text.isascii() and text.isdecimal() and len(text) < 10 and low <= int(text) <= high:
        return int(text)
    allowed = f"a whole number {low} to {high}{what}"
    raise RequestRefused(400, f"{name} is {text[:20]!r}, but must be {allowed}.")


def _box(request, image):
    """(x, y, width, height) of the address, within the image."""
    x = _number(request, "x", 0, image.width - 1)
    y = _number(request, "y", 0, image.height - 1)
    inside = f" from {x}, {y} in an image of {image.width}x{image.height}"
    width = _number(request, "width", 1, image.width - x, inside)
    return x, y, width, _number(request, "height", 1, image.height - y, inside)


def _revision(request, image) -> int:
    """The revision in If-Match; RequestRefused with 409 if it is of the labels of another image."""
    text = request.headers.get("if-match", "").strip().removeprefix("W/").strip('"')
    key, _, revision = text.partition("-")
    if not (key and revision.isascii() and revision.isdecimal() and len(revision) < 16):
        raise RequestRefused(
            400, "If-Match must hold the ETag of the labels that the patch was made for: the key "
            f"of the image and their revision, such as {image.key}-3."
        )  # fmt: skip
    _require_key(key, image)
    return int(revision)


def _require_key(key, image):
    """RequestRefused with 409 if what was asked is about another image than the present one."""
    if key != image.key:
        raise RequestRefused(
            409, "this number is that of another image now. Load the page again.", key=image.key
        )


def _is_known(request, tag) -> bool:
    return tag in request.headers.get("if-none-match", "")


def _unchanged(tag):
    return Response(None, 304, {"etag": tag, "cache-control": REVALIDATED})


def _tagged(content, media, tag, kept=REVALIDATED):
    return Response(content, media_type=media, headers={"etag": tag, "cache-control": kept})
