"""CVAT for images 1.1, by the rules of its specification."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from diffseg_jax.annotations.cvat import decode_runs, encode_runs
from diffseg_jax.errors import UserError
from label_files import label_maps

pytestmark = pytest.mark.quick

LABELS = """<meta><task><labels>
  <label><name>road</name><color>#804080</color></label>
  <label><name>car</name><color>#00008e</color></label>
  <label><name>lane</name><color>#ffffff</color><type>polyline</type></label>
</labels></task></meta>"""


def cvat(folder, shapes, size=(5, 6), meta=LABELS, name="a.jpg"):
    """annotations.xml with one image."""
    image = f'<image id="0" name="{name}" width="{size[1]}" height="{size[0]}">{shapes}</image>'
    file = folder / "annotations.xml"
    file.write_text(f"<?xml version='1.0'?><annotations><version>1.1</version>{meta}{image}"
                    "</annotations>")  # fmt: skip
    return file


def read(folder, shapes, **options):
    maps, names, notes = label_maps("cvat", cvat(folder, shapes, **options))
    return maps["a.jpg"], names, notes


def test_run_lengths_alternate_along_the_rows_of_the_box(tmp_path):
    """left=2, top=1, 3 wide, 2 high: one pixel outside, three inside, one outside, one inside."""
    mask = '<mask label="car" rle="1, 3, 1, 1" left="2" top="1" width="3" height="2" z_order="0"/>'
    ids, names, _ = read(tmp_path, mask)
    assert names == ("road", "car")  # lanes are lines, which have no area
    rows = ["......", "...11.", "..1.1.", "......", "......"]
    expected = [[1 if c == "1" else 255 for c in row] for row in rows]
    assert ids.tolist() == expected


@settings(max_examples=50, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 6), st.integers(1, 6))))
def test_run_lengths_return(mask):
    np.testing.assert_array_equal(decode_runs(encode_runs(mask), mask.shape, "a"), mask)
    counts = [int(count) for count in encode_runs(mask).split(",")]
    assert all(count > 0 for count in counts[1:])
    assert sum(counts[1::2]) == mask.sum()


def test_a_mask_over_the_edge_of_the_image_is_cut_off(tmp_path):
    mask = '<mask label="car" rle="0, 16" left="-2" top="3" width="4" height="4"/>'
    ids, _, _ = read(tmp_path, mask)
    assert (ids == 1).sum() == 4
    assert (ids[3:, :2] == 1).all()
    above = '<mask label="car" rle="0, 4, 4, 4, 4" left="4" top="-2" width="4" height="4"/>'
    assert np.argwhere(read(tmp_path, above)[0] == 1).tolist() == [[0, 4], [0, 5]]


def test_the_larger_z_order_is_in_front_whatever_the_order_of_the_file(tmp_path):
    box = '<box label="{}" xtl="0" ytl="0" xbr="6" ybr="5" z_order="{}"/>'
    front = read(tmp_path, box.format("car", 3) + box.format("road", -1))[0]
    same = read(tmp_path, box.format("car", 0) + box.format("road", 0))[0]
    assert (front == 1).all()
    assert (same == 0).all()  # of two with the same one, the later


def test_a_box_is_turned_clockwise_about_its_centre(tmp_path):
    """4 x 2 pixels about (3, 3); turned by 90 degrees, it is 2 wide and 4 high."""
    box = '<box label="road" xtl="1" ytl="2" xbr="5" ybr="4" rotation="90.00"/>'
    ids, _, _ = read(tmp_path, box, size=(6, 6))
    assert np.argwhere(ids == 0).min(axis=0).tolist() == [1, 2]
    assert np.argwhere(ids == 0).max(axis=0).tolist() == [4, 3]


def test_a_box_turned_by_45_degrees_leans_clockwise(tmp_path):
    """A long flat box: its right end moves down."""
    box = '<box label="road" xtl="5" ytl="19" xbr="35" ybr="21" rotation="45"/>'
    ids, _, _ = read(tmp_path, box, size=(40, 40))
    assert (ids[28, 28], ids[12, 12]) == (0, 0)
    assert (ids[12, 28], ids[28, 12]) == (255, 255)


def test_polygons_and_ellipses_cover_their_areas(tmp_path):
    polygon = '<polygon label="road" points="0.00,0.00;6.00,0.00;6.00,3.00;0.00,3.00"/>'
    assert (read(tmp_path, polygon)[0] == 0).sum() == 18
    ellipse = '<ellipse label="car" cx="50" cy="40" rx="30" ry="20" rotation="30"/>'
    area = (read(tmp_path, ellipse, size=(80, 100))[0] == 1).sum()
    assert abs(area - np.pi * 600) < 15


def test_lines_points_and_tags_are_no_areas(tmp_path):
    shapes = (
        '<polyline label="lane" points="0,0;5,5"/><points label="car" points="1,1"/>'
        '<tag label="car"/><box label="car" xtl="0" ytl="0" xbr="6" ybr="5"/>'
    )
    ids, _, notes = read(tmp_path, shapes)
    assert (ids == 1).all()
    assert len(notes) == 3
    assert "1 polyline without an area" in notes[0]


@pytest.mark.parametrize("name", ["...", "a/..", "C:", "/", "a/ "])
def test_what_is_no_name_of_a_file_is_refused(tmp_path, name):
    box = '<box label="car" xtl="0" ytl="0" xbr="6" ybr="5"/>'
    with pytest.raises(UserError, match="which is no name of a file"):
        read(tmp_path, box, name=name)


def test_labels_without_a_list_of_them_come_from_the_shapes(tmp_path):
    box = '<box label="tree &amp; bush" xtl="0" ytl="0" xbr="6" ybr="5"/>'
    assert read(tmp_path, box, meta="")[1] == ("tree & bush",)


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x "xxxxxxxxxx"><!ENTITY y "&x;&x;&x;&x;&x;">]>'
    "<annotations>&y;</annotations>"
)
OUTSIDE = (
    '<?xml version="1.0"?><!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]>'
    "<annotations>&x;</annotations>"
)


@pytest.mark.parametrize("content", [BOMB, OUTSIDE, BOMB.encode("utf-16")])
def test_entities_are_refused(tmp_path, content):
    file = tmp_path / "annotations.xml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match="has a document type"):
        label_maps("cvat", file)


def test_deep_elements_are_refused(tmp_path):
    file = tmp_path / "annotations.xml"
    file.write_text("<annotations>" * 100_000)
    with pytest.raises(UserError, match="elements within each other"):
        label_maps("cvat", file)


@pytest.mark.parametrize(
    "shape, part",
    [
        ('<mask label="car" rle="1, 3" left="0" top="0" width="3" height="2"/>', "all 6 pixels"),
        ('<mask label="car" rle="9, -3" left="0" top="0" width="3" height="2"/>', "something else"),
        ('<mask label="car" rle="" left="0" top="0" width="3" height="2"/>', "something else"),
        ('<mask label="car" rle="0, 1" left="0" top="0" width="99999999" height="99999"/>',
         "must be a number of pixels"),
        ('<mask label="car" rle="0, 1" left="0" top="0" width="999999" height="9999"/>',
         "the box of a mask is 999999x9999"),
        ('<polygon label="car" points="1,2;3"/>', "must read x,y"),
        ('<polygon label="car" points="nan,2;3,3;4,4"/>', "must read x,y"),
        ('<box label="car" xtl="a" ytl="0" xbr="1" ybr="1"/>', '"xtl" of <box> is \'a\''),
        ('<box xtl="0" ytl="0" xbr="1" ybr="1"/>', "the name of a class"),
    ],
)  # fmt: skip
def test_a_wrong_shape_is_named(tmp_path, shape, part):
    with pytest.raises(UserError, match="annotations.xml.*" + part.replace("(", r"\(")):
        read(tmp_path, shape)


@pytest.mark.parametrize(
    "content, part",
    [
        ("<annotations>", "no element found"),
        ("<html></html>", "its first element is <html>"),
        ("<annotations><track id='0' label='a'/></annotations>", "tracks of a video"),
        ("<annotations><version>1.1</version></annotations>", "lists no image"),
        ("<annotations><image name='a.jpg' width='0' height='5'/></annotations>", "names no label"),
    ],
)
def test_another_file_is_explained(tmp_path, content, part):
    file = tmp_path / "annotations.xml"
    file.write_text(content)
    with pytest.raises(UserError, match=part):
        label_maps("cvat", file)
