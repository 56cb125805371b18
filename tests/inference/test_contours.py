"""Polygons of a label map fill exactly its pixels, and no ring meets itself."""

import json

import numpy as np
import pytest
from PIL import Image, ImageDraw

from diffseg_jax.inference.contours import coco, geojson, merged_coco, regions_of

pytestmark = pytest.mark.quick

RNG = np.random.default_rng(5)
SCALE = 4  # pixels are drawn so large that the middle of each is on no border


def random_maps():
    """Labels int[H,W] with regions that have holes, islands in them, and touch at corners."""
    ring = np.zeros((9, 9), int)
    ring[1:8, 1:8], ring[2:7, 2:7], ring[4, 4] = 1, 0, 1
    yield from (ring, np.eye(6, dtype=int), 1 - np.eye(6, dtype=int), np.zeros((1, 1), int))
    c_shape = np.ones((4, 4), int)
    c_shape[1, 1:3] = c_shape[2, 3] = 0  # its ends meet at a corner
    yield c_shape
    for _ in range(40):
        labels = RNG.integers(0, RNG.integers(1, 4), RNG.integers(1, 14, 2))
        yield np.where(RNG.random(labels.shape) < 0.1, 255, labels)


def filled(rings, size):
    """bool[H,W] of the first ring without the others."""
    image = Image.new("L", (SCALE * size[1], SCALE * size[0]))
    for ring, colour in zip(rings, [1, *[0] * len(rings)]):
        ImageDraw.Draw(image).polygon([(SCALE * x, SCALE * y) for x, y in ring], fill=colour)
    return np.asarray(image)[SCALE // 2 :: SCALE, SCALE // 2 :: SCALE] > 0


def area(ring):
    x, y = np.transpose(ring)
    return (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2


def test_polygons_give_back_the_label_map():
    for labels in random_maps():
        size, uncertainty = labels.shape, RNG.random(labels.shape)
        content = geojson("a", list(regions_of(labels, uncertainty)), size, ["a", "b", "c"])
        found = np.full(size, 255)
        for feature in json.loads(json.dumps(content))["features"]:
            kept, rings = feature["properties"], feature["geometry"]["coordinates"]
            assert all(ring[0] == ring[-1] for ring in rings)
            rings = [ring[:-1] for ring in rings]
            assert all(len(set(map(tuple, ring))) == len(ring) for ring in rings)
            inside = filled(rings, size)
            assert sum(map(area, rings)) == kept["area"] == inside.sum()
            assert area(rings[0]) > 0 and all(area(ring) < 0 for ring in rings[1:])
            assert kept["uncertainty"] == pytest.approx(uncertainty[inside].mean(), abs=1e-6)
            assert kept["class"] == "abc"[kept["id"]] and (found[inside] == 255).all()
            found[inside] = kept["id"]
        np.testing.assert_array_equal(found, labels)


def decoded(annotation, size):
    """bool[H,W] of an annotation of COCO."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        return filled([np.reshape(segmentation[0], (-1, 2)).tolist()], size)
    counts = segmentation["counts"]
    values = np.repeat(np.arange(len(counts)) % 2, counts)
    return values.reshape(segmentation["size"], order="F").astype(bool)


def test_coco_gives_back_the_label_maps():
    maps = {f"{number}.png": labels for number, labels in enumerate(random_maps())}
    parts = {
        name: coco(name, list(regions_of(labels, 0 * labels)), labels.shape, ["a", "b", "c"])
        for name, labels in maps.items()
    }
    content = json.loads(json.dumps(merged_coco(parts)))
    assert [each["name"] for each in content["categories"]] == ["a", "b", "c"]
    for part in ("images", "annotations"):
        assert len({each["id"] for each in content[part]}) == len(content[part])
    for image in content["images"]:
        labels = maps[image["file_name"]]
        assert (image["height"], image["width"]) == labels.shape
        found = np.full(labels.shape, 255)
        for each in content["annotations"]:
            if each["image_id"] == image["id"]:
                inside = decoded(each, labels.shape)
                y, x = np.nonzero(inside)
                corner = [x.min(), y.min()]
                assert each["bbox"] == [*corner, x.max() + 1 - x.min(), y.max() + 1 - y.min()]
                assert each["area"] == inside.sum()
                found[inside] = each["category_id"]
        np.testing.assert_array_equal(found, labels)


def test_an_image_without_labels_has_no_contours():
    labels = np.full((3, 4), 255)
    assert geojson("a", list(regions_of(labels, 0 * labels)), (3, 4), ["a"])["features"] == []
    content = merged_coco({"a": coco("a", [], (3, 4), ["a"])})
    assert len(content["images"]) == 1 and content["annotations"] == []
