"""Rules by which regions become label maps."""

import tracemalloc

import numpy as np
import pytest

from diffseg_jax.annotations import painting
from diffseg_jax.errors import UserError
from label_cases import as_maps, converted, names_of, write_maps, write_object
from label_files import label_maps

pytestmark = pytest.mark.quick


def box(label, left, right):
    """A rectangle of labelme over all rows of an image of 2 x 6."""
    points = [[left, 0], [right, 2]]
    return {"label": label, "points": points, "shape_type": "rectangle", "group_id": None}


def labelme(folder, shapes, name="a"):
    content = {"imagePath": f"{name}.png", "imageHeight": 2, "imageWidth": 6, "shapes": shapes}
    write_object(folder / f"{name}.json", content)
    return folder


def row(folder, **rules):
    """The upper row of the label map, 0 and 1 for the first classes."""
    return label_maps("labelme", folder, **rules)[0]["a.png"][0].tolist()


# ---- classes that are ignored by their names -----------------------------------------------------


def test_a_renamed_class_is_no_longer_ignored_by_its_name(tmp_path):
    labelme(tmp_path, [box("__ignore__", 0, 2), box("road", 2, 4)])
    assert row(tmp_path) == [255, 255, 0, 0, 255, 255]
    assert row(tmp_path, rename=(("__ignore__", "road"),)) == [0, 0, 0, 0, 255, 255]
    assert row(tmp_path, rename=(("__ignore__", "car"),)) == [0, 0, 1, 1, 255, 255]


def test_classes_ignored_by_their_names_are_named(tmp_path):
    labelme(tmp_path / "in", [box("__ignore__", 0, 2), box("road", 2, 4)])
    notes = converted(tmp_path / "in", tmp_path / "out").notes
    assert [note for note in notes if note.startswith("ignored because of their names: __ignore__")]
    notes = converted(tmp_path / "in", tmp_path / "b", rename=(("__ignore__", "car"),)).notes
    assert not [note for note in notes if "because of their names" in note]


def test_a_class_cannot_be_ignored_and_be_that_of_unlabelled_pixels(tmp_path):
    labelme(tmp_path, [box("void", 0, 2), box("road", 2, 4)])
    with pytest.raises(UserError, match="'void' is given to --ignore and to --unlabelled"):
        row(tmp_path, ignore=("void",), unlabelled="void")


# ---- classes that are chosen ---------------------------------------------------------------------


def test_regions_of_classes_that_are_not_chosen_hide_what_is_below(tmp_path):
    """A window on a car is not the car."""
    labelme(tmp_path, [box("car", 0, 6), box("window", 2, 4)])
    assert row(tmp_path, classes=("car",)) == [0, 0, 255, 255, 0, 0]
    chosen = {"classes": ("car",), "unlabelled": "background"}
    assert row(tmp_path, **chosen) == [1, 1, 0, 0, 1, 1]
    assert row(tmp_path, **chosen, overlap="first") == [1] * 6
    assert row(tmp_path, **chosen, overlap="smallest") == [1, 1, 0, 0, 1, 1]


def test_an_image_with_other_classes_only_has_labels(tmp_path):
    labelme(tmp_path / "in", [box("car", 0, 6)])
    labelme(tmp_path / "in", [box("window", 0, 6)], name="b")
    labelme(tmp_path / "in", [], name="c")
    chosen = {"classes": ("car",), "unlabelled": "background"}
    maps = as_maps(tmp_path / "in", tmp_path / "out", **chosen)
    assert maps == {"a.png": [[1] * 6] * 2, "b.png": [[0] * 6] * 2}  # and none of c


def test_one_order_of_classes_holds_for_several_folders(tmp_path):
    """Where nothing lists the classes, those that a folder lacks can be named too."""
    labelme(tmp_path / "one", [box("car", 0, 6)])
    labelme(tmp_path / "two", [box("person", 0, 6)])
    for name, index in (("one", 1), ("two", 0)):
        done = converted(tmp_path / name, tmp_path / f"{name}_out", classes=("person", "car"))
        assert names_of(tmp_path / f"{name}_out") == ["person", "car"]
        assert done.pixels[index] == 12
    assert "named in --classes, but no label has it: car" in done.notes
    (tmp_path / "two" / "labels.txt").write_text("person\n")
    with pytest.raises(UserError, match='unknown class "car". Known: person'):
        label_maps("labelme", tmp_path / "two", classes=("person", "car"))


# ---- overlaps ------------------------------------------------------------------------------------


def test_a_pixel_under_several_regions_overlaps_once(tmp_path):
    shapes = [box(name, 0, 3) for name in ("a", "b", "c", "a", "b")]
    labelme(tmp_path / "in", shapes)
    notes = converted(tmp_path / "in", tmp_path / "out").notes
    assert [note for note in notes if "classes overlap on 50.00% of the pixels" in note]


def large(folder, count, side=1000):
    """A file of COCO with regions that fill a large image, in a few bytes each."""
    runs = {"size": [side, side], "counts": [0, side * side]}
    annotation = {"image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": runs}
    smallest = {**annotation, "category_id": 2}
    smallest["segmentation"] = {"size": [side, side], "counts": [0, 1, side * side - 1]}
    return write_object(folder / "instances.json", {
        "images": [{"id": 1, "file_name": "a.png", "height": side, "width": side}],
        "annotations": [smallest, *[annotation] * count],
        "categories": [{"id": 1, "name": "road"}, {"id": 2, "name": "car"}],
    })  # fmt: skip


def test_large_regions_are_not_held_in_memory_together(tmp_path):
    file = large(tmp_path, 40)
    tracemalloc.start()
    ids = label_maps("coco", file)[0]["a.png"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ids[0, 0] == 1 and (ids == 0).sum() == ids.size - 1
    assert peak < 25e6  # bytes; 40 masks have 40e6


def test_more_regions_than_can_be_drawn_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(painting, "MAX_DRAWN_PIXELS", 10**5)
    with pytest.raises(UserError, match="a.png: its regions cover boxes of more than 100,000"):
        label_maps("coco", large(tmp_path, 10, side=200))


def test_ids_of_a_map_that_are_not_chosen_become_unlabelled(tmp_path):
    """As regions do; the image has labels all the same."""
    ids = np.array([[1, 1]], np.uint8)
    write_maps(tmp_path / "in", {"a.png": ids}, ["car", "window"])
    assert as_maps(
        tmp_path / "in", tmp_path / "out", classes=("car",), unlabelled="background"
    ) == {"a.png": [[0, 0]]}
