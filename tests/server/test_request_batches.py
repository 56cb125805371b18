"""Items of equal keys share batches, in one thread, and every item gets its own result."""

import gc
import threading
import time
import weakref
from concurrent.futures import CancelledError

import numpy as np
import pytest

from diffseg_jax.server.request_batches import RequestBatches

pytestmark = pytest.mark.quick


class Recorder:
    """Doubles its items; `hold` makes it wait in its first batch until `go` is set."""

    def __init__(self, hold=False):
        self.batches, self.threads = [], set()
        self.begun, self.go = threading.Event(), threading.Event()
        if not hold:
            self.go.set()

    def __call__(self, key, items):
        self.begun.set()
        assert self.go.wait(20)
        self.batches.append((key, items))
        self.threads.add(threading.get_ident())
        if key == "bad":
            raise ValueError("bad")
        return [2 * item for item in items]


@pytest.fixture
def made():
    """made(recorder, ...) -> RequestBatches, closed at the end."""
    opened = []

    def make(recorder, *arguments, **options):
        opened.append(RequestBatches(recorder, *arguments, **options))
        return opened[-1]

    yield make
    for each in opened:
        each.predict.go.set()
        each.close(20)


def test_every_item_gets_its_own_result_whatever_the_batches(made):
    recorder = Recorder()
    batches = made(recorder, 3, wait=0.001)
    keys = np.random.default_rng(0).integers(0, 3, 200).tolist()
    futures = [batches.submit(key, number) for number, key in enumerate(keys)]
    assert [future.result(20) for future in futures] == [2 * n for n in range(200)]
    for key, items in recorder.batches:
        assert len(items) <= 3 and {keys[item] for item in items} == {key}
    for key in range(3):
        taken = [item for k, items in recorder.batches if k == key for item in items]
        assert taken == sorted(taken)
    assert len(recorder.threads) == 1


def test_items_that_wait_together_share_a_batch_with_the_oldest_first(made):
    recorder = Recorder(hold=True)
    batches = made(recorder, 4, wait=0)
    first = batches.submit("a", 0)
    assert recorder.begun.wait(20)
    futures = [batches.submit(key, n) for n, key in enumerate(["b", "a", "b", "b"], 1)]
    recorder.go.set()
    assert [f.result(20) for f in [first, *futures]] == [0, 2, 4, 6, 8]
    assert recorder.batches == [("a", [0]), ("b", [1, 3, 4]), ("a", [2])]


def test_a_cancelled_item_costs_no_place_and_is_forgotten_at_once(made):
    recorder = Recorder(hold=True)
    batches = made(recorder, 2, wait=0)
    batches.submit("a", 0)
    assert recorder.begun.wait(20)
    dropped, *kept = [batches.submit("a", n) for n in (1, 2, 3)]
    assert dropped.cancel() and len(batches) == 2
    recorder.go.set()
    assert [f.result(20) for f in kept] == [4, 6]
    assert recorder.batches[1:] == [("a", [2, 3])]
    with pytest.raises(CancelledError):
        dropped.result()


def test_an_item_waits_for_others_but_not_longer_than_it_should(made):
    recorder = Recorder()
    batches = made(recorder, 2, wait=0.3)
    begun = time.monotonic()
    pair = [batches.submit("a", 0), batches.submit("a", 1)]
    assert [f.result(20) for f in pair] == [0, 2]
    assert time.monotonic() - begun < 0.3 and len(recorder.batches) == 1
    begun = time.monotonic()
    assert batches.submit("a", 2).result(20) == 4
    assert 0.29 < time.monotonic() - begun < 5


def test_an_error_reaches_the_batch_that_failed_and_no_other(made):
    batches = made(Recorder(), 4, wait=0)
    with pytest.raises(ValueError, match="bad"):
        batches.submit("bad", 1).result(20)
    assert batches.submit("a", 1).result(20) == 2


def test_a_wrong_number_of_results_is_an_error(made):
    recorder = Recorder()
    batches = made(recorder)
    batches.predict = lambda key, items: []
    with pytest.raises(RuntimeError, match="0 results for 1 items"):
        batches.submit("a", 1).result(20)
    batches.predict = recorder


def test_what_waits_is_finished_before_the_thread_ends(made):
    recorder = Recorder(hold=True)
    batches = made(recorder, 1, wait=5)
    futures = [batches.submit("a", n) for n in range(3)]
    closing = threading.Thread(target=batches.close)
    closing.start()
    recorder.go.set()
    closing.join(20)
    assert [f.result(0) for f in futures] == [0, 2, 4]
    with pytest.raises(RuntimeError, match="after close"):
        batches.submit("a", 1)


def test_items_and_results_are_free_as_soon_as_nobody_needs_them(made):
    """Without waiting for Python's search for cycles, which is rare in a large process."""
    batches = made(Recorder())
    batches.predict = lambda key, items: [items[0] + 1]
    gc.disable()
    try:
        item = np.zeros(3)
        future = batches.submit("a", item)
        left = [weakref.ref(item), weakref.ref(future.result(20))]
        del item, future
        until = time.monotonic() + 20
        while any(each() is not None for each in left):
            assert time.monotonic() < until
            time.sleep(0.001)
    finally:
        gc.enable()
        batches.predict = Recorder()
