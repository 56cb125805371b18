"""A page on tiny images with an engine of numpy, for tests without jax."""

import dataclasses
import errno
import json
import os
import time
from collections import Counter

import numpy as np
from PIL import Image
from starlette.testclient import TestClient

from diffseg_jax.data.labels import Labels
from diffseg_jax.experiment.stroke_members import Cancelled
from diffseg_jax.server import label_store
from diffseg_jax.server.fit_worker import FitWorker
from diffseg_jax.server.label_store import LabelStore
from diffseg_jax.server.page_app import page_routes
from diffseg_jax.server.page_events import PageEvents
from diffseg_jax.server.page_images import list_images
from diffseg_jax.server.security import Access, Guarded
from diffseg_jax.storage import paths

NAMES = ("sky", "road", "tree")
LABELS = Labels(NAMES, ((10, 20, 30), (200, 100, 0), (0, 255, 0)))
SIZES = ((12, 16), (20, 10), (16, 16))  # height, width
ACCESS = Access("secret", "127.0.0.1", 8123)


@dataclasses.dataclass
class Result:
    miou: float | None
    per_class: list
    pixels: int
    seconds: float
    calibrated: bool = True


class MeanColours:
    """Nearest mean colour of the painted pixels of each class."""

    note = ""

    def __init__(self, labels):
        self.labels, self.images, self.means, self.calls = labels, {}, None, Counter()

    def features(self, key, image):
        self.calls["features", key] += 1
        self.images[key] = image

    def fit(self, labels, progress, cancelled):
        if cancelled():
            raise Cancelled
        progress("fit", 1, 2)
        pixels = np.concatenate([self.images[key][ids < 254] for key, ids in labels.items()])
        ids = np.concatenate([ids[ids < 254] for ids in labels.values()])
        self.means = {k: pixels[ids == k].mean(0) for k in np.unique(ids)}
        return Result(0.5, [0.5, float("nan"), None], len(ids), 0.1)

    def knows(self, key):
        return key in self.images

    def set_classes(self, labels):
        self.labels = labels

    def warm_up(self):
        self.calls["warm_up"] += 1

    def predict(self, key, image=None):
        image = self.images[key] if image is None else image
        self.calls["predict", key] += 1
        distance = np.stack([((image - mean) ** 2).sum(-1) for mean in self.means.values()])
        ids = np.array(list(self.means))[distance.argmin(0)].astype(np.uint8)
        uncertainty = np.where(ids == ids[0, 0], 0.25, 0.75).astype(np.float32)
        return ids, uncertainty

    def save(self, directory):
        directory.mkdir(exist_ok=True)
        means = {str(id): mean.tolist() for id, mean in self.means.items()}
        (directory / "means.json").write_text(json.dumps(means))

    def restore(self, directory):
        means = json.loads((directory / "means.json").read_text())
        self.means = {int(id): np.array(mean) for id, mean in means.items()}
        return True


def write_images(folder, sizes=SIZES):
    """PNG images of random colours, upper half dark and lower half bright."""
    folder.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(0)
    for index, (height, width) in enumerate(sizes):
        image = numbers.integers(0, 60, (height, width, 3), np.uint8)
        image[height // 2 :] += 190
        Image.fromarray(image).save(folder / f"photo_{index}.png")
    return folder


def open_store(images, folder, labels=LABELS):
    folder.mkdir(parents=True, exist_ok=True)
    return LabelStore(folder, list_images([str(images)])[0], labels)


def wait_for(true, seconds=10):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


class ToldEvents(PageEvents):
    """Events that are kept: told is [(name, content)]."""

    def __init__(self):
        super().__init__()
        self.told = []

    def publish(self, name, content):
        self.told.append((name, content))
        super().publish(name, content)


class Page:
    """A store with its worker, events and a client that knows the token."""

    def __init__(self, images, folder, labels=LABELS, engine=MeanColours, start=True):
        self.store, self.events = open_store(images, folder, labels), ToldEvents()
        self.engines = []
        self.worker = FitWorker(self.store, self.events, self._make(engine))
        self.routes = page_routes(self.store, self.worker, self.events)
        self.app = Guarded(self.routes, ACCESS)
        self.client = self.new_client({"authorization": "Bearer secret"})
        if start:
            self.worker.start()

    def _make(self, engine):
        def make(labels):
            self.engines.append(engine(labels))
            return self.engines[-1]

        return make

    def new_client(self, headers=None):
        return TestClient(
            self.app, base_url="http://127.0.0.1:8123", headers=headers, follow_redirects=False
        )

    def accept(self, index):
        """The response to accepting an image with the prediction that it has."""
        fit = self.store.described(index)["fit"]
        body = {"accepted": True, "fit": fit}
        return self.client.post(f"/api/images/{index}/accept", json=body)

    def patch(self, index, x, y, values, revision):
        height, width = values.shape
        key = self.store.images[index].key
        return self.client.patch(
            f"/api/images/{index}/labels?x={x}&y={y}&width={width}&height={height}",
            content=values.tobytes(), headers={"if-match": f'"{key}-{revision}"'},
        )  # fmt: skip


def full_disk(monkeypatch, name):
    """Files of this name cannot be written any more."""

    def write(path, content):
        if path.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        paths.write_atomically(path, content)

    monkeypatch.setattr(label_store, "write_atomically", write)
    monkeypatch.setattr(
        label_store, "write_json", lambda path, content: write(path, json.dumps(content).encode())
    )
