import tempfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings

from diffseg_jax.errors import UserError
from label_cases import (
    LABELLED_MAPS,
    as_maps,
    converted,
    maps_of,
    names_of,
    write_maps,
    write_photo,
)

pytestmark = pytest.mark.quick

LEFT = "0 0 0 0.5 0 0.5 1 0 1\n"  # the left half, as a polygon
ALL = "1 0 0 1 0 1 1 0 1\n"


def write_yolo(folder, text=LEFT, names="[a, b]", images="images/train", labels="labels/train"):
    """A folder with one image of 4x6 pixels."""
    write_photo(folder / images / "x.png")
    (folder / labels).mkdir(parents=True, exist_ok=True)
    (folder / labels / "x.txt").write_text(text)
    (folder / "data.yaml").write_text(f"train: {images}\nval: {images}\nnames: {names}\n")
    return folder


def map_of(tmp_path, text=LEFT, **given):
    """The label map of one image."""
    (ids,) = as_maps(write_yolo(tmp_path / "in", text, **given), tmp_path / "out").values()
    return np.array(ids)


@settings(max_examples=12, deadline=None)
@given(LABELLED_MAPS)
def test_masks_come_back_through_yolo(ids):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_maps(folder / "mine", {"a.png": ids})
        converted(folder / "mine", folder / "there", target="yolo", split="train")
        assert as_maps(folder / "there", folder / "back") == {"train/a.png": ids.tolist()}
        assert names_of(folder / "back") == ["sky", "road", "tree"]


def test_large_images_come_back_too(tmp_path):
    borders = np.random.default_rng(0).choice(9001, 40, replace=False)
    ids = np.repeat([[0, 1, 255]], 2, axis=0).astype(np.uint8)
    ids = ids[:, np.searchsorted(np.sort(borders), np.arange(9001)) % 3]
    write_maps(tmp_path / "mine", {"a.png": ids})
    converted(tmp_path / "mine", tmp_path / "there", target="yolo")
    (again,) = as_maps(tmp_path / "there", tmp_path / "back").values()
    np.testing.assert_array_equal(again, ids)


def test_names_with_folders_of_yolo_are_shortened_or_refused(tmp_path):
    """COCO of other tools names images images/a.png."""
    ids = np.array([[0, 1, 255]], np.uint8)
    write_maps(tmp_path / "mine", {"images/a.png": ids})
    converted(tmp_path / "mine", tmp_path / "there", target="yolo")
    assert (tmp_path / "there" / "images" / "a.png").exists()
    assert as_maps(tmp_path / "there", tmp_path / "back") == {"a.png": ids.tolist()}
    write_maps(tmp_path / "other", {"batch/labels/a.png": ids})
    with pytest.raises(UserError, match="image batch/labels/a.png lies in a folder labels"):
        converted(tmp_path / "other", tmp_path / "nowhere", target="yolo")


def test_coordinates_are_shares_of_the_image(tmp_path):
    assert (map_of(tmp_path) == [0, 0, 0, 255, 255, 255]).all()


@pytest.mark.parametrize(
    "images, labels, name",
    [
        ("images/train", "labels/train", "train/x.png"),
        ("valid/images", "valid/labels", "valid/x.png"),
        ("images", "labels", "x.png"),
        ("obj_train_data", "obj_train_data", "obj_train_data/x.png"),
    ],
    ids=["Ultralytics", "Roboflow", "without splits", "side by side"],
)
def test_layouts(tmp_path, images, labels, name):
    folder = write_yolo(tmp_path / "in", images=images, labels=labels)
    converted(folder, tmp_path / "out")
    assert list(maps_of(tmp_path / "out")) == [name]
    assert (tmp_path / "out" / "images" / name).exists()


@pytest.mark.parametrize("name", ["test", "train", "val", "notes", "readme", "classes"])
def test_labels_of_images_are_no_lists_whatever_their_names(tmp_path, name):
    folder = write_yolo(tmp_path / "in", images="images", labels="labels")
    (folder / "labels" / "x.txt").rename(folder / "labels" / f"{name}.txt")
    (folder / "images" / "x.png").rename(folder / "images" / f"{name}.png")
    (folder / "train.txt").write_text("images/x.png")
    converted(folder, tmp_path / "out")
    assert list(maps_of(tmp_path / "out")) == [f"{name}.png"]


def test_a_list_of_classes_among_the_labels_is_not_read_as_labels(tmp_path):
    """As LabelImg writes it."""
    folder = write_yolo(tmp_path / "in", images="images", labels="labels")
    (folder / "labels" / "classes.txt").write_text("a\nb\n")
    assert len(as_maps(folder, tmp_path / "out")) == 1


def test_the_smaller_object_is_on_top(tmp_path):
    assert (map_of(tmp_path, LEFT + ALL) == [0, 0, 0, 1, 1, 1]).all()


