"""Sets of depth: folders, drawn scenes, KITTI and NYU as published, and what is wrong with them."""

import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from depth_files import depth_map, make_depth_folder, make_kitti, make_nyu, picture, save
from diffseg_jax.data.scenes import SKY_DEPTH
from diffseg_jax.data.sources import open_source
from diffseg_jax.errors import UserError


def is_example(item, size):
    assert item["image"].dtype == np.uint8 and item["image"].shape == (*size, 3)
    assert item["depth"].dtype == np.float32 and item["depth"].shape == size
    assert item["depth"].min() >= 0 and item["depth"].any() and "mask" not in item
    return True


# ---- folders -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ending", "scale"), [("png", 0.001), ("png", 1 / 256), ("npy", 1.0)])
def test_a_folder_gives_images_with_their_metres(tmp_path, ending, scale):
    make_depth_folder(tmp_path, scale=scale, ending=ending)
    source = open_source("depth_folder", "val", path=tmp_path)
    assert source.names == ("photo0", "photo1", "photo2") and source.labels is None
    assert not source.report and is_example(source[1], (24, 40))
    np.testing.assert_allclose(source[1]["depth"], depth_map(101), atol=scale, rtol=1e-3)
    np.testing.assert_array_equal(source[1]["image"], picture(101))
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy[0]["depth"], source[0]["depth"])


def test_files_without_splits_are_all_the_split_train(tmp_path):
    make_depth_folder(tmp_path, splits=("",))
    assert len(open_source("depth_folder", "train", path=tmp_path)) == 3
    with pytest.raises(UserError, match="images/val is not a folder.*images/val holds images"):
        open_source("depth_folder", "val", path=tmp_path)


def test_depth_is_turned_with_its_image(tmp_path):
    make_depth_folder(tmp_path, count=1)
    image = Image.fromarray(picture(0))
    exif = image.getexif()
    exif[274] = 6  # upright after a quarter turn clockwise
    image.save(tmp_path / "images/train/photo0.png", exif=exif)
    item = open_source("depth_folder", "train", path=tmp_path)[0]
    assert is_example(item, (40, 24))
    np.testing.assert_allclose(item["depth"], np.rot90(depth_map(0), -1), atol=0.001)


def test_depth_of_another_size_is_refused_with_both_sizes(tmp_path):
    make_depth_folder(tmp_path, count=1)
    save(tmp_path / "depth/train/photo0.png", 1000 * depth_map(0, (12, 20)))
    source = open_source("depth_folder", "train", path=tmp_path)
    with pytest.raises(UserError, match="depth .*photo0.png is 20x12, but its image .* 40x24"):
        source[0]


def test_a_wrong_unit_is_reported_when_the_folder_is_opened(tmp_path):
    make_depth_folder(tmp_path)
    (tmp_path / "depth.json").write_text('{"scale": 1}')
    (sentence,) = open_source("depth_folder", "train", path=tmp_path).report
    assert "km, with 1 m per stored unit" in sentence and '"scale": 0.001 (millimetres' in sentence


@pytest.mark.parametrize(
    ("removed", "sentence"),
    [
        ("depth/train/photo1.png", "1 of 3 images in .* have no depth map in .* photo1.png"),
        ("depth.json", r'there is no .*depth.json.*Write into it: {"scale": 0.001} if they'),
        ("depth/train", "depth/train is not a folder.*In data set depth_folder"),
        ("images/train", "images/train is not a folder"),
    ],
)
def test_an_incomplete_folder_is_refused(tmp_path, removed, sentence):
    make_depth_folder(tmp_path)
    (tmp_path / removed).rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=sentence):
        open_source("depth_folder", "train", path=tmp_path)


def test_depth_without_an_image_is_reported(tmp_path):
    make_depth_folder(tmp_path)
    (tmp_path / "images/train/photo1.png").unlink()
    (sentence,) = open_source("depth_folder", "train", path=tmp_path).report
    assert "1 depth maps in" in sentence and "have no image" in sentence


# ---- drawn scenes --------------------------------------------------------------------------------


def test_scenes_have_their_depth_without_the_sky():
    options = dict(images=2, size=(32, 48), seed=3)
    source, scenes = (open_source(n, "val", **options) for n in ("depth_scenes", "scenes"))
    assert source.names == scenes.names and source.labels is None and len(source) == 2
    item, scene = source[1], scenes[1]
    assert is_example(item, (32, 48))
    sky = scene["depth"] >= SKY_DEPTH
    assert sky.any() and not item["depth"][sky].any()
    np.testing.assert_array_equal(item["depth"][~sky], scene["depth"][~sky])
    np.testing.assert_array_equal(item["image"], scene["image"])


