"""Depth files and depth.json: metres come back, and what cannot be meant is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from depth_files import depth_map, save
from diffseg_jax.data.depth_files import DepthRules, read_depth, read_depth_rules, unit_warning
from diffseg_jax.errors import UserError

pytestmark = pytest.mark.quick

METRES = DepthRules(scale=1.0)


@pytest.mark.parametrize(
    ("name", "scale", "dtype"),
    [("a.png", 0.001, np.uint16), ("a.png", 1 / 256, np.uint16), ("a.npy", 1.0, np.float32),
     ("a.npy", 0.01, np.float16), ("a.npy", 0.001, np.int32)],
)  # fmt: skip
def test_metres_come_back_from_files(tmp_path, name, scale, dtype):
    metres = depth_map(0)
    save(tmp_path / name, (metres / scale).astype(dtype))
    depth, orientation = read_depth(tmp_path / name, DepthRules(scale))
    assert depth.dtype == np.float32 and orientation == 1
    np.testing.assert_allclose(depth, metres, atol=scale, rtol=1e-3)
    np.testing.assert_array_equal(depth == 0, metres == 0)


def test_an_axis_of_one_channel_is_dropped(tmp_path):
    np.save(tmp_path / "a.npy", depth_map(0)[None])
    assert read_depth(tmp_path / "a.npy", METRES)[0].shape == (24, 40)


def test_nan_invalid_values_and_what_is_out_of_range_are_not_measured(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[np.nan, -1, 0, 5, 90, 0.1, 2]]))
    rules = DepthRules(1.0, low=0.5, high=80, invalid=(-1.0,))
    np.testing.assert_array_equal(read_depth(tmp_path / "a.npy", rules)[0], [[0, 0, 0, 5, 0, 0, 2]])


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.full((2, 3), np.inf), "a.npy holds infinity, but 0 stands .*posinf=0"),
        (np.array([[1.0, -2, -3]]), r"holds -3, but depth is never negative. Save numpy.maximum"),
        (np.full((2, 3), 1e300), r"holds a depth of 1e\+300 m. Correct the scale in the file"),
        (np.zeros((2, 3)), "has no measured pixel: all are 0. Remove it and its image"),
        (np.ones((2, 3, 4)), r"is float64\[2, 3, 4\], but must be floats or integers \[height, w"),
        (np.ones((2, 3), bool), r"is bool\[2, 3\].*Save it as float32"),
        (np.ones((2, 3), complex), r"is complex128\[2, 3\]"),
    ],
    ids=["infinite", "negative", "far", "nothing measured", "three axes", "bool", "complex"],
)
def test_arrays_that_are_no_depth_are_refused(tmp_path, array, sentence):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UserError, match=sentence):
        read_depth(tmp_path / "a.npy", METRES)


def test_one_negative_value_may_stand_for_missing_measurements(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[1.0, -1, -1]]))
    rules = DepthRules(1.0, file="mine/depth.json")
    with pytest.raises(UserError, match=r'"invalid": \[-1\] into mine/depth.json'):
        read_depth(tmp_path / "a.npy", rules)


def test_limits_that_leave_nothing_are_named(tmp_path):
    np.save(tmp_path / "a.npy", np.full((2, 3), 5.0))
    rules = DepthRules(1.0, high=2.0, file="mine/depth.json")
    with pytest.raises(UserError, match="lie outside its min and max.* correct mine/depth.json"):
        read_depth(tmp_path / "a.npy", rules)


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [("L", "8 bits per pixel"), ("RGB", "has colours"), ("P", "colours of a palette")],
)
def test_images_of_depth_maps_are_refused(tmp_path, mode, sentence):
    Image.new(mode, (4, 3), 7).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=f"{sentence}.*PNG of 16 bits or as .npy"):
        read_depth(tmp_path / "a.png", METRES)


def test_damaged_files_are_refused(tmp_path):
    save(tmp_path / "a.png", 1000 * depth_map(0))
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:-80])
    with pytest.raises(UserError, match="cannot read .*a.png"):
        read_depth(tmp_path / "a.png", METRES)
    (tmp_path / "b.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match="cannot read depth .*b.npy"):
        read_depth(tmp_path / "b.npy", METRES)


# ---- depth.json ----------------------------------------------------------------------------------


def rules_of(tmp_path, text, stored=lambda: np.array([[0, 2500, 2500]])):
    file = tmp_path / "depth.json"
    if text is not None:
        file.write_text(text)
    return read_depth_rules(file, stored)


def test_a_depth_json_is_read(tmp_path):
    text = '{"scale": 0.001, "min": 0.3, "max": 20, "invalid": [65535]}'
    file = str(tmp_path / "depth.json")
    assert rules_of(tmp_path, text) == DepthRules(0.001, 0.3, 20.0, (65535.0,), file)
    assert rules_of(tmp_path, '{"scale": 1}') == DepthRules(1.0, file=file)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, r'there is no .*depth.json, so the unit.*"scale": 0.001} if they hold millimetres'
               ".*median of a file is 2500, so its depth would be 2.5 m or 9.77 m or 2.5e"),
        ('{"min": 1}', r"has no scale, the metres per stored unit. Write into it: {\"scale\""),
        ("[1]", 'is not an object. It must read {"scale": 0.001}'),
        ("", 'it is empty. Write {"scale": 0.001} into it'),
        ('{"scael": 1}', 'unknown key in .* "scael".*Did you mean "scale"'),
        ('{"scale": 0}', "scale is 0, but must be a number above 0"),
        ('{"scale": "mm"}', "scale is 'mm', but must be a number"),
        ('{"scale": 1, "min": 5, "max": 2}', "min is 5 and max 2, but .* 0 <= min < max"),
        ('{"scale": 1, "invalid": 65535}', r"invalid is 65535, but must be a list"),
    ],
)  # fmt: skip
def test_a_wrong_depth_json_is_refused(tmp_path, text, sentence):
    with pytest.raises(UserError, match=sentence):
        rules_of(tmp_path, text)


def test_every_key_of_a_depth_json_is_known_by_the_reader(tmp_path):
    with pytest.raises(UserError, match="Known: invalid, max, min, scale"):
        rules_of(tmp_path, json.dumps({"unit": "mm"}))


# ---- units ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("median", "scale", "sentence"),
    [
        (0.003, 0.001, r'is 3 mm, with 0.001 m per .*"scale": 1 \(metres, 3 m\) into m/depth.json'),
        (30_000, 1.0, r'is 30 km.*"scale": 0.001 \(millimetres, 30 m\)'),
        (2500, 1.0, r'is 2.5 km.*"scale": 0.001 \(millimetres, 2.5 m\) or "scale": 0.00390625'),
        (1e-9, 1.0, "correct scale in m/depth.json"),
    ],
)
def test_a_median_of_millimetres_or_kilometres_is_pointed_out(median, scale, sentence):
    import re

    found = unit_warning([median], DepthRules(scale, file="m/depth.json"))
    assert len(found) == 1 and re.search(sentence, found[0])


@pytest.mark.parametrize("median", [0.06, 2.5, 20, 900])
def test_usual_medians_are_not(median):
    assert unit_warning([median], METRES) == unit_warning([], METRES) == ()
