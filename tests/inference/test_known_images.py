"""The known images of a checkpoint: their file, and how processes collect them."""

import warnings

import numpy as np
import pytest

from diffseg_jax.experiment import evaluate
from diffseg_jax.inference.known_images import NPZ_FILE, read_known_images, write_known_images
from diffseg_jax.metrics.familiarity import KnownImages

pytestmark = pytest.mark.quick

META = {"arrays": {"params.w": "0"}, "ema": [0.9]}
KNOWN = KnownImages(np.random.default_rng(0).normal(size=(12, 6)))


@pytest.fixture
def file(tmp_path):
    (tmp_path / "7").mkdir()
    write_known_images(tmp_path, 7, META, KNOWN)
    return tmp_path / "7" / NPZ_FILE


def read(file, meta=META, ema=None):
    return read_known_images(file.parents[1], 7, meta, ema)


def test_they_come_back_and_judge_alike(file):
    shown = np.random.default_rng(1).normal(size=(5, 6)) * 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = read(file)
    for one, other in zip(found.judge(shown), KNOWN.judge(shown), strict=True):
        np.testing.assert_array_equal(one, other)
    file.unlink()
    assert read(file) is None  # as of older checkpoints, without a word


def test_those_of_another_network_judge_nothing(file):
    with pytest.warns(UserWarning, match="belongs to another network, so images are not"):
        assert read(file, META | {"arrays": {"params.w": "1"}}) is None
    with pytest.warns(UserWarning, match="other parameters than ema=off"):
        assert read(file, ema="off") is None
    assert read(file, ema=0.9)


@pytest.mark.parametrize("damage", [
    "text", "cut", "empty", "no descriptors", "few", "float32", "objects", "nan",
])  # fmt: skip
def test_a_file_that_cannot_be_read_judges_nothing(file, damage):
    content = dict(np.load(file))
    values = content["descriptors"]
    changed = {
        "few": values[:1], "float32": values.astype(np.float32), "objects": values.astype(object),
        "nan": values * np.float16(np.nan),
    }  # fmt: skip
    if damage in changed:
        np.savez(file, of=content["of"], descriptors=changed[damage])
    elif damage == "no descriptors":
        np.savez(file, of=content["of"])
    else:
        whole = file.read_bytes()
        file.write_bytes({"text": b"{}", "empty": b"", "cut": whole[: len(whole) // 2]}[damage])
    with pytest.warns(UserWarning, match="known_images.npz cannot be read"):
        assert read(file) is None


@pytest.mark.parametrize("own", [0, 1])
def test_processes_share_what_each_has_described(own, monkeypatch):
    rows = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    parts = [{5: rows[0], 7: None, 9: None}, {5: None, 7: rows[1], 9: rows[2]}]
    tables = [rows * [[1], [0], [0]], rows * [[0], [1], [1]]]
    gathered = iter([[np.array(4), np.array(4)], tables])

    def gather(values):
        of_all = next(gathered)
        np.testing.assert_array_equal(values, of_all[own])
        return np.stack(of_all)

    monkeypatch.setattr(evaluate.multihost_utils, "process_allgather", gather)
    evaluate.share_descriptors(parts[own])
    np.testing.assert_array_equal(np.stack(list(parts[own].values())), rows)


def test_a_process_without_an_image_shares_the_others(monkeypatch):
    rows = np.ones((2, 4), np.float32)
    gathered = iter([np.array([0, 4]), np.stack([0 * rows, rows])])
    monkeypatch.setattr(
        evaluate.multihost_utils, "process_allgather", lambda values: next(gathered)
    )
    described = {1: None, 2: None}
    evaluate.share_descriptors(described)
    np.testing.assert_array_equal(np.stack(list(described.values())), rows)
