"""The one thread that owns jax: features of all images, fits from strokes, predictions.

Requests only set what it should do next; it looks at that between two steps of its work. A new fit
cancels one that runs. After a fit all images are predicted that are not accepted, first the one
that is shown; what a failed fit or a stop interrupts there is completed later.
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

from diffseg_jax.data.labels import IGNORE, Labels
from diffseg_jax.errors import UserError
from diffseg_jax.experiment.stroke_members import Cancelled
from diffseg_jax.server.label_store import LabelStore
from diffseg_jax.server.page_events import PageEvents
from diffseg_jax.server.security import NotStored, storing
from diffseg_jax.storage.paths import read_object, write_json

MODEL = "model"  # the folder of the checkpoint in that of the project
FIT_FILE = "fit.json"  # in that folder: the number of its fit; missing while it is written
SAYS_EVERY = 0.2  # seconds between two events of progress
SECONDS_TO_NEXT = 30  # until predictions that could not be written are tried again


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
    def restore(self, directory) -> bool: ...


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
        saved = _saved_number(store)
        self._wanted, self._number, self._is_stopping = 0, max(_last_number(store), saved), False
        self._shown, self._since, self._said = 0, (0.0, 0), 0.0
        self._unprepared, self._is_cold = list(range(len(store.images))), True
        self._fitted = 0  # the fit by which the engine predicts; 0: none
        self._waiting, self._total = [], 0  # images that it has yet to predict, of so many
        self._asked = self._outdated(saved) if saved else []  # indices by requests, likewise
        self._failure = ""  # the sentence of the last fit, if it failed
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

    def complete(self, index: int):
        """Asks for the prediction of an image by the last fit, unless it has that one."""
        with self._changed:
            self._asked.append(index)
            self._changed.notify_all()

    def fit(self) -> int:
        """Asks for a fit of the present strokes; its number.

        Raises UserError if less than two classes are painted; then a fit that runs goes on.
        """
        painted = self.store.painted_classes()
        if not painted:
            raise UserError("nothing is painted yet. Paint a few strokes of each class first.")
        if len(painted) < 2:
            raise UserError(
                f"only {painted[0]} is painted. Paint a few strokes of two classes or more, then "
                "press Fit."
            )
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
                if not (self._is_asked() or self._waiting or self._unprepared or self._is_cold):
                    self._rest()
                    self._changed.wait_for(self._is_asked)
                if self._is_stopping:
                    return
                number, self._wanted = self._wanted, 0
                asked, self._asked = ([], self._asked) if number else (self._asked, [])
            try:
                self._step(number, asked)
            except Cancelled:
                pass  # the newer fit is next
            except NotStored as error:
                self._fail(str(error), number)
                with self._changed:  # predictions are tried again after a while
                    seconds = SECONDS_TO_NEXT if self._waiting else 0
                    self._changed.wait_for(self._is_asked, seconds)
            except UserError as error:
                self._fail(str(error), number)
            except Exception as error:
                traceback.print_exception(error, file=sys.stderr)
                line = (str(error).splitlines() or [""])[0][:200]
                self._fail(f"the fit failed ({type(error).__name__}: {line}).", number)

    def _is_asked(self) -> bool:
        return bool(self._wanted or self._asked or self._is_stopping)

    def _step(self, number, asked):
        """One piece of work: a fit, the prediction of one image, its features, or a warm-up.

        The shown image comes first, and a fit is compiled after the features of one image.
        """
        if number:
            self._learn(number)
        elif asked:
            self._add_waiting(asked)
        elif self._waiting:
            self._predict_next(self._waiting)
        elif self._unprepared:
            self._prepare(self._shown if self._shown in self._unprepared else self._unprepared[0])
            self._warm_up()
        else:
            self._warm_up()

    def _fail(self, sentence, number):
        if number:
            self._failure = sentence
        self.events.publish("error", {"error": sentence})
        self._say("idle", message=sentence)

    def _rest(self):
        """Idle; the state says if the last fit failed."""
        if self.state["phase"] != "idle":
            self._say("idle", message=self._failure)

    def _is_over(self) -> bool:
        """Whether the present work should end: for another fit, or for good."""
        return bool(self._wanted) or self._is_stopping

    def _with_present_classes(self) -> StrokeEngine:
        """The engine, which has learned of classes that were added meanwhile."""
        if self.store.classes != self._classes:
            if len(self.store.classes.names) != len(self._classes.names):
                self._fitted, self._waiting = 0, []  # the engine has no fit of so many classes
            self._classes = self.store.classes
            self._engine.set_classes(self._classes)
        return self._engine

    def _warm_up(self):
        """Compiles what a fit runs, unless that was done."""
        is_cold, self._is_cold = self._is_cold, False
        if is_cold:
            self._engine.warm_up()

    def _prepare(self, index):
        total, image = len(self.store.images), self.store.images[index]
        self._say("features", total - len(self._unprepared), total)
        if index in self._unprepared:
            self._unprepared.remove(index)  # also if it fails, which is told once
        self._engine.features(image.name, image.read())

    def _learn(self, number):
        """One fit and its checkpoint, unless something newer comes; then images wait for it."""
        begun, store, self._failure = time.monotonic(), self.store, ""
        painted = {store.images[index].name: index for index in store.painted()}
        for name, index in painted.items():
            if self._is_over():
                raise Cancelled
            if not self._engine.knows(name):
                self._prepare(index)
        engine = self._with_present_classes()
        self._say("fit")
        strokes = _Strokes(store, painted, len(self._classes.names))
        result = engine.fit(strokes, self._progress, self._is_over)
        self._fitted, self._waiting = 0, []  # of the fit before, which is gone
        self._save(number)
        fit = {
            "number": number, "miou": _finite(result.miou),
            "per_class": [_finite(value) for value in result.per_class],
            "pixels": int(result.pixels), "images": len(painted),
            "calibrated": bool(result.calibrated),
            "seconds": round(time.monotonic() - begun, 2),
        }  # fmt: skip
        store.add_fit(fit)
        self.events.publish("fit", fit)
        self._fitted, self._is_cold = number, False
        self._waiting = self._outdated(number)
        self._total = len(self._waiting)

    def _save(self, number):
        """The checkpoint of the fit, and beside it the number, by which `_restore` knows it."""
        file = self.store.folder / MODEL / FIT_FILE
        with storing(file):
            file.unlink(missing_ok=True)
            self._engine.save(self.store.folder / MODEL)
            write_json(file, {"number": number})

    # ---- predictions -----------------------------------------------------------------------------

    def _outdated(self, number) -> list[int]:
        """Images whose prediction is of another fit, and which are not accepted."""
        images = map(self.store.described, range(len(self.store.images)))
        return [
            image["index"] for image in images if image["fit"] != number and not image["accepted"]
        ]

    def _add_waiting(self, asked):
        """Takes images that were asked for among those that wait, if there is a fit."""
        saved = 0 if self._fitted else _saved_number(self.store)
        if saved and self._engine.restore(self.store.folder / MODEL):
            self._fitted = saved
        if self._fitted:
            asked = set(asked) & set(self._outdated(self._fitted)) - set(self._waiting)
            self._waiting += sorted(asked)
            self._total = len(self._waiting)

    def _predict_next(self, waiting):
        """Predicts the shown image, or the first one, and removes it from those that wait."""
        index = self._shown if self._shown in waiting else waiting[0]
        waiting.remove(index)
        if self.store.described(index)["accepted"]:
            return
        if index in self._unprepared:
            self._unprepared.remove(index)
        self._say("predict", self._total - len(waiting) - 1, self._total)
        image, engine = self.store.images[index], self._engine
        try:
            pixels = None if engine.knows(image.name) else image.read()
            ids, uncertainty = engine.predict(image.name, pixels)
            self.store.add_prediction(index, self._fitted, ids, uncertainty)
        except NotStored:
            waiting.append(index)
            raise  # that of others fails as well
        except UserError as error:  # a file that cannot be read; others can
            self.events.publish("error", {"error": str(error)})
        else:
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
    """name -> ids u8[H,W] of painted images, read when they are asked for.

    Classes that were added after the fit began, from `classes` on, count as not painted.
    """

    def __init__(self, store: LabelStore, painted: dict[str, int], classes: int):
        self.store, self.painted, self.classes = store, painted, classes

    def __getitem__(self, name: str) -> np.ndarray:
        ids = self.store.labels(self.painted[name])[0]
        return np.where(ids < self.classes, ids, np.uint8(IGNORE))

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


def _saved_number(store):
    """The number of the fit whose checkpoint is there; 0 if there is none that is complete."""
    number = read_object(store.folder / MODEL / FIT_FILE).get("number")
    return number if type(number) is int and number > 0 else 0
