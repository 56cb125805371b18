"""A prediction server without a network: labels are functions of the colours, known to tests."""

import contextlib
import io
import threading
import weakref
from types import SimpleNamespace

import numpy as np
from PIL import Image
from starlette.testclient import TestClient

from diffseg_jax.data.labels import Labels
from diffseg_jax.errors import UserError
from diffseg_jax.inference.prediction import Prediction
from diffseg_jax.inference.views import Maps, Protocol
from diffseg_jax.server.predict_app import Limits, PredictApp
from diffseg_jax.server.security import Access, Guarded
from diffseg_jax.server.served_network import ServedNetwork

LABELS = Labels(("sky", "road", "café"), ((0, 0, 255), (128, 64, 128), (200, 100, 0)))


class ColourSegmenter:
    """Stands for a `Segmenter`: the class of a pixel is its red modulo 3, green the uncertainty.

    batches  the numbers of images that were predicted together;  seen  weak references to them
    forgotten  how often programs were dropped
    begun    set when a batch begins, which then waits for `go`
    """

    system, step, crop, calibrator, trained_size = "ddp", 7, (8, 8), None, None
    names, palette = LABELS.names, LABELS.palette
    meta, batch_size = {"stage": "train"}, 4
    task = SimpleNamespace(files=None, stride=4)

    def __init__(self):
        self.batches, self.seen, self.forgotten = [], [], 0
        self.begun, self.go = threading.Event(), threading.Event()
        self.go.set()

    def protocol_for(self, options):
        return Protocol(scales=options.scales or (1.0,))

    def protocol_of_size(self, options, size):
        return self.protocol_for(options)

    def forget_programs(self):
        self.forgotten += 1

    def predict_named(self, named, options, keep=None):
        if options.steps == 13:
            raise UserError("steps is 13, but 13 is not allowed.")
        if options.steps == 14:
            raise ValueError("a fault in the program")
        return self._predicted(list(named), keep)

    def _predicted(self, named, keep):
        self.begun.set()
        assert self.go.wait(20)
        if named:
            self.batches.append(len(named))
        self.seen += [weakref.ref(image) for _, image in named]
        for name, image in named:
            yield Prediction([name], [image], [colour_maps(image, keep)], LABELS)


def colour_maps(image, keep=("probs",)):
    """The maps of an image u8[H,W,3]."""
    labels = (image[..., 0] % 3).astype(np.int32)
    probs = np.eye(3, dtype=np.float32)[labels] if "probs" in keep else None
    return Maps(labels, probs, image[..., 1].astype(np.float32) / 255, {})


@contextlib.contextmanager
def serving(segmenter, token="", host="127.0.0.1", limits=None, **options):
    """A client of a server of the segmenter, which waits for the first prediction."""
    app = PredictApp(
        ServedNetwork(segmenter, **options), limits or Limits(), f"http://{host}:8000", bool(token)
    )
    app.warm.result(240)
    guarded = Guarded(app.routes, Access(token, host, 8000))
    try:
        with TestClient(guarded, "http://127.0.0.1:8000") as client:
            client.app_of_server = app
            yield client
    finally:
        app.close(20)


def file_of(image, format="PNG", **options) -> bytes:
    """The bytes of an image file."""
    content = io.BytesIO()
    Image.fromarray(image).save(content, format, **options)
    return content.getvalue()


def array_of(content: bytes) -> np.ndarray:
    """The pixels of an image file as they are stored."""
    return np.asarray(Image.open(io.BytesIO(content)))
