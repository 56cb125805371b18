"""Files are found and paired by name."""

import re
from pathlib import Path

import pytest

from diffseg_jax.data.sources import open_source
from diffseg_jax.errors import UserError
from image_files import labelled_folder, random_ids, random_image, save_image

pytestmark = pytest.mark.quick


def test_images_without_a_mask_are_refused_and_masks_without_an_image_reported(tmp_path):
    path = labelled_folder(tmp_path, {name: random_ids() for name in "abc"})
    (tmp_path / "images/train/b.png").unlink()
    source = open_source("folder", "train", path=path, num_classes=3)
    assert source.names == ("a", "c")
    assert re.fullmatch(r"1 masks in .* have no image; the first is b\.png\.", source.report[0])
    (tmp_path / "masks/train/a.png").unlink()
    (tmp_path / "masks/train/c.png").unlink()
    with pytest.raises(UserError, match=r"2 of 2 images .* the first is a\.png"):
        open_source("folder", "train", path=path, num_classes=3)


def test_two_images_with_one_stem_are_refused(tmp_path):
    path = labelled_folder(tmp_path, {"a": random_ids()})
    save_image(tmp_path / "images/train/a.jpg", random_image())
    with pytest.raises(UserError, match=r"a\.jpg and a\.png"):
        open_source("folder", "train", path=path, num_classes=3)


LAYOUTS = {  # folders of the images and of the masks, in which {} is a split
    "one split": ("images/train", "masks/train"),
    "other words": ("images/{}", "labels/{}"),
    "VOC": ("JPEGImages", "SegmentationClass"),
    "split first": ("{}/imgs", "{}/annotations"),
    "no splits": ("images", "masks"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_advice_about_the_layout_of_a_folder_works(tmp_path, layout):
    for split in ("train", "val"):
        for folder, array in zip(LAYOUTS[layout], (random_image(), random_ids()), strict=True):
            save_image(tmp_path / folder.format(split) / f"{split}.png", array)
    splits = {"train": "train", "val": "val"}
    for split in splits:
        if (advice := _refusal(tmp_path, split)) is None:
            continue
        if flag := re.search(r"Try --config\.data\.(\w+)=(\w+)", advice):
            splits[flag[1]] = flag[2]
        for old, new in re.findall(r"Rename (\S+) to (\S+)\.(?: |$)", advice):
            Path(old).rename(new)
        for old, new in re.findall(r"(?:Move|and) (\S+) to (\S+?)[.,]", advice):
            Path(new).parent.mkdir(parents=True, exist_ok=True)
            Path(old).rename(new)
        parts = r"(?:in|those in) (\S+) to (\S+) and (\S+?)[.,]"
        for old, *new in re.findall(parts, advice):
            for file, folder in zip(sorted(Path(old).glob("*.png")), new, strict=True):
                Path(folder).mkdir(parents=True)
                file.rename(Path(folder, file.name))
    assert [_refusal(tmp_path, split) for split in splits.values()] == [None, None]


@pytest.mark.parametrize("part", ["images", "masks", "images/train"])
def test_a_part_of_a_set_is_refused_with_the_folder_of_the_set(tmp_path, part):
    split = "train" if part == "images/train" else ""
    labelled_folder(tmp_path, {name: random_ids() for name in "ab"}, split=split)
    for asked in ("train", "val"):
        with pytest.raises(UserError, match="without splits, images and masks hold all") as error:
            open_source("folder", asked, path=str(tmp_path / part), num_classes=3)
        assert str(error.value).endswith(f'Did you mean "{tmp_path}"?')


def test_images_without_splits_are_the_split_train(tmp_path):
    labelled_folder(tmp_path, {name: random_ids() for name in "ab"}, split="")
    assert open_source("folder", "train", path=str(tmp_path), num_classes=3).names == ("a", "b")
    labelled_folder(tmp_path, {"c": random_ids()}, split="val")
    with pytest.raises(UserError, match="images/train"):  # now there are splits
        open_source("folder", "train", path=str(tmp_path), num_classes=3)


def _refusal(folder, split):
    try:
        open_source("folder", split, path=str(folder), num_classes=3)
    except UserError as error:
        return str(error)


def test_errors_about_missing_folders_list_their_neighbours(tmp_path):
    path = labelled_folder(tmp_path, {"a": random_ids()})
    with pytest.raises(UserError, match="not a folder. Folders in .*images: train.*masks/val"):
        open_source("folder", "val", path=path, num_classes=3)
    with pytest.raises(UserError, match="path is empty"):
        open_source("camvid", "train")
    with pytest.raises(UserError, match="is not a folder"):
        open_source("cityscapes", "train", path=path + "/nowhere")
    (tmp_path / "images/val").mkdir()
    (tmp_path / "masks/val").mkdir()
    with pytest.raises(UserError, match="holds no file"):
        open_source("folder", "val", path=path, num_classes=3)
    with pytest.raises(UserError, match="num_classes"):
        open_source("folder", "train", path=path)
