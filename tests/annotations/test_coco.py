import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies
from pycocotools import mask as theirs
from pycocotools.coco import COCO

from diffseg_jax.annotations.run_lengths import compressed, decoded_run_lengths, uncompressed
from diffseg_jax.errors import UserError
from label_cases import (
    LABELLED_MAPS,
    MAPS,
    as_maps,
    converted,
    maps_of,
    names_of,
    write_maps,
    write_object,
    write_photo,
)

pytestmark = [pytest.mark.quick, pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")]


def annotation(category, shape, image=1, **more):
    """An annotation of COCO."""
    return {"image_id": image, "category_id": category, "segmentation": shape, **more}


def box(left, top, right, bottom):
    """A polygon of COCO."""
    return [left, top, right, top, right, bottom, left, bottom]


def write_coco(file, annotations, size=(4, 6), **more):
    """A file of one image, with the categories road, 7, and sky, 3."""
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": size[0], "width": size[1]}],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "road"}, {"id": 3, "name": "sky"}],
    }
    return write_object(file, content | more)


def map_of(tmp_path, annotations, **rules):
    """The label map of one image."""
    file = write_coco(tmp_path / "instances.json", annotations)
    (ids,) = as_maps(file, tmp_path / "out", **rules).values()
    return np.array(ids)


# ---- run lengths ---------------------------------------------------------------------------------


def whole(found, size):
    """bool[H,W] of a box."""
    inside, (x, y) = found
    result = np.zeros(size, bool)
    result[y : y + inside.shape[0], x : x + inside.shape[1]] = inside
    return result


def run_lengths_of(inside):
    """Counts by columns, beginning with those outside."""
    flat = inside.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat, prepend=False))
    return np.diff([0, *changes, flat.size]).tolist()


@settings(max_examples=60, deadline=None)
@given(MAPS)
def test_run_lengths_are_those_of_pycocotools(ids):
    inside, size = ids == 1, ids.shape
    counts = run_lengths_of(inside)
    text = theirs.encode(np.asfortranarray(inside.astype(np.uint8)))["counts"].decode()
    assert compressed(counts) == text
    assert uncompressed(text, "x").tolist() == counts
    for each in (counts, text):
        found = decoded_run_lengths({"size": list(size), "counts": each}, size, "x")
        np.testing.assert_array_equal(whole(found, size), inside)


@settings(max_examples=60, deadline=None)
@given(strategies.lists(strategies.integers(0, 10**8), min_size=1, max_size=9))
def test_counts_of_any_size_come_back(counts):
    assert uncompressed(compressed(counts), "x").tolist() == counts


@settings(max_examples=60, deadline=None)
@given(strategies.one_of(strategies.text(max_size=12), strategies.lists(strategies.integers())))
def test_damaged_run_lengths_are_one_sentence(counts):
    try:
        inside, _ = decoded_run_lengths({"size": [3, 4], "counts": counts}, (3, 4), "x")
    except UserError:
        return
    assert inside.size <= 12


# ---- instances -----------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(LABELLED_MAPS, strategies.booleans())
def test_masks_come_back_through_coco(ids, polygons):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_maps(folder / "mine", {"b/a.png": ids})
        converted(folder / "mine", folder / "there", target="coco", polygons=polygons)
        file = folder / "there" / "instances.json"
        assert as_maps(file, folder / "back") == {"b/a.png": ids.tolist()}
        assert names_of(folder / "back") == ["sky", "road", "tree"]


@pytest.mark.parametrize("polygons", [False, True])
def test_pycocotools_reads_what_is_written(tmp_path, polygons, capsys):
    ids = np.random.default_rng(0).choice([0, 1, 255], (9, 8), p=[0.6, 0.2, 0.2]).astype(np.uint8)
    write_maps(tmp_path / "mine", {"a.png": ids})
    converted(tmp_path / "mine", tmp_path / "there", target="coco", polygons=polygons)
    theirs_read = COCO(tmp_path / "there" / "instances.json")
    again = np.full_like(ids, 255)
    for each in theirs_read.loadAnns(theirs_read.getAnnIds(imgIds=[1])):
        mask = theirs_read.annToMask(each).astype(bool)
        assert mask.sum() == each["area"]
        assert theirs.toBbox(theirs_read.annToRLE(each)).tolist() == each["bbox"]
        again[mask] = each["category_id"] - 1
    np.testing.assert_array_equal(again, ids)


