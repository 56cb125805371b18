"""CamVid, Cityscapes, ADE20K and Pascal Context have their published classes."""

import json
import os

import numpy as np
import pytest

from diffseg_jax.data import named_sets
from diffseg_jax.data.sources import open_source
from diffseg_jax.errors import UserError
from image_files import labelled_folder, random_ids, random_image, save_image

pytestmark = pytest.mark.quick


def cityscapes_folder(path, tail, mask):
    stem = "aachen/aachen_000000_000019"
    save_image(path / f"leftImg8bit/train/{stem}_leftImg8bit.png", random_image(*mask.shape))
    save_image(path / f"gtFine/train/{stem}_gtFine_{tail}.png", mask)
    save_image(path / f"gtFine/train/{stem}_gtFine_color.png", random_image())
    return str(path)


def test_cityscapes_label_ids_and_train_ids_agree(tmp_path):
    raw = np.array([[*range(34), 255]], np.uint8)
    path = cityscapes_folder(tmp_path, "labelIds", raw)
    source = open_source("cityscapes", "train", path=path)
    assert source.names == ("aachen/aachen_000000_000019_leftImg8bit",)
    mapped = source[0]["mask"]
    assert mapped[0, 7] == 0 and mapped[0, 33] == 18 and mapped[0, 34] == mapped[0, 6] == 255
    assert sorted(set(mapped.ravel())) == [*range(19), 255]
    cityscapes_folder(tmp_path, "labelTrainIds", mapped.astype(np.uint8))
    made = open_source("cityscapes", "train", path=path)
    assert made.masks[0].endswith("labelTrainIds.png")
    np.testing.assert_array_equal(made[0]["mask"], mapped)


def test_cityscapes_refuses_ids_without_a_label(tmp_path):
    path = cityscapes_folder(tmp_path, "labelIds", np.full((4, 6), 34, np.uint8))
    with pytest.raises(UserError, match="class id 34"):
        open_source("cityscapes", "train", path=path)[0]


@pytest.mark.golden
def test_cityscapes_table_is_the_recorded_one(golden):
    table = named_sets.cityscapes_table()
    for path in golden("ddep/cityscapes_lut*.json"):
        recorded = np.load(path.with_suffix(".npz"))["id_to_train_id"]
        np.testing.assert_array_equal(np.where(table < 0, 255, table), recorded)
    for path in golden("ddep/cityscapes_labels*.json"):
        rows = json.loads(path.read_text())["classes"]
        assert rows
        for row in rows:
            train_id = table[row["id"] if row["id"] >= 0 else 255]
            assert train_id == (row["train_id"] if row["train_id"] >= 0 else 255), row["name"]
            if train_id != 255:
                assert named_sets.CITYSCAPES.names[train_id] == row["name"]
                assert named_sets.CITYSCAPES.palette[train_id] == tuple(row["color"])


def test_ade20k_ids_are_shifted_by_one(tmp_path):
    raw = np.array([[0, 1, 150, 255]], np.uint8)
    save_image(tmp_path / "images/training/a.jpg", random_image(1, 4))
    save_image(tmp_path / "annotations/training/a.png", raw)
    for split in ("train", "training"):
        source = open_source("ade20k", split, path=str(tmp_path))
        np.testing.assert_array_equal(source[0]["mask"], [[255, 0, 149, 255]])
    assert len(set(source.labels.names)) == len(set(source.labels.palette)) == 150
    assert (source.labels.names[0], source.labels.names[12], source.labels.names[149]) == (
        "wall",
        "person",
        "flag",
    )
    save_image(tmp_path / "annotations/training/a.png", raw + np.uint8(2))
    with pytest.raises(
        UserError, match=r"class id 152, but classes are 1\.\.150 \(0, 255 is ignored"
    ):
        source[0]


def pascal_folder(path, mask):
    save_image(path / "JPEGImages/2008_000002.jpg", random_image(*mask.shape))
    save_image(path / "JPEGImages/2008_000003.jpg", random_image())
    save_image(path / "SegmentationClassContext/2008_000002.png", mask)
    (path / "ImageSets/SegmentationContext").mkdir(parents=True)
    (path / "ImageSets/SegmentationContext/train.txt").write_text("2008_000002\n")
    return str(path)


def test_pascal_context_with_and_without_background(tmp_path):
    path = pascal_folder(tmp_path, np.array([[0, 1, 59, 255]], np.uint8))
    full = open_source("pascal_context", "train", path=path, num_classes=60)
    np.testing.assert_array_equal(full[0]["mask"], [[0, 1, 59, 255]])
    less = open_source("pascal_context", "train", path=path, num_classes=59)
    np.testing.assert_array_equal(less[0]["mask"], [[255, 0, 58, 255]])
    assert full.names == less.names == ("2008_000002",) and full.report == ()
    assert full.labels.names[1:] == less.labels.names and less.labels.names[0] == "aeroplane"
    with pytest.raises(UserError, match="59 classes, or 60"):
        open_source("pascal_context", "train", path=path)


def test_pascal_context_raw_ids(tmp_path):
    raw = np.array([[0, 1, 2, 255, 415, 458, 459]], np.uint16)
    path = pascal_folder(tmp_path, raw)
    for classes, expected in ((60, [0, 0, 1, 0, 51, 59, 0]), (59, [255, 255, 0, 255, 50, 58, 255])):
        source = open_source(
            "pascal_context", "train", path=path, num_classes=classes, raw_459=True
        )
        np.testing.assert_array_equal(source[0]["mask"], [expected])
    assert source.labels.names[50] == "track" and len(named_sets.PASCAL_CONTEXT_RAW) == 60
    with pytest.raises(UserError, match="class id 415.*raw_459=True"):
        open_source("pascal_context", "train", path=path, num_classes=60)[0]


def test_pascal_context_list_and_folder_must_agree(tmp_path):
    path = pascal_folder(tmp_path, random_ids())
    with pytest.raises(UserError, match=r"val\.txt"):
        open_source("pascal_context", "val", path=path, num_classes=60)
    (tmp_path / "ImageSets/SegmentationContext/train.txt").write_text("2008_000002\n2009_1\n")
    with pytest.raises(UserError, match="1 listed images.*2009_1"):
        open_source("pascal_context", "train", path=path, num_classes=60)


def test_camvid_has_its_eleven_classes(tmp_path):
    path = labelled_folder(tmp_path, {"a": np.array([[0, 10, 255]], np.uint8)})
    source = open_source("camvid", "train", path=path)
    assert source.labels.names[3] == "road" and source.labels.palette[3] == (128, 64, 128)
    assert len(source.labels.names) == len(set(source.labels.palette)) == 11
    np.testing.assert_array_equal(source[0]["mask"], [[0, 10, 255]])


@pytest.mark.skipif(
    "DIFFSEG_CAMVID" not in os.environ, reason="DIFFSEG_CAMVID names no CamVid folder"
)
def test_camvid_as_published():
    counts = np.zeros((11, 2))
    for split, size in (("train", 367), ("val", 101)):
        source = open_source("camvid", split, path=os.environ["DIFFSEG_CAMVID"])
        assert len(source) == size
        for index in range(0, size, 20):
            mask = source[index]["mask"]
            rows = np.arange(mask.shape[0])[:, None] / mask.shape[0]
            for k in range(11):
                counts[k] += (mask == k).sum(), ((mask == k) * rows).sum()
    height = dict(zip(source.labels.names, counts[:, 1] / counts[:, 0], strict=True))
    assert max(height, key=height.get) == "road" and min(height, key=height.get) == "sky"
    assert height["pavement"] > height["car"] > height["building"]
