"""The worker: what it does first, what it gives up, and what it tells."""

import threading

import numpy as np
import pytest

from diffseg_jax.errors import UserError
from page_case import MeanColours, Page, wait_for, write_images


class Gated(MeanColours):
    """An engine whose fits wait for the test, and are cancelled by it."""

    def __init__(self, labels):
        super().__init__(labels)
        self.started, self.gate, self.fits, self.classes = (
            threading.Event(),
            threading.Event(),
            0,
            [],
        )

    def fit(self, labels, progress, cancelled):
        self.fits += 1
        self.classes.append(self.labels.names)
        self.started.set()
        assert self.gate.wait(10)
        return super().fit(labels, progress, cancelled)


@pytest.fixture
def page(tmp_path):
    page = Page(write_images(tmp_path / "photos"), tmp_path / "annotated", engine=Gated)
    page.patch(0, 0, 0, np.zeros((2, 16), np.uint8), 0)
    page.patch(0, 0, 10, np.ones((2, 16), np.uint8), 1)
    yield page
    page.engines[0].gate.set()
    page.worker.stop()


def events_of(page, name):
    texts = [text for _, text in page.events.missed(f"{page.events._series}-0")]
    return [text for text in texts if text.startswith(f"event: {name}\n")]


def is_idle(page):
    return page.worker.state["phase"] == "idle"


def test_features_of_all_images_are_read_in_the_background(page):
    wait_for(lambda: is_idle(page))
    engine = page.engines[0]
    assert set(engine.images) == {"photo_0", "photo_1", "photo_2"}
    assert engine.calls["warm_up"] == 1 and set(engine.calls.values()) == {1}


def test_a_second_fit_cancels_the_first(page):
    engine = page.engines[0]
    assert page.worker.fit() == 1
    assert engine.started.wait(10)
    assert page.worker.fit() == 2
    engine.gate.set()
    wait_for(lambda: page.store.fits and is_idle(page))
    assert [fit["number"] for fit in page.store.fits] == [2] and engine.fits == 2
    assert {page.store.described(index)["fit"] for index in range(3)} == {2}
    assert len(events_of(page, "fit")) == 1 and not events_of(page, "error")


def test_the_shown_image_is_predicted_first(page):
    page.engines[0].gate.set()
    wait_for(lambda: is_idle(page))
    page.client.get("/api/images/2/labels")
    page.worker.fit()
    wait_for(lambda: page.store.fits and is_idle(page))
    predicted = [key for name, key in list(page.engines[0].calls)[-3:]]
    assert predicted == ["photo_2", "photo_0", "photo_1"]


def test_a_class_that_was_added_is_learned(page):
    page.client.post("/api/classes", json={"name": "house"})
    page.engines[0].gate.set()
    page.worker.fit()
    wait_for(lambda: page.store.fits and is_idle(page))
    assert page.engines[0].classes == [("sky", "road", "tree", "house")]
    assert len(page.store.described(0)["counts"]) == 4


def test_an_image_that_cannot_be_read_is_told_once_and_others_go_on(page, tmp_path):
    wait_for(lambda: is_idle(page))
    page.engines[0].images.pop("photo_1")
    (tmp_path / "photos" / "photo_1.png").write_bytes(b"gone")
    page.engines[0].gate.set()
    page.worker.fit()
    wait_for(lambda: page.store.fits and is_idle(page))
    assert [page.store.described(index)["fit"] for index in range(3)] == [1, 0, 1]
    (error,) = events_of(page, "error")
    assert "photo_1.png" in error


def test_a_failure_is_told_and_the_next_fit_works(page, capsys):
    engine = page.engines[0]
    wait_for(lambda: is_idle(page))
    kept, engine.fit = engine.fit, lambda *_: 1 // 0
    page.worker.fit()
    wait_for(lambda: events_of(page, "error"))
    wait_for(lambda: is_idle(page))
    assert "ZeroDivisionError" in page.worker.state["message"]
    assert "Traceback" in capsys.readouterr().err
    engine.fit = kept
    engine.gate.set()
    page.worker.fit()
    wait_for(lambda: page.store.fits and is_idle(page))
    assert page.worker.state["message"] == ""


def test_an_engine_that_cannot_be_opened_ends_the_start(tmp_path):
    def refuse(labels):
        raise UserError("there is no such network.")

    with pytest.raises(UserError, match="no such network"):
        Page(write_images(tmp_path / "photos"), tmp_path / "annotated", engine=refuse)
