import base64
import io
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image

from diffseg_jax.errors import UserError
from label_cases import (
    LABELLED_MAPS,
    as_maps,
    converted,
    maps_of,
    names_of,
    write_maps,
    write_object,
    write_photo,
)

pytestmark = pytest.mark.quick


def shape(label, points, kind="polygon", **more):
    """A shape of labelme."""
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, **more}


def box(label, left, top, right, bottom, **more):
    """A rectangle as a polygon."""
    points = [[left, top], [right, top], [right, bottom], [left, bottom]]
    return shape(label, points, **more)


def write_labels(file, shapes, size=(4, 6), **more):
    """A JSON file of labelme."""
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": "a.png",
               "imageData": None, "imageHeight": size[0], "imageWidth": size[1]}  # fmt: skip
    return write_object(file, content | more)


def map_of(tmp_path, shapes, **more):
    """The label map of one file."""
    file = write_labels(tmp_path / "in" / "a.json", shapes, **more)
    (ids,) = as_maps(file, tmp_path / "out").values()
    return np.array(ids)


@settings(max_examples=12, deadline=None)
@given(LABELLED_MAPS)
def test_masks_come_back_through_labelme(ids):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_maps(folder / "mine", {"a.png": ids})
        converted(folder / "mine", folder / "there", target="labelme")
        assert as_maps(folder / "there", folder / "back") == {"a.png": ids.tolist()}
        assert names_of(folder / "back") == ["sky", "road", "tree"]


def test_the_later_shape_is_on_top_and_the_rest_is_ignored(tmp_path):
    ids = map_of(tmp_path, [box("b", 0, 0, 4, 4), box("a", 2, 0, 5, 2)])
    assert ids.tolist() == 2 * [[1, 1, 0, 0, 0, 255]] + 2 * [[1, 1, 1, 1, 255, 255]]


def test_rectangles_have_two_corners_in_any_order(tmp_path):
    ids = map_of(tmp_path, [shape("a", [[3, 4], [1, 2]], "rectangle")])
    assert (ids == 0).sum() == 4 and (ids[2:4, 1:3] == 0).all()


def test_a_circle_is_a_centre_and_a_point_on_it(tmp_path):
    ids = map_of(tmp_path, [shape("a", [[2, 2], [3, 2]], "circle")])
    assert (ids == 0).sum() == 4 and (ids[1:3, 1:3] == 0).all()


def test_a_mask_is_a_png_whose_box_includes_both_its_corners(tmp_path):
    stream = io.BytesIO()
    Image.fromarray(np.array([[255, 0], [255, 255]], np.uint8)).save(stream, "PNG")
    mask = base64.b64encode(stream.getvalue()).decode()
    ids = map_of(tmp_path, [shape("a", [[2, 1], [3, 2]], "mask", mask=mask)])
    assert (ids == 0).sum() == 3 and ids[1:3, 2:4].tolist() == [[0, 255], [0, 0]]


def test_a_missing_shape_type_is_a_polygon(tmp_path):
    old = box("a", 0, 0, 6, 4)
    del old["shape_type"]
    file = write_labels(tmp_path / "a.json", [old])
    (ids,) = as_maps(file, tmp_path / "out", "labelme").values()
    assert not np.any(ids)


def test_lines_and_points_have_no_area_which_is_said(tmp_path):
    shapes = [
        box("a", 0, 0, 6, 4),
        shape("b", [[1, 1]], "point"),
        shape("b", [[0, 0], [3, 3]], "line"),
    ]
    file = write_labels(tmp_path / "a.json", shapes)
    done = converted(file, tmp_path / "out")
    assert done.pixels[0] == 24
    assert any("2 shapes that are lines or points" in note for note in done.notes)


def test_parts_of_a_group_count_as_one_region_by_size(tmp_path):
    shapes = [
        box("a", 0, 0, 3, 4, group_id=1), box("b", 2, 0, 6, 4), box("a", 0, 0, 3, 4, group_id=1),
    ]  # fmt: skip
    file = write_labels(tmp_path / "a.json", shapes)
    (ids,) = as_maps(file, tmp_path / "out", overlap="smallest").values()
    assert ids[0] == [0, 0, 1, 1, 1, 1]


