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
from typing import Protocol

import numpy as np

from diffseg_jax.errors import UserError
from diffseg_jax.server.label_store import LabelStore
from diffseg_jax.server.page_events import PageEvents

MODEL = "model"  # the folder of the checkpoint in that of the project
SAYS_EVERY = 0.2  # seconds between two events of progress


class StrokeEngine(Protocol):
    """What learns from strokes, `experiment.stroke_fit.StrokeFit`; all calls come from one thread.

    A key is the name of an image. `cancelled` is asked between steps, and an engine that hears True
    returns None; `progress(phase, done, total)` tells how far it is.
    """

    def features(self, key: str, image: np.ndarray): ...
    def fit(
        self, labels: Mapping[str, np.ndarray], progress: Callable, cancelled: Callable[[], bool]
    ): ...
    def predict(self, key: str, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]: ...
    def save(self, directory): ...


class FitWorker:
    """Runs an engine for a project in a thread of its own.

    make_engine  class names -> StrokeEngine; called in that thread, again when classes were added
    """

    def __init__(
        self, store: LabelStore, events: PageEvents,
        make_engine: Callable[[tuple[str, ...]], StrokeEngine],
    ):  # fmt: skip
        self.store, self.events, self.make_engine = store, events, make_engine
        self.state = _state("idle")
        self._changed = threading.Condition()
        self._wanted, self._number, self._is_stopping = 0, _last_number(store), False
        self._shown, self._engine, self._names, self._said = 0, None, (), 0.0
        self._unprepared = list(range(len(store.images)))
        self._thread = threading.Thread(target=self._run, name="fit worker", daemon=True)

    def start(self):
        """Starts the thread."""
        self._thread.start()

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

    def _open_engine(self):
        names = self.store.classes.names
        if self._engine is None or names != self._names:
            self._engine, self._names = self.make_engine(names), names
        return self._engine

    def _prepare_next(self):
        """Features of one image, the shown one first."""
        index = self._shown if self._shown in self._unprepared else self._unprepared[0]
        self._prepare(self._open_engine(), index)

    def _prepare(self, engine, index):
        total, image = len(self.store.images), self.store.images[index]
        self._say("features", total - len(self._unprepared), total)
        self._unprepared.remove(index)  # also if it fails, which is told once
        engine.features(image.name, image.read())

    def _learn(self, number):
        """One fit, its checkpoint, and all predictions, unless something newer comes."""
        begun, store, engine = time.monotonic(), self.store, self._open_engine()
        painted = {store.images[index].name: index for index in store.painted()}
        for index in painted.values():
            if index in self._unprepared and not self._is_over():
                self._prepare(engine, index)
        self._say("fit")
        result = engine.fit(_Strokes(store, painted), self._progress, self._is_over)
        if result is None or self._is_over():
            return
        engine.save(store.folder / MODEL)
        fit = {
            "number": number, "miou": _finite(result.miou),
            "per_class": [_finite(value) for value in result.per_class],
            "pixels": int(result.pixels), "images": len(painted),
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
                ids, uncertainty = engine.predict(image.name, image.read())
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
        if phase != before["phase"]:
            self._since = (now, done)
        since, first = self._since
        left = (now - since) / (done - first) * (total - done) if done > first else None
        self.state = _state(phase, done, total, None if left is None else round(left, 1), message)
        if phase == before["phase"] == "idle" and message == before["message"]:
            return
        if phase != before["phase"] or message or now - self._said > SAYS_EVERY:
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
