"""Unlabelled images are photographs: masks among them are found, counted and left out."""

import re

import numpy as np
import pytest
from PIL import Image, ImageFilter

from diffseg_jax.config.files import read_config
from diffseg_jax.config.options import SOURCE_DEFAULTS, SOURCE_OPTIONS
from diffseg_jax.data import mask_files
from diffseg_jax.data.mask_files import KEEP_OPTION, is_image_folder, is_mask_folder
from diffseg_jax.data.sources import open_source

pytestmark = pytest.mark.quick

Y, X = np.mgrid[:48, :64]
PHOTO = np.stack([4 * X, 5 * Y, X * Y % 256], -1).astype(np.uint8)
IDS = (X // 16).astype(np.uint8)
COLOURS = np.array([[70, 130, 180], [128, 64, 128], [0, 0, 142], [220, 20, 60]], np.uint8)[IDS]


def palette(ids):
    image = Image.fromarray(ids, "P")
    image.putpalette([k * 7 % 256 for k in range(768)])
    return image


SOFT = Image.fromarray((255 * (IDS > 1)).astype(np.uint8)).filter(ImageFilter.GaussianBlur(2))
MASKS = {
    "ids": Image.fromarray(IDS), "black and white": Image.fromarray(255 * (IDS // 2)),
    "palette": palette(IDS), "colours": Image.fromarray(COLOURS),
    "instances": Image.fromarray(IDS.astype(np.uint16) * 1000), "soft": SOFT,
}  # fmt: skip
LAYOUTS = {  # images and masks of a split; {} is the name
    "VOC": ("JPEGImages/{}.jpg", "SegmentationClass/{}.png"),
    "beside": ("{}.jpg", "{}.png"),
    "suffix": ("{}.png", "{}_mask.png"),
    "image and mask": ("{}_image.png", "{}-Mask.PNG"),
    "folders of images and labels": ("images/{}.jpg", "labels/{}.png"),
    "Carvana": ("train/{}.jpg", "train_masks/{}_mask.gif"),
    "split first": ("train/images/{}.jpg", "train/annotations/{}.png"),
    "Cityscapes": ("leftImg8bit/train/u/{}_leftImg8bit.png", "gtFine/train/u/{}_gtFine_color.png"),
    "ADE20K": ("images/training/{}.jpg", "annotations/training/{}.png"),
    "deep": ("set/photos/{}.jpg", "set/ground truth/{}.png"),
    "unknown folder": ("a/{}.jpg", "b/{}.png"),
    "two endings": ("{}.jpg", "{}.jpg.png"),
    "JPEG masks": ("pictures/{}.jpg", "masks/{}.jpg"),
}


def fill(root, layout, mask, count=4, names="img{}"):
    for index in range(count):
        for pattern, image in zip(layout, (Image.fromarray(PHOTO), mask), strict=True):
            file = root / pattern.format(names.format(index))
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".jpg" and image.mode not in ("L", "RGB"):
                image = image.convert("RGB")
            image.save(file)


def opened(root, split="train", **options):
    return open_source("unlabelled", split, path=str(root), **options)


# Neither name nor content tells.
UNTOLD = [(layout, "soft") for layout in ("beside", "unknown folder", "two endings")]
DEEP = [("JPEG masks", "instances"), ("Carvana", "instances")]  # formats of 8 bits
CASES = [(layout, kind) for layout in LAYOUTS for kind in MASKS]


@pytest.mark.parametrize(("layout", "kind"), [case for case in CASES if case not in UNTOLD + DEEP])
def test_masks_are_no_unlabelled_images(tmp_path, layout, kind):
    fill(tmp_path, LAYOUTS[layout], MASKS[kind])
    source = opened(tmp_path)
    assert len(source) == 4
    assert all(np.abs(item["image"].astype(int) - PHOTO).mean() < 30 for item in source)
    everything = opened(tmp_path, "", keep_masks=True)
    assert len(everything) == 8 and not everything.report
    if layout != "Carvana":  # there the split, which has no masks, was chosen
        (sentence,) = source.report
        assert re.search("[: ]4 (masks|of 8 images|in|with) ", sentence)
        assert sentence.endswith(KEEP_OPTION)


def test_masks_of_the_split_are_counted(tmp_path):
    for split in ("train", "valid"):
        fill(tmp_path, (f"images/{split}/{{}}.jpg", f"labels/{split}/{{}}.png"), MASKS["ids"])
    fill(tmp_path, ("images/train/{}.jpg", "instances_gt/{}.png"), MASKS["ids"], count=3)
    for split in ("train", "val"):
        (sentence,) = opened(tmp_path, split).report
        assert " 7 masks in instances_gt, labels " in sentence and "keep_masks=True" in sentence


def test_a_sentence_counts_the_masks_and_says_how_to_insist(tmp_path):
    fill(tmp_path, ("{}.jpg", "labels/{}.png"), MASKS["ids"])
    (sentence,) = opened(tmp_path).report
    assert sentence.startswith("4 of 8 images in ") and "4 in a folder labels, such as" in sentence
    flag = "unlabelled.options.keep_masks"
    assert f"--config.{flag}=True" in sentence
    config = read_config("configs/ddep_folder.py", [(flag, "True")])
    assert len(opened(tmp_path, **config.unlabelled.options)) == 8


def test_photographs_stay(tmp_path):
    """Also in folders named after masks, in grey, and of few colours where all are so."""
    fill(tmp_path / "a", ("with_mask/{}.jpg", "without_mask/{}.jpg"), Image.fromarray(PHOTO))
    fill(tmp_path / "a", ("people/{}.jpg", "grey/{}.png"), Image.fromarray(PHOTO).convert("L"))
    assert len(opened(tmp_path / "a")) == 16
    fill(tmp_path / "b", ("drawn/{}.png", "more/{}.png"), MASKS["ids"])
    for index in range(4):
        MASKS["ids"].save(tmp_path / f"b/drawn/img{index}.png")
    source = opened(tmp_path / "b")
    assert len(source) == 8 and "all 8 images" in source.report[0]
    fill(tmp_path / "c", ("x/{}.png", "mask/{}.jpg"), Image.fromarray(PHOTO))
    assert opened(tmp_path / "c", "", classes="folder").classes == ("mask", "x")


def test_folders_that_are_not_read_are_named(tmp_path):
    fill(tmp_path, ("images/{}.jpg", "labels/{}.png"), MASKS["ids"])
    fill(tmp_path, ("more/{}.jpg", "@eaDir/{}.jpg"), MASKS["ids"])
    source = opened(tmp_path)
    assert len(source) == 4 and "; not read: @eaDir, more. 4 masks" in source.report[0]
    (tmp_path / "labels").rename(tmp_path / "more" / "labels")
    assert len(opened(tmp_path)) == 8


def test_validation_images_are_left_out_or_named(tmp_path):
    for split in ("train", "val"):
        fill(tmp_path / "a", (f"images/{split}/{{}}.jpg", f"labels/{split}/{{}}.png"), MASKS["ids"])
    assert opened(tmp_path / "a").names == ("img0.jpg", "img1.jpg", "img2.jpg", "img3.jpg")
    fill(tmp_path / "b", ("val/{}.jpg", "test/{}.jpg"), Image.fromarray(PHOTO))
    assert "no folder train" in opened(tmp_path / "b").report[0]


def test_large_groups_are_read_in_samples(tmp_path, monkeypatch):
    read = []
    content_of = mask_files.content_of
    monkeypatch.setattr(mask_files, "SAMPLE", 4)
    monkeypatch.setattr(
        mask_files, "content_of", lambda path: read.append(path) or content_of(path)
    )
    fill(tmp_path / "a", ("x/{}.png", "y/{}.png"), Image.fromarray(PHOTO), count=10)
    assert len(opened(tmp_path / "a")) == 20 and len(read) == 4
    fill(tmp_path / "b", ("x/{}.png", "y/{}.png"), MASKS["ids"], count=10)
    fill(tmp_path / "b", ("z/{}.png", "z/{}x.png"), MASKS["ids"], count=10)
    assert len(opened(tmp_path / "b")) == 20


def test_names_of_folders():
    for name in ("masks", "train_masks", "Labels", "annotations_trainval", "SegmentationClassAug",
                 "gtFine", "Ground Truth", "label-maps", "semantic"):  # fmt: skip
        assert is_mask_folder(name)
    for name in ("images", "masked", "unlabelled", "gtx", "labelled images", "photos", "segments"):
        assert not is_mask_folder(name)
    assert is_image_folder("JPEGImages") and not is_image_folder("masks")


def test_every_option_of_a_data_set_has_a_default():
    assert SOURCE_DEFAULTS.keys() == SOURCE_OPTIONS.keys()
