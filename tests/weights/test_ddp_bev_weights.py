"""Released networks for maps seen from above, by their lists of entries and by changed files."""

import json
import math

import jax
import numpy as np
import pytest

import diffseg_jax
from bev_case import recorded_case
from diffseg_jax.errors import UserError
from diffseg_jax.inference.converted_bev import convert_ddp_bev
from diffseg_jax.layers.bev_pooling import count_cells, depth_bins, frustum
from diffseg_jax.models.bev_network import BEVSettings
from diffseg_jax.weights.ddp import settings_of, task_of
from diffseg_jax.weights.ddp_bev import (
    BEV_TABLE,
    CAMERA,
    abstract_bev,
    bev_settings_of,
    load_bev,
)
from diffseg_jax.weights.formats import read_arrays
from diffseg_jax.weights.tables import differences

PUBLISHED = "keys_ddp-camera-bev256d2-lss-scale001-d5-lr5e-5"  # its sizes are the defaults


def listed(path):
    """The state dict of a list of entries: one zero of each shape, and the true grids."""
    tensors = json.loads(path.read_text())["tensors"]
    arrays = {
        name: np.broadcast_to(np.float32(0), shape) for name, (shape, *_) in tensors.items()
    }
    s = BEVSettings(num_classes=6)  # no list holds the values of grids: they are the published ones
    grids = np.array([s.x, s.y, s.z])
    lower, upper, size = grids.T
    arrays[f"{CAMERA}vtransform.dx"] = np.float32(size)
    arrays[f"{CAMERA}vtransform.bx"] = np.float32(lower + size / 2)
    arrays[f"{CAMERA}vtransform.nx"] = np.array([count_cells(bound) for bound in grids])
    shape = tensors[f"{CAMERA}vtransform.frustum"][0]
    image, (lower, _, size) = tuple(8 * side for side in shape[1:3]), s.depth
    depths = depth_bins((lower, lower + size * shape[0], size))
    arrays[f"{CAMERA}vtransform.frustum"] = frustum(image, shape[1:3], depths)
    return tensors, arrays


@pytest.mark.golden
def test_every_entry_of_a_published_network_has_its_place(golden):
    for path in golden("ddp/keys_*bev*.json"):
        tensors, arrays = listed(path)
        assert task_of(arrays) == "bev"
        if any(name.startswith("encoders.lidar.") for name in tensors):
            with pytest.raises(UserError, match="cameras and LiDAR"):
                bev_settings_of(arrays, path.name)
            continue
        settings = bev_settings_of(arrays, path.name)
        layer_time = any(".layers.0.time_mlp." in name for name in tensors)
        assert settings.timed == layer_time
        assert settings.num_classes == tensors["heads.map.conv_seg.weight"][0][0]
        if path.stem == PUBLISHED:
            assert settings == BEVSettings(num_classes=6, timed=layer_time)
        abstract = abstract_bev(settings)
        shapes = jax.tree.map(lambda leaf: tuple(leaf.shape), abstract)
        unused = [n for n in arrays if n.endswith(("_index", "_tracked"))]
        unused += [n for n in arrays if ".vtransform." in n and tensors[n][1] == "frozen"]
        kept = {name: array for name, array in arrays.items() if name not in unused}
        assert differences(kept, BEV_TABLE, shapes) == []
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract["params"]))
        of_file = sum(math.prod(s) for s, kind, *_ in tensors.values() if kind == "param")
        assert count == of_file


@pytest.mark.golden
def test_a_file_tells_its_settings_and_whether_layers_know_the_time(golden):
    for path in golden("ddp/bev_ddp_*.json"):
        told, _, settings, _, values, _ = recorded_case(path)
        c = told["config"]
        assert settings.timed == c["time"]
        assert settings.x == tuple(c["xbound"]) and settings.depth == tuple(c["dbound"])
        assert settings.stages == tuple(map(tuple, c["blocks"]))
        assert (settings.width, settings.layers, settings.mlp) == (c["E"], c["layers"], c["ffn"])
        assert ("time" in values["params"]["decoder"]["layer0"]) == c["time"]


def changed(path, **changes):
    arrays = read_arrays(path.with_suffix(".pth"))
    for name, change in changes.items():
        full = next(key for key in arrays if key.endswith(name.replace("__", ".")))
        arrays[full] = change(arrays[full])
    return arrays


@pytest.mark.golden
def test_files_that_do_not_fit_are_refused_in_a_sentence(golden):
    path = golden("ddp/bev_ddp_*.json")[0]
    shifted = changed(path, vtransform__frustum=lambda array: array + 1)
    with pytest.raises(UserError, match="frustum holds other pixels and depths"):
        bev_settings_of(shifted, "a.pth")
    shorter = changed(path, vtransform__frustum=lambda array: array[:-1])
    with pytest.raises(UserError, match="depths, but depthnet"):
        bev_settings_of(shorter, "a.pth")
    arrays = changed(path)
    missing = {name: array for name, array in arrays.items() if not name.endswith("vtransform.dx")}
    with pytest.raises(UserError, match="a.pth should hold .*vtransform.dx.*no such entry"):
        bev_settings_of(missing, "a.pth")
    fusion = arrays | {"encoders.lidar.backbone.conv_input.0.weight": np.zeros(3, np.float32)}
    with pytest.raises(UserError, match="cameras and LiDAR, whose sparse encoder"):
        bev_settings_of(fusion, "a.pth")
    extra = arrays | {"heads.map.more.weight": np.zeros(3, np.float32)}
    with pytest.raises(UserError, match="heads.map.more.weight, which has no counterpart"):
        load_bev(extra, bev_settings_of(arrays), "a.pth")


@pytest.mark.golden
def test_a_released_file_becomes_a_directory_that_load_opens(golden, tmp_path, capsys):
    path = golden("ddp/bev_ddp_*.json")[0]
    count = convert_ddp_bev(path.with_suffix(".pth"), tmp_path / "out", steps=2)
    told = json.loads(path.read_text())["config"]
    assert f"cameras to maps of {len(told['classes'])} classes" in capsys.readouterr().out
    segmenter = diffseg_jax.load(tmp_path / "out")
    assert segmenter.names == tuple(told["classes"]) and "bev" in repr(segmenter)
    assert segmenter.meta["task"]["sampling"]["steps"] == 2
    assert segmenter.crop == tuple(told["image"])
    assert count == sum(leaf.size for leaf in jax.tree.leaves(segmenter.network["params"]))


def test_files_of_other_tasks_are_told_apart():
    zero = np.zeros((3, 4, 1, 1), np.float32)
    labels = {"decode_head.conv_seg.weight": zero, "time_mlp.0.weights": np.zeros(8, np.float32)}
    with pytest.raises(UserError, match="for segmentation, not for maps .*--source=ddp reads it"):
        bev_settings_of(labels, "a.pth")
    maps = {"heads.map.conv_seg.weight": zero, "time_mlp.0.weights": np.zeros(8, np.float32)}
    with pytest.raises(UserError, match="for maps seen from above .*--source=ddp_bev reads it"):
        settings_of(maps, "a.pth")
