"""Formats whose labels are images: VOC, colours, black and white, palettes, Cityscapes."""

import contextlib
import json

import numpy as np
import pytest
from PIL import Image

from diffseg_jax.annotations.class_tables import voc_colours
from diffseg_jax.annotations.conversion import convert_labels
from diffseg_jax.annotations.label_formats import recognised
from diffseg_jax.data.labels import Labels
from diffseg_jax.data.named_sets import CITYSCAPES, CITYSCAPES_CLASSES
from diffseg_jax.data.palette import distinct_colours
from diffseg_jax.errors import UserError
from diffseg_jax.inference.prediction import Prediction
from diffseg_jax.inference.views import Maps
from label_cases import write_maps
from label_files import ids_in, label_maps
from mutate import damaged

pytestmark = pytest.mark.quick

TABLE = "70,130,180,sky\n128,64,128,road\n0,0,0,void\n"
SKY, ROAD, VOID = (70, 130, 180), (128, 64, 128), (0, 0, 0)


def save(file, array, mode=None, palette=None, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    array = np.array(array, np.uint8)
    image = Image.fromarray(array)
    if palette is not None:
        image = Image.frombytes("P", array.shape[::-1], array.tobytes())
        image.putpalette(np.array(palette, np.uint8).tobytes())
    image.save(file, **options)
    return file


# ---- Pascal VOC --------------------------------------------------------------------------------


def test_the_border_of_voc_is_ignored_and_indices_are_ids(tmp_path):
    save(tmp_path / "SegmentationClass" / "2007_1.png", [[0, 15, 255]], palette=voc_colours(256))
    save(tmp_path / "JPEGImages" / "2007_1.jpg", np.zeros((1, 3, 3)))
    maps, names, _ = label_maps("voc", tmp_path, unlabelled="background")
    assert (names[0], names[15], len(names)) == ("background", "person", 21)
    assert maps["2007_1.jpg"].tolist() == [[0, 15, 255]]  # a border is not unlabelled


def test_masks_of_voc_in_colours_are_read_by_labelmap(tmp_path):
    """As CVAT exports Segmentation mask 1.1."""
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,64,128::\nsky:70,130,180::\n"
    )
    save(tmp_path / "SegmentationClass" / "a.png", [[ROAD, SKY, (224, 224, 192), (0, 0, 0)]])
    maps, names, _ = label_maps("voc", tmp_path)
    assert names == ("background", "road", "sky")
    assert maps["a.png"].tolist() == [[1, 2, 255, 0]]


def test_indices_with_another_palette_than_voc_are_ids(tmp_path):
    palette = [(1, 2, 3), (4, 5, 6), (7, 8, 9)]
    save(tmp_path / "SegmentationClass" / "a.png", [[0, 1, 2]], palette=palette)
    assert label_maps("voc", tmp_path)[0]["a.png"].tolist() == [[0, 1, 2]]


def test_more_classes_than_voc_has_need_names(tmp_path):
    save(tmp_path / "SegmentationClass" / "a.png", [[0, 30]], palette=voc_colours(256))
    with pytest.raises(UserError, match="a.png has id 30, but there are 21 classes"):
        label_maps("voc", tmp_path)


def test_masks_of_voc_with_a_palette_but_no_table_are_read_by_their_indices(tmp_path):
    """Whatever the palette shows: zeros behind its colours, or red and blue exchanged."""
    for number, palette in enumerate(([(9, 9, 9)], [(0, 0, 0), (0, 0, 128)])):
        file = tmp_path / "SegmentationClass" / f"{number}.png"
        save(file, [[0, 1, 255]], palette=[*palette, *[(0, 0, 0)] * 254])
    maps = label_maps("voc", tmp_path)[0]
    assert all(ids.tolist() == [[0, 1, 255]] for ids in maps.values()) and len(maps) == 2


def test_masks_of_voc_with_a_table_are_read_by_their_colours(tmp_path):
    """Also where there is a palette, whose indices then say nothing."""
    (tmp_path / "labelmap.txt").write_text("road:128,64,128::\ncar:70,130,180::\n")
    file = tmp_path / "SegmentationClass" / "a.png"
    save(file, [[1, 2]], palette=[VOID, SKY, ROAD])
    assert label_maps("voc", tmp_path)[0]["a.png"].tolist() == [[1, 0]]
    save(file, [[0, 1]], palette=[VOID, ROAD])
    with pytest.raises(UserError, match=r"1 colour of no class: colour \[0, 0, 0\]"):
        label_maps("voc", tmp_path)


