"""Scenes are a data set with splits."""

import pickle

import numpy as np
import pytest

from diffseg_jax.data.sources import open_source
from diffseg_jax.errors import UserError

pytestmark = pytest.mark.quick


def test_scenes_depend_on_split_and_seed_and_are_repeatable():
    options = {"images": 3, "size": (16, 24)}
    train, val = (open_source("scenes", split, seed=1, **options) for split in ("train", "val"))
    other = open_source("scenes", "train", seed=2, **options)
    assert not set(train.names) & set(val.names)
    again = pickle.loads(pickle.dumps(train))
    for key in ("image", "mask", "depth"):
        np.testing.assert_array_equal(train[2][key], again[-1][key])
    assert len({source[0]["image"].tobytes() for source in (train, val, other)}) == 3
    item = val[0]
    assert item["image"].shape == (16, 24, 3) and item["mask"].shape == item["depth"].shape == (
        16,
        24,
    )
    assert item["mask"].dtype == np.int32 and item["mask"].max() < len(val.labels.names)
    assert len(list(val)) == 3


def test_scenes_need_a_size_and_a_count():
    with pytest.raises(UserError, match="images is 0"):
        open_source("scenes", "train", size=(16, 24))
    with pytest.raises(UserError, match="size is"):
        open_source("scenes", "train", images=2)
    with pytest.raises(UserError, match="Known: test, train, val"):
        open_source("scenes", "trian", images=2, size=(16, 24))
