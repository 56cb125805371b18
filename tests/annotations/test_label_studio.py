"""The JSON export of Label Studio: percents, rotation, brushes, annotations, names of files."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from diffseg_jax.annotations.brush_rle import encode_brush
from diffseg_jax.errors import UserError
from label_files import label_maps

pytestmark = pytest.mark.quick


def result(kind, label="car", size=(40, 80), **value):
    """A region in percent, on an image of (height, width)."""
    height, width = size
    return {
        "id": f"{kind}{label}{value.get('x', '')}", "type": f"{kind}labels", "from_name": "l",
        "to_name": "image", "original_width": width, "original_height": height,
        "image_rotation": 0, "value": value | {f"{kind}labels": [label]},
    }  # fmt: skip


def task(*results, image="/data/upload/1/0a1b2c3d-a.jpg", **more):
    annotation = {"id": 1, "was_cancelled": False, "result": list(results)}
    return {"id": 1, "annotations": [annotation], "data": {"image": image}} | more


def export(folder, *tasks):
    file = folder / "project-1.json"
    file.write_text(json.dumps(tasks))
    return file


def read(folder, *results, **more):
    maps, _, notes = label_maps("label_studio", export(folder, task(*results, **more)))
    return maps["a.jpg"], notes


def inside(ids):
    """((first row, first column), (last row, last column), number) of labelled pixels."""
    found = np.argwhere(ids != 255)
    return tuple(found.min(axis=0)), tuple(found.max(axis=0)), len(found)


def test_rectangles_are_in_percent_of_each_side(tmp_path):
    """25 percent of a width of 80 are 20 pixels; 25 percent of a height of 40 are 10."""
    ids, _ = read(tmp_path, result("rectangle", x=25, y=25, width=50, height=25, rotation=0))
    assert inside(ids) == ((10, 20), (19, 59), 400)


def test_a_rectangle_is_turned_clockwise_about_its_upper_left_corner(tmp_path):
    """40 x 4 pixels from (40, 10), by 90 degrees: the width goes down, the height to the left."""
    ids, _ = read(tmp_path, result("rectangle", x=50, y=25, width=25, height=10, rotation=90))
    assert inside(ids) == ((10, 36), (29, 39), 80)


def test_a_rotation_uses_pixels_and_not_percents(tmp_path):
    """At 45 degrees a square of 20 pixels keeps its area, though the sides differ in percent."""
    ids, _ = read(tmp_path, result("rectangle", x=50, y=10, width=25, height=50, rotation=45))
    (top, left), (bottom, right), count = inside(ids)
    assert (bottom - top + 1, right - left + 1) == (28, 28)  # the diagonal of 20 x 20
    assert abs(count - 400) < 10


def test_polygons_and_ellipses_are_in_percent(tmp_path):
    points = [[0, 0], [50, 0], [50, 100], [0, 100]]
    assert inside(read(tmp_path, result("polygon", points=points))[0]) == ((0, 0), (39, 39), 1600)
    ellipse = result("ellipse", x=50, y=50, radiusX=25, radiusY=25, rotation=0)
    (top, left), (bottom, right), count = inside(read(tmp_path, ellipse)[0])
    assert (top, left, bottom, right) == (10, 20, 29, 59)
    assert abs(count - np.pi * 200) < 10


def test_an_ellipse_is_turned_about_its_centre(tmp_path):
    ellipse = result("ellipse", x=50, y=50, radiusX=20, radiusY=10, rotation=90)
    (top, left), (bottom, right), _ = inside(read(tmp_path, ellipse)[0])
    assert (top, left, bottom, right) == (4, 36, 35, 43)


def test_a_brushed_region_is_read(tmp_path):
    mask = np.zeros((40, 80), bool)
    mask[3:9, 5:70] = True
    ids, _ = read(tmp_path, result("brush", format="rle", rle=encode_brush(mask)))
    np.testing.assert_array_equal(ids == 0, mask)


def test_a_brushed_region_without_bytes_is_empty(tmp_path):
    box = result("rectangle", x=0, y=0, width=100, height=100)
    ids, _ = read(tmp_path, box, result("brush", "a", format="rle", rle=[]))
    assert (ids == 0).all()


def bitmask(mask):
    """A PNG, black on a transparent background, as text."""
    image, file = np.zeros((*mask.shape, 4), np.uint8), io.BytesIO()
    image[..., 3] = 255 * mask
    Image.fromarray(image).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def test_a_bitmask_is_read(tmp_path):
    mask = np.zeros((40, 80), bool)
    mask[3:9, 5:70] = True
    ids, _ = read(tmp_path, result("bitmask", imageDataURL=bitmask(mask)))
    np.testing.assert_array_equal(ids == 0, mask)
    with pytest.raises(UserError, match="a bitmask must be a PNG of 80x40"):
        read(tmp_path, result("bitmask", imageDataURL=bitmask(mask.T)))
    with pytest.raises(UserError, match="a bitmask is damaged"):
        read(tmp_path, result("bitmask", imageDataURL="data:image/png;base64,a"))


def test_the_size_of_an_old_region_is_that_of_its_image(tmp_path):
    box = result("rectangle", x=50, y=0, width=50, height=50)
    del box["original_width"], box["original_height"]
    with pytest.raises(UserError, match="no region says the size of the image"):
        read(tmp_path, box)
    Image.new("RGB", (8, 4)).save(tmp_path / "a.jpg")
    assert np.argwhere(read(tmp_path, box)[0] == 0).tolist() == [
        [row, column] for row in (0, 1) for column in (4, 5, 6, 7)
    ]


def test_later_regions_are_over_earlier_ones(tmp_path):
    box = {"x": 0, "y": 0, "width": 100, "height": 100}
    ids, _ = read(tmp_path, result("rectangle", "a", **box), result("rectangle", "b", **box))
    assert (ids == 1).all()


def region(label, time, cancelled=False):
    box = result("rectangle", label, x=0, y=0, width=100, height=100)
    return {"updated_at": time, "was_cancelled": cancelled, "result": [box]}


@pytest.mark.parametrize(
    "annotations, label",
    [
        ([region("a", "2026-01-02"), region("b", "2026-01-01")], "a"),  # the last by time
        ([region("a", "2026-01-01"), region("b", "2026-01-01")], "b"),  # then by place
        ([region("a", None), region("b", "2026-01-01")], "b"),
        ([region("a", "2026-01-01"), region("b", "2026-01-02", cancelled=True)], "a"),
        ([region("a", "2026-01-01") | {"ground_truth": True}, region("b", "2026-01-02")], "a"),
    ],
)
def test_the_last_completed_annotation_counts(tmp_path, annotations, label):
    maps, names, _ = label_maps("label_studio", export(tmp_path, task(annotations=annotations)))
    assert names == (label,)
    assert (maps["a.jpg"] == 0).all()


def test_skipped_tasks_are_left_out(tmp_path):
    skipped = task(image="b.jpg", annotations=[region("a", "2026", cancelled=True)])
    kept = task(annotations=[region("a", "2026")])
    maps, _, notes = label_maps("label_studio", export(tmp_path, skipped, kept))
    assert list(maps) == ["a.jpg"]
    assert "1 image without a completed annotation; the first: b.jpg" in notes[0]


@pytest.mark.parametrize(
    "address, name",
    [
        ("/data/upload/1/0a1b2c3d-a.jpg", "a.jpg"),
        ("/data/upload/0a1b2c3d-street_1.JPG", "street_1.JPG"),
        ("/data/local-files/?d=photos/day%201/a.jpg", "photos/day 1/a.jpg"),
        ("s3://bucket/photos/0a1b2c3d-a.jpg", "0a1b2c3d-a.jpg"),
        ("https://host/media/a%20b.png?token=1", "a b.png"),
        ("photos/50%.jpg", "photos/50%.jpg"),
        ("../../a.jpg", "a.jpg"),
        ("/data/local-files/?d=../../etc/a.jpg", "a.jpg"),
    ],
)
def test_names_of_image_files_are_found(tmp_path, address, name):
    box = result("rectangle", x=0, y=0, width=100, height=100)
    maps, _, _ = label_maps("label_studio", export(tmp_path, task(box, image=address)))
    assert list(maps) == [name]


def test_the_name_of_an_uploaded_file_counts_where_it_is_there(tmp_path):
    (tmp_path / "upload").mkdir()
    Image.new("RGB", (80, 40)).save(tmp_path / "upload" / "0a1b2c3d-a.jpg")
    box = result("rectangle", x=0, y=0, width=100, height=100)
    file = export(tmp_path, task(box))
    assert list(label_maps("label_studio", file, tmp_path / "upload")[0]) == ["0a1b2c3d-a.jpg"]


def test_labels_in_a_result_of_their_own_belong_to_the_region_with_the_same_id(tmp_path):
    box = result("rectangle", x=0, y=0, width=100, height=100) | {"type": "rectangle"}
    del box["value"]["rectanglelabels"]
    label = box | {"type": "labels", "value": {"labels": ["tree"]}}
    for parts in ((box, label), (label, box)):
        maps, names, _ = label_maps("label_studio", export(tmp_path, task(*parts)))
        assert names == ("tree",)
        assert (maps["a.jpg"] == 0).all()


def test_what_is_no_area_is_counted(tmp_path):
    choice = {"type": "choices", "value": {"choices": ["day"]}, "id": "c"}
    unnamed = result("rectangle", x=1, y=0, width=100, height=100)
    unnamed["value"]["rectanglelabels"] = []
    box = result("rectangle", x=0, y=0, width=100, height=100)
    _, notes = read(tmp_path, choice, unnamed, box)
    assert len(notes) == 2
    assert "of type choices, which is no area" in notes[0]
    assert "without a label" in notes[1]


@pytest.mark.parametrize(
    "change, part",
    [
        ({"original_width": 0}, "0 x 40"),
        ({"original_width": None}, '"original_width" is None, but must be a whole number'),
        ({"original_width": 10**9}, "images have 1 to"),
        ({"value": {"rectanglelabels": ["a"], "x": "1"}}, '"x" of a region must be a number'),
        ({"type": "polygonlabels", "value": {"polygonlabels": ["a"], "points": [[1, 2]]}}, "corne"),
        ({"type": "brushlabels", "value": {"brushlabels": ["a"]}}, '"rle" must be a list of bytes'),
        ({"value": {"rectanglelabels": [7], "x": 1}}, "the name of a class is 7"),
        ({"value": []}, '"value" of result 0 is a list'),
    ],
)
def test_a_wrong_region_is_named(tmp_path, change, part):
    box = result("rectangle", x=0, y=0, width=100, height=100)
    with pytest.raises(UserError, match=rf"project-1.json.*{part}"):
        read(tmp_path, box | change)


@pytest.mark.parametrize(
    "content, part",
    [
        ([], "holds no completed annotation"),
        ([{"image": "a.jpg", "label": [], "annotation_id": 1}], "JSON-MIN leaves out"),
        ([task(annotations=[])], "holds no completed annotation"),
        ([task(data={"a": "x.jpg", "b": "y.jpg"})], "names 2 image files"),
        ([task()], "no brushed region"),
        (7, "must be a list"),
        ([7], "must be an object"),
    ],
)
def test_another_export_is_explained(tmp_path, content, part):
    file = tmp_path / "a.json"
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=part):
        label_maps("label_studio", file)