def test_the_names_of_voc_are_taken_only_where_there_are_no_others(tmp_path):
    save(tmp_path / "SegmentationClass" / "a.png", [[0, 1]], palette=voc_colours(256))
    _, names, notes = label_maps("voc", tmp_path)
    assert names[1] == "aeroplane" and "21 names of Pascal VOC taken" in notes[0]
    (tmp_path / "class_names.txt").write_text("_background_\nroad\n")  # of labelme2voc
    assert label_maps("voc", tmp_path)[1:] == (("_background_", "road"), [])


# ---- colours -----------------------------------------------------------------------------------


def test_colours_become_ids_by_the_table(tmp_path):
    (tmp_path / "classes.csv").write_text("no table")
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nsky,70,130,180\nroad,128,64,128\n")
    save(tmp_path / "labels" / "train" / "a.png", [[ROAD, SKY], [SKY, SKY]])
    maps, names, _ = label_maps("colours", tmp_path)
    assert names == ("sky", "road")
    assert maps["train/a.png"].tolist() == [[1, 0], [0, 0]]


def test_a_class_that_is_called_void_is_ignored(tmp_path):
    (tmp_path / "colors.txt").write_text(TABLE)
    save(tmp_path / "a.png", [[VOID, SKY]])
    maps, names, _ = label_maps("colours", tmp_path)
    assert names == ("sky", "road")
    assert maps["a.png"].tolist() == [[255, 0]]
    kept = label_maps("colours", tmp_path, classes=("void", "sky", "road"))[0]
    assert kept["a.png"].tolist() == [[0, 1]]  # unless it is asked for


