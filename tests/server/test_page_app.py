"""The endpoints of the page, asked as a browser asks them."""

import asyncio
import errno
import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.concurrency import run_in_threadpool

from diffseg_jax.data.sources import open_source
from diffseg_jax.server import dataset_export
from diffseg_jax.server.page_app import KeptBytes
from page_case import NAMES, Page, full_disk, wait_for, write_images


def map_in(response):
    assert response.status_code == 200, response.text
    return np.asarray(Image.open(io.BytesIO(response.content)))


@pytest.fixture
def page(tmp_path):
    page = Page(write_images(tmp_path / "photos"), tmp_path / "photos_annotated")
    yield page
    page.worker.stop()


def test_the_project_lists_images_and_classes(page):
    project = page.client.get("/api/project").json()
    assert [each["name"] for each in project["classes"]] == list(NAMES)
    assert project["images"][1] == {
        "index": 1, "key": page.store.images[1].sha256[:12], "name": "photo_1",
        "width": 10, "height": 20, "revision": 0, "counts": [0, 0, 0], "accepted": False,
        "score": None, "fit": 0,
    }  # fmt: skip


def test_a_patch_is_what_is_read_back_and_undo_restores_it(page):
    stroke = np.array([[0, 254, 1], [255, 2, 2]], np.uint8)
    done = page.patch(0, 3, 4, stroke, 0)
    assert done.json() == {"revision": 1, "counts": [1, 1, 2]}
    labels = page.client.get("/api/images/0/labels")
    assert labels.headers["etag"] == f'"{page.store.images[0].key}-1"'
    expected = np.full((12, 16), 255, np.uint8)
    expected[4:6, 3:6] = np.where(stroke == 254, 255, stroke)
    np.testing.assert_array_equal(map_in(labels), expected)
    assert page.patch(0, 3, 4, np.full((2, 3), 255, np.uint8), 1).json()["counts"] == [0, 0, 0]
    assert (map_in(page.client.get("/api/images/0/labels")) == 255).all()


def test_a_patch_for_an_older_revision_changes_nothing(page):
    page.patch(0, 0, 0, np.zeros((2, 2), np.uint8), 0)
    refused = page.patch(0, 0, 0, np.ones((2, 2), np.uint8), 0)
    assert refused.status_code == 409 and refused.json()["revision"] == 1
    assert map_in(page.client.get("/api/images/0/labels"))[0, 0] == 0


@pytest.fixture
def shifted(page, tmp_path):
    """A start with another image of the same size before the one that was painted."""
    page.patch(0, 0, 0, np.zeros((2, 2), np.uint8), 0)
    page.store.add_prediction(0, 1, np.zeros((12, 16), np.uint8), np.zeros((12, 16), np.float32))
    Image.new("RGB", (16, 12)).save(tmp_path / "photos" / "a.png")
    again = Page(tmp_path / "photos", page.store.folder, start=False)
    assert again.store.described(1)["name"] == "photo_0"
    return again


def test_a_stroke_for_an_image_that_had_the_number_before_is_refused(page, shifted):
    stroke = {"url": "/api/images/0/labels?x=0&y=0&width=1&height=1", "content": b"\1"}
    for revision in (0, 1):
        tag = {"if-match": f'"{page.store.images[0].key}-{revision}"'}
        refused = shifted.client.patch(**stroke, headers=tag)
        assert refused.status_code == 409
        assert refused.json()["key"] == shifted.store.images[0].key != page.store.images[0].key
    address = f"/api/images/0/accept?key={page.store.images[0].key}"
    assert shifted.client.post(address, json={"accepted": True}).status_code == 409
    assert shifted.store.described(0)["revision"] == 0
    assert shifted.patch(1, 0, 0, np.ones((1, 1), np.uint8), 1).status_code == 200


def test_a_browser_takes_no_copy_of_another_image(page, shifted):
    """What it has cached for an address is right only for the image that had the number then."""
    shifted.patch(0, 0, 0, np.ones((1, 1), np.uint8), 0)
    shifted.store.add_prediction(0, 1, np.zeros((12, 16), np.uint8), np.ones((12, 16), np.float32))
    for part in ("", "?side=8", "/prediction", "/uncertainty"):
        address = f"/api/images/0{part}"
        cached = page.client.get(address).headers["etag"]
        of_both = [
            each.client.get(address, headers={"if-none-match": cached}).status_code
            for each in (page, shifted)
        ]
        assert of_both == [304, 200], part


def test_a_browser_takes_no_copy_of_another_project(page, tmp_path):
    """Of the same images under the same address, in which revisions and fits are numbered anew."""
    other = Page(tmp_path / "photos", tmp_path / "other", start=False)
    ids, uncertainty = np.zeros((12, 16), np.uint8), np.zeros((12, 16), np.float32)
    page.store.add_prediction(0, 1, ids, uncertainty)
    other.store.add_prediction(0, 1, ids + 1, uncertainty)
    cached = {"if-none-match": page.client.get("/api/images/0/prediction").headers["etag"]}
    assert map_in(other.client.get("/api/images/0/prediction", headers=cached))[0, 0] == 1
    labels = other.client.get("/api/images/0/labels")
    assert labels.headers["cache-control"] == "no-store"


