"""Folders return what is stored in them."""

import pickle

import numpy as np
import pytest

from diffseg_jax.data.sources import open_source
from diffseg_jax.errors import UserError
from image_files import labelled_folder, random_ids, random_image, save_image

pytestmark = pytest.mark.quick


def test_a_folder_returns_images_and_ids_as_stored(tmp_path):
    image, mask = random_image(), random_ids()
    mask[0, 0] = 255
    save_image(tmp_path / "images/train/town/b.png", image)
    save_image(tmp_path / "masks/train/town/b.png", mask)
    labelled_folder(tmp_path, {"a": random_ids()})
    source = open_source("folder", "train", path=str(tmp_path), num_classes=3)
    assert source.names == ("a", "town/b") and len(source) == 2
    item = source[1]
    assert item["name"] == "town/b"
    np.testing.assert_array_equal(item["image"], image)
    np.testing.assert_array_equal(item["mask"], mask)
    assert item["image"].dtype == np.uint8 and item["mask"].dtype == np.int32
    assert source.labels.names == ("class_0", "class_1", "class_2")


def test_sources_survive_pickling_and_do_not_depend_on_the_order_of_creation(tmp_path):
    first = labelled_folder(tmp_path / "x", {"b": random_ids(), "a": random_ids()})
    second = labelled_folder(tmp_path / "y", {"a": random_ids(), "b": random_ids()})
    x, y = (open_source("folder", "train", path=path, num_classes=3) for path in (first, second))
    assert x.names == y.names == ("a", "b")
    again = pickle.loads(pickle.dumps(x))
    np.testing.assert_array_equal(again[-1]["image"], x[1]["image"])
    assert len(list(again)) == 2


def test_opening_reads_no_file(tmp_path):
    (tmp_path / "images/train").mkdir(parents=True)
    (tmp_path / "masks/train").mkdir(parents=True)
    for part in ("images", "masks"):
        (tmp_path / part / "train/a.png").write_bytes(b"not an image")
    source = open_source("folder", "train", path=str(tmp_path), num_classes=3)
    with pytest.raises(UserError, match=r"images/train/a\.png"):
        source[0]


def test_unlabelled_reads_all_images_below_the_folder(tmp_path):
    for name in ("x/a.JPG", "x/y/b.png", "c.webp", "d.bmp", "e.tif"):
        save_image(tmp_path / name, random_image())
    (tmp_path / "notes.txt").write_text("not an image")
    save_image(tmp_path / ".hidden.png", random_image())
    source = open_source("unlabelled", "train", path=str(tmp_path))
    assert source.names == ("c.webp", "d.bmp", "e.tif", "x/a.JPG", "x/y/b.png")
    assert source.labels is None
    assert open_source("unlabelled", "x", path=str(tmp_path)).names == ("a.JPG", "y/b.png")


def test_unlabelled_never_reads_masks_as_images(tmp_path):
    path = labelled_folder(tmp_path, {"a": random_ids(), "b": random_ids()})
    labelled_folder(tmp_path, {"c": random_ids()}, "val")
    assert open_source("unlabelled", "train", path=path).names == ("a.png", "b.png")
    assert open_source("unlabelled", "", path=path).names == (
        "train/a.png",
        "train/b.png",
        "val/c.png",
    )


def test_the_class_of_an_image_is_the_rank_of_its_prefix(tmp_path):
    for name in ("dog_1.png", "x/cat_10_a.png", "y/dog_2.png"):
        save_image(tmp_path / name, random_image())
    source = open_source("unlabelled", "train", path=str(tmp_path), classes="prefix")
    assert source.names == ("dog_1.png", "x/cat_10_a.png", "y/dog_2.png")
    assert source.classes == ("cat", "dog") and source.labels is None
    assert [item["class"].item() for item in source] == [1, 0, 1]
    assert source[0]["class"].dtype == np.int32 and "mask" not in source[0]
    again = pickle.loads(pickle.dumps(source))
    assert again[1]["class"] == 0


def test_the_class_of_an_image_is_the_rank_of_its_folder(tmp_path):
    for name in ("train/b/1_1.png", "train/a/deep/c/2.png", "train/a/3.png", "val/z/4.png"):
        save_image(tmp_path / name, random_image())
    source = open_source("unlabelled", "train", path=str(tmp_path), classes="folder")
    assert source.names == ("a/3.png", "a/deep/c/2.png", "b/1_1.png")
    assert source.classes == ("a", "b", "c")
    assert [item["class"].item() for item in source] == [0, 2, 1]


def test_names_of_classes_can_be_printed(tmp_path):
    for name in ("caf\udce9/1.png", "new\nline/1.png"):
        save_image(tmp_path / name, random_image())
    source = open_source("unlabelled", "", path=str(tmp_path), classes="folder")
    assert source.classes == ("caf\\udce9", "new\\nline")


def test_images_have_no_class_by_default(tmp_path):
    save_image(tmp_path / "a/x_1.png", random_image())
    save_image(tmp_path / "b/y_1.png", random_image())
    source = open_source("unlabelled", "train", path=str(tmp_path))
    assert source.classes == () and "class" not in source[0]
    path = labelled_folder(tmp_path / "labelled", {"a": random_ids()})
    assert open_source("folder", "train", path=path, num_classes=3).classes == ()
    assert open_source("scenes", "train", images=1, size=(8, 8)).classes == ()


@pytest.mark.parametrize(
    "names, classes, sentence",
    [
        (("a_1", "b", "_c"), "prefix", r"cat_0001.* 2 of 3 images .* first is _c\.png\."),
        (("x/a", "b"), "folder", r"cat/0001.* 1 of 2 images .* first is b\.png\."),
        (("a_1", "a_2"), "prefix", r"only one class in .*, a\."),
        (("x/a", "x/b"), "folder", r"only one class in .*, x\."),
        (("a_1", "b_1"), "prefx", 'Did you mean "prefix"'),
    ],
)
def test_file_names_without_a_class_are_refused(tmp_path, names, classes, sentence):
    for name in names:
        save_image(tmp_path / f"{name}.png", random_image())
    with pytest.raises(UserError, match=sentence):
        open_source("unlabelled", "train", path=str(tmp_path), classes=classes)


def test_a_folder_of_labels_without_masks_is_not_to_be_renamed(tmp_path):
    """As of YOLO, whose folder labels holds text files."""
    save_image(tmp_path / "images/a.png", random_image())
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    with pytest.raises(UserError) as error:
        open_source("folder", "train", path=str(tmp_path))
    assert "Rename" not in str(error.value)
    save_image(tmp_path / "labels/a.png", random_ids())
    with pytest.raises(UserError, match="Rename .*labels to .*masks"):
        open_source("folder", "train", path=str(tmp_path))