def test_of_more_classes_than_a_label_map_holds_some_are_chosen(tmp_path):
    """The 256th class of a table is not the ignored one, and the next is not the first."""
    colours = [(index // 20, index % 20, 7) for index in range(300)]
    rows = [f"{','.join(map(str, rgb))},c{index}\n" for index, rgb in enumerate(colours)]
    (tmp_path / "colors.txt").write_text("".join(rows))
    save(tmp_path / "a.png", [[colours[index] for index in (255, 256, 0, 299)]])
    with pytest.raises(UserError, match="there are 300 classes, .* Choose some with --classes"):
        label_maps("colours", tmp_path)
    maps, names, _ = label_maps("colours", tmp_path, classes=("c0", "c255", "c299"))
    assert maps["a.png"].tolist() == [[1, 255, 0, 2]]


def test_unknown_colours_are_named_with_their_pixels(tmp_path):
    (tmp_path / "colors.txt").write_text(TABLE)
    save(tmp_path / "a.png", [[SKY, (255, 0, 0), (255, 0, 0), (0, 255, 0)]])
    with pytest.raises(UserError) as error:
        label_maps("colours", tmp_path)
    assert "a.png holds 2 colours of no class" in str(error.value)
    assert "[255, 0, 0] (2 pixels), [0, 255, 0] (1 pixel)" in str(error.value)
    assert "such as 255,0,0,name" in str(error.value)


def test_colours_near_those_of_classes_come_from_smoothing(tmp_path):
    (tmp_path / "colors.txt").write_text(TABLE)
    save(tmp_path / "a.png", [[SKY, (71, 130, 180)]])
    with pytest.raises(UserError, match="borders that were smoothed or compressed"):
        label_maps("colours", tmp_path)


def test_colours_saved_as_jpeg_are_refused(tmp_path):
    (tmp_path / "colors.txt").write_text(TABLE)
    save(tmp_path / "a.jpg", [[SKY, ROAD]])
    with pytest.raises(UserError, match="lossy compression changes ids"):
        label_maps("colours", tmp_path)
    (tmp_path / "a.jpg").rename(tmp_path / "a.png")  # the content counts, not the name
    with pytest.raises(UserError, match="is compressed as a JPEG is, which changes ids"):
        label_maps("colours", tmp_path)


def test_colours_without_a_table_are_refused(tmp_path):
    save(tmp_path / "deep" / "a.png", [[SKY, ROAD]])
    with pytest.raises(UserError, match="holds no table of colours. Write .*labelmap.txt"):
        label_maps("colours", tmp_path / "deep")


def test_names_and_colours_do_not_change_what_is_read_again(tmp_path):
    """A class called unknown is no ignored one, and two of one colour stay two."""
    ids = np.array([[0, 1, 2, 255]], np.uint8)
    write_maps(tmp_path / "a", {"x.png": ids}, ["unknown", "road", "car"])
    palette = {"names": ["unknown", "road", "car"], "palette": [SKY, ROAD, SKY]}
    (tmp_path / "a" / "classes.json").write_text(json.dumps(palette))
    convert_labels(tmp_path / "a", tmp_path / "b", target="colours")
    maps, names, _ = label_maps("colours", tmp_path / "b")
    assert names == ("unknown", "road", "car")
    np.testing.assert_array_equal(maps["x.png"], ids)


def test_ignored_colours_of_classes_json_are_ignored(tmp_path):
    table = {"names": ["sky", "road"], "palette": [SKY, ROAD], "ignore": [VOID]}
    (tmp_path / "classes.json").write_text(json.dumps(table))
    save(tmp_path / "a.png", [[ROAD, VOID, SKY]])
    assert label_maps("colours", tmp_path)[0]["a.png"].tolist() == [[1, 255, 0]]


# ---- black and white ---------------------------------------------------------------------------


def test_white_is_a_class_in_masks_of_black_and_white(tmp_path):
    save(tmp_path / "masks" / "a.png", [[0, 255, 255]])
    save(tmp_path / "images" / "a.jpg", np.zeros((1, 3, 3)))
    maps, names, _ = label_maps("binary", tmp_path)
    assert names == ("background", "object")
    assert maps["a.jpg"].tolist() == [[0, 1, 1]]  # and not 0, ignored, ignored


def test_images_are_found_by_the_names_of_masks(tmp_path):
    save(tmp_path / "masks" / "train" / "a.png", [[0, 255, 255] * 9])
    save(tmp_path / "photos" / "day 1" / "A.JPG", np.zeros((1, 27, 3)))
    done = convert_labels(tmp_path / "masks", tmp_path / "out", images=tmp_path / "photos")
    assert (done.source, done.photos) == ("binary", 1)
    assert ids_in(tmp_path / "out" / "masks" / "day 1" / "A.png").tolist() == [[0, 1, 1] * 9]


@pytest.mark.parametrize("values", [[0, 1], [0, 7], [0, 0]])
def test_any_value_but_0_is_the_object(tmp_path, values):
    save(tmp_path / "a.png", [values])
    assert label_maps("binary", tmp_path)[0]["a.png"].tolist() == [[int(v > 0) for v in values]]


def test_a_folder_for_each_class_names_it(tmp_path):
    save(tmp_path / "car" / "a.png", [[0, 255, 255, 0]])
    save(tmp_path / "road" / "a.png", [[255, 255, 0, 0]])
    save(tmp_path / "road" / "b.png", [[255]])
    maps, names, _ = label_maps("binary", tmp_path)
    assert names == ("car", "road")
    assert maps["a.png"].tolist() == [[1, 1, 0, 255]]  # the later class is on top
    assert maps["b.png"].tolist() == [[1]]
    assert label_maps("binary", tmp_path, overlap="first")[0]["a.png"].tolist() == [[1, 0, 0, 255]]


def test_folders_are_splits_only_where_all_of_them_are(tmp_path):
    """A train is a class beside cars."""
    save(tmp_path / "car" / "a.png", [[0, 255]])
    save(tmp_path / "train" / "a.png", [[255, 0]])
    maps, names, _ = label_maps("binary", tmp_path)
    assert names == ("car", "train") and maps["a.png"].tolist() == [[1, 0]]
    (tmp_path / "car").rename(tmp_path / "val")
    maps, names, _ = label_maps("binary", tmp_path)
    assert names == ("background", "object")
    assert {name: ids.tolist() for name, ids in maps.items()} == {
        "train/a.png": [[1, 0]], "val/a.png": [[0, 1]],
    }  # fmt: skip


def test_a_folder_of_no_listed_class_is_refused(tmp_path):
    for name in ("car", "road"):
        save(tmp_path / name / "a.png", [[0, 255]])
    (tmp_path / "classes.json").write_text('{"names": ["car"]}')
    with pytest.raises(UserError, match="road is the folder of no class"):
        label_maps("binary", tmp_path)


def test_ids_of_classes_json_are_refused_where_there_are_none(tmp_path):
    save(tmp_path / "masks" / "a.png", [[0, 255]])
    file = tmp_path / "classes.json"
    file.write_text('{"names": ["a", "b"], "ids": [0, 255]}')
    assert label_maps("binary", tmp_path)[0]["a.png"].tolist() == [[0, 1]]
    file.write_text('{"names": ["a", "b"], "zero_is_ignored": true}')
    with pytest.raises(UserError, match='has "zero_is_ignored", but masks in black and white'):
        label_maps("binary", tmp_path)


def test_smoothed_black_and_white_is_refused(tmp_path):
    save(tmp_path / "a.png", [[0, 100, 200, 255]])
    with pytest.raises(UserError, match="values 100, 200, 255 beside 0.* 2 pixels lie between"):
        label_maps("binary", tmp_path)


def test_masks_of_an_image_must_have_one_size(tmp_path):
    save(tmp_path / "car" / "a.png", [[0, 255]])
    save(tmp_path / "road" / "a.png", [[0], [255]])
    with pytest.raises(UserError, match="is 2x1, but .* is 1x2"):
        label_maps("binary", tmp_path)


# ---- palettes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("palette", [[(v, v, v) for v in (9, 0, 4)], [(255, 0, 0)] * 3])
def test_indices_are_ids_whatever_the_palette_shows(tmp_path, palette):
    save(tmp_path / "a.png", [[0, 1, 2, 255]], palette=[*palette, *[(0, 0, 0)] * 253])
    maps, names, _ = label_maps("palette", tmp_path)
    assert names == ("class_0", "class_1", "class_2")
    assert maps["a.png"].tolist() == [[0, 1, 2, 255]]


@pytest.mark.parametrize(
    "rules, expected",
    [
        ({"zero_is_ignored": True}, [255, 0, 1, 255]),
        ({"ids": [2, 1]}, None),
        ({"ids": [2, 1], "ignore": [0]}, [255, 1, 0, 255]),
    ],
)
def test_stored_indices_mean_what_classes_json_says(tmp_path, rules, expected):
    save(tmp_path / "a.png", [[0, 1, 2, 255]], palette=[SKY, ROAD, *[VOID] * 254])
    (tmp_path / "classes.json").write_text(json.dumps({"names": ["a", "b"], **rules}))
    if expected is None:
        with pytest.raises(UserError, match="has class id 0, but classes are 1..2"):
            label_maps("palette", tmp_path)
    else:
        assert label_maps("palette", tmp_path)[0]["a.png"].tolist() == [expected]


# ---- Cityscapes --------------------------------------------------------------------------------

STEM = "frankfurt_000000_000294"


def cityscapes(folder, suffix, array):
    save(folder / "gtFine" / "val" / "frankfurt" / f"{STEM}_gtFine_{suffix}.png", array)
    image = folder / "leftImg8bit" / "val" / "frankfurt" / f"{STEM}_leftImg8bit.png"
    save(image, np.zeros((*np.shape(array)[:2], 3)))
    return f"val/frankfurt/{STEM}_leftImg8bit.png"


@pytest.mark.parametrize(
    "suffix, array",
    [
        ("labelIds", [[0, 7, 33, 9]]),
        ("labelTrainIds", [[255, 0, 18, 255]]),
        ("color", [[(0, 0, 0), (128, 64, 128), (119, 11, 32), (250, 170, 160)]]),
    ],
)
def test_all_kinds_of_cityscapes_masks_say_the_same(tmp_path, suffix, array):
    name = cityscapes(tmp_path, suffix, array)
    maps, names, _ = label_maps("cityscapes", tmp_path)
    assert names == CITYSCAPES.names
    assert maps[name].tolist() == [[255, 0, 18, 255]]


def test_label_ids_of_cityscapes_are_preferred(tmp_path):
    cityscapes(tmp_path, "color", [[(1, 2, 3)]])
    name = cityscapes(tmp_path, "labelIds", [[26]])
    assert label_maps("cityscapes", tmp_path)[0][name].tolist() == [[13]]


def test_predictions_become_label_ids_for_the_test_server(tmp_path):
    ids = np.array([[*range(19), 255]], np.uint8)
    write_maps(tmp_path / "a", {f"test/berlin/{STEM}_leftImg8bit.png": ids}, CITYSCAPES.names)
    convert_labels(tmp_path / "a", tmp_path / "b", target="cityscapes")
    file = tmp_path / "b" / "gtFine" / "test" / "berlin" / f"{STEM}_gtFine_labelIds.png"
    assert ids_in(file).tolist() == [[*(label_id for label_id, *_ in CITYSCAPES_CLASSES), 0]]


def test_other_classes_than_those_of_cityscapes_are_refused(tmp_path):
    write_maps(tmp_path / "a", {"x.png": np.zeros((2, 2), np.uint8)}, ["road", "lamp"])
    with pytest.raises(UserError, match="class 'lamp' is none of the 19 of Cityscapes: road, "):
        convert_labels(tmp_path / "a", tmp_path / "b", target="cityscapes")
    assert not list((tmp_path / "b").iterdir())


# ---- predictions -------------------------------------------------------------------------------


def predicted(folder, names, label_maps_, classes):
    """A folder of predictions, as `predict` leaves it."""
    found = [
        Maps(ids.astype(np.int32), np.zeros((*ids.shape, len(classes)), np.float32),
             np.zeros(ids.shape, np.float32), {})
        for ids in label_maps_
    ]  # fmt: skip
    images = [np.zeros((*ids.shape, 3), np.uint8) for ids in label_maps_]
    labels = Labels(tuple(classes), distinct_colours(len(classes)))
    Prediction(list(names), images, found, labels).save(folder)


def test_predictions_are_labels_that_can_be_corrected(tmp_path):
    photo = save(tmp_path / "photos" / "a.jpg", np.zeros((2, 2, 3)))
    ids = np.array([[0, 1], [1, 255]], np.uint8)
    predicted(tmp_path / "out", ["a", "sub/b"], [ids, ids], ["sky", "road"])
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    summary["pictures"]["a"]["file"] = str(photo)
    (tmp_path / "out" / "summary.json").write_text(json.dumps(summary))
    assert recognised(tmp_path / "out") == "predictions"
    done = convert_labels(tmp_path / "out", tmp_path / "cvat", target="cvat")
    assert (done.labels.names, done.images, done.photos) == (("sky", "road"), 2, 1)
    maps, _, _ = label_maps("cvat", tmp_path / "cvat")
    assert maps["a.jpg"].tolist() == maps["sub/b.png"].tolist() == ids.tolist()
    assert label_maps("predictions", tmp_path / "out", unlabelled="sky")[0]["a.jpg"][1, 1] == 0


def test_a_damaged_summary_is_refused_in_words(tmp_path):
    predicted(tmp_path, ["a"], [np.zeros((2, 2), np.uint8)], ["sky", "road"])
    content = (tmp_path / "summary.json").read_bytes()
    for damage in damaged(content, seed=0, count=100):
        (tmp_path / "summary.json").write_bytes(damage)
        with contextlib.suppress(UserError):
            label_maps("predictions", tmp_path)


def test_predictions_of_cityscapes_become_label_ids(tmp_path):
    ids = np.array([[*range(19)]], np.uint8)
    predicted(tmp_path / "out", [f"{STEM}_leftImg8bit"], [ids], CITYSCAPES.names)
    convert_labels(tmp_path / "out", tmp_path / "server", target="cityscapes")
    file = tmp_path / "server" / "gtFine" / f"{STEM}_gtFine_labelIds.png"
    assert ids_in(file).tolist() == [[label_id for label_id, *_ in CITYSCAPES_CLASSES]]


# ---- which format it is ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, files",
    [
        ("voc", {"SegmentationClass/a.png": [[0, 1]], "JPEGImages/a.jpg": [[0, 1]]}),
        ("colours", {"labels/a.png": [[SKY] * 9, [ROAD] * 9], "images/a.jpg": [[0, 1]]}),
        ("binary", {"labels/a.png": [[0, 255] * 9], "images/a.jpg": [[0, 1]]}),
        ("binary", {"car/a.png": [[0, 255] * 9], "road/a.png": [[0, 255] * 9]}),
        ("cityscapes", {"gtFine/val/x/a_gtFine_labelIds.png": [[7, 7]]}),
        ("cityscapes", {"val/x/a_gtFine_color.png": [[ROAD, ROAD]]}),
        ("masks", {"masks/a.png": [[0, 255] * 9], "images/a.jpg": [[0, 1]]}),
    ],
)
def test_a_folder_is_recognised(tmp_path, name, files):
    for file, array in files.items():
        save(tmp_path / file, array)
    if name == "colours":
        (tmp_path / "colors.txt").write_text(TABLE)
    assert recognised(tmp_path) == name
