"""Two conversions fill one folder, and images without labels stay, in every format."""

import json
import os

import numpy as np
import pytest

from diffseg_jax.annotations import conversion
from diffseg_jax.annotations.label_formats import LABEL_FORMATS, recognised
from diffseg_jax.errors import UserError
from label_cases import as_maps, converted, write_maps, write_object

pytestmark = pytest.mark.quick

NAMES = ("road", "car", "sky")  # which are classes of Cityscapes
WRITTEN = [name for name, each in LABEL_FORMATS.items() if each.write]
FILE_OF_SPLIT = {
    "coco": "instances_{}.json", "coco_panoptic": "panoptic_{}.json",
    "cvat": "annotations_{}.xml", "label_studio": "tasks_{}.json",
}  # fmt: skip
IDS = {"train": np.array([[0, 1, 255]], np.uint8), "val": np.array([[2, 2, 0]], np.uint8)}


@pytest.mark.parametrize("name", WRITTEN)
def test_two_splits_fill_one_folder(tmp_path, name):
    for split, ids in IDS.items():
        write_maps(tmp_path / split, {"a.png": ids}, NAMES)
        converted(tmp_path / split, tmp_path / "all", target=name, split=split)
    files = [FILE_OF_SPLIT[name].format(split) for split in IDS] if name in FILE_OF_SPLIT else [""]
    found = {}
    for number, file in enumerate(files):
        labels = tmp_path / "all" / file
        found |= as_maps(labels, tmp_path / f"back{number}", name, classes=NAMES)
    assert found == {f"{split}/a.png": ids.tolist() for split, ids in IDS.items()}


@pytest.mark.parametrize("name", FILE_OF_SPLIT)
def test_the_folder_of_one_split_is_recognised(tmp_path, name):
    write_maps(tmp_path / "in", {"a.png": IDS["train"]}, NAMES)
    converted(tmp_path / "in", tmp_path / "out", target=name, split="train")
    assert recognised(tmp_path / "out") == name


def test_voc_has_a_list_for_each_split(tmp_path):
    for split, ids in IDS.items():
        write_maps(tmp_path / split, {"a.png": ids}, NAMES)
        converted(tmp_path / split, tmp_path / "all", target="voc", split=split)
    lists = tmp_path / "all" / "ImageSets" / "Segmentation"
    assert {file.name: file.read_text() for file in lists.iterdir()} == {
        "train.txt": "train/a\n", "val.txt": "val/a\n",
    }  # fmt: skip


def test_yolo_has_a_third_split_and_no_fourth(tmp_path):
    write_maps(tmp_path / "in", {"a.png": IDS["train"]}, NAMES)
    for split in ("train", "test"):
        converted(tmp_path / "in", tmp_path / "out", target="yolo", split=split)
    assert "test: images/test" in (tmp_path / "out" / "data.yaml").read_text()
    with pytest.raises(UserError, match="data.yaml has lines for train, val, test only"):
        converted(tmp_path / "in", tmp_path / "out", target="yolo", split="more")


# ---- images without labels -----------------------------------------------------------------------


@pytest.mark.parametrize("all_empty", [False, True])
@pytest.mark.parametrize("name", WRITTEN)
def test_images_without_labels_that_are_kept_come_back(tmp_path, name, all_empty):
    empty = np.full((2, 3), 255, np.uint8)
    maps = {"a.png": empty, "b.png": empty if all_empty else np.array([[0, 1, 255]], np.uint8)}
    write_maps(tmp_path / "in", maps, NAMES)
    converted(tmp_path / "in", tmp_path / "there", target=name, empty="keep")
    found = as_maps(tmp_path / "there", tmp_path / "back", name, empty="keep", classes=NAMES)
    assert found == {file: ids.tolist() for file, ids in maps.items()}
    if name in FILE_OF_SPLIT:  # others may be told by what masks show
        assert recognised(tmp_path / "there") == name


def test_images_of_panoptic_labels_without_an_entry_are_counted(tmp_path):
    maps = {"a.png": IDS["train"], "b.png": IDS["val"]}
    write_maps(tmp_path / "in", maps, NAMES)
    converted(tmp_path / "in", tmp_path / "there", target="coco_panoptic")
    file = tmp_path / "there" / "panoptic.json"
    content = json.loads(file.read_text())
    del content["annotations"][1]
    write_object(file, content)
    notes = converted(file, tmp_path / "out").notes
    assert [note for note in notes if note.startswith("skipped: 1 image without any label")]


# ---- ids and moves -------------------------------------------------------------------------------


def test_ids_of_coco_may_be_written_with_a_point(tmp_path):
    write_maps(tmp_path / "in", {"a.png": IDS["val"]}, NAMES)
    converted(tmp_path / "in", tmp_path / "there", target="coco")
    file = tmp_path / "there" / "instances.json"
    content = json.loads(file.read_text())
    for each in content["annotations"]:
        each["image_id"], each["category_id"] = map(float, (each["image_id"], each["category_id"]))
    write_object(file, content)
    assert as_maps(file, tmp_path / "out", classes=NAMES) == {"a.png": IDS["val"].tolist()}


def test_a_stop_while_files_are_moved_says_how_many_were(tmp_path, monkeypatch):
    write_maps(tmp_path / "in", {"a.png": IDS["val"]}, NAMES)
    moves, replace = [], os.replace

    def stopped(source, target):
        moves.extend([target] * (conversion.PARTIAL not in str(target)))
        if len(moves) == 2:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(conversion.os, "replace", stopped)
    with pytest.raises(UserError, match="stopped after 1 of 3 files were moved into"):
        converted(tmp_path / "in", tmp_path / "out")
