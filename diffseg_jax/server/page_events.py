"""Server-sent events: what happens in the worker, told to every open page."""

import asyncio
import json
import secrets
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable

KEPT = 1000  # events that a page which was away for a moment can still get
SILENCE = 15  # seconds after which a comment shows that the connection lives
WAITING = 10_000  # events of a page that reads none, after which it must connect again


class PageEvents:
    """Events with ids. `publish` may be called from any thread."""

    def __init__(self):
        self._lock, self._series = threading.Lock(), secrets.token_hex(4)
        self._kept, self._number, self._queues = deque(maxlen=KEPT), 0, []
        self._is_closed = False

    def publish(self, name: str, content):
        """Sends an event with JSON to all pages."""
        with self._lock:
            self._number += 1
            event = (self._number, f"event: {name}\nid: {self._series}-{self._number}\n"
                     f"data: {json.dumps(content)}\n\n")  # fmt: skip
            self._kept.append(event)
            for loop, queue in self._queues:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(_put, queue, event)

    def close(self):
        """Ends all connections, also those to come."""
        with self._lock:
            self._is_closed = True
            for loop, queue in self._queues:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(_put, queue, None)

    def missed(self, last_id: str) -> list[tuple[int, str]] | None:
        """Number and text of the events after one that a page has; None if some are forgotten."""
        series, _, number = last_id.partition("-")
        if series != self._series or not (number.isdecimal() and len(number) < 16):
            return None
        with self._lock:
            last, oldest = int(number), self._number + 1 - len(self._kept)
            if not oldest - 1 <= last <= self._number:
                return None
            return [event for event in self._kept if event[0] > last]

    async def listen(self, last_id: str, present: Callable[[], list[str]]) -> AsyncIterator[str]:
        """What a page missed, then all events to come, and comments in between.

        last_id  of the last event that the page has
        present  () -> texts that say how all is now, for a page whose last event is not known
        """
        queue = asyncio.Queue(WAITING)
        listener, last = (asyncio.get_running_loop(), queue), 0
        with self._lock:
            self._queues.append(listener)
        try:
            missed = self.missed(last_id)
            for text in present() if missed is None else ():
                yield text
            for last, text in missed or ():  # noqa: B007
                yield text
            while not self._is_closed:
                try:
                    event = await asyncio.wait_for(queue.get(), SILENCE)
                except TimeoutError:
                    yield ": still here\n\n"
                    continue
                if event is None:
                    return
                if event[0] > last:  # else it was among those that were missed
                    yield event[1]
        finally:
            with self._lock:
                self._queues.remove(listener)


def _put(queue, event):
    """Adds an event; a page that has fallen behind is sent away, and connects again."""
    if queue.full():
        while not queue.empty():
            queue.get_nowait()
        event = None
    queue.put_nowait(event)


def event_text(name: str, content) -> str:
    """An event without id, which a page is told when it connects."""
    return f"event: {name}\ndata: {json.dumps(content)}\n\n"
