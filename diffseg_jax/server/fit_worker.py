"""The one thread that owns jax: features of all images, fits from strokes, predictions.

Requests only set what it should do next; it looks at that between two steps of its work. A new fit
cancels one that runs. After a fit all images are predicted, first the one that is shown.
"""

import math
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import Protocol

import numpy as np

from diffseg_jax.data.labels import Labels
from diffseg_jax.errors import UserError
from diffseg_jax.experiment.stroke_members import Cancelled
from diffseg_jax.server.label_store import LabelStore
from diffseg_jax.server.page_events import PageEvents

MODEL = "model"  # the folder of the checkpoint in that of the project
SAYS_EVERY = 0.2  # seconds between two events of progress


class StrokeEngine(Protocol):
    """What learns from strokes, see `experiment.stroke_fit.StrokeFit`; a key names an image."""

    note: str

    def features(self, key: str, image: np.ndarray): ...
    def knows(self, key: str) -> bool: ...
    def warm_up(self): ...
    def set_classes(self, labels: Labels): ...
    def fit(self, labels: Mapping[str, np.ndarray], progress: Callable, cancelled: Callable): ...
    def predict(self, key: str, image: np.ndarray | None = None) -> tuple: ...
    def save(self, directory): ...


class FitWorker:
    """Runs an engine for a project in a thread of its own.

    make_engine  Labels -> StrokeEngine; called in that thread
    """

    def __init__(
        self, store: LabelStore, events: PageEvents,
        make_engine: Callable[[Labels], StrokeEngine],
    ):  # fmt: skip
        self.store, self.events, self.make_engine = store, events, make_engine
        self.state = _state("idle")
        self._changed = threading.Condition()
        self._wanted, self._number, self._is_stopping = 0, _last_number(store), False
        self._shown, self._since, self._said = 0, (0.0, 0), 0.0
        self._unprepared = list(range(len(store.images)))
        self._opened = Future()
        self._thread = threading.Thread(target=self._run, name="fit worker", daemon=True)

    def start(self):
        """Starts the thread, and waits until it has opened the engine, whose errors it raises."""
        self._thread.start()
        self._opened.result()

    def stop(self, seconds: float = 5):
        """Ends the thread after the step it is at; does not wait longer than some seconds."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        self._thread.join(seconds)

    def show(self, index: int):
        """Tells which image a page shows, so that it comes first."""
        self._shown = index

    def fit(self) -> int:
        """Asks for a fit of the present strokes; its number. UserError if nothing is painted."""
        if not self.store.painted():
            raise UserError("nothing is painted yet. Paint a few strokes of each class first.")
        with self._changed:
            self._number += 1
            self._wanted = self._number
            self._changed.notify_all()
            return self._number

    # ---- the thread ------------------------------------------------------------------------------

    def _run(self):
        try:
            self._engine, self._classes = self.make_engine(self.store.classes), self.store.classes
            self._opened.set_result(None)
        except BaseException as error:
            self._opened.set_exception(error)
            return
        while True:
            with self._changed:
                if not (self._wanted or self._unprepared or self._is_stopping):
                    self._rest()
                    self._changed.wait_for(lambda: self._wanted or self._is_stopping)
                if self._is_stopping:
                    return
                number, self._wanted = self._wanted, 0
            try:
                self._learn(number) if number else self._prepare_next()
            except Cancelled:
                pass  # the newer fit is next
            except UserError as error:
                self._fail(str(error))
            except Exception as error:
                traceback.print_exception(error, file=sys.stderr)
                line = (str(error).splitlines() or [""])[0][:200]
                self._fail(f"the fit failed ({type(error).__name__}: {line}).")

    def _fail(self, sentence):
        self.events.publish("error", {"error": sentence})
        self._say("idle", message=sentence)

    def _rest(self):
        """Idle, unless the state says already that the last work failed."""
        if self.state["phase"] != "idle":
            self._say("idle")

    def _is_over(self) -> bool:
        """Whether the present work should end: for another fit, or for good."""
        return bool(self._wanted) or self._is_stopping

    def _with_present_classes(self) -> StrokeEngine:
        """The engine, which has learned of classes that were added meanwhile."""
        if self.store.classes != self._classes:
            self._classes = self.store.classes
            self._engine.set_classes(self._classes)
        return self._engine

    def _prepare_next(self):
        """Features of one image, the shown one first; after the first one a fit is compiled."""
        index = self._shown if self._shown in self._unprepared else self._unprepared[0]
        is_first = len(self._unprepared) == len(self.store.images)
        self._prepare(index)
        if is_first:
            self._engine.warm_up()

    def _prepare(self, index):
        total, image = len(self.store.images), self.store.images[index]
        self._say("features", total - len(self._unprepared), total)
        if index in self._unprepared:
            self._unprepared.remove(index)  # also if it fails, which is told once
        self._engine.features(image.name, image.read())

    def _learn(self, number):
        """One fit, its checkpoint, and all predictions, unless something newer comes."""
        begun, store, engine = time.monotonic(), self.store, self._with_present_classes()
        painted = {store.images[index].name: index for index in store.painted()}
        for name, index in painted.items():
            if self._is_over():
                raise Cancelled
            if not engine.knows(name):
                self._prepare(index)
        self._say("fit")
        result = engine.fit(_Strokes(store, painted), self._progress, self._is_over)
        engine.save(store.folder / MODEL)
        fit = {
            "number": number, "miou": _finite(result.miou),
            "per_class": [_finite(value) for value in result.per_class],
            "pixels": int(result.pixels), "images": len(painted),
            "calibrated": bool(result.calibrated),
            "seconds": round(time.monotonic() - begun, 2),
        }  # fmt: skip
        store.add_fit(fit)
        self.events.publish("fit", fit)
        self._predict_all(engine, number)

    def _predict_all(self, engine, number):
        waiting, total = list(range(len(self.store.images))), len(self.store.images)
        while waiting and not self._is_over():
            index = self._shown if self._shown in waiting else waiting[0]
            waiting.remove(index)
            if index in self._unprepared:
                self._unprepared.remove(index)
            self._say("predict", total - len(waiting) - 1, total)
            image = self.store.images[index]
            try:
                pixels = None if engine.knows(image.name) else image.read()
                ids, uncertainty = engine.predict(image.name, pixels)
                self.store.add_prediction(index, number, ids, uncertainty)
            except UserError as error:  # a file that cannot be read; others can
                self.events.publish("error", {"error": str(error)})
                continue
            self.events.publish("image", self.store.described(index))

    # ---- what it tells ---------------------------------------------------------------------------

    def _progress(self, phase, done, total):
        """Called by the engine."""
        self._say("fit", done, total, phase)

    def _say(self, phase, done=0, total=0, message=""):
        """Sets the state, and tells it unless that was done just before."""
        now, before = time.monotonic(), self.state
        if (phase, message) != (before["phase"], before["message"]) or done <= 1:
            self._since = (now, done)  # the first step may compile, and tells nothing of others
        since, first = self._since
        left = (now - since) / (done - first) * (total - done) if done > first else None
        self.state = _state(phase, done, total, None if left is None else round(left, 1), message)
        is_new = (phase, message) != (before["phase"], before["message"])
        if is_new or now - self._said > SAYS_EVERY:
            self._said = now
            self.events.publish("state", self.state)


class _Strokes(Mapping):
    """name -> ids u8[H,W] of painted images, read when they are asked for."""

    def __init__(self, store: LabelStore, painted: dict[str, int]):
        self.store, self.painted = store, painted

    def __getitem__(self, name: str) -> np.ndarray:
        return self.store.labels(self.painted[name])[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self.painted)

    def __len__(self) -> int:
        return len(self.painted)


def _state(phase, done=0, total=0, seconds_left=None, message=""):
    """STATE of the page."""
    return {"phase": phase, "done": done, "total": total, "seconds_left": seconds_left,
            "message": message}  # fmt: skip


def _finite(value):
    """The number as JSON has it; None for NaN."""
    return None if value is None or not math.isfinite(value) else float(value)


def _last_number(store):
    """The number of the last fit of the project."""
    entries = [store.described(index)["fit"] for index in range(len(store.images))]
    return max([0, *entries, *(fit["number"] for fit in store.fits)])