@settings(max_examples=20, deadline=None)
@given(strategies.lists(strategies.floats(-2, 9, width=16), min_size=6, max_size=14))
def test_polygons_are_filled_as_pycocotools_does(numbers):
    shape = numbers[: len(numbers) // 2 * 2]
    expected = theirs.decode(theirs.merge(theirs.frPyObjects([shape], 4, 6)))
    with tempfile.TemporaryDirectory() as name:
        file = write_coco(Path(name) / "a.json", [annotation(7, [shape])])
        (ids,) = as_maps(file, Path(name) / "out", empty="keep").values()
        np.testing.assert_array_equal(np.array(ids) == 0, expected == 1)


def test_classes_follow_the_file_and_ids_need_not_count(tmp_path):
    ids = map_of(tmp_path, [annotation(3, [box(0, 0, 2, 4)]), annotation(7, [box(2, 0, 4, 4)])])
    assert ids[0].tolist() == [1, 1, 0, 0, 255, 255]
    assert names_of(tmp_path / "out") == ["road", "sky"]


def test_the_parts_of_an_annotation_are_joined_and_do_not_cut_holes(tmp_path):
    ids = map_of(tmp_path, [annotation(3, [box(0, 0, 4, 4), box(1, 1, 2, 2), box(5, 0, 6, 4)])])
    assert ids[1].tolist() == [1, 1, 1, 1, 255, 1]


def test_the_smaller_of_two_is_on_top_unless_another_rule_is_given(tmp_path):
    shapes = [annotation(3, [box(0, 0, 2, 4)]), annotation(7, [box(0, 0, 6, 4)])]
    file = write_coco(tmp_path / "a.json", shapes)
    rows = {
        overlap: as_maps(file, tmp_path / str(overlap), overlap=overlap)["a.png"][0][0]
        for overlap in (None, "smallest", "first", "last")
    }
    assert rows == {None: 1, "smallest": 1, "first": 1, "last": 0}


def test_crowds_are_ignored_and_below_objects(tmp_path):
    counts = {"size": [4, 6], "counts": [0, 12, 12]}
    crowd = annotation(7, counts, iscrowd=1)
    shapes = [annotation(3, [box(0, 0, 1, 4)]), crowd]
    assert map_of(tmp_path, shapes, unlabelled="sky")[0].tolist() == [1, 255, 255, 1, 1, 1]
    (tmp_path / "second").mkdir()
    assert map_of(tmp_path / "second", shapes, crowd="class")[0].tolist() == [1, 0, 0] + 3 * [255]


def test_boxes_without_a_segmentation_are_skipped_which_is_said(tmp_path):
    shapes = [
        annotation(3, [box(0, 0, 6, 4)]),
        annotation(3, [], bbox=[0, 0, 2, 2]),
        annotation(7, None),
    ]
    file = write_coco(tmp_path / "a.json", shapes)
    notes = converted(file, tmp_path / "out").notes
    assert any("2 annotations without a segmentation" in note for note in notes)


def test_four_numbers_are_no_polygon_though_pycocotools_takes_them_for_a_box(tmp_path):
    ids = map_of(tmp_path, [annotation(3, [[0, 0, 3, 3], box(0, 0, 1, 1)])])
    assert (ids == 1).sum() == 1


def test_unlabelled_pixels_may_be_a_class(tmp_path):
    ids = map_of(tmp_path, [annotation(3, [box(0, 0, 2, 4)])], unlabelled="background")
    assert ids[0].tolist() == [2, 2, 0, 0, 0, 0]
    assert names_of(tmp_path / "out") == ["background", "road", "sky"]


def test_classes_can_be_chosen_and_ignored(tmp_path):
    shapes = [annotation(3, [box(0, 0, 2, 4)]), annotation(7, [box(2, 0, 4, 4)])]
    file = write_coco(tmp_path / "a.json", shapes)
    assert as_maps(file, tmp_path / "1", ignore=("road",), unlabelled="sky")["a.png"][0] == [
        0, 0, 255, 255, 0, 0,
    ]  # fmt: skip
    done = converted(file, tmp_path / "2", classes=("sky",))
    assert maps_of(tmp_path / "2")["a.png"][0] == [0, 0, 255, 255, 255, 255]
    assert any("1 class (road)" in note for note in done.notes)
    with pytest.raises(UserError, match='Did you mean "road"'):
        converted(file, tmp_path / "3", classes=("raod",))


def test_classes_can_be_renamed_and_joined(tmp_path):
    shapes = [annotation(3, [box(0, 0, 2, 4)]), annotation(7, [box(1, 0, 4, 4)])]
    file = write_coco(tmp_path / "a.json", shapes)
    rename = (("road", "all"), ("sky", "all"))
    done = converted(file, tmp_path / "1", rename=rename, unlabelled="rest")
    assert maps_of(tmp_path / "1")["a.png"][0] == [1, 1, 1, 1, 0, 0]
    assert done.labels.names == ("rest", "all") and not any("overlap" in n for n in done.notes)
    with pytest.raises(UserError, match='unknown class "raod"'):
        converted(file, tmp_path / "2", rename=(("raod", "all"),))
    with pytest.raises(UserError, match="renamed twice"):
        converted(file, tmp_path / "2", rename=(("road", "a"), ("road", "b")))


def test_a_name_that_is_a_file_and_a_folder_is_one_sentence(tmp_path):
    images = [
        {"id": i, "file_name": name, "height": 4, "width": 6}
        for i, name in enumerate(("x.png", "x.png/y.png"))
    ]
    shapes = [annotation(3, [box(0, 0, 6, 4)], image=i) for i in (0, 1)]
    file = write_coco(tmp_path / "a.json", shapes, images=images)
    for name in ("x.png", "y.png"):
        write_photo(tmp_path / "photos" / name)
    with pytest.raises(UserError, match="is a file where a folder is needed"):
        converted(file, tmp_path / "out", images=tmp_path / "photos")
    assert not list((tmp_path / "out").rglob("*"))


def test_images_without_labels_are_skipped_unless_kept(tmp_path):
    images = [{"id": i, "file_name": f"{i}.png", "height": 4, "width": 6} for i in (1, 2)]
    file = write_coco(tmp_path / "a.json", [annotation(3, [box(0, 0, 6, 4)])], images=images)
    notes = converted(file, tmp_path / "out").notes
    assert list(maps_of(tmp_path / "out")) == ["1.png"]
    assert any("1 image without any label" in note for note in notes)
    kept = as_maps(file, tmp_path / "kept", empty="keep", unlabelled="road")
    assert not np.any(kept["2.png"])


def test_images_are_found_copied_and_linked(tmp_path):
    photo = write_photo(tmp_path / "photos" / "train" / "A.PNG")
    write_photo(tmp_path / "photos" / "other.png")
    file = write_coco(tmp_path / "a.json", [annotation(3, [box(0, 0, 6, 4)])])
    done = converted(file, tmp_path / "out", images=tmp_path / "photos")
    assert (tmp_path / "out" / "images" / "a.png").read_bytes() == photo.read_bytes()
    assert any("1 image below" in note and "other.png" in note for note in done.notes)
    converted(file, tmp_path / "linked", images=tmp_path / "photos", photo_files="link")
    assert (tmp_path / "linked" / "images" / "a.png").readlink() == photo.resolve()


def test_labels_of_another_size_than_the_image_are_refused(tmp_path):
    write_photo(tmp_path / "photos" / "a.png", (8, 12))
    file = write_coco(tmp_path / "a.json", [annotation(3, [box(0, 0, 6, 4)])])
    with pytest.raises(UserError, match="is 12x8, but its labels are of an image of 6x4"):
        converted(file, tmp_path / "out", images=tmp_path / "photos")


def test_labels_drawn_on_stored_pixels_are_turned_with_their_image(tmp_path):
    write_photo(tmp_path / "photos" / "a.png", (4, 6), orientation=6)
    file = write_coco(tmp_path / "a.json", [annotation(3, [box(0, 0, 1, 4)])])
    ids = as_maps(file, tmp_path / "out", images=tmp_path / "photos")["a.png"]
    assert np.shape(ids) == (6, 4) and ids[0] == [1] * 4


def test_two_splits_go_into_one_folder_and_no_file_is_replaced(tmp_path):
    file = write_coco(tmp_path / "a.json", [annotation(3, [box(0, 0, 6, 4)])])
    converted(file, tmp_path / "out", split="train")
    converted(file, tmp_path / "out", split="val")
    assert list(maps_of(tmp_path / "out")) == ["train/a.png", "val/a.png"]
    other = write_coco(tmp_path / "b.json", [annotation(7, [box(0, 0, 6, 4)])])
    with pytest.raises(UserError, match="is there already"):
        converted(other, tmp_path / "out", split="val")
    assert maps_of(tmp_path / "out")["val/a.png"][0][0] == 1


def test_run_lengths_need_no_pycocotools_but_polygons_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert map_of(tmp_path, [annotation(3, {"size": [4, 6], "counts": [0, 24]})]).all()
    file = write_coco(tmp_path / "b.json", [annotation(3, [box(0, 0, 6, 4)])])
    with pytest.raises(UserError, match=r"diffseg_jax\[labels\]"):
        converted(file, tmp_path / "b")


SIZE = {"size": [4, 6]}
WRONG = {
    "an image that is not there": ([annotation(3, [], image=9)], {}, "no image with the id 9"),
    "a category that is not there": ([annotation(4, [])], {}, "no category with the id 4"),
    "a category twice": ([], {"categories": 2 * [{"id": 1, "name": "a"}]}, "another category"),
    "an image twice": ([], {"images": 2 * [{"id": 1}]}, "no other image"),
    "no name": ([annotation(3, [])], {"images": [{"id": 1, "height": 4, "width": 6}]}, "file_name"),
    "no size": ([annotation(3, [])], {"images": [{"id": 1, "file_name": "a.png"}]}, '"height"'),
    "a huge size": (
        [], {"images": [{"id": 1, "file_name": "a.png", "height": 10**9, "width": 9}]}, "pixels",
    ),
    "short run lengths": ([annotation(3, SIZE | {"counts": [3]})], {}, "are of 3 pixels"),
    "cut text": ([annotation(3, SIZE | {"counts": "X"})], {}, "damaged, or cut"),
    "another size": ([annotation(3, {"size": [6, 4], "counts": [24]})], {}, "are of an image of"),
    "negative runs": ([annotation(3, SIZE | {"counts": [-1, 25]})], {}, "whole numbers"),
    "text for numbers": ([annotation(3, [["a"] * 6])], {}, "must be a number"),
    "a far corner": ([annotation(3, [[0, 0, 1e12, 0, 1e12, 1e12]])], {}, "must be a number"),
    "a long outline": ([annotation(3, [[0, 0, 9e6, 0, 9e6, 9e6]])], {}, "pixels long"),
    "an odd polygon": ([annotation(3, [[0, 0, 1, 0, 1, 1, 0]])], {}, "polygon of 7 numbers"),
    "no list": ({}, {}, "must be a list"),
    "no object": (["x"], {}, "must be an object"),
    "300 classes": (
        [], {"categories": [{"id": i, "name": str(i)} for i in range(300)]}, "Choose some",
    ),
}  # fmt: skip


@pytest.mark.parametrize("annotations, more, sentence", WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_one_sentence(tmp_path, annotations, more, sentence):
    file = write_coco(tmp_path / "a.json", annotations, **more)
    with pytest.raises(UserError, match=sentence):
        converted(file, tmp_path / "out", "coco")
    assert not list((tmp_path / "out").rglob("*"))