def test_labels_txt_gives_the_order_and_the_labels_to_ignore(tmp_path):
    shapes = [
        box("tree", 0, 0, 6, 4),
        box("__ignore__", 0, 0, 1, 4),
        box("_background_", 5, 0, 6, 4),
    ]
    write_labels(tmp_path / "in" / "a.json", shapes)
    (tmp_path / "in" / "labels.txt").write_text("__ignore__\n_background_\ntree\nsky\n")
    (ids,) = as_maps(tmp_path / "in", tmp_path / "out").values()
    assert ids[0] == [255, 1, 1, 1, 1, 0]
    assert names_of(tmp_path / "out") == ["_background_", "tree", "sky"]
    (ids,) = as_maps(tmp_path / "in", tmp_path / "2", ignore=("_background_",)).values()
    assert ids[0] == [255, 0, 0, 0, 0, 255]


def test_image_data_in_the_file_stands_for_a_missing_image(tmp_path):
    photo = write_photo(tmp_path / "x.png").read_bytes()
    data = base64.b64encode(photo).decode()
    file = write_labels(tmp_path / "in" / "a.json", [box("a", 0, 0, 6, 4)], imageData=data)
    assert converted(file, tmp_path / "out").photos == 1
    assert (tmp_path / "out" / "images" / "a.png").read_bytes() == photo


def test_without_a_size_that_of_the_image_counts(tmp_path):
    file = write_labels(tmp_path / "in" / "a.json", [box("a", 0, 0, 3, 4)], (None, None))
    with pytest.raises(UserError, match="the size is None"):
        converted(file, tmp_path / "out")
    write_photo(tmp_path / "photos" / "a.png")
    ids = as_maps(file, tmp_path / "out", images=tmp_path / "photos")["a.png"]
    assert ids == [[0, 0, 0, 255, 255, 255]] * 4


@pytest.mark.parametrize("size", [(6, 4), (4, 6)], ids=["as viewers show it", "as stored"])
def test_labels_of_a_turned_image_fit_the_upright_one(tmp_path, size):
    """Orientation 6: the first stored column is the upper row of the upright image."""
    write_photo(tmp_path / "in" / "a.png", (4, 6), orientation=6)
    part = box("a", 0, 0, 4, 1) if size == (6, 4) else box("a", 0, 0, 1, 4)
    file = write_labels(tmp_path / "in" / "a.json", [part], size)
    (ids,) = as_maps(file, tmp_path / "out").values()
    assert (
        np.shape(ids) == (6, 4) and ids[0] == [0] * 4 and set(map(tuple, ids[1:])) == {(255,) * 4}
    )


@pytest.mark.parametrize("path", ["../../x.png", "/tmp/x.png", "C:\\photos\\x.png", "..\\x.png"])
def test_nothing_is_written_outside_the_output(tmp_path, path):
    file = write_labels(tmp_path / "in" / "a.json", [box("a", 0, 0, 6, 4)], imagePath=path)
    done = converted(file, tmp_path / "one" / "two" / "out")
    assert list(maps_of(tmp_path / "one" / "two" / "out")) == ["x.png"]
    assert any("only the name of the file is kept" in note for note in done.notes)
    outside = [each for each in tmp_path.rglob("x*") if "out" not in each.parts]
    assert not outside


@pytest.mark.parametrize(
    "shapes, more, sentence",
    [
        ([shape("a", [[0, 0], [1, 1]])], {}, "3 corners or more"),
        ([shape("a", [[0, 0], [1, 1], [1, "x"]])], {}, "must be a number"),
        ([shape("a", [[0, 0], [1, 1], [1e300, 0]])], {}, "must be a number"),
        ([shape("a", [[0, 0], [1, 1]], "star")], {}, "shape_type is 'star'"),
        ([shape("a", [[0, 0], [1, 1]], "mask", mask="?")], {}, "damaged base64"),
        ([shape("a", [[0, 0], [1, 1]], "mask")], {}, 'has no "mask"'),
        ([{"label": "a"}], {}, 'has no "points"'),
        ([shape("", [[0, 0]])], {}, "the name of a class"),
        ([], {}, "the labels have no class"),
        ([box("a", 0, 0, 6, 4)], {"imagePath": ".."}, "no name of a file"),
        ([box("a", 0, 0, 6, 4)], {"imageHeight": 10**6, "imageWidth": 10**6}, "pixels"),
        ([box("a", 0, 0, 6, 4)], {"imageHeight": -1}, "pixels"),
        ("x", {}, "must be a list"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, shapes, more, sentence):
    file = write_labels(tmp_path / "in" / "a.json", shapes, **more)
    with pytest.raises(UserError, match=sentence):
        converted(file, tmp_path / "out", "labelme")
    assert not list((tmp_path / "out").rglob("*"))