def test_another_start_goes_on_where_the_first_stopped(page, tmp_path):
    page.patch(1, 2, 3, np.full((2, 2), 2, np.uint8), 0)
    page.accept(1)
    page.client.post("/api/classes", json={"name": "house"})
    again = Page(tmp_path / "photos", page.store.folder, page.store.classes, start=False)
    before, after = (each.client.get("/api/project").json() for each in (page, again))
    assert before["images"] == after["images"] and before["classes"] == after["classes"]
    assert after["images"][1]["revision"] == 1 and after["images"][1]["accepted"]


def test_a_fit_predicts_all_images_and_their_uncertainty(page):
    page.patch(0, 0, 0, np.zeros((2, 16), np.uint8), 0)
    page.patch(0, 0, 10, np.ones((2, 16), np.uint8), 1)
    assert page.client.get("/api/images/2/prediction").status_code == 404
    assert page.client.post("/api/fit").json() == {"number": 1}
    wait_for(lambda: page.worker.state["phase"] == "idle" and page.store.described(2)["fit"])
    halves = np.repeat([0, 1], 10)[:, None].repeat(10, 1)
    prediction = map_in(page.client.get("/api/images/1/prediction"))
    np.testing.assert_array_equal(prediction, halves)
    uncertainty = map_in(page.client.get("/api/images/1/uncertainty"))
    np.testing.assert_array_equal(np.unique(uncertainty), [64, 191])
    project = page.client.get("/api/project").json()
    assert project["images"][1]["score"] == pytest.approx(0.5) and project["images"][1]["fit"] == 1
    assert project["fits"][0]["per_class"] == [0.5, None, None]
    regions = page.client.get("/api/images/1/uncertain").json()["regions"]
    assert regions[0]["uncertainty"] == pytest.approx(0.5, abs=0.01)
    page.patch(1, 0, 0, np.zeros((20, 10), np.uint8), 0)  # of painted pixels nothing is asked
    assert page.client.get("/api/images/1/uncertain").json()["regions"] == []


def test_an_export_is_read_as_a_data_set(page):
    page.patch(0, 0, 0, np.zeros((2, 16), np.uint8), 0)
    page.patch(0, 0, 10, np.ones((2, 16), np.uint8), 1)
    page.client.post("/api/fit")
    wait_for(lambda: page.worker.state["phase"] == "idle" and page.store.described(2)["fit"])
    page.patch(1, 0, 0, np.full((1, 1), 2, np.uint8), 0)
    page.accept(1)
    done = page.client.post("/api/export").json()
    assert (done["masks"], done["sparse"]) == (1, 1)
    source = open_source("folder", "train", path=done["folder"])
    assert source.labels.names == NAMES
    masks = {item["name"]: item["mask"] for item in source}
    assert masks["photo_1"][0, 0] == 2 and (masks["photo_1"][1:10] == 0).all()
    assert (masks["photo_0"] == 255).sum() == 8 * 16


def test_requests_that_are_refused(page):
    client = page.client
    for address, status in [
        ("/api/images/3", 404), ("/api/images/-1", 404), ("/api/images/../../etc/passwd", 404),
        ("/api/images/%2e%2e%2fx/labels", 404), ("/api/images/0?side=0", 400), ("/x", 404),
    ]:  # fmt: skip
        response = client.get(address)
        assert response.status_code == status and set(response.json()) == {"error"}
    ok, key = np.zeros((2, 2), np.uint8), page.store.images[0].key
    assert page.patch(0, 15, 0, ok, 0).status_code == 400
    assert page.patch(0, 0, 0, ok + 3, 0).status_code == 422
    assert client.patch("/api/images/0/labels?x=0&y=0&width=2&height=2", content=b"1" * 193,
                        headers={"if-match": f"{key}-0"}).status_code == 413  # fmt: skip
    assert client.patch("/api/images/0/labels?x=0&y=0&width=2&height=2",
                        content=b"1234").status_code == 400  # fmt: skip
    parts = iter([b"1" * 100] * 3)  # without Content-Length
    assert client.patch("/api/images/0/labels?x=0&y=0&width=2&height=2", content=parts,
                        headers={"if-match": f"{key}-0"}).status_code == 413  # fmt: skip
    assert client.post("/api/fit").status_code == 422
    assert client.post("/api/export").status_code == 422
    assert client.post("/api/classes", json={"name": "sky"}).status_code == 422
    assert client.post("/api/classes", content=b"{" * 100_000).status_code == 413
    assert json.loads(client.delete("/api/fit").text)["error"]


def test_a_page_is_told_what_happens(page):
    """First the state, then all that is published after that, until the server ends."""

    async def listen():
        texts, told = page.events.listen("state", lambda: {"phase": "idle"}), []
        async for text in texts:
            if not told:
                await run_in_threadpool(page.patch, 0, 0, 0, np.zeros((2, 16), np.uint8), 0)
            if text.startswith("event: image"):
                page.events.close()
            told.append(text)
        return told

    told = asyncio.run(asyncio.wait_for(listen(), 10))
    assert told[0] == 'event: state\ndata: {"phase": "idle"}\n\n'
    assert told[-1] == f"event: image\ndata: {json.dumps(page.store.described(0))}\n\n"


