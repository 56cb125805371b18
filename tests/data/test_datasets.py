"""Every source: what is read is what lies on disk; what is wrong there ends in one sentence."""

import io
import json
import os
import pickle
import re

import numpy as np
import pytest
from PIL import Image

from diffseg_jax.config.options import SOURCE_OPTIONS
from diffseg_jax.data import images, named_sets
from diffseg_jax.data.class_ids import id_table, to_classes
from diffseg_jax.data.palette import distinct_colours
from diffseg_jax.data.pipeline import Cached
from diffseg_jax.data.sources import open_source
from diffseg_jax.data.transforms import center_square
from diffseg_jax.errors import UserError

RNG = np.random.default_rng(0)


def picture(height=4, width=6):
    return RNG.integers(0, 256, (height, width, 3), np.uint8)


def save(path, array, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    elif mode == "P":
        image = Image.fromarray(array, "L").copy()
        image.putpalette([i % 256 for i in range(768)])
        image.save(path)
    else:
        Image.fromarray(array).save(path)
    return array


def folder(path, masks, split="train", ending=".png"):
    """Pictures and masks in the folder layout; the masks by name."""
    for name, mask in masks.items():
        save(path / "images" / split / f"{name}.png", picture(*mask.shape))
        save(path / "masks" / split / f"{name}{ending}", mask)
    return str(path)


def ids(high=3, height=4, width=6, dtype=np.uint8):
    return RNG.integers(0, high, (height, width)).astype(dtype)


def test_folder_returns_pictures_and_ids_as_stored(tmp_path):
    image, mask = picture(), ids()
    mask[0, 0] = 255
    save(tmp_path / "images/train/town/b.png", image)
    save(tmp_path / "masks/train/town/b.png", mask)
    folder(tmp_path, {"a": ids()})
    source = open_source("folder", "train", path=str(tmp_path), num_classes=3)
    assert source.names == ("a", "town/b") and len(source) == 2
    item = source[1]
    assert item["name"] == "town/b"
    np.testing.assert_array_equal(item["image"], image)
    np.testing.assert_array_equal(item["mask"], mask)
    assert item["image"].dtype == np.uint8 and item["mask"].dtype == np.int32
    assert source.labels.names == ("class_0", "class_1", "class_2")


@pytest.mark.parametrize("kind", ["grey", "palette", "16 bit", "npy", "npy int64"])
def test_every_kind_of_mask_gives_the_same_ids(tmp_path, kind):
    mask = ids()
    mask[1, 1] = 255
    save(tmp_path / "images/train/a.png", picture())
    if kind.startswith("npy"):
        stored = mask.astype(np.int64) if "int64" in kind else mask
        save(
            tmp_path / "masks/train/a.npy",
            np.where(stored == 255, -1, stored) if "int64" in kind else stored,
        )
    elif kind == "16 bit":
        save(tmp_path / "masks/train/a.png", mask.astype(np.uint16))
    else:
        save(tmp_path / "masks/train/a.png", mask, "P" if kind == "palette" else None)
    source = open_source("folder", "train", path=str(tmp_path), num_classes=3)
    np.testing.assert_array_equal(source[0]["mask"], mask)


def test_sources_survive_pickling_and_do_not_depend_on_the_order_of_creation(tmp_path):
    first = folder(tmp_path / "x", {"b": ids(), "a": ids()})
    second = folder(tmp_path / "y", {"a": ids(), "b": ids()})
    x, y = (open_source("folder", "train", path=path, num_classes=3) for path in (first, second))
    assert x.names == y.names == ("a", "b")
    again = pickle.loads(pickle.dumps(x))
    np.testing.assert_array_equal(again[-1]["image"], x[1]["image"])
    assert len(list(again)) == 2


def test_opening_reads_no_file(tmp_path):
    (tmp_path / "images/train").mkdir(parents=True)
    (tmp_path / "masks/train").mkdir(parents=True)
    for part in ("images", "masks"):
        (tmp_path / part / "train/a.png").write_bytes(b"not a picture")
    source = open_source("folder", "train", path=str(tmp_path), num_classes=3)
    with pytest.raises(UserError, match=r"images/train/a\.png"):
        source[0]


def test_classes_json_names_colours_and_ignores(tmp_path):
    mask = np.array([[0, 1, 2], [3, 9, 255]], np.uint8)
    path = folder(tmp_path, {"a": mask})
    entries = {"names": ["x", "y", "z"], "palette": [[1, 2, 3], [4, 5, 6], [7, 8, 9]]}
    (tmp_path / "classes.json").write_text(
        json.dumps(entries | {"zero_is_ignored": True, "ignore": [9]})
    )
    source = open_source("folder", "train", path=path)
    assert source.labels.names == ("x", "y", "z") and source.labels.palette[1] == (4, 5, 6)
    np.testing.assert_array_equal(source[0]["mask"], [[255, 0, 1], [2, 255, 255]])


def test_an_ignored_class_keeps_its_place(tmp_path):
    path = folder(tmp_path, {"a": np.array([[0, 1], [2, 0]], np.uint8)})
    (tmp_path / "classes.json").write_text('{"names": ["void", "bed", "lamp"], "ignore": [0]}')
    source = open_source("folder", "train", path=path)
    np.testing.assert_array_equal(source[0]["mask"], [[255, 1], [2, 255]])
    assert len(set(source.labels.palette)) == 3


def test_ignored_classes_are_unscored_wherever_they_were_ignored(tmp_path):
    path = folder(tmp_path, {"a": np.array([[0, 1, 2], [3, 9, 300]], np.uint16)})
    source = open_source("folder", "train", path=path, num_classes=4, ignore=(3, 9, 300, 3))
    np.testing.assert_array_equal(source[0]["mask"], [[0, 1, 2], [255, 255, 255]])
    assert source.labels.unscored == (3,) and len(source.labels.names) == 4
    entries = {"names": ["a", "b", "c", "d"], "ignore": [0, 300]}
    (tmp_path / "classes.json").write_text(json.dumps(entries))
    source = open_source("folder", "train", path=path, ignore=[9, 2])  # as JSON keeps a tuple
    np.testing.assert_array_equal(source[0]["mask"], [[255, 1, 255], [3, 255, 255]])
    assert source.labels.unscored == (0, 2) and source.labels.names == ("a", "b", "c", "d")
    assert pickle.loads(pickle.dumps(source)).labels == source.labels


def test_ids_are_ignored_as_they_are_on_disk(tmp_path):
    path = folder(tmp_path, {"a": np.array([[0, 1, 2]], np.uint8)})
    (tmp_path / "classes.json").write_text('{"names": ["x", "y"], "zero_is_ignored": true}')
    source = open_source("folder", "train", path=path, ignore=(2,))
    np.testing.assert_array_equal(source[0]["mask"], [[255, 0, 255]])
    assert source.labels.unscored == (1,)


def test_zeros_are_ids_and_no_empty_option(tmp_path):
    path = folder(tmp_path, {"a": np.array([[0, 1, 2]], np.uint8)})
    for ignore, unscored in (((0,), (0,)), ((0, 0), (0,)), ((), ())):
        source = open_source("folder", "train", path=path, num_classes=3, ignore=ignore)
        assert source.labels.unscored == unscored
    camvid = open_source("camvid", "train", path=path)
    assert camvid.labels.unscored == ()
    with pytest.raises(UserError, match=r"ignore=\(0,\) was given, but data set camvid"):
        open_source("camvid", "train", path=path, ignore=(0,))
    with pytest.raises(UserError, match="ignore"):  # the option is named to whoever needs it
        open_source("folder", "train", path=path, num_classes=2)[0]


@pytest.mark.parametrize("wrong", [(-1,), (65536,), ("sky",), (1.0,)])
def test_what_is_no_id_cannot_be_ignored(tmp_path, wrong):
    path = folder(tmp_path, {"a": ids()})
    with pytest.raises(UserError, match=r"ignore is .*0\.\.65535"):
        open_source("folder", "train", path=path, num_classes=3, ignore=wrong)


def test_the_config_takes_ignored_ids():
    rule = SOURCE_OPTIONS["ignore"]
    assert rule.problem((0, 65535)) == rule.problem(()) == ""
    assert rule.problem((-1,)) and rule.problem(0) and rule.problem((1.5,))


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("{", "JSON"),
        ("[]", "object"),
        ('{"nams": ["a"]}', 'Did you mean "names"'),
        ('{"names": ["a", "a"]}', "different"),
        ('{"names": ["a"], "palette": [[1, 2, 300]]}', "palette"),
        ('{"names": ["a"], "palette": [[1, 2, 3], [1, 2, 3]]}', "palette"),
        ('{"names": ["a"], "ignore": ["b"]}', "ignore"),
        ('{"names": ["a"], "zero_is_ignored": 1}', "zero_is_ignored"),
        ('{"names": ["a", "b"]}', "num_classes is 3"),
    ],
)
def test_wrong_classes_json_is_named(tmp_path, text, sentence):
    num_classes = 3 if "num_classes" in sentence else 0
    path = folder(tmp_path, {"a": ids()})
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(UserError, match=sentence) as error:
        open_source("folder", "train", path=path, num_classes=num_classes)
    assert "classes.json" in str(error.value)


