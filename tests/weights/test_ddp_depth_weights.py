"""DDP checkpoints for depth: both forms of the decoder, names at full size, and wrong files."""

import dataclasses
import json
import math
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from ddp_file import (
    flat,
    is_parameter,
    official_array,
    official_name,
    official_shapes,
    random_file,
    weight_and_bias,
    without_memory,
)
from diffseg_jax.errors import UserError
from diffseg_jax.models.depth_network import DepthSettings
from diffseg_jax.weights.ddp import DDP_TABLE, UNUSED, is_ddp, settings_of
from diffseg_jax.weights.ddp_depth import (
    abstract_depth_values,
    depth_settings_of,
    load_ddp_depth,
)
from diffseg_jax.weights.formats import read_arrays
from diffseg_jax.weights.tables import differences

pytestmark = pytest.mark.quick

SWIN = DepthSettings(
    backbone="swin", channels=(8, 16, 32, 64), depths=(2, 1, 3, 1), heads=(1, 2, 4, 8), window=3,
    width=32, layers=2, decoder_heads=4, mlp=48,
)  # fmt: skip
CONVNEXT = dataclasses.replace(
    SWIN, backbone="convnext", channels=(8, 12, 20, 24), depths=(1, 2, 3, 1), heads=(), window=0
)
TINY = {
    "swin": SWIN, "convnext": CONVNEXT,
    "released": dataclasses.replace(SWIN, timed=False),
}  # fmt: skip


def depth_shapes(settings):
    """Name -> shape of the state dict of a depth network."""
    labelled = SimpleNamespace(**dataclasses.asdict(settings), num_classes=1)
    others = r"auxiliary_head\.|embedding_table\.|transform\.|decode_head\.conv_seg"
    if not settings.timed:
        others += r"|decode_head\.encoder\.layers\.\d\.time_mlp"
    shapes = {n: s for n, s in official_shapes(labelled).items() if not re.match(others, n)}
    shapes |= weight_and_bias("down.conv", settings.width, settings.width + 1, 1, 1)
    return shapes | weight_and_bias("decode_head.conv_depth", 1, settings.width, 3, 3)


def depth_file(settings):
    """A random state dict of a depth network."""
    labelled = SimpleNamespace(**dataclasses.asdict(settings), num_classes=1)
    shapes, draw = depth_shapes(settings), np.random.default_rng(0)
    kept = {n: a for n, a in random_file(labelled).items() if n in shapes}
    new = shapes.keys() - kept.keys()
    return kept | {name: draw.standard_normal(shapes[name], np.float32) for name in sorted(new)}


def is_unused(name):
    return any(re.fullmatch(pattern, name) for pattern in UNUSED)


def assert_is_depth(tree, arrays, family):
    """Every leaf is the file's entry, and every entry is a leaf."""
    renamed = {"transform.conv": "down.conv", "decode_head.conv_seg": "decode_head.conv_depth"}
    seen = set()
    for ours, array in flat(tree).items():
        name = official_name(ours, family)
        for theirs, of_depth in renamed.items():
            name = name.replace(theirs, of_depth)
        expected = arrays[name].astype(np.float32)
        np.testing.assert_array_equal(official_array(array, ours, expected.shape), expected, name)
        seen.add(name)
    assert seen == {name for name in arrays if not is_unused(name)}


def assert_all_places(shapes, settings):
    arrays = {name: array for name, array in without_memory(shapes).items() if not is_unused(name)}
    ours = abstract_depth_values(settings)
    found = differences(arrays, DDP_TABLE, jax.tree.map(lambda leaf: tuple(leaf.shape), ours))
    assert found == []
    count = sum(math.prod(shape) for name, shape in shapes.items() if is_parameter(name))
    assert sum(math.prod(leaf.shape) for leaf in flat(ours["params"]).values()) == count


@pytest.mark.parametrize("name", TINY)
def test_every_value_reaches_its_place(name):
    arrays = depth_file(TINY[name])
    assert is_ddp(arrays)
    settings = depth_settings_of(arrays)
    assert settings == TINY[name]
    assert_is_depth(load_ddp_depth(arrays, settings), arrays, settings.backbone)


def test_the_form_of_the_decoder_follows_from_the_layers_of_its_first_layer():
    for name, settings in TINY.items():
        arrays = without_memory(depth_shapes(settings))
        assert depth_settings_of(arrays).timed == (name != "released")


def test_what_a_file_does_not_tell_is_as_published():
    told = dict(low=1e-3, high=80.0, code_scale=0.1, groups=32, points=4, drop_path=0.0)
    settings = dataclasses.asdict(depth_settings_of(depth_file(CONVNEXT)))
    assert {name: settings[name] for name in told} == told