def test_boxes_are_skipped_which_is_said(tmp_path):
    folder = write_yolo(tmp_path / "in", LEFT + "1 0.5 0.5 1 1\n")
    notes = converted(folder, tmp_path / "out").notes
    assert any("1 line that is a box" in note for note in notes)
    assert 1 not in np.unique(list(maps_of(tmp_path / "out").values()))


def test_labels_belong_to_the_upright_image(tmp_path):
    """Ultralytics turns images as their EXIF orientation says, before it scales coordinates."""
    folder = write_yolo(tmp_path / "in", "0 0 0 1 0 1 0.5 0 0.5\n")
    write_photo(folder / "images" / "train" / "x.png", (4, 6), orientation=6)
    (ids,) = as_maps(folder, tmp_path / "out").values()
    assert ids == 3 * [[0] * 4] + 3 * [[255] * 4]


@pytest.mark.parametrize(
    "names, expected",
    [
        ("[a, b]", ["a", "b"]),
        ("{1: b, 0: a}", ["a", "b"]),
        ("{'0': a, '1': b}", ["a", "b"]),
        ("\n  - a\n  - 'no'", ["a", "no"]),
        ("[10, b]", ["10", "b"]),
    ],
)
def test_names_in_all_their_forms(tmp_path, names, expected):
    converted(write_yolo(tmp_path / "in", names=names), tmp_path / "out")
    assert names_of(tmp_path / "out") == expected


def test_classes_txt_names_classes_without_data_yaml(tmp_path):
    folder = write_yolo(tmp_path / "in")
    (folder / "data.yaml").unlink()
    (folder / "classes.txt").write_text("sky\nroad\n")
    converted(folder, tmp_path / "out")
    assert names_of(tmp_path / "out") == ["sky", "road"]


def test_images_in_another_folder_are_found_by_their_name(tmp_path):
    folder = write_yolo(tmp_path / "in")
    (folder / "images" / "train" / "x.png").unlink()
    with pytest.raises(UserError, match="is not found, so that its size is not known"):
        converted(folder, tmp_path / "out")
    write_photo(tmp_path / "photos" / "x.png")
    converted(folder, tmp_path / "out", images=tmp_path / "photos")
    assert list(maps_of(tmp_path / "out")) == ["train/x.png"]


def test_images_without_a_text_file_have_no_labels(tmp_path):
    folder = write_yolo(tmp_path / "in")
    write_photo(folder / "images" / "train" / "empty.png")
    kept = as_maps(folder, tmp_path / "out", empty="keep", unlabelled="b")
    assert kept["train/empty.png"] == 4 * [[1] * 6]
    assert any("1 image without any label" in n for n in converted(folder, tmp_path / "2").notes)


def test_data_yaml_names_what_ultralytics_needs(tmp_path):
    write_maps(tmp_path / "mine", {"a.png": np.array([[0, 1]], np.uint8)})
    for split in ("train", "val"):
        converted(tmp_path / "mine", tmp_path / "out", target="yolo", split=split)
    content = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())
    names = {0: "sky", 1: "road", 2: "tree"}
    assert content == {
        "train": "images/train", "val": "images/val", "test": "images/test", "names": names
    }  # fmt: skip
    assert (tmp_path / "out" / "labels" / "val" / "a.txt").exists()
    assert (tmp_path / "out" / "images" / "val" / "a.png").exists()


LAUGHS = "&a [x, x]\nb: &b [*a, *a]\nnames: [*b, *b]"


@pytest.mark.parametrize(
    "text, names, sentence",
    [
        ("2 0 0 1 0 1 1\n", "[a, b]", "the class is '2'"),
        ("0.5 0 0 1 0 1 1\n", "[a, b]", "the class is '0.5'"),
        ("0 0 0 1 0 1\n", "[a, b]", "6 numbers"),
        ("0 0 0 1 0 1 1 0.9\n", "[a, b]", "8 numbers"),
        ("0 0 0 600 0 1 1\n", "[a, b]", "divided by the width"),
        ("0 0 0 nan 0 1 1\n", "[a, b]", "must be finite"),
        ("0 a\n", "[a, b]", "no line of numbers"),
        (LEFT, "[yes, b]", "Put quotes around it"),
        (LEFT, "[a, a]", "'a' twice"),
        (LEFT, "{0: a, 2: b}", "must be 0 to 1"),
        (LEFT, "3", "names is 3"),
        (LEFT, "[a, {}]", "the name of a class"),
        (LEFT, "[a", "It must be YAML"),
        (LEFT, "!!python/object/apply:os.system [ls]", "It must be YAML"),
        (LEFT, LAUGHS, "alias"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, text, names, sentence):
    with pytest.raises(UserError, match=sentence):
        converted(write_yolo(tmp_path / "in", text, names), tmp_path / "out", "yolo")
    assert not list((tmp_path / "out").rglob("*"))
