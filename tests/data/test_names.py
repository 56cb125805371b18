"""Files pair and lists match whatever file systems and editors made of their names and texts."""

import json
import os
import unicodedata

import numpy as np
import pytest
from ml_collections import ConfigDict

from diffseg_jax.data.names import digest_of, partners, read_text
from diffseg_jax.data.sources import open_source
from diffseg_jax.data.subsets import describe_subset, subset
from diffseg_jax.errors import UserError
from diffseg_jax.experiment.prepare_data import make_manifest
from image_files import labelled_folder, random_ids, random_image, save_image

pytestmark = pytest.mark.quick

COMPOSED = "m\u00fcller"
DECOMPOSED = unicodedata.normalize("NFD", COMPOSED)
LATIN = os.fsdecode(COMPOSED.encode("latin-1"))  # as an old archive stores it

ENCODINGS = {  # of editors: the bytes of a text
    "UTF-8": lambda text: text.encode(),
    "UTF-8 of Notepad": lambda text: text.encode("utf-8-sig"),
    "UTF-16 of Notepad": lambda text: text.encode("utf-16"),
    "UTF-16 without mark": lambda text: text.encode("utf-16-le"),
    "UTF-16 of Macs": lambda text: text.encode("utf-16-be"),
    "UTF-32": lambda text: text.encode("utf-32"),
}


@pytest.mark.parametrize("stored", [COMPOSED, DECOMPOSED, LATIN], ids=["NFC", "NFD", "bytes"])
@pytest.mark.parametrize("mask", [COMPOSED, DECOMPOSED, LATIN, COMPOSED.upper()], ids=ascii)
def test_an_image_and_its_mask_may_be_spelt_differently(tmp_path, stored, mask):
    ids = random_ids()
    save_image(tmp_path / f"images/train/{stored}.JPG", random_image())
    save_image(tmp_path / f"masks/train/{mask}.png", ids)
    source = open_source("folder", "train", path=str(tmp_path), num_classes=3)
    assert source.names == (stored,) and not source.report
    np.testing.assert_array_equal(source[0]["mask"], ids)
    config = ConfigDict({"data": {"source": "folder", "path": str(tmp_path), "options": {}}})
    chosen = describe_subset(source.names, [0])
    assert json.loads(json.dumps(chosen))["names"] == [stored]
    assert chosen["sha256"] == digest_of(source.names)
    assert make_manifest(config, "data", {"train": source})


def test_names_pair_only_where_one_is_meant():
    assert partners(["a", "b"], ["a", "A", "B"]) == {"a": "a", "b": "B"}
    assert partners(["a", "A"], ["\u00c1", "a "]) == {}
    assert partners(["x"], ["X", "x "]) == {}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("end", ["\n", "\r\n", " \r\n\r\n", "\r"], ids=ascii)
def test_lists_of_any_editor_are_read(tmp_path, encoding, end):
    lines = ["train\\x\\1.png", f"{COMPOSED}.PNG masks/{COMPOSED}.png", '"my photo.jpg","m.png"']
    text = end.join(lines) + end
    (tmp_path / "list.txt").write_bytes(ENCODINGS[encoding](text))
    names = ("x/1", "x/2", DECOMPOSED, "my photo", "photo")
    assert subset(names, list_path=str(tmp_path / "list.txt")).tolist() == [0, 2, 3]


def test_a_list_may_hold_bytes(tmp_path):
    (tmp_path / "list.txt").write_bytes(COMPOSED.encode("latin-1") + b".png\n")
    for name in (LATIN, COMPOSED, DECOMPOSED):
        assert subset(("a", name), list_path=str(tmp_path / "list.txt")).tolist() == [1]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_classes_json_of_any_editor_is_read(tmp_path, encoding):
    path = labelled_folder(tmp_path, {"a": random_ids(2)})
    text = json.dumps({"names": ["h\u00e4user", "rest"]}, ensure_ascii=False)
    (tmp_path / "classes.json").write_bytes(ENCODINGS[encoding](text))
    source = open_source("folder", "train", path=path)
    assert source.labels.names == ("h\u00e4user", "rest")
    (tmp_path / "classes.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"cannot read .*classes\.json.* Save the file as UTF-8"):
        open_source("folder", "train", path=path)


def test_published_lists_of_any_editor_are_read(tmp_path):
    save_image(tmp_path / "JPEGImages/2008_01.JPG", random_image())
    save_image(tmp_path / "SegmentationClassContext/2008_01.png", random_ids(59))
    lists = tmp_path / "ImageSets/SegmentationContext"
    lists.mkdir(parents=True)
    for text in ("2008_01\r\n", "JPEGImages\\2008_01.jpg  1\n\n"):
        (lists / "train.txt").write_bytes(text.encode("utf-8-sig"))
        source = open_source("pascal_context", "train", path=str(tmp_path), num_classes=59)
        assert source.names == ("2008_01",)


def test_arrays_beside_images_may_have_another_case(tmp_path):
    save_image(tmp_path / "real/train/a.PNG", random_image(8, 8))
    with open(tmp_path / "real/train/a.NPY", "wb") as file:
        np.save(file, random_ids(3, 8, 8))
    source = open_source("horse_21", "train", path=str(tmp_path))
    assert source.names == ("a",) and source[0]["mask"].shape == (256, 256)


def test_text_is_read_as_written(tmp_path):
    for encode in ENCODINGS.values():
        (tmp_path / "a.txt").write_bytes(encode("\u00e9\n"))
        assert read_text(tmp_path / "a.txt") == "\u00e9\n"
