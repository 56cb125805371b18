"""Server-sent events: what happens in the worker, told to every open page.

A page that connects asks for the whole project then, so that no event is sent again.
"""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable

SILENCE = 15  # seconds after which a comment shows that the connection lives
WAITING = 10_000  # events of a page that reads none, after which it must connect again


class PageEvents:
    """`publish` may be called from any thread."""

    def __init__(self):
        self._lock, self._queues, self._is_closed = threading.Lock(), [], False

    def publish(self, name: str, content):
        """Sends an event with JSON to all pages."""
        self._tell_all(_event_text(name, content))

    def close(self):
        """Ends all connections, also those to come."""
        self._is_closed = True
        self._tell_all(None)

    def _tell_all(self, text):
        with self._lock:
            for loop, queue in self._queues:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(_put, queue, text)

    async def listen(self, name: str, present: Callable[[], object]) -> AsyncIterator[str]:
        """The present content of one event, then all events to come, and comments in between."""
        queue = asyncio.Queue(WAITING)
        listener = (asyncio.get_running_loop(), queue)
        with self._lock:
            self._queues.append(listener)
        try:
            yield _event_text(name, present())
            while not self._is_closed:
                try:
                    text = await asyncio.wait_for(queue.get(), SILENCE)
                except TimeoutError:
                    text = ": still here\n\n"
                if text is None:
                    return
                yield text
        finally:
            with self._lock:
                self._queues.remove(listener)


def _put(queue, text):
    """Adds an event; a page that has fallen behind is sent away, and connects again."""
    if queue.full():
        while not queue.empty():
            queue.get_nowait()
        text = None
    queue.put_nowait(text)


def _event_text(name, content):
    """An event as it is sent."""
    return f"event: {name}\ndata: {json.dumps(content)}\n\n"
