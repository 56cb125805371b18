"""The six published data sets: which files are a split, how they are read, what is refused.

Folders with a few small files stand in for the real ones, with lower published counts.
"""

import inspect
import pickle
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from diffseg_jax.data import few_label_sets
from diffseg_jax.data.few_label_sets import FEW_LABEL_SETS, SIDE, open_few_label_set
from diffseg_jax.data.sources import SOURCES, open_source
from diffseg_jax.errors import UserError

pytestmark = pytest.mark.quick

RNG = np.random.default_rng(0)
PUBLISHED = {  # name: classes, training images, test images, unscored ids
    "bedroom_28": (29, 40, 20, (0,)),
    "ffhq_34": (34, 20, 20, ()),
    "cat_15": (15, 30, 20, ()),
    "horse_21": (21, 30, 30, ()),
    "celeba_19": (19, 20, 500, ()),
    "ade_bedroom_30": (30, 50, 650, ()),
}


def noise(side):
    return RNG.integers(0, 256, (side, side, 3), np.uint8)


def write(folder, name="a.png", ids=((1, 2), (3, 4)), image=None):
    """An image, 4 pixels wide unless given, and its mask beside it."""
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise(4) if image is None else image).save(file)
    np.save(file.with_suffix(".npy"), np.array(ids))
    return file


@pytest.fixture
def three_images(monkeypatch):
    """cat_15 as if it had been published with three images per split."""
    few = replace(FEW_LABEL_SETS["cat_15"], train=3, test=3)
    monkeypatch.setitem(few_label_sets.FEW_LABEL_SETS, "cat_15", few)


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_set_has_its_published_classes_and_counts(tmp_path, name):
    classes, train, test, unscored = PUBLISHED[name]
    for split, folder, count in (("train", "real/train", train), ("test", "real/test", test)):
        write(tmp_path / folder)
        source = open_source(name, split, path=str(tmp_path))
        assert f"holds 1 images; split {split} of {name}" in source.report[0]
        assert f"published with {count}." in source.report[0]
    labels = source.labels
    assert len(labels.names) == len(labels.palette) == classes == len(set(labels.names))
    assert len(set(labels.palette)) == classes and labels.unscored == unscored
    assert (labels.names[0] == "background") == (name != "ade_bedroom_30")
    assert source.classes == ()


def test_some_names_have_the_published_ids():
    names = {name: few.labels().names for name, few in FEW_LABEL_SETS.items()}
    assert names["bedroom_28"][12] == "table/nightstand/dresser top"
    assert (names["bedroom_28"][28], names["ffhq_34"][33]) == ("things on table", "wrinkles")
    assert (names["cat_15"][11], names["horse_21"][20]) == ("nose", "leg protection")
    assert (names["celeba_19"][17], names["ade_bedroom_30"][7]) == ("skin", "window pane")


def test_only_the_first_four_sets_have_generated_images(tmp_path):
    write(tmp_path / "ddpm")
    for name, (_, train, *_) in PUBLISHED.items():
        if name in ("celeba_19", "ade_bedroom_30"):
            with pytest.raises(UserError, match=f"split of {name} .*Known: test, train"):
                open_source(name, "ddpm", path=str(tmp_path))
        else:
            source = open_source(name, "ddpm", path=str(tmp_path))
            assert source.names == ("a",) and f"published with {train}." in source.report[0]


def test_path_may_be_the_parent_folder_or_the_data_set_itself(tmp_path):
    write(tmp_path / "cat_15/real/train")
    write(tmp_path / "cat_15/ddpm", "drawn.jpg")
    for split, name in (("train", "a"), ("ddpm", "drawn")):
        outer = open_few_label_set("cat_15", split, path=str(tmp_path))
        inner = open_few_label_set("cat_15", split, path=tmp_path / "cat_15")
        assert outer.images == inner.images and outer.names == inner.names == (name,)
    write(tmp_path / "real/train", "b.png")  # the folder with the name comes first
    assert open_few_label_set("cat_15", "train", path=tmp_path).names == ("a",)


def test_the_first_files_by_path_are_the_split(tmp_path, three_images):
    # File names are sorted with their endings: "-" before ".", and "." before "/" and letters.
    for name in ("b/a.jpeg", "a.png", "c.GIF", "a-1.jpg", "a1.gif"):
        write(tmp_path / "real/train", name)
    (tmp_path / "real/train/0.bmp").write_bytes(b"not one of the endings")
    source = open_few_label_set("cat_15", "train", path=tmp_path)
    assert source.names == ("a-1", "a", "a1") and len(source) == 3
    assert "holds 5 images" in source.report[0] and "first 3 by path" in source.report[0]
    (tmp_path / "real/train/a1.gif").unlink()
    (tmp_path / "real/train/a-1.jpg").unlink()
    source = open_few_label_set("cat_15", "train", path=tmp_path)
    assert source.names == ("a", "b/a", "c") and source.report == ()
    assert [item["name"] for item in source] == ["a", "b/a", "c"]


def test_images_beyond_the_published_count_need_no_mask(tmp_path, three_images):
    for name in "abcd":
        write(tmp_path / "real/test", f"{name}.png")
    (tmp_path / "real/test/d.npy").unlink()
    assert len(open_few_label_set("cat_15", "test", path=tmp_path)) == 3
    (tmp_path / "real/test/b.npy").unlink()
    with pytest.raises(UserError, match=r"1 of 3 images .* first is b\.png"):
        open_few_label_set("cat_15", "test", path=tmp_path)


