"""Rigs with features of a LiDAR are checked before a network runs."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from diffseg_jax.errors import UserError
from diffseg_jax.inference.options import PredictOptions
from diffseg_jax.inference.rig_batch import rig_maps
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
