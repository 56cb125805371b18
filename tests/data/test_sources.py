"""Every data set opens by name, with the options that it reads."""

import pickle

import numpy as np
import pytest

from diffseg_jax.config.options import SOURCE_OPTIONS
from diffseg_jax.data.pipeline import Cached
from diffseg_jax.data.sources import open_source
from diffseg_jax.data.transforms import center_square
from diffseg_jax.errors import UserError
from image_files import labelled_folder, random_ids, random_image, save_image

pytestmark = pytest.mark.quick


def test_names_and_options_are_checked(tmp_path):
    with pytest.raises(UserError, match='Did you mean "camvid"'):
        open_source("camvd", "train")
    with pytest.raises(UserError, match=r"images=5 was given, but data set camvid .* path"):
        open_source("camvid", "train", path=str(tmp_path), images=5)


def test_an_ignored_zero_is_not_an_empty_option(tmp_path):
    path = labelled_folder(tmp_path, {"a": np.array([[0, 1, 2]], np.uint8)})
    for ignore, unscored in (((0,), (0,)), ((0, 0), (0,)), ((), ())):
        source = open_source("folder", "train", path=path, num_classes=3, ignore=ignore)
        assert source.labels.unscored == unscored
    camvid = open_source("camvid", "train", path=path)
    assert camvid.labels.unscored == ()
    with pytest.raises(UserError, match=r"ignore=\(0,\) was given, but data set camvid"):
        open_source("camvid", "train", path=path, ignore=(0,))
    with pytest.raises(UserError, match="ignore"):  # the error names the option
        open_source("folder", "train", path=path, num_classes=2)[0]


def test_the_config_takes_ignored_ids():
    rule = SOURCE_OPTIONS["ignore"]
    assert rule.problem((0, 65535)) == rule.problem(()) == ""
    assert rule.problem((-1,)) and rule.problem(0) and rule.problem((1.5,))


def test_squares_of_any_data_set_have_no_masks(tmp_path):
    path = labelled_folder(tmp_path / "labelled", {"a": random_ids(3, 20, 30)})
    whole = open_source("folder", "train", path=path, num_classes=3)
    source = open_source("folder", "train", path=path, num_classes=3, square=8)
    assert whole.labels and source.labels is None and source.names == ("a",) and len(source) == 1
    assert set(source[0]) == {"image", "name"}
    np.testing.assert_array_equal(source[0]["image"], center_square(whole[0]["image"], 8))
    drawn = open_source("scenes", "train", images=2, size=(20, 30), square=8)
    assert set(drawn[1]) == {"image", "name"} and drawn[-1]["image"].shape == (8, 8, 3)
    assert len(list(drawn)) == 2


def test_squares_keep_the_class_and_are_cached_as_squares(tmp_path):
    for name in ("b_1.png", "a_1.png"):
        save_image(tmp_path / name, random_image(20, 30))
    source = open_source("unlabelled", "", path=str(tmp_path), classes="prefix", square=8)
    cached = Cached(pickle.loads(pickle.dumps(source)))
    assert cached.classes == ("a", "b") and cached[1]["class"] == 1
    assert cached.examples[1]["image"].shape == (8, 8, 3)
