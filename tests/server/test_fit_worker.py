"""The worker: what it does first, what it gives up, and what it tells."""

import errno
import json
import os
import threading

import numpy as np
import pytest

from diffseg_jax.errors import UserError
from page_case import MeanColours, Page, full_disk, wait_for, write_images


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
    return [json.dumps(content) for told, content in page.events.told if told == name]


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


def fitted(page):
    """Lets the fit run, and waits until all that it has to predict is predicted."""
    page.engines[0].gate.set()
    number = page.worker.fit()
    wait_for(lambda: page.store.fits and page.store.fits[-1]["number"] == number and is_idle(page))


def fits_of(page):
    return [page.store.described(index)["fit"] for index in range(3)]


def test_an_accepted_prediction_stays_until_the_image_is_opened_again(page):
    fitted(page)
    file = page.store.folder / "predictions" / "photo_1.png"
    assert page.accept(1).json()["accepted"]
    accepted = file.read_bytes()
    page.patch(0, 0, 0, np.full((12, 16), 2, np.uint8), 2)  # from now on there is another colour
    page.patch(0, 0, 0, np.zeros((1, 16), np.uint8), 3)
    fitted(page)
    assert fits_of(page) == [2, 1, 2] and file.read_bytes() == accepted
    assert page.engines[0].calls["predict", "photo_1"] == 1
    page.client.post("/api/images/1/accept", json={"accepted": False})
    wait_for(lambda: fits_of(page) == [2, 2, 2])
    assert file.read_bytes() != accepted


def test_a_fit_of_one_class_is_refused_and_does_not_cancel_another(page):
    engine = page.engines[0]
    assert page.worker.fit() == 1 and engine.started.wait(10)
    page.patch(0, 0, 10, np.full((2, 16), 255, np.uint8), 2)  # the only strokes of a second class
    refused = page.client.post("/api/fit")
    assert refused.status_code == 422 and "only sky is painted" in refused.json()["error"]
    page.patch(0, 0, 10, np.ones((2, 16), np.uint8), 3)
    engine.gate.set()
    wait_for(lambda: fits_of(page) == [1, 1, 1])
    assert engine.fits == 1


def test_what_a_failed_fit_interrupted_is_predicted_by_the_one_before(page):
    engine = page.engines[0]
    predict, begun, gate = engine.predict, threading.Event(), threading.Event()

    def slow(*image):
        begun.set()
        assert gate.wait(10)
        return predict(*image)

    engine.predict = slow
    engine.gate.set()
    page.worker.fit()
    assert begun.wait(10)  # at the first image
    engine.fit = lambda *_: (_ for _ in ()).throw(UserError("no luck."))
    page.worker.fit()
    gate.set()
    wait_for(lambda: events_of(page, "error") and is_idle(page) and all(fits_of(page)))
    assert fits_of(page) == [1, 1, 1] and page.worker.state["message"] == "no luck."


def test_predictions_that_a_stop_interrupted_are_completed_at_the_next_start(page, tmp_path):
    fitted(page)
    page.worker.stop()
    for part in ("predictions", "uncertainty"):
        (page.store.folder / part / "photo_2.png").unlink()
    again = Page(tmp_path / "photos", page.store.folder)
    wait_for(lambda: fits_of(again) == [1, 1, 1] and is_idle(again))
    assert again.engines[0].calls["predict", "photo_0"] == 0
    again.worker.stop()
    assert again.engines[0].calls["warm_up"] == 1
    for file in page.store.folder.glob("predictions/*"):
        file.unlink()
    all_of_them = Page(tmp_path / "photos", page.store.folder)
    wait_for(lambda: all_of_them.engines[0].calls["warm_up"] == 1)
    all_of_them.worker.stop()
    assert fits_of(all_of_them) == [1, 1, 1]