@pytest.mark.parametrize(
    ("form", "name", "place"),
    [
        ("swin", "down.conv.bias", "params.transform.bias"),
        ("released", "decode_head.conv_depth.bias", "params.head.bias"),
        ("released", "time_mlp.3.weight", "params.time.fc2.kernel"),
        ("swin", "decode_head.encoder.layers.1.time_mlp.1.bias", "params.decoder.layer1.time.bias"),
        ("convnext", "backbone.stages.1.1.gamma", "params.backbone.stage1.block1.gamma"),
    ],
)
def test_a_missing_entry_is_named(form, name, place):
    arrays = depth_file(TINY[form])
    del arrays[name]
    with pytest.raises(UserError, match=rf"x\.pth has no entry for {re.escape(place)} \(1 missing"):
        load_ddp_depth(arrays, TINY[form], "x.pth")


@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("swin", "embedding_table.weight"),
        ("released", "decode_head.encoder.layers.1.time_mlp.1.weight"),
        ("convnext", "auxiliary_head.conv_seg.weight"),
    ],
)
def test_an_entry_without_a_place_is_named(form, name):
    arrays = {**depth_file(TINY[form]), name: np.zeros(3, np.float32)}
    with pytest.raises(UserError, match=rf"x\.pth has {re.escape(name)}, which has no counterpart"):
        load_ddp_depth(arrays, TINY[form], "x.pth")


@pytest.mark.parametrize(
    ("name", "shape"),
    [("down.conv.weight", (32, 64, 1, 1)), ("decode_head.conv_depth.weight", (2, 32, 3, 3))],
)
def test_a_misshapen_entry_is_named(name, shape):
    arrays = {**depth_file(SWIN), name: np.zeros(shape, np.float32)}
    with pytest.raises(UserError, match=re.escape(f"x.pth: {name} has shape {shape}")):
        load_ddp_depth(arrays, SWIN, "x.pth")


def test_other_checkpoints_are_refused():
    labelled = SimpleNamespace(**dataclasses.asdict(SWIN), num_classes=5)
    segmentation = without_memory(official_shapes(labelled))
    backbone = {n: a for n, a in segmentation.items() if n.startswith("backbone.")}
    for arrays in (segmentation, backbone, {"w": np.zeros(3)}):
        with pytest.raises(UserError, match=r"^x\.pth is .*Give a depth checkpoint of DDP"):
            depth_settings_of(arrays, "x.pth")
    with pytest.raises(UserError, match="is a checkpoint of DDP for depth"):
        settings_of(without_memory(depth_shapes(SWIN)), "x.pth")


# --- recorded files -------------------------------------------------------------------------------


@pytest.mark.golden
def test_recorded_names_of_full_size(golden):
    """By shapes alone: every entry has its place, and every place an entry."""
    seen = 0
    for path in golden("ddp/keys_*.json"):
        record = json.loads(path.read_text())
        shapes = {name: tuple(shape) for name, (shape, *_) in record["tensors"].items()}
        if "decode_head.conv_depth.weight" not in shapes:
            continue  # a network of another task
        settings = depth_settings_of(without_memory(shapes), path.name)
        timed = "decode_head.encoder.layers.0.time_mlp.1.weight" in shapes
        assert settings.timed == timed and settings.backbone in ("swin", "convnext")
        assert depth_shapes(settings) == shapes, path.name
        assert_all_places(shapes, settings)
        leaves = flat(abstract_depth_values(settings)["params"]).values()
        count = sum(math.prod(leaf.shape) for leaf in leaves)
        assert count == record["n_parameters"], path.name
        # The paper's form of the same size differs only in the layers' time embeddings.
        other = dataclasses.replace(settings, timed=not timed)
        assert_all_places(depth_shapes(other), other)
        seen += 1
    if not seen:
        pytest.skip("no ddp/keys_*.json of a network for depth")


@pytest.mark.golden
def test_recorded_networks(golden):
    for path in golden("ddp/depth_ddp_*.pth"):
        config = json.loads(path.with_suffix(".json").read_text())["config"]
        arrays = read_arrays(path)
        settings = dataclasses.replace(depth_settings_of(arrays), groups=config["groups"])
        assert settings.timed == config["layers_have_time_mlp"], path.name
        told = (config["E"], config["layers"], config["heads"], config["ffn"])
        found = settings.width, settings.layers, settings.decoder_heads, settings.mlp
        assert told == found and settings.window == config.get("window", 0), path.name
        for key, name in (("depths", "depths"), ("channels", "channels"), ("num_heads", "heads")):
            assert tuple(config.get(key, ())) == dataclasses.asdict(settings)[name], path.name
        assert_is_depth(load_ddp_depth(arrays, settings, path.name), arrays, settings.backbone)


def test_a_damaged_file_asks_for_one_of_depth():
    for lost in ("backbone.norm1.weight", "decode_head.encoder.layers.0.ffns.0.layers.0.0.weight"):
        arrays = {name: value for name, value in depth_file(SWIN).items() if name != lost}
        with pytest.raises(UserError, match=re.escape(lost) + ".* Give a depth checkpoint of DDP"):
            depth_settings_of(arrays, "depth.pth")
    layers = "decode_head.encoder.layers."
    arrays = {n: v for n, v in depth_file(SWIN).items() if not n.startswith(f"{layers}0.")}
    with pytest.raises(UserError, match="Give a depth checkpoint of DDP"):
        depth_settings_of(arrays, "depth.pth")
