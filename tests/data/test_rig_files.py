"""Photographs with their calibration as files."""

import json

import numpy as np
import pytest
from PIL import Image

from diffseg_jax.data.rig_files import read_rig, write_rig
from diffseg_jax.errors import UserError

pytestmark = pytest.mark.quick


def example(number=2):
    rng = np.random.default_rng(0)
    return {
        "images": rng.integers(0, 255, (number, 6, 8, 3), np.uint8), "name": "street",
        "intrinsics": rng.random((number, 3, 3)).astype(np.float32),
        "camera_to_world": rng.random((number, 4, 4)).astype(np.float32),
    }  # fmt: skip


def test_what_is_written_is_read_again(tmp_path):
    before = example()
    after = read_rig(write_rig(before, tmp_path / "new"))
    assert set(after) == set(before) and after["name"] == "street"
    for key in ("images", "intrinsics", "camera_to_world"):
        np.testing.assert_array_equal(after[key], before[key])


@pytest.mark.parametrize(("change", "sentence"), [
    (lambda c: c["cameras"][1].pop("intrinsics"), "camera 1 of .*comes without intrinsics"),
    (lambda c: c["cameras"][0].pop("image"), "camera 0 of .*has no image"),
    (lambda c: c["cameras"][0].update(camera_to_world=[[1, 2]]), "shape .*not .4, 4."),
    (lambda c: c["cameras"][0].update(intrinsics="no"), "intrinsics has shape"),
    (lambda c: c["cameras"][0].update(image="no.png"), "no.png"),
    (lambda c: c.update(cameras=[]), "holds no list of cameras"),
    (lambda c: c["cameras"][0].update(image="small.png"), "have sizes 4x3, 8x6"),
], ids=range(7))  # fmt: skip
def test_what_is_missing_is_named(tmp_path, change, sentence):
    file = write_rig(example(), tmp_path)
    Image.fromarray(np.zeros((3, 4, 3), np.uint8)).save(tmp_path / "small.png")
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=sentence):
        read_rig(file)


def test_other_files_are_named(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as cameras"):
        read_rig(tmp_path / "a.json")
