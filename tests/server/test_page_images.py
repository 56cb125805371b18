"""The images of a page, and the labels that belong to them, whatever they are named."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from diffseg_jax.inference import frames
from diffseg_jax.server.page_images import list_images
from diffseg_jax.server.replaced_images import REPLACED
from page_case import open_store, write_images

SIZES = [(12, 16)] * 3


@pytest.fixture
def photos(tmp_path):
    return write_images(tmp_path / "photos", SIZES)


def paint(store, index, id_):
    """Paints an image with one class, accepts it and gives it a prediction of that class."""
    ids = np.full((12, 16), id_, np.uint8)
    store.patch(index, (0, 0, 16, 12), ids, store.described(index)["revision"])
    store.add_prediction(index, 1 + id_, ids, np.zeros((12, 16), np.float32))
    store.accept(index, 1 + id_)


def swap(one, other):
    between = one.with_name("between")
    os.rename(one, between)
    os.rename(other, one)
    os.rename(between, other)


def labels_in(store):
    """{name: (id of its strokes, fit, accepted)}."""
    return {
        image.name: (int(store.labels(index)[0][0, 0]), entry["fit"], entry["accepted"])
        for index, image in enumerate(store.images)
        for entry in [store.described(index)]
    }


def test_labels_follow_images_that_change_their_names(photos, tmp_path):
    store = open_store(photos, tmp_path / "annotated")
    for index in range(3):
        paint(store, index, index)
    swap(photos / "photo_0.png", photos / "photo_1.png")
    os.rename(photos / "photo_2.png", photos / "a.png")
    store = open_store(photos, store.folder)
    after = {"a": (2, 3, True), "photo_0": (1, 2, True), "photo_1": (0, 1, True)}
    assert labels_in(store) == after and not store.notes
    assert not [file for file in (store.folder / REPLACED).rglob("*") if file.is_file()]
    assert labels_in(open_store(photos, store.folder)) == after


def test_a_second_file_of_a_name_takes_no_labels_from_the_first(photos, tmp_path):
    """With photo_0.jpg beside it, photo_0.png is named photo_0_png."""
    store = open_store(photos, tmp_path / "annotated")
    paint(store, 0, 1)
    Image.new("RGB", (16, 12)).save(photos / "photo_0.jpg")
    found = labels_in(open_store(photos, store.folder))
    assert found["photo_0_png"] == (1, 2, True) and found["photo_0_jpg"] == (255, 0, False)
    (photos / "photo_0.jpg").unlink()
    assert labels_in(open_store(photos, store.folder))["photo_0"] == (1, 2, True)


def test_another_image_of_the_same_name_and_size_has_no_labels(photos, tmp_path):
    store = open_store(photos, tmp_path / "annotated")
    paint(store, 0, 1)
    before = (photos / "photo_0.png").read_bytes()
    Image.new("RGB", (16, 12)).save(photos / "photo_0.png")
    store = open_store(photos, store.folder)
    assert labels_in(store)["photo_0"] == (255, 0, False)
    (note,) = store.notes
    assert "1 image with labels, the first photo_0, had other content" in note
    paint(store, 0, 2)
    (photos / "photo_0.png").write_bytes(before)  # what was painted on it comes back
    store = open_store(photos, store.folder)
    assert labels_in(store)["photo_0"] == (1, 2, True)  # and it is still accepted
    store.add_prediction(0, 9, np.zeros((12, 16), np.uint8), np.zeros((12, 16), np.float32))
    assert labels_in(open_store(photos, store.folder))["photo_0"] == (1, 2, True)


def test_a_kill_while_files_get_new_names_loses_none(photos, tmp_path, monkeypatch):
    """At each of the twelve steps in turn; the next start goes on with the rest."""
    store = open_store(photos, tmp_path / "annotated")
    paint(store, 0, 0)
    paint(store, 1, 1)
    swap(photos / "photo_0.png", photos / "photo_1.png")
    replace = os.replace
    for step in range(1, 20):
        folder, done = tmp_path / f"copy_{step}", []
        shutil.copytree(store.folder, folder)

        def until_killed(source, target, step=step, done=done):
            done.append(target)
            if len(done) == step:
                raise KeyboardInterrupt
            replace(source, target)

        monkeypatch.setattr(os, "replace", until_killed)
        try:
            open_store(photos, folder)
        except KeyboardInterrupt:
            monkeypatch.setattr(os, "replace", replace)
            again = labels_in(open_store(photos, folder))
            assert [each[::2] for each in again.values()][:2] == [(1, True), (0, True)], step
        else:
            break
    assert step > 12


def test_a_project_of_somebody_else_moves_no_file_elsewhere(photos, tmp_path):
    store = open_store(photos, tmp_path / "annotated")
    paint(store, 1, 0)  # so that there is the folder strokes
    file, outside = store.folder / "project.json", tmp_path / "annotated" / "mine.png"
    outside.write_bytes(b"mine")
    file.write_text(file.read_text().replace('"photo_0"', '"../mine"'))
    store = open_store(photos, store.folder)
    assert outside.exists() and labels_in(store)["photo_0"] == (255, 0, False)


def test_a_file_with_many_frames_is_read_once(tmp_path, monkeypatch):
    pages = [Image.new("RGB", (3, 2), (shade, 0, 0)) for shade in (0, 9, 9)]
    pages[0].save(tmp_path / "pages.tif", save_all=True, append_images=pages[1:])
    read, opened = frames.read_pages, []
    count = lambda path, numbers: opened.append(path) or read(path, numbers)
    monkeypatch.setattr(frames, "read_pages", count)
    images, _ = list_images([str(tmp_path)])
    assert len(images) == 3 and len(opened) == 1
    assert len({image.sha256 for image in images}) == 3  # also of frames that are equal
    assert list_images([str(tmp_path)], {each.name: vars(each) for each in images})[0] == images
    assert len(opened) == 1
