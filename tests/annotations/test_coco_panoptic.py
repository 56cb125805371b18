import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image

from diffseg_jax.errors import UserError
from label_cases import LABELLED_MAPS, as_maps, converted, names_of, write_maps, write_object

pytestmark = pytest.mark.quick


def write_panoptic(folder, ids, segments):
    """A JSON file and the PNG of int[H,W] segment ids."""
    height, width = np.shape(ids)
    (folder / "panoptic").mkdir(parents=True)
    ids = np.array(ids)
    channels = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    Image.fromarray(channels).save(folder / "panoptic" / "a.png")
    return write_object(folder / "panoptic.json", {
        "images": [{"id": 5, "file_name": "a.jpg", "height": height, "width": width}],
        "annotations": [{"image_id": 5, "file_name": "a.png", "segments_info": segments}],
        "categories": [
            {"id": 1, "name": "person", "isthing": 1, "color": [220, 20, 60]},
            {"id": 90, "name": "road", "isthing": 0, "color": [0, 0, 9]},
        ],
    })  # fmt: skip


@settings(max_examples=12, deadline=None)
@given(LABELLED_MAPS)
def test_masks_come_back_through_panoptic_labels(ids):
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_maps(folder / "mine", {"a.png": ids})
        converted(folder / "mine", folder / "there", target="coco_panoptic")
        assert as_maps(folder / "there" / "panoptic.json", folder / "back") == {
            "a.png": ids.tolist()
        }
        assert names_of(folder / "back") == ["sky", "road", "tree"]


def test_ids_have_three_bytes_and_zero_is_unlabelled(tmp_path):
    far = 7 + 256 * 8 + 65536 * 9
    segments = [{"id": far, "category_id": 90}, {"id": 256, "category_id": 1, "iscrowd": 0}]
    file = write_panoptic(tmp_path, [[far, 256, 0]], segments)
    assert as_maps(file, tmp_path / "out") == {"a.png": [[1, 0, 255]]}


def test_crowds_are_ignored_even_if_the_rest_is_a_class(tmp_path):
    segments = [{"id": 3, "category_id": 1, "iscrowd": 1}, {"id": 4, "category_id": 90}]
    file = write_panoptic(tmp_path, [[3, 4, 0]], segments)
    assert as_maps(file, tmp_path / "out", unlabelled="road") == {"a.png": [[255, 1, 1]]}


@pytest.mark.parametrize(
    "segments, sentence",
    [
        ([], "of no segment"),
        (2 * [{"id": 3, "category_id": 1}], "each of one segment"),
        ([{"id": 0, "category_id": 1}], "each of one segment"),
        ([{"id": 3, "category_id": 2}], "no category with the id 2"),
    ],
)
def test_what_is_wrong_is_one_sentence(tmp_path, segments, sentence):
    file = write_panoptic(tmp_path, [[3, 3]], segments)
    with pytest.raises(UserError, match=sentence):
        converted(file, tmp_path / "out", "coco_panoptic")


def test_the_pngs_must_be_there_and_of_the_size_of_the_image(tmp_path):
    file = write_panoptic(tmp_path, [[3, 3]], [{"id": 3, "category_id": 1}])
    Image.new("RGB", (2, 2)).save(tmp_path / "panoptic" / "a.png")
    with pytest.raises(UserError, match="is 2x2 in mode RGB"):
        converted(file, tmp_path / "out")
    (tmp_path / "panoptic" / "a.png").unlink()
    with pytest.raises(UserError, match=r"a\.png"):
        converted(file, tmp_path / "out")
    (tmp_path / "panoptic").rmdir()
    with pytest.raises(UserError, match="must be in the folder"):
        converted(file, tmp_path / "out")