@pytest.mark.parametrize("stored", [np.uint8, np.uint16])
def test_an_unknown_class_id_names_file_and_id(tmp_path, stored):
    mask = np.zeros((4, 6), stored)
    mask[2, 3], mask[0, 0] = 37, 255
    path = folder(tmp_path, {"a": mask})
    source = open_source("folder", "train", path=path, num_classes=11)
    sentence = r"masks/train/a\.png has class id 37, but classes are 0\.\.10 \(255 is ignored\)"
    with pytest.raises(UserError, match=sentence):
        source[0]


def test_ids_beyond_the_table_and_below_zero_are_errors():
    table = id_table(4)
    for bad in (1000, -2):
        with pytest.raises(UserError, match=f"class id {bad},"):
            to_classes(np.array([[0, bad]], np.int64), table, "x")


def test_class_counts_that_reach_the_ignore_label_are_refused():
    assert id_table(255)[254] == 254
    for classes, zero in ((256, False), (255, True), (0, False)):
        with pytest.raises(UserError, match="ignore label 255"):
            id_table(classes, zero_is_ignored=zero)


def test_a_mask_of_another_size_names_both_files(tmp_path):
    save(tmp_path / "images/train/a.png", picture(4, 6))
    save(tmp_path / "masks/train/a.png", ids(3, 4, 5))
    source = open_source("folder", "train", path=str(tmp_path), num_classes=3)
    with pytest.raises(UserError, match=r"masks/train/a\.png is 5x4.*images/train/a\.png is 6x4"):
        source[0]