def test_only_the_prediction_that_was_looked_at_is_accepted(page):
    ids, uncertainty = np.zeros((20, 10), np.uint8), np.zeros((20, 10), np.float32)
    page.store.add_prediction(1, 1, ids, uncertainty)
    page.store.add_prediction(1, 2, ids + 1, uncertainty)  # between looking and clicking
    body = {"accepted": True, "fit": 1}
    refused = page.client.post("/api/images/1/accept", json=body)
    assert refused.status_code == 409 and "another fit" in refused.json()["error"]
    assert refused.json()["image"]["fit"] == 2 and not page.store.described(1)["accepted"]
    assert page.client.post("/api/images/1/accept", json={**body, "fit": 2}).json()["accepted"]
    page.store.add_prediction(1, 3, ids + 2, uncertainty)  # of a fit that was on its way
    assert page.store.described(1)["fit"] == 2 and page.store.predicted(1, "predictions").max() == 1
    response = page.client.post("/api/images/1/accept", json={"accepted": True})
    assert response.status_code == 422 and '"fit"' in response.json()["error"]


def test_a_full_disk_is_one_sentence_and_changes_nothing(page, monkeypatch, capsys):
    wait_for(lambda: page.worker.state["phase"] == "idle")
    before = page.client.get("/api/project").json()
    stroke = np.zeros((2, 2), np.uint8)
    for name, ask in [
        ("photo_0.png", lambda: page.patch(0, 0, 0, stroke, 0)),
        ("project.json", lambda: page.accept(0)),
        ("classes.json", lambda: page.client.post("/api/classes", json={"name": "house"})),
    ]:
        with monkeypatch.context() as patched:
            full_disk(patched, name)
            response = ask()
        assert response.status_code == 507, response.text
        error = response.json()["error"]
        assert f"{name} cannot be written (No space left on device). Make room" in error
        assert page.client.get("/api/project").json() == before
    assert (map_in(page.client.get("/api/images/0/labels")) == 255).all()
    assert page.patch(0, 0, 0, stroke, 0).json()["revision"] == 1  # it is tried again
    assert "Traceback" not in capsys.readouterr().err


def test_images_that_are_gone_or_changed_are_skipped_by_an_export(page, tmp_path):
    for index in range(3):
        page.patch(index, 0, 0, np.zeros((2, 2), np.uint8), 0)
    (tmp_path / "photos" / "photo_0.png").unlink()
    done = page.client.post("/api/export").json()
    assert done["sparse"] == 2 and len(done["skipped"]) == 1
    assert "photo_0 is skipped" in done["skipped"][0] and "photo_0.png" in done["skipped"][0]
    source = open_source("folder", "train", path=done["folder"])
    assert [item["name"] for item in source] == ["photo_1", "photo_2"]
    for index in (1, 2):
        Image.new("RGB", (5, 5)).save(tmp_path / "photos" / f"photo_{index}.png")
    response = page.client.post("/api/export")
    assert response.status_code == 422
    assert response.json()["error"].startswith("none of 3 images can be exported. photo_0 is")
    assert len(list(open_source("folder", "train", path=done["folder"]))) == 2  # that of before


@pytest.mark.parametrize("file", ["notes.txt", "images/val/a.png", ".git/config"])
def test_an_export_replaces_only_what_exports_write(page, file):
    page.patch(0, 0, 0, np.zeros((2, 2), np.uint8), 0)
    folder = Path(page.client.post("/api/export").json()["folder"])
    (folder / ".DS_Store").write_bytes(b"of a file manager")
    assert page.client.post("/api/export").status_code == 200
    own = folder / file
    own.parent.mkdir(exist_ok=True)
    own.write_bytes(b"mine")
    response = page.client.post("/api/export")
    assert response.status_code == 422 and "Move it out" in response.json()["error"]
    assert own.read_bytes() == b"mine" and (folder / "masks" / "photo_0.png").exists()


def test_an_export_on_a_full_disk_leaves_the_one_before(page, monkeypatch):
    page.patch(0, 0, 0, np.zeros((2, 2), np.uint8), 0)
    folder = Path(page.client.post("/api/export").json()["folder"])

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(dataset_export, "write_json", full)
    response = page.client.post("/api/export")
    assert response.status_code == 507 and "No space left" in response.json()["error"]
    assert [path.name for path in folder.parent.iterdir() if "dataset" in path.name] == ["dataset"]
    assert (folder / "masks" / "photo_0.png").exists()


def test_thumbnails_are_kept_up_to_a_number_of_bytes():
    made = []
    kept = KeptBytes(100, lambda size: made.append(size) or bytes(size))
    for size in (40, 50, 40, 50):
        assert len(kept(size)) == size
    assert made == [40, 50]
    kept(60)  # in place of the 40 bytes that were asked for least recently, with the 50
    kept(200)  # is larger than all that is kept
    made.clear()
    assert [len(kept(size)) for size in (60, 40)] == [60, 40] and 40 in made
