"""nuScenes in a folder of the published layout: samples, calibration, and maps of layers."""

import io
import json
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from bev_case import rig
from diffseg_jax.data import nuscenes_maps
from diffseg_jax.data.nuscenes_maps import MAP_LAYERS
from diffseg_jax.data.sources import open_source
from diffseg_jax.errors import UserError
from diffseg_jax.weights.array_pickles import unpickle_arrays
from diffseg_jax.weights.pickles import Refused
from nuscenes_tree import CITY, HALF, city_tables, make_tree, sample_info

pytestmark = pytest.mark.quick

NAMES = tuple(MAP_LAYERS)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("nuscenes") / "set", size=(18, 32))


@pytest.fixture(scope="module")
def source(tree):
    return open_source("nuscenes", "train", path=tree)


def test_samples_come_in_the_order_of_time_with_their_calibration(source):
    assert source.names == ("sample2", "sample1", "sample0")
    assert source.labels.names == NAMES
    example = source[-1]
    intrinsics, to_world, _, _ = rig(number=6, image=(18, 32))
    np.testing.assert_allclose(example["intrinsics"], intrinsics, rtol=1e-6)
    np.testing.assert_allclose(example["camera_to_world"], to_world, atol=1e-6)
    assert example["images"].shape == (6, 18, 32, 3)
    assert example["bev"].shape == (6, 200, 200)


def test_a_map_shows_what_lies_around_the_car(source):
    """The car of sample0 stands in the middle of the road and looks along it."""
    bev = source[-1]["bev"].astype(bool)
    x, y = np.meshgrid(*[-50 + 0.5 * (np.arange(200) + 0.5)] * 2, indexing="ij")
    island = (np.abs(x - 25) < 5) & (np.abs(y) < 3)
    expected = {
        "drivable_area": (np.abs(y) < HALF) & ~island,
        "ped_crossing": (x > 5) & (x < 9) & (np.abs(y) < 6),
        "walkway": (y > 6) & (y < 9),
        "stop_line": x > 1e9,
        "carpark_area": x > 1e9,
        "divider": np.abs(y) <= 0.5,
    }
    for name, layer in zip(NAMES, bev):
        np.testing.assert_array_equal(layer, expected[name], err_msg=name)


def test_a_map_turns_with_the_car_and_with_the_world(source):
    """Another sample looks elsewhere; turned back by the world, it has the same map."""
    ground, angle = source[1]["ground"], 0.4  # of sample1
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    # The LiDAR stands 1 m ahead of the car's origin, around which the car turned.
    turn[:2, 3] = turn[:2, :2] @ (1, 0) - (1, 0)
    found, expected = ground.raster(turn), source[2]["bev"]
    assert np.mean(found != expected) < 1e-3  # centres on outlines
    assert (source[1]["bev"] != expected).mean() > 0.02


def test_lists_are_read_as_numpy_wrote_them():
    value = {
        "infos": [sample_info(0)], "more": (np.float32(2.5), np.arange(6).reshape(2, 3).T, "text"),
        "none": np.zeros((0, 7)),  # boxes of a sample without any
    }  # fmt: skip
    shared = np.ones(3)
    value["same"] = [shared, {"again": shared}]
    for protocol in (2, 3, 4, 5):
        read = unpickle_arrays(io.BytesIO(pickle.dumps(value, protocol)))
        assert list(read) == list(value)
        number, array, text = read["more"]
        assert (number, text) == (2.5, "text")
        np.testing.assert_array_equal(array, value["more"][1])
        cam = read["infos"][0]["cams"]["CAM_BACK"]
        expected = value["infos"][0]["cams"]["CAM_BACK"]["camera_intrinsics"]
        np.testing.assert_array_equal(cam["camera_intrinsics"], expected)
        assert list(read["infos"][0]["gt_names"]) == ["car", "truck"]
        assert read["none"].shape == (0, 7) and read["none"].dtype == np.float64
        np.testing.assert_array_equal(read["same"][1]["again"], shared)


def test_lists_that_would_run_code_are_refused():
    class Evil:
        def __reduce__(self):
            return print, ("run",)

    for value in (Evil(), {"infos": [Evil()]}, np.array([Evil()], object)):
        with pytest.raises(Refused):
            unpickle_arrays(io.BytesIO(pickle.dumps(value)))


def changed_tree(tmp_path, change):
    tree = make_tree(tmp_path / "set", counts=(1, 1), size=(18, 32))
    info = sample_info(0, size=(18, 32))
    change(tree, info)
    content = {"infos": [info]}
    (tree / "nuscenes_infos_train.pkl").write_bytes(pickle.dumps(content))
    return tree