# ---- KITTI and NYU -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kitti(tmp_path_factory):
    return make_kitti(tmp_path_factory.mktemp("kitti"))


@pytest.fixture(scope="module")
def nyu(tmp_path_factory):
    return make_nyu(tmp_path_factory.mktemp("nyu"))


def test_kitti_is_read_as_published(kitti):
    source = open_source("kitti", "train", path=kitti)
    assert len(source) == 3 and list(source.names) == sorted(source.names)  # None left out
    assert source.names[0].endswith("image_02/data/0000000000")
    assert is_example(source[0], (352, 1216)) and not source.report
    np.testing.assert_array_equal(source[0]["image"], picture(0, (375, 1242))[23:, 13:1229])
    expected = depth_map(0, (375, 1242))[23:, 13:1229]
    np.testing.assert_allclose(source[0]["depth"], expected, atol=1 / 256)
    assert len(open_source("kitti", "val", path=kitti)) == 2


def test_nyu_is_cut_within_its_border_for_training_only(nyu):
    train, val = (open_source("nyu", split, path=nyu) for split in ("train", "val"))
    assert is_example(train[0], (427, 565)) and is_example(val[0], (480, 640))
    expected = depth_map(0, (480, 640), 0.7, 9.0)[45:472, 43:608]
    np.testing.assert_allclose(train[0]["depth"], expected, atol=0.001)
    assert train.names[0] == "kitchen_0000/rgb_00000"
    (nyu / "mine").mkdir(exist_ok=True)
    for name in ("my_val", "mine/test", "interval"):
        shutil.copy(nyu / "nyu_test.txt", nyu / f"{name}.txt")
    for split, size in (("nyu_train", (427, 565)), ("interval", (427, 565)),
                        ("nyu_test", (480, 640)), ("nyu_test.txt", (480, 640)),
                        ("my_val", (480, 640)), ("mine/test", (480, 640))):  # fmt: skip
        assert is_example(open_source("nyu", split, path=nyu)[0], size)


@pytest.mark.parametrize("folder", ["splits", "split", "elsewhere"])
def test_split_files_may_lie_in_folders(tmp_path, folder):
    make_nyu(tmp_path, 1, 1)
    (tmp_path / folder).mkdir()
    (tmp_path / "nyu_train.txt").rename(tmp_path / folder / "nyu_train.txt")
    options = {"splits": str(tmp_path / folder)} if folder == "elsewhere" else {}
    assert len(open_source("nyu", "train", path=tmp_path, **options)) == 1
    if folder != "elsewhere":
        return
    with pytest.raises(UserError, match="there is no nyu_train.txt in .* or give .*splits=FOLDER"):
        open_source("nyu", "train", path=tmp_path)


def test_another_list_may_be_given_by_its_name(kitti):
    (kitti / "some.txt").write_text((kitti / "kitti_eigen_test.txt").read_text())
    assert len(open_source("kitti", "some", path=kitti)) == 2
    with pytest.raises(UserError, match="there is no kitti_eigen_val.txt .* Copy the split files"):
        open_source("kitti", "kitti_eigen_val", path=kitti)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "lists no image. Give the split file as published"),
        ("a.png None 7\n", "lists no image with depth"),
        ("a.png b.png 7\none\n", 'line 2: "one" is not "image depth focal-length"'),
        ("a.png b.png\na.png c.png\n", "lists a twice"),
        ("a.png b.png 7\n", "lists 1 image, but of 2 listed files .* 2 are missing; the first is"),
    ],
    ids=["empty", "no depth", "other columns", "repeated", "missing files"],
)
def test_a_wrong_split_file_is_refused(kitti, text, sentence):
    (kitti / "wrong.txt").write_text(text)
    with pytest.raises(UserError, match=sentence):
        open_source("kitti", "wrong", path=kitti)


def test_images_that_are_too_small_to_be_cut_are_refused(tmp_path):
    make_kitti(tmp_path, 1, 1, size=(100, 1242))
    with pytest.raises(UserError, match="has 100x1242 pixels .* part of 352x1216 is cut.*your own"):
        open_source("kitti", "train", path=tmp_path)[0]
