"""Damaged and hostile label files give label maps or one sentence, and nothing outside the output.

The quick cases run by default. This runs thousands more, with other seeds:

python -m pytest -m slow tests/annotations/test_hostile_labels.py
"""

import base64
import contextlib
import copy
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

import mutate
from diffseg_jax.annotations.label_formats import recognised
from diffseg_jax.errors import UserError
from label_cases import converted, write_maps, write_object

MAPS = {
    "a.png": np.array([[0, 0, 0, 1], [0, 255, 0, 1], [0, 0, 0, 2]], np.uint8),  # with a hole
    "b/c.png": np.array([[1, 1], [2, 255]], np.uint8),
}
VALUES = (
    -1, 0, 1, 7, 2**31, 2**63, 10**30, 0.5, -2.5, 1e300, -1e300, float("nan"), float("inf"), True,
    None, "", "x", "../../x", "/x", "C:\\x", "a\0b", "\ud800", "x" * 5000, "9" * 5000, [], [[]],
    [[[[]]]], {}, {"a": {}}, [None], [1e308] * 6, [[0, 0], [9, 9], [9, 0]], [0, 0, 9, 9, 9, 0],
    {"size": [3, 4], "counts": [12]}, {"size": [3, 4], "counts": "0" * 50}, ["x"] * 9,
)  # fmt: skip
WRITTEN = {  # the files that a conversion of MAPS writes, which are damaged
    "masks": ("classes.json", "masks/a.png"),
    "labelme": ("a.json", "labels.txt"),
    "coco": ("instances.json",),
    "coco_panoptic": ("panoptic.json", "panoptic/a.png"),
    "yolo": ("data.yaml", "labels/a.txt"),
}
COUNTS = [pytest.param(0, 120, marks=pytest.mark.quick)]
COUNTS += [pytest.param(seed, 1000, marks=pytest.mark.slow) for seed in (1, 2)]


def labels_in(folder, name):
    """A folder of labels of a format, with all that its files may hold."""
    write_maps(folder / "mine", MAPS)
    converted(folder / "mine", folder / "in", target=name, polygons=True)
    for file, add in (("instances.json", add_to_coco), ("a.json", add_to_labelme)):
        if (folder / "in" / file).exists():
            content = json.loads((folder / "in" / file).read_text())
            add(content)
            write_object(folder / "in" / file, content)
    return folder / "in"


def add_to_coco(content):
    """Run lengths of both kinds, parts, a crowd and a box."""
    content["annotations"] += [
        {"image_id": 1, "category_id": 1, "segmentation": shape, "iscrowd": crowd}
        for shape, crowd in (
            ({"size": [3, 4], "counts": [1, 2, 9]}, 1), ({"size": [3, 4], "counts": "129"}, 0),
            ([[0, 0, 2, 0, 2, 2], [1, 1, 3, 1, 3, 3]], 0), ([], 0),
        )
    ]  # fmt: skip


def add_to_labelme(content):
    """One shape of each kind, and the image itself."""
    stream = io.BytesIO()
    Image.new("L", (2, 2), 255).save(stream, "PNG")
    mask = base64.b64encode(stream.getvalue()).decode()
    content["shapes"] += [
        {
            "label": "sky",
            "shape_type": kind,
            "points": [[0, 0], [1, 1]],
            "mask": mask,
            "group_id": 1,
        }
        for kind in ("rectangle", "circle", "mask", "line", "point")
    ]
    content["imageData"] = mask


def changed(content, rng):
    """A copy of JSON content with one to three values replaced, removed or repeated."""
    content = copy.deepcopy(content)
    for _ in range(rng.integers(1, 4)):
        parent, key = place_in(content, rng)
        if parent is None:
            return copy.deepcopy(VALUES[rng.integers(len(VALUES))])
        way = rng.integers(4)
        if way == 0 and isinstance(parent, dict):
            del parent[key]
        elif way == 1 and isinstance(parent, list):
            parent.append(copy.deepcopy(parent[key]))
        else:
            parent[key] = copy.deepcopy(VALUES[rng.integers(len(VALUES))])
    return content


def place_in(content, rng):
    """(list or object, key) of a random value in JSON content, also deep in it."""
    parent, key = None, None
    while (
        isinstance(content, dict | list) and len(content) and (parent is None or rng.random() < 0.8)
    ):
        keys = list(content) if isinstance(content, dict) else range(len(content))
        parent, key = content, keys[rng.integers(len(keys))]
        content = content[key]
    return parent, key


def damages(file, seed, count):
    """Bytes to take the place of a file: with random damage, and of JSON with other values."""
    content, rng = file.read_bytes(), np.random.default_rng(seed)
    if file.suffix != ".json":
        yield from mutate.damaged(content, seed, count)
        return
    yield from mutate.damaged(content, seed, count // 4)
    values = json.loads(content)
    for _ in range(count - count // 4):
        text = json.dumps(changed(values, rng))
        yield text.encode()


@pytest.mark.parametrize("seed, count", COUNTS)
@pytest.mark.parametrize("name", WRITTEN)
def test_damaged_labels_are_read_or_refused_in_one_sentence(tmp_path, name, seed, count):
    folder, refused = labels_in(tmp_path, name), 0
    before = sorted(tmp_path.rglob("*"))
    for number, part in enumerate(WRITTEN[name]):
        file = folder / part
        content = file.read_bytes()
        for damage in damages(file, seed + 100 * number, -(-count // len(WRITTEN[name]))):
            file.write_bytes(damage)
            try:
                converted(folder, tmp_path / "out", name, empty="keep")
            except UserError as error:
                refused += 1
                assert str(error).endswith((".", "?")), error
                assert not any((tmp_path / "out").rglob("*"))
            with contextlib.suppress(UserError):
                assert recognised(folder)
            shutil.rmtree(tmp_path / "out", ignore_errors=True)
        file.write_bytes(content)
    assert sorted(tmp_path.rglob("*")) == before
    assert refused > count // 10
    converted(folder, tmp_path / "out", name)