def test_images_of_the_right_size_are_returned_as_stored(tmp_path):
    image, ids = noise(SIDE), RNG.integers(0, 15, (SIDE, SIDE))
    write(tmp_path / "real/train", ids=ids, image=image)
    source = pickle.loads(pickle.dumps(open_few_label_set("cat_15", "train", path=tmp_path)))
    item = source[-1]
    np.testing.assert_array_equal(item["image"], image)
    np.testing.assert_array_equal(item["mask"], ids)
    assert item["image"].dtype == np.uint8 and item["mask"].dtype == np.int32
    assert set(item) == {"image", "mask", "name"}


def test_other_sizes_are_resized_and_masks_by_the_floor_rule(tmp_path):
    image, ids = noise(300), RNG.integers(0, 15, (100, 100))
    write(tmp_path / "real/train", ids=ids, image=image)
    item = open_few_label_set("cat_15", "train", path=tmp_path)[0]
    indices = np.arange(SIDE) * 100 // SIDE  # in exact integer arithmetic
    np.testing.assert_array_equal(item["mask"], ids[indices][:, indices])
    expected = Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(item["image"], np.asarray(expected))
    assert item["image"].shape == (SIDE, SIDE, 3) and item["mask"].dtype == np.int32


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    write(tmp_path / "real/train")
    Image.fromarray(noise(SIDE)).convert(mode).save(tmp_path / "real/train/a.png")
    image = open_few_label_set("cat_15", "train", path=tmp_path)[0]["image"]
    assert image.shape == (SIDE, SIDE, 3) and image.dtype == np.uint8


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint8])
def test_minus_one_and_255_are_ignored_and_0_in_the_bedroom(tmp_path, dtype):
    ids = np.array([[-1, 0], [1, 14]]).astype(dtype)  # -1 is 255 in uint8
    write(tmp_path / "real/train", ids=ids)
    for name, zero in (("cat_15", 0), ("bedroom_28", 255)):
        mask = open_few_label_set(name, "train", path=tmp_path)[0]["mask"]
        half = SIDE // 2
        np.testing.assert_array_equal(mask[::half, ::half], [[255, zero], [1, 14]])


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("wrong", [0, 1, 256, -3], ids=["K", "K + 1", "K + 256", "-3"])
def test_an_id_that_is_no_class_names_file_and_id(tmp_path, name, wrong):
    classes = PUBLISHED[name][0]
    bad = wrong if wrong < 0 else classes + wrong
    write(tmp_path / "real/train", ids=np.array([[classes - 1, 1], [1, bad]], np.int32))
    source = open_few_label_set(name, "train", path=tmp_path)
    with pytest.raises(UserError, match=rf"real/train/a\.npy has class id {bad}, .*{name}"):
        source[0]


def test_an_error_about_a_file_that_is_not_square_names_it_and_its_size(tmp_path):
    write(tmp_path / "real/train", image=noise(6)[:4])
    source = open_few_label_set("cat_15", "train", path=tmp_path)
    with pytest.raises(UserError, match=r"a\.png is 6x4 \(width x height\)"):
        source[0]
    write(tmp_path / "real/train", ids=np.ones((3, 5), int))
    with pytest.raises(UserError, match=r"a\.npy is 5x3"):
        source[0]


def test_masks_that_hold_no_ids_are_refused(tmp_path):
    write(tmp_path / "real/train", ids=np.full((2, 2), 0.5))
    with pytest.raises(UserError, match=r"a\.npy holds 0\.5, .* an integer"):
        open_few_label_set("cat_15", "train", path=tmp_path)[0]


def test_images_that_share_a_mask_are_refused(tmp_path):
    write(tmp_path / "real/train", "a.png")
    write(tmp_path / "real/train", "a.jpg")
    with pytest.raises(UserError, match=r"a\.jpg and a\.png"):
        open_few_label_set("cat_15", "train", path=tmp_path)


def test_an_error_about_a_missing_folder_shows_the_layout(tmp_path):
    layout = r"cat_15/real/test.*\.png.*NAME\.npy"
    with pytest.raises(UserError, match=f"path is empty.*{layout}"):
        open_source("cat_15", "test")
    with pytest.raises(UserError, match=f"not a folder.*{layout}"):
        open_source("cat_15", "test", path=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=f"not a folder.*{layout}"):
        open_source("cat_15", "test", path=str(tmp_path))
    (tmp_path / "cat_15/real/test").mkdir(parents=True)
    np.save(tmp_path / "cat_15/real/test/a.npy", np.zeros((2, 2), int))
    with pytest.raises(UserError, match=f"holds no file.*{layout}"):
        open_source("cat_15", "test", path=str(tmp_path))


def test_names_splits_and_options_are_checked(tmp_path):
    write(tmp_path / "real/train")
    with pytest.raises(UserError, match='few-label set "cat_51".*Did you mean "cat_15"'):
        open_few_label_set("cat_51", "train", path=tmp_path)
    with pytest.raises(UserError, match='split of cat_15 "val". Known: ddpm, test, train'):
        open_source("cat_15", "val", path=str(tmp_path))
    with pytest.raises(UserError, match=r"num_classes=15 .* data set cat_15 .* options: path, sq"):
        open_source("cat_15", "train", path=str(tmp_path), num_classes=15)
    assert set(FEW_LABEL_SETS) < set(SOURCES)
    assert set(inspect.signature(SOURCES["cat_15"]).parameters) == {"split", "path"}