def test_masks_that_are_no_ids_are_refused(tmp_path):
    for wrong, what in ((picture(), "colours"), (np.zeros((4, 6, 4), np.uint8), "colours")):
        save(tmp_path / "images/train/a.png", picture())
        save(tmp_path / "masks/train/a.png", wrong)
        with pytest.raises(UserError, match=what):
            open_source("folder", "train", path=str(tmp_path), num_classes=3)[0]
    (tmp_path / "masks/train/a.png").unlink()
    for wrong in (np.zeros((4, 6)), np.zeros((4, 6, 1), np.uint8)):
        save(tmp_path / "masks/train/a.npy", wrong)
        with pytest.raises(UserError, match="integer array"):
            open_source("folder", "train", path=str(tmp_path), num_classes=3)[0]
    (tmp_path / "masks/train/a.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(UserError, match=r"cannot read mask .*a\.npy"):
        open_source("folder", "train", path=str(tmp_path), num_classes=3)[0]


def test_images_without_mask_are_counted_and_masks_without_image_reported(tmp_path):
    path = folder(tmp_path, {name: ids() for name in "abc"})
    (tmp_path / "images/train/b.png").unlink()
    source = open_source("folder", "train", path=path, num_classes=3)
    assert source.names == ("a", "c")
    assert re.fullmatch(r"1 masks in .* have no image; the first is b\.png\.", source.report[0])
    (tmp_path / "masks/train/a.png").unlink()
    (tmp_path / "masks/train/c.png").unlink()
    with pytest.raises(UserError, match=r"2 of 2 images .* the first is a\.png"):
        open_source("folder", "train", path=path, num_classes=3)


def test_two_images_of_one_stem_are_refused(tmp_path):
    path = folder(tmp_path, {"a": ids()})
    save(tmp_path / "images/train/a.jpg", picture())
    with pytest.raises(UserError, match=r"a\.jpg and a\.png"):
        open_source("folder", "train", path=path, num_classes=3)


def test_missing_and_empty_folders_say_what_is_there(tmp_path):
    path = folder(tmp_path, {"a": ids()})
    with pytest.raises(UserError, match="not a folder. Folders in .*images: train"):
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


def test_names_and_options_are_checked(tmp_path):
    with pytest.raises(UserError, match='Did you mean "camvid"'):
        open_source("camvd", "train")
    with pytest.raises(UserError, match=r"images=5 was given, but data set camvid .* path"):
        open_source("camvid", "train", path=str(tmp_path), images=5)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_any_8_bit_picture_becomes_rgb(tmp_path, mode):
    image = Image.fromarray(picture()).convert(mode)
    image.save(tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"))
    item = open_source("unlabelled", "train", path=str(tmp_path))[0]
    assert item["image"].shape == (4, 6, 3) and item["image"].dtype == np.uint8
    assert "mask" not in item


@pytest.mark.parametrize("ending", [".png", ".jpg"])
def test_truncated_pictures_are_named(tmp_path, ending):
    save(tmp_path / f"a{ending}", picture(64, 64))
    whole = (tmp_path / f"a{ending}").read_bytes()
    for length in (0, 20, len(whole) // 2):
        (tmp_path / f"a{ending}").write_bytes(whole[:length])
        with pytest.raises(UserError, match=rf"cannot read .*a\{ending}"):
            open_source("unlabelled", "train", path=str(tmp_path))[0]


def test_16_bit_and_enormous_pictures_are_refused(tmp_path, monkeypatch):
    save(tmp_path / "a.png", np.zeros((4, 6), np.uint16))
    with pytest.raises(UserError, match="8-bit"):
        open_source("unlabelled", "train", path=str(tmp_path))[0]
    save(tmp_path / "a.png", picture())
    monkeypatch.setattr(images, "MAX_PIXELS", 23)
    with pytest.raises(UserError, match="6x4"):
        open_source("unlabelled", "train", path=str(tmp_path))[0]


def test_the_exif_orientation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    Image.fromarray(picture(4, 6)).save(tmp_path / "a.jpg", exif=exif)
    assert open_source("unlabelled", "train", path=str(tmp_path))[0]["image"].shape == (4, 6, 3)


def test_unlabelled_takes_every_picture_below(tmp_path):
    for name in ("x/a.JPG", "x/y/b.png", "c.webp", "d.bmp", "e.tif"):
        save(tmp_path / name, picture())
    (tmp_path / "notes.txt").write_text("no picture")
    save(tmp_path / ".hidden.png", picture())
    source = open_source("unlabelled", "train", path=str(tmp_path))
    assert source.names == ("c.webp", "d.bmp", "e.tif", "x/a.JPG", "x/y/b.png")
    assert source.labels is None
    assert open_source("unlabelled", "x", path=str(tmp_path)).names == ("a.JPG", "y/b.png")


def test_unlabelled_never_takes_masks_for_pictures(tmp_path):
    path = folder(tmp_path, {"a": ids(), "b": ids()})
    folder(tmp_path, {"c": ids()}, "val")
    assert open_source("unlabelled", "train", path=path).names == ("a.png", "b.png")
    assert open_source("unlabelled", "", path=path).names == (
        "train/a.png",
        "train/b.png",
        "val/c.png",
    )


def test_the_class_of_a_picture_is_the_rank_of_its_prefix(tmp_path):
    for name in ("dog_1.png", "x/cat_10_a.png", "y/dog_2.png"):
        save(tmp_path / name, picture())
    source = open_source("unlabelled", "train", path=str(tmp_path), classes="prefix")
    assert source.names == ("dog_1.png", "x/cat_10_a.png", "y/dog_2.png")
    assert source.classes == ("cat", "dog") and source.labels is None
    assert [item["class"].item() for item in source] == [1, 0, 1]
    assert source[0]["class"].dtype == np.int32 and "mask" not in source[0]
    again = pickle.loads(pickle.dumps(source))
    assert again[1]["class"] == 0


def test_the_class_of_a_picture_is_the_rank_of_its_folder(tmp_path):
    for name in ("train/b/1_1.png", "train/a/deep/c/2.png", "train/a/3.png", "val/z/4.png"):
        save(tmp_path / name, picture())
    source = open_source("unlabelled", "train", path=str(tmp_path), classes="folder")
    assert source.names == ("a/3.png", "a/deep/c/2.png", "b/1_1.png")
    assert source.classes == ("a", "b", "c")
    assert [item["class"].item() for item in source] == [0, 2, 1]


def test_pictures_have_no_class_unless_asked(tmp_path):
    save(tmp_path / "a/x_1.png", picture())
    save(tmp_path / "b/y_1.png", picture())
    source = open_source("unlabelled", "train", path=str(tmp_path))
    assert source.classes == () and "class" not in source[0]
    path = folder(tmp_path / "labelled", {"a": ids()})
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
def test_names_that_tell_no_class_are_refused(tmp_path, names, classes, sentence):
    for name in names:
        save(tmp_path / f"{name}.png", picture())
    with pytest.raises(UserError, match=sentence):
        open_source("unlabelled", "train", path=str(tmp_path), classes=classes)


def test_squares_of_any_set_come_without_masks(tmp_path):
    path = folder(tmp_path / "labelled", {"a": ids(3, 20, 30)})
    whole = open_source("folder", "train", path=path, num_classes=3)
    source = open_source("folder", "train", path=path, num_classes=3, square=8)
    assert whole.labels and source.labels is None and source.names == ("a",) and len(source) == 1
    assert set(source[0]) == {"image", "name"}
    np.testing.assert_array_equal(source[0]["image"], center_square(whole[0]["image"], 8))
    drawn = open_source("scenes", "train", images=2, size=(20, 30), square=8)
    assert set(drawn[1]) == {"image", "name"} and drawn[-1]["image"].shape == (8, 8, 3)
    assert len(list(drawn)) == 2


def test_squares_keep_the_class_and_are_what_is_cached(tmp_path):
    for name in ("b_1.png", "a_1.png"):
        save(tmp_path / name, picture(20, 30))
    source = open_source("unlabelled", "", path=str(tmp_path), classes="prefix", square=8)
    cached = Cached(pickle.loads(pickle.dumps(source)))
    assert cached.classes == ("a", "b") and cached[1]["class"] == 1
    assert cached.examples[1]["image"].shape == (8, 8, 3)


def cityscapes_folder(path, tail, mask):
    stem = "aachen/aachen_000000_000019"
    save(path / f"leftImg8bit/train/{stem}_leftImg8bit.png", picture(*mask.shape))
    save(path / f"gtFine/train/{stem}_gtFine_{tail}.png", mask)
    save(path / f"gtFine/train/{stem}_gtFine_color.png", picture())
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


def test_cityscapes_refuses_ids_that_no_label_has(tmp_path):
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


def test_ade20k_shifts_by_one(tmp_path):
    raw = np.array([[0, 1, 150, 255]], np.uint8)
    save(tmp_path / "images/training/a.jpg", picture(1, 4))
    save(tmp_path / "annotations/training/a.png", raw)
    for split in ("train", "training"):
        source = open_source("ade20k", split, path=str(tmp_path))
        np.testing.assert_array_equal(source[0]["mask"], [[255, 0, 149, 255]])
    assert len(set(source.labels.names)) == len(set(source.labels.palette)) == 150
    assert (source.labels.names[0], source.labels.names[12], source.labels.names[149]) == (
        "wall",
        "person",
        "flag",
    )
    save(tmp_path / "annotations/training/a.png", raw + np.uint8(2))
    with pytest.raises(
        UserError, match=r"class id 152, but classes are 1\.\.150 \(0, 255 is ignored"
    ):
        source[0]


def pascal_folder(path, mask):
    save(path / "JPEGImages/2008_000002.jpg", picture(*mask.shape))
    save(path / "JPEGImages/2008_000003.jpg", picture())
    save(path / "SegmentationClassContext/2008_000002.png", mask)
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
    path = pascal_folder(tmp_path, ids())
    with pytest.raises(UserError, match=r"val\.txt"):
        open_source("pascal_context", "val", path=path, num_classes=60)
    (tmp_path / "ImageSets/SegmentationContext/train.txt").write_text("2008_000002\n2009_1\n")
    with pytest.raises(UserError, match="1 listed images.*2009_1"):
        open_source("pascal_context", "train", path=path, num_classes=60)


def test_camvid_has_its_eleven_classes(tmp_path):
    path = folder(tmp_path, {"a": np.array([[0, 10, 255]], np.uint8)})
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


def test_scenes_of_two_splits_or_seeds_differ_and_repeat():
    options = {"images": 3, "size": (16, 24)}
    train, val = (open_source("scenes", split, seed=1, **options) for split in ("train", "val"))
    other = open_source("scenes", "train", seed=2, **options)
    assert not set(train.names) & set(val.names)
    again = pickle.loads(pickle.dumps(train))
    for key in ("image", "mask", "depth"):
        np.testing.assert_array_equal(train[2][key], again[-1][key])
    assert len({source[0]["image"].tobytes() for source in (train, val, other)}) == 3
    item = val[0]
    assert item["image"].shape == (16, 24, 3) and item["mask"].shape == item["depth"].shape == (
        16,
        24,
    )
    assert item["mask"].dtype == np.int32 and item["mask"].max() < len(val.labels.names)
    assert len(list(val)) == 3


def test_scenes_need_a_size_and_a_number():
    with pytest.raises(UserError, match="images is 0"):
        open_source("scenes", "train", size=(16, 24))
    with pytest.raises(UserError, match="size is"):
        open_source("scenes", "train", images=2)
    with pytest.raises(UserError, match="Known: test, train, val"):
        open_source("scenes", "trian", images=2, size=(16, 24))


def test_generated_colours_are_distinct():
    colours = distinct_colours(255)
    assert len(set(colours)) == 255 and np.min(colours) >= 0 and np.max(colours) <= 255
    assert all(type(part) is int for colour in colours for part in colour)


# ---- tfds --------------------------------------------------------------------------------------


def png(array):
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def prepare(path, pairs, *, mask_key="mask", labels=None, metadata=None, name="streets"):
    """A prepared array_record folder with the splits train and validation, each of all pairs."""
    tfds = pytest.importorskip("tensorflow_datasets")
    masks = tfds.features.Image(shape=(None, None, 1))
    if labels:
        masks = tfds.features.LabeledImage(labels=labels, shape=(None, None, 1))

    class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {"image": tfds.features.Image(shape=(None, None, 3)), mask_key: masks}
            )
            return tfds.core.DatasetInfo(builder=self, features=features, metadata=metadata)

        def _split_generators(self, _):
            return {"train": self._generate_examples(), "validation": self._generate_examples()}

        def _generate_examples(self):
            for key, (image, mask) in enumerate(pairs):
                yield key, {"image": io.BytesIO(png(image)), mask_key: io.BytesIO(png(mask))}

    Prepared.name = name
    Prepared(data_dir=str(path), file_format="array_record").download_and_prepare()
    return str(path)


def test_tfds_gives_back_what_was_prepared(tmp_path):
    pairs = [(picture(), ids()) for _ in range(3)]
    path = prepare(tmp_path, pairs, labels=["a", "b", "c"])
    by_name = open_source("tfds:streets", "val", path=path)
    by_folder = open_source(f"tfds:{path}/streets/1.0.0", "train")
    assert by_name.labels.names == ("a", "b", "c") and len(by_name) == len(by_folder) == 3
    assert by_name.names == ("val_000000", "val_000001", "val_000002")
    stored = {(image.tobytes(), mask.astype(np.int32).tobytes()) for image, mask in pairs}
    for source in (by_name, pickle.loads(pickle.dumps(by_folder))):
        assert {(item["image"].tobytes(), item["mask"].tobytes()) for item in source} == stored
    assert len(open_source("tfds:streets", "train[:2]", path=path)) == 2


def test_tfds_metadata_brings_names_and_colours(tmp_path):
    import tensorflow_datasets as tfds

    metadata = tfds.core.MetadataDict(
        names=["x", "y", "z"], palette=[[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    )
    path = prepare(tmp_path, [(picture(), ids())], metadata=metadata)
    labels = open_source("tfds:streets", "train", path=path).labels
    assert labels.names == ("x", "y", "z") and labels.palette[2] == (7, 8, 9)


def test_tfds_pets_are_shifted_and_hold_no_zero(tmp_path):
    masks = np.array([[1, 2, 3]], np.uint8), np.array([[0, 0, 0]], np.uint8)
    for name, mask in zip(("good", "bad"), masks, strict=True):
        pairs = [(picture(1, 3), mask)]
        prepare(tmp_path / name, pairs, mask_key="segmentation_mask", name="oxford_iiit_pet")
    source = open_source("tfds:oxford_iiit_pet", "train", path=tmp_path / "good")
    np.testing.assert_array_equal(source[0]["mask"], [[0, 1, 2]])
    assert source.labels.names == ("pet", "background", "outline")
    with pytest.raises(UserError, match=r"class id 0, but classes are 1\.\.3"):
        open_source("tfds:oxford_iiit_pet", "train", path=tmp_path / "bad")[0]


def test_tfds_mistakes_are_sentences(tmp_path):
    path = prepare(tmp_path, [(picture(), ids(7))], mask_key="label_map")
    for name in ("strets", "/nowhere/1.0.0", ""):
        with pytest.raises(UserError, match="nothing is downloaded"):
            open_source(f"tfds:{name}", "train", path=path)
    with pytest.raises(UserError, match='Did you mean "train"'):
        open_source("tfds:streets", "trian", path=path)
    with pytest.raises(UserError, match="Give num_classes"):
        open_source("tfds:streets", "train", path=path)
    with pytest.raises(UserError, match='Did you mean "label_map"'):
        open_source("tfds:streets", "train", path=path, num_classes=7, mask_key="label_mask")
    with pytest.raises(UserError, match="cannot open split"):
        open_source("tfds:streets", "train[:x]", path=path, num_classes=7)
    assert open_source("tfds:streets", "train", path=path, num_classes=7)[0]["mask"].max() == 6
    with pytest.raises(UserError, match="class id"):
        open_source("tfds:streets", "train", path=path, num_classes=2)[0]


def prepare_animals(path, pairs):
    """A prepared folder of pictures with a class and no mask."""
    tfds = pytest.importorskip("tensorflow_datasets")
    features = {
        "image": tfds.features.Image(shape=(None, None, 3)),
        "animal": tfds.features.ClassLabel(names=["hen", "ant"]),
        "number": tfds.features.Scalar(np.int64),
    }

    class Animals(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, _):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for key, (image, animal) in enumerate(pairs):
                yield key, {"image": io.BytesIO(png(image)), "animal": animal, "number": key}

    Animals(data_dir=str(path), file_format="array_record").download_and_prepare()
    return str(path)


def test_tfds_classes_of_pictures_come_from_the_feature_named(tmp_path):
    pairs = [(picture(), "ant"), (picture(), "hen"), (picture(), "ant")]
    path = prepare_animals(tmp_path, pairs)
    source = open_source("tfds:animals", "train", path=path, label_key="animal")
    assert source.classes == ("hen", "ant") and source.labels is None
    stored = {(image.tobytes(), source.classes.index(animal)) for image, animal in pairs}
    again = pickle.loads(pickle.dumps(source))
    assert {(item["image"].tobytes(), item["class"].item()) for item in again} == stored
    assert source[0]["class"].dtype == np.int32
    assert "class" not in open_source("tfds:animals", "train", path=path)[0]
    square = open_source("tfds:animals", "train", path=path, label_key="animal", square=3)
    assert square[0]["class"] == source[0]["class"] and square.classes == source.classes
    for wrong in ("number", "image", "annimal"):
        with pytest.raises(UserError, match=f'class label of animals "{wrong}". Known: animal'):
            open_source("tfds:animals", "train", path=path, label_key=wrong)


def test_tfds_pictures_without_their_class_are_refused(tmp_path):
    path = prepare_animals(tmp_path, [(picture(), -1)])
    with pytest.raises(UserError, match="train_000000 has no class in animal"):
        open_source("tfds:animals", "train", path=path, label_key="animal")[0]
