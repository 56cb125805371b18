"""Which image files labels belong to."""

import json

import numpy as np
import pytest

from diffseg_jax.errors import UserError
from label_cases import converted, write_maps, write_object, write_photo

pytestmark = pytest.mark.quick


def coco(file, names):
    """A file of COCO with a region of the first pixel in each image of 4 x 6."""
    images = [
        {"id": at, "file_name": name, "height": 4, "width": 6} for at, name in enumerate(names)
    ]
    runs = {"size": [4, 6], "counts": [0, 1, 23]}
    annotations = [
        {"image_id": at, "category_id": 1, "iscrowd": 0, "segmentation": runs}
        for at in range(len(names))
    ]
    categories = [{"id": 1, "name": "road"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return write_object(file, content)


@pytest.mark.parametrize("names", [["x/a.png", "y/a.png"], ["a.png", "x/a.png"]])
def test_an_image_cannot_belong_to_two_labels(tmp_path, names):
    """Which of them it is, the name of its file does not tell."""
    write_photo(tmp_path / "photos" / "a.png")
    with pytest.raises(UserError, match="would both be those of a.png below .*photos"):
        converted(coco(tmp_path / "a.json", names), tmp_path / "out", images=tmp_path / "photos")


def test_a_mask_cannot_share_its_image(tmp_path):
    maps = {name: np.zeros((4, 6), np.uint8) for name in ("x/a.png", "y/a.png")}
    write_maps(tmp_path / "in", maps, photos=False)
    converted(tmp_path / "in", tmp_path / "there", target="palette")
    write_photo(tmp_path / "photos" / "a.png")
    with pytest.raises(UserError, match="labels of x/a and labels of y/a would both be those of a"):
        converted(tmp_path / "there", tmp_path / "out", "palette", images=tmp_path / "photos")


def test_images_that_are_found_by_their_names_only_are_counted(tmp_path):
    for name in ("val/0001.png", "train/0002.png"):
        write_photo(tmp_path / "photos" / name)
    file = coco(tmp_path / "a.json", ["train/0001.png", "train/0002.png"])
    notes = converted(file, tmp_path / "out", images=tmp_path / "photos").notes
    (note,) = [note for note in notes if "found by the name alone" in note]
    assert note.startswith("images: 1 file whose folder")
    assert note.endswith("val/0001.png for train/0001")


def test_masks_that_find_images_by_their_names_only_are_counted(tmp_path):
    write_maps(tmp_path / "in", {"x/a.png": np.zeros((4, 6), np.uint8)}, photos=False)
    converted(tmp_path / "in", tmp_path / "there", target="palette")
    write_photo(tmp_path / "there" / "images" / "a.png")
    notes = converted(tmp_path / "there", tmp_path / "out", "palette").notes
    assert [note for note in notes if note.endswith("a.png for x/a")]


@pytest.mark.parametrize("name", [
    "Screenshot 9.41\u202fAM.png", "a\u00a0b.png", "a\u3000b.png", "\U0001f469\u200d\U0001f33e.png",
])  # fmt: skip
def test_names_may_hold_all_spaces_and_emoji(tmp_path, name):
    write_photo(tmp_path / "photos" / name)
    file = coco(tmp_path / "a.json", [name])
    done = converted(file, tmp_path / "out", images=tmp_path / "photos")
    assert done.photos == 1 and (tmp_path / "out" / "images" / name).exists()


@pytest.mark.parametrize("name", ["b\udce4r.png", "a\nb.png", "a\u2028b.png"])
def test_names_that_are_no_line_of_text_are_refused_where_they_are_listed(tmp_path, name):
    """As of a file that an old program named in Latin-1; label maps keep such names."""
    write_maps(tmp_path / "in", {name: np.zeros((4, 6), np.uint8)})
    assert converted(tmp_path / "in", tmp_path / "same").photos == 1
    for target in ("coco", "coco_panoptic", "labelme", "cvat", "label_studio", "voc"):
        with pytest.raises(UserError, match=f"has a name that {target} cannot hold"):
            converted(tmp_path / "in", tmp_path / "out", target=target)


def test_pages_without_an_image_file_are_counted(tmp_path):
    """`predict` names them scan.tif#0."""
    write_maps(tmp_path / "in", {"a.png": np.zeros((4, 6), np.uint8)}, photos=False)
    (tmp_path / "in" / "masks" / "a.png").rename(tmp_path / "in" / "scan#0_labels.png")
    content = {
        "checkpoint": "", "classes": [{"name": "sky"}],
        "pictures": {"scan#0": {"file": f"{tmp_path}/scan.tif#0"}},
    }  # fmt: skip
    (tmp_path / "in" / "summary.json").write_text(json.dumps(content))
    done = converted(tmp_path / "in", tmp_path / "out", "predictions")
    assert (done.images, done.photos) == (1, 0)
    assert done.notes[0].startswith("without image: 1 label map that is not there as a file")
