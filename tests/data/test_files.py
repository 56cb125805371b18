"""Files are found and paired by name."""

import re

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


def test_errors_about_missing_folders_list_their_neighbours(tmp_path):
    path = labelled_folder(tmp_path, {"a": random_ids()})
    with pytest.raises(UserError, match="not a folder. Folders in .*images: train.*masks/val"):
        open_source("folder", "val", path=path, num_classes=3)
    with pytest.raises(UserError, match="path is empty"):
        open_source("camvid", "train")
    with pytest.raises(UserError, match="is not a folder"):
        open_source("cityscapes", "train", path=path + "/nowhere")
    (tmp_path / "images/val").mkdir()
    with pytest.raises(UserError, match="holds no file"):
        open_source("folder", "val", path=path, num_classes=3)
    with pytest.raises(UserError, match="num_classes"):
        open_source("folder", "train", path=path)
