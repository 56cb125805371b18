"""What is said of maps seen from above, and of a LiDAR's features, before a training."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from diffseg_jax.errors import UserError
from diffseg_jax.experiment.bev_target import check_rigs
from diffseg_jax.models.bev_network import BEVSettings

pytestmark = pytest.mark.quick

SETTINGS = BEVSettings(
    num_classes=2, x=(-8.0, 8.0, 1.0), y=(-4.0, 4.0, 1.0), output=(-3.0, 3.0, 1.0)
)


class Examples(list):
    labels = SimpleNamespace(names=("road", "car"))


def checked(lidar, features):
    """What `check_rigs` says of a network with that many channels of a LiDAR."""
    example = {"name": "here", "bev": np.ones((2, 6, 6), np.uint8)}
    example |= {} if features is None else {"lidar_bev": np.zeros(features, np.float32)}
    split = SimpleNamespace(source=Examples([example]), indices=np.array([0]))
    settings = dataclasses.replace(SETTINGS, lidar=lidar)
    split.task = SimpleNamespace(meta={"model": dataclasses.asdict(settings)})
    return check_rigs(split, split)


def test_features_fit_the_grid_of_the_network():
    """Half as many cells as x and y, and the channels last."""
    assert checked(3, (8, 4, 3)) == [] and checked(0, None) == []


@pytest.mark.parametrize(("lidar", "features", "sentence"), [
    (3, (3, 8, 4), r"shape \(3, 8, 4\), .* \(8, 4, 3\)\. Save f32\[C, X, Y\] of shape \(3, 8, 4\)"),
    (3, None, "without lidar_bev.*options.lidar=True"),
    (0, (8, 4, 3), "cameras alone.*options.lidar=False"),
])  # fmt: skip
def test_other_features_are_named_before_a_training(lidar, features, sentence):
    with pytest.raises(UserError, match=sentence):
        checked(lidar, features)