@pytest.mark.parametrize("reason", ["the checkpoint is of another network", "a kill within a save"])
def test_a_checkpoint_that_is_not_that_of_the_last_fit_predicts_nothing(page, tmp_path, reason):
    class Other(MeanColours):
        def restore(self, directory):
            return False

    fitted(page)
    page.worker.stop()
    (page.store.folder / "predictions" / "photo_2.png").unlink()
    if "kill" in reason:
        (page.store.folder / "model" / "fit.json").unlink()
    engine = MeanColours if "kill" in reason else Other
    again = Page(tmp_path / "photos", page.store.folder, engine=engine)
    wait_for(lambda: len(again.engines[0].images) == 3 and is_idle(again))
    again.worker.stop()
    assert fits_of(again) == [1, 1, 0] and not events_of(again, "error")


def test_a_fit_that_cannot_be_saved_predicts_nothing_and_the_next_one_does(page):
    fitted(page)
    engine, file = page.engines[0], page.store.folder / "model" / "fit.json"

    def full(directory):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    engine.save, kept = full, engine.save
    page.worker.fit()
    wait_for(lambda: events_of(page, "error") and is_idle(page))
    assert "No space left on device" in page.worker.state["message"]
    assert fits_of(page) == [1, 1, 1] and not file.exists()
    engine.save = kept
    fitted(page)
    assert fits_of(page) == [3, 3, 3] and json.loads(file.read_text()) == {"number": 3}


def test_a_class_that_is_added_while_features_are_read_is_learned(tmp_path):
    """And one that comes while the fit reads the strokes counts as not painted."""

    class Painting(MeanColours):
        def features(self, key, image):
            if key == "photo_0" and len(self.labels.names) == 3 and not self.calls["added"]:
                self.add("house", 3)
            super().features(key, image)

        def fit(self, labels, *others):
            self.add("car", 4)
            self.learned = {self.labels.names[id] for ids in labels.values() for id in
                            np.unique(ids) if id != 255}  # fmt: skip
            return super().fit(labels, *others)

        def add(self, name, id):
            self.calls["added"] += 1
            page.store.add_class(name)
            page.patch(0, 0, id, np.full((1, 16), id, np.uint8), id - 1)

    page = Page(
        write_images(tmp_path / "photos"), tmp_path / "annotated", engine=Painting, start=False
    )
    page.patch(0, 0, 0, np.zeros((1, 16), np.uint8), 0)
    page.patch(0, 0, 10, np.ones((1, 16), np.uint8), 1)
    page.worker.fit()
    page.worker.start()
    wait_for(lambda: is_idle(page) and (page.store.fits or events_of(page, "error")))
    page.worker.stop()
    assert page.store.fits and page.engines[0].learned == {"sky", "road", "house"}
    assert page.store.described(0)["counts"][4] == 16


def test_a_full_disk_ends_the_predictions_with_one_sentence(page, monkeypatch):
    full_disk(monkeypatch, "photo_0.png")
    fitted(page)
    (error,) = events_of(page, "error")
    assert "predictions/photo_0.png cannot be written (No space left on device)" in error
    assert fits_of(page) == [0, 0, 0] and page.worker.state["message"]


def test_predictions_that_could_not_be_written_are_tried_again(page, monkeypatch):
    monkeypatch.setattr("diffseg_jax.server.fit_worker.SECONDS_TO_NEXT", 0.05)
    with monkeypatch.context() as patched:
        full_disk(patched, "photo_0.png")
        fitted(page)
    wait_for(lambda: fits_of(page) == [1, 1, 1] and is_idle(page))
    assert "cannot be written" in events_of(page, "error")[0]


def test_an_image_on_which_the_engine_fails_takes_no_prediction_from_others(page, capsys):
    engine, predict = page.engines[0], page.engines[0].predict
    engine.predict = lambda key, *image: predict(key, *image) if key != "photo_0" else 1 // 0
    fitted(page)
    wait_for(lambda: fits_of(page) == [0, 1, 1] and is_idle(page))
    assert len(events_of(page, "error")) == 1 and "ZeroDivision" in capsys.readouterr().err
