"""classes.json names, colours and ignores classes."""

import json
import pickle

import numpy as np
import pytest

from diffseg_jax.data.json_text import read_user_json
from diffseg_jax.data.sources import open_source
from diffseg_jax.errors import UserError
from image_files import labelled_folder, random_ids

pytestmark = pytest.mark.quick


def test_classes_json_names_colours_and_ignores(tmp_path):
    mask = np.array([[0, 1, 2], [3, 9, 255]], np.uint8)
    path = labelled_folder(tmp_path, {"a": mask})
    entries = {"names": ["x", "y", "z"], "palette": [[1, 2, 3], [4, 5, 6], [7, 8, 9]]}
    (tmp_path / "classes.json").write_text(
        json.dumps(entries | {"zero_is_ignored": True, "ignore": [9]})
    )
    source = open_source("folder", "train", path=path)
    assert source.labels.names == ("x", "y", "z") and source.labels.palette[1] == (4, 5, 6)
    np.testing.assert_array_equal(source[0]["mask"], [[255, 0, 1], [2, 255, 255]])


def test_an_ignored_class_keeps_its_index(tmp_path):
    path = labelled_folder(tmp_path, {"a": np.array([[0, 1], [2, 0]], np.uint8)})
    (tmp_path / "classes.json").write_text('{"names": ["void", "bed", "lamp"], "ignore": [0]}')
    source = open_source("folder", "train", path=path)
    np.testing.assert_array_equal(source[0]["mask"], [[255, 1], [2, 255]])
    assert len(set(source.labels.palette)) == 3


def test_ignored_classes_are_unscored_wherever_they_were_ignored(tmp_path):
    path = labelled_folder(tmp_path, {"a": np.array([[0, 1, 2], [3, 9, 300]], np.uint16)})
    source = open_source("folder", "train", path=path, num_classes=4, ignore=(3, 9, 300, 3))
    np.testing.assert_array_equal(source[0]["mask"], [[0, 1, 2], [255, 255, 255]])
    assert source.labels.unscored == (3,) and len(source.labels.names) == 4
    entries = {"names": ["a", "b", "c", "d"], "ignore": [0, 300]}
    (tmp_path / "classes.json").write_text(json.dumps(entries))
    source = open_source("folder", "train", path=path, ignore=[9, 2])  # a tuple is a list in JSON
    np.testing.assert_array_equal(source[0]["mask"], [[255, 1, 255], [3, 255, 255]])
    assert source.labels.unscored == (0, 2) and source.labels.names == ("a", "b", "c", "d")
    assert pickle.loads(pickle.dumps(source)).labels == source.labels


def test_ignored_ids_are_those_on_disk(tmp_path):
    path = labelled_folder(tmp_path, {"a": np.array([[0, 1, 2]], np.uint8)})
    (tmp_path / "classes.json").write_text('{"names": ["x", "y"], "zero_is_ignored": true}')
    source = open_source("folder", "train", path=path, ignore=(2,))
    np.testing.assert_array_equal(source[0]["mask"], [[255, 0, 255]])
    assert source.labels.unscored == (1,)


@pytest.mark.parametrize("wrong", [(-1,), (65536,), ("sky",), (1.0,)])
def test_only_ids_can_be_ignored(tmp_path, wrong):
    path = labelled_folder(tmp_path, {"a": random_ids()})
    with pytest.raises(UserError, match=r"ignore is .*0\.\.65535"):
        open_source("folder", "train", path=path, num_classes=3, ignore=wrong)


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("{", "Add what is missing"),
        ("[]", "object"),
        ("[1, 2]", "object"),
        ('["a", "b"]', r'must read \{"names": \["a", "b"\]\}\.'),
        ('{"0": "a", "7": "b"}', r'must read \{"names": \["a", "b"\], "ids": \[0, 7\]\}\.'),
        ('{"names": ["a"], "palette": ["#0A10ff"]}', r'set "palette": \[\[10, 16, 255\]\]'),
        ('{"nams": ["a"]}', 'Did you mean "names"'),
        ('{"names": ["a", "a"]}', "different"),
        ('{"names": ["a"], "palette": [[1, 2, 300]]}', "palette"),
        ('{"names": ["a"], "palette": [[1, 2, 3], [1, 2, 3]]}', "palette"),
        ('{"names": ["a"], "ignore": ["b"]}', "ignore"),
        ('{"names": ["a"], "zero_is_ignored": 1}', "zero_is_ignored"),
        ('{"names": ["a", "b"]}', "num_classes is 3"),
    ],
)
def test_a_wrong_classes_json_is_named(tmp_path, text, sentence):
    num_classes = 3 if "num_classes" in sentence else 0
    path = labelled_folder(tmp_path, {"a": random_ids()})
    (tmp_path / "classes.json").write_text(text)
    with pytest.raises(UserError, match=sentence) as error:
        open_source("folder", "train", path=path, num_classes=num_classes)
    assert "classes.json" in str(error.value)


@pytest.mark.parametrize(
    "text, line, sentence",
    [
        ('{"names": [\n"a",\n"b",\n]}', 3, "a comma stands before ]. Remove the comma"),
        ('{\n"names": ["a"],\n}', 2, "a comma stands before }. Remove the comma"),
        ('{\n"names": ["a"] // all', 2, "JSON has no comments"),
        ('\n# classes\n{"names": ["a"]}', 2, "JSON has no comments"),
        ("{\n'names': ['a']}", 2, 'Write " around names'),
        ('{"names": [\n\u201ca\u201d]}', 2, "a typographic quote"),
        ('{"zero_is_ignored":\nTrue}', 2, "Write true, false or nothing"),
        ("{\nnames: []}", 2, 'Write "names"'),
        ('{"ids": [0, 1\n, NaN]}', 2, "NaN is no number in JSON"),
        ('{"names": ["a"]\n"ids": [1]}', 1, "a comma is missing before"),
        ('{"names":\n["a", "b]}', 2, "the quote that ends a name is missing"),
        ('{"names":\n["a"}', 2, "} does not close the last open bracket"),
        ('{"names":\n["a"', 2, "Add what is missing"),
        ('{"names": ["a"]}\n}', 2, "there is more after the last bracket"),
        ('{"ids": [0],\n"ids": [0]}', 2, 'the key "ids" is repeated'),
        ('{"names":\n["caf\xe9"]}'.encode("latin-1"), 2, "byte 0xe9 is not UTF-8"),
        ("", 1, 'Write {"names": [...]}'),
    ],
)
def test_broken_json_is_named_with_its_line(tmp_path, text, line, sentence):
    file = tmp_path / "classes.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        read_user_json(file)
    assert f"classes.json, line {line}: " in str(error.value) and sentence in str(error.value)
