"""Rigs in files and as arrays: checked before a network runs, named, and predicted when changed."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from bev_case import street
from diffseg_jax.data.bev_transforms import RigView
from diffseg_jax.data.rig_files import write_rig
from diffseg_jax.errors import UserError
from diffseg_jax.inference import bev_output
from diffseg_jax.inference.options import PredictOptions
from diffseg_jax.inference.rig_batch import readable_rigs, rig_maps, stamp_of_rig
from diffseg_jax.models.bev_network import BEVSettings

pytestmark = pytest.mark.quick


def test_features_of_another_shape_are_named():
    settings = BEVSettings(num_classes=2, x=(-8.0, 8.0, 1.0), y=(-4.0, 4.0, 1.0), lidar=3)
    meta = {"model": dataclasses.asdict(settings), "size": [8, 8], "resize": 1.0}
    segmenter = SimpleNamespace(
        batch_size=1, compiled=lambda *_: (print, SimpleNamespace(meta=meta)), seed_for=lambda _: 0
    )
    rig = {"name": "here", "images": np.zeros((1, 8, 8, 3), np.uint8)}
    rigs = [rig | {"lidar_bev": np.zeros((3, 8, 4), np.float32)}]
    sentence = r"here has .* \(3, 8, 4\), .*\(8, 4, 3\)\. Give it in Python"
    with pytest.raises(UserError, match=sentence):
        list(rig_maps(segmenter, rigs, PredictOptions()))
    with pytest.raises(UserError, match="without lidar_bev.*Give it in Python"):
        list(rig_maps(segmenter, [rig], PredictOptions()))


@pytest.fixture
def file(tmp_path):
    return str(write_rig(street("a", 2, (16, 24)), tmp_path))


def test_a_rig_with_too_small_photographs_stops_no_other(file, tmp_path):
    large, done = str(write_rig(street("b", 2, (32, 48)), tmp_path)), []
    summary = SimpleNamespace(content={"unreadable": {}})
    found = readable_rigs(
        {"a": file, "b": large}, RigView((16, 24), 0.5), summary, lambda: done.append(1)
    )
    assert [rig["name"] for rig in found] == ["b"] and len(done) == 1
    assert "a has photographs of 24x16 pixels" in summary.content["unreadable"][file]


def test_a_rig_with_another_photograph_has_changed(file, tmp_path):
    before = stamp_of_rig(file)
    assert len(before) == 3 and stamp_of_rig(file) == before
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(tmp_path / "a_1.png")
    after = stamp_of_rig(file)
    assert after[:2] == before[:2] and after[2] != before[2]
    (tmp_path / "a_1.png").unlink()
    assert stamp_of_rig(file) == [*before[:2], None]
    (tmp_path / "a.json").write_text("[")
    assert len(stamp_of_rig(file)) == 1


def test_rigs_of_one_name_have_their_own_files(monkeypatch):
    monkeypatch.setattr(bev_output, "rig_maps", lambda segmenter, rigs, options: list(rigs))
    monkeypatch.setattr(bev_output, "view_of", lambda task: None)
    monkeypatch.setattr(bev_output, "network_input", lambda rig, view: rig)
    segmenter = SimpleNamespace(
        output=bev_output.BEV_OUTPUT, names=(), palette=(), meta={"task": {"model": {"output": ()}}}
    )
    rigs = [street("street", number, (4, 6)) for number in (2, 1)]
    prediction = bev_output.predict_rigs(segmenter, rigs)
    assert prediction.names == ("street", "street_2")
    assert [len(rig["images"]) for rig in prediction.maps] == [2, 1]
