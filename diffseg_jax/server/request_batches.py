"""Requests of one kind that wait at the same time are predicted as one batch, by one thread."""

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field


@dataclass(eq=False)
class Waiting:
    """One item that waits for its prediction; items of equal keys may share a batch."""

    key: Hashable
    item: object
    future: Future = field(default_factory=Future)


class RequestBatches:
    """The one thread that predicts, and the items that wait for it; safe to use from any thread.

    predict     (key, items) -> one result per item; called in that thread alone
    batch_size  most items of a batch
    wait        seconds that the first item of a batch waits for others of its key

    `seconds` is the running mean of the seconds of a batch, 0 before the first one.
    """

    def __init__(
        self, predict: Callable[[Hashable, list], Sequence], batch_size: int = 1,
        wait: float = 0.005,
    ):  # fmt: skip
        self.predict, self.batch_size, self.wait = predict, batch_size, wait
        self.seconds = 0.0
        self._waiting, self._changed, self._closed = deque(), threading.Condition(), False
        self._thread = threading.Thread(target=self._work, name="predictions", daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """The number of items that wait."""
        return len(self._waiting)

    def submit(self, key: Hashable, item) -> Future:
        """The future result of an item. A future that is cancelled in time costs no place."""
        waiting = Waiting(key, item)
        with self._changed:
            if self._closed:
                raise RuntimeError("no items are taken after close()")
            self._waiting.append(waiting)
            self._changed.notify_all()
        # The future must not refer to its item: in a cycle both would be freed late.
        waiting.future.add_done_callback(self._forget)
        return waiting.future

    def close(self, seconds: float | None = None):
        """Takes no more items, and returns when those that wait are done, or after `seconds`."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(seconds)

    def _forget(self, future):
        """Drops the item of a future that was cancelled, so that its memory is free at once."""
        with self._changed:
            for waiting in self._waiting:
                if waiting.future is future:
                    self._waiting.remove(waiting)
                    return

    def _work(self):
        while batch := self._next_batch():
            self._predict_batch(batch)
            del batch  # while no other comes, the memory of its images is free

    def _next_batch(self) -> list[Waiting]:
        """The oldest item and others of its key; empty when there will be none."""
        with self._changed:
            while True:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    return []
                batch = self._gathered(self._waiting[0].key)
                if batch := [each for each in batch if each.future.set_running_or_notify_cancel()]:
                    return batch

    def _gathered(self, key) -> list[Waiting]:
        """Up to `batch_size` items of a key, oldest first, no longer among those that wait."""
        until = time.monotonic() + self.wait
        while True:
            batch = [each for each in self._waiting if each.key == key][: self.batch_size]
            left = until - time.monotonic()
            if len(batch) == self.batch_size or left <= 0 or self._closed:
                break
            self._changed.wait(left)
        for each in batch:
            self._waiting.remove(each)
        return batch

    def _predict_batch(self, batch):
        begun = time.monotonic()
        try:
            results = list(self.predict(batch[0].key, [each.item for each in batch]))
            if len(results) != len(batch):
                raise RuntimeError(f"{len(results)} results for {len(batch)} items")
        except Exception as error:
            for each in batch:
                each.future.set_exception(error)
            return
        took = time.monotonic() - begun
        self.seconds = 0.8 * self.seconds + 0.2 * took if self.seconds else took
        for each, result in zip(batch, results):
            each.future.set_result(result)