def without_table(tree, info):
    tables = city_tables()
    del tables["walkway"]
    (tree / "maps/expansion" / f"{CITY}.json").write_text(json.dumps(tables))


def smaller_photograph(tree, info):
    Image.fromarray(np.zeros((9, 16, 3), np.uint8)).save(next(tree.glob("samples/*/0_*.jpg")))


def without_node(tree, info):
    file = tree / "maps/expansion" / f"{CITY}.json"
    tables = json.loads(file.read_text())
    tables["node"].pop(0)
    file.write_text(json.dumps(tables))


def renamed_intrinsics(tree, info):
    for cam in info["cams"].values():
        cam["cam_intrinsic"] = cam.pop("camera_intrinsics")


def test_intrinsics_have_the_name_of_either_program(tmp_path):
    trees = changed_tree(tmp_path, lambda *_: None), tmp_path / "other"
    trees[1].mkdir()
    found = [open_source("nuscenes", "train", path=path) for path in (
        trees[0], changed_tree(trees[1], renamed_intrinsics))]  # fmt: skip
    (sample,), (other,) = (source.samples for source in found)
    np.testing.assert_array_equal(sample.intrinsics, other.intrinsics)


@pytest.mark.parametrize(("change", "sentence"), [
    (lambda tree, info: info.pop("cams"), "has no entry cams"),
    (lambda tree, info: info["cams"].pop("CAM_BACK"), "has no camera CAM_BACK"),
    (lambda tree, info: info["cams"]["CAM_BACK"].pop("camera_intrinsics"), "no entry camera_intr"),
    (lambda tree, info: info["cams"]["CAM_BACK"].update(camera_intrinsics=np.ones(3)), "shape"),
    (lambda tree, info: info.pop("location"), "has no entry location"),
    (lambda tree, info: info.update(location="paris"), "samples in paris, but there is no"),
    (without_table, "has no map layer walkway"),
    (lambda tree, info: next(tree.glob("samples/*/0_*.jpg")).write_text("?"), "cannot read"),
    (lambda tree, info: info.update(timestamp="now"), "timestamp 'now'"),
    (lambda tree, info: info.update(lidar2ego_translation=["a", 0, 0]), "no array of numbers"),
    (lambda tree, info: info.update(ego2global_translation=[np.nan, 0, 0]), "places nothing"),
    (lambda tree, info: info.update(ego2global_rotation=[0, 0, 0, 0]), "places nothing"),
    (smaller_photograph, "sizes 16x9, 32x18; they must have one"),
    (without_node, "is no whole map of nuScenes"),
], ids=range(14))  # fmt: skip
def test_what_is_missing_is_named(tmp_path, change, sentence):
    nuscenes_maps.read_city.cache_clear()
    with pytest.raises(UserError, match=sentence):
        source = open_source("nuscenes", "train", path=changed_tree(tmp_path, change))
        for index in range(len(source)):
            source[index]
    nuscenes_maps.read_city.cache_clear()


def test_files_that_are_no_list_are_named(tmp_path):
    with pytest.raises(UserError, match="there is no .*nuscenes_infos_val.pkl"):
        open_source("nuscenes", "val", path=tmp_path)
    (tmp_path / "nuscenes_infos_val.pkl").write_bytes(b"\x80\x02.")
    with pytest.raises(UserError, match="is damaged"):
        open_source("nuscenes", "val", path=tmp_path)
    for content in ([1], {"infos": [{}, 1]}):
        (tmp_path / "nuscenes_infos_val.pkl").write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match="no list of samples under infos"):
            open_source("nuscenes", "val", path=tmp_path)
    with pytest.raises(UserError, match="no split test"):
        open_source("nuscenes", "test", path=tmp_path)


def test_features_of_lidar_are_read_where_they_are_wanted(tree):
    source = open_source("nuscenes", "val", path=tree, lidar=True)
    with pytest.raises(UserError, match="there is no .*lidar_bev"):
        source[0]
    (tree / "lidar_bev").mkdir(exist_ok=True)
    features = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    np.save(tree / "lidar_bev" / f"{source.names[0]}.npy", features)
    np.testing.assert_array_equal(source[0]["lidar_bev"], features.transpose(1, 2, 0))


def test_without_shapely_a_line_says_what_to_install(tree, monkeypatch):
    monkeypatch.setitem(sys.modules, "shapely", None)
    with pytest.raises(UserError, match=r"diffseg_jax\[nuscenes\]"):
        open_source("nuscenes", "train", path=tree)
