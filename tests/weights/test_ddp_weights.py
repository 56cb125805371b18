"""Published DDP checkpoints: sizes and settings from names and shapes, places, and wrong files."""

import dataclasses
import functools
import json
import math
import re

import jax
import numpy as np
import pytest

from ddp_file import (
    TINY,
    assert_is,
    flat,
    is_parameter,
    official_shapes,
    random_file,
    relative_index,
    without_memory,
)
from diffseg_jax.errors import UserError
from diffseg_jax.models.ddp_network import DDPSettings
from diffseg_jax.weights.ddp import (
    DDP_TABLE,
    UNUSED,
    abstract_values,
    is_ddp,
    load_ddp,
    settings_of,
)
from diffseg_jax.weights.formats import read_arrays
from diffseg_jax.weights.tables import differences

pytestmark = pytest.mark.quick


def swin(width, blocks, window, classes):
    heads = {96: 3, 128: 4, 192: 6}[width]
    return DDPSettings(
        backbone="swin", channels=tuple(width * 2**i for i in range(4)), depths=(2, 2, blocks, 2),
        heads=tuple(heads * 2**i for i in range(4)), window=window, num_classes=classes,
    )  # fmt: skip


def convnext(width, blocks, classes=19):
    channels = tuple(width * 2**i for i in range(4))
    return DDPSettings(
        backbone="convnext", channels=channels, depths=(3, 3, blocks, 3), heads=(), window=0,
        num_classes=classes,
    )  # fmt: skip


PUBLISHED = {  # settings, million parameters, entries
    "convnext_t": (convnext(96, 9), 39.87, 339),
    "convnext_s": (convnext(96, 27), 61.50, 501),
    "convnext_b": (convnext(128, 27), 99.74, 501),
    "convnext_l": (convnext(192, 27), 208.65, 501),
    "swin_t": (swin(96, 6, 7, 150), 39.67, 342),
    "swin_s": (swin(96, 18, 7, 150), 60.98, 510),
    "swin_b": (swin(128, 18, 12, 150), 99.15, 510),
    "swin_l": (swin(192, 18, 12, 150), 207.72, 510),
}


@functools.cache
def tiny_file(family):
    return random_file(TINY[family])


@pytest.fixture(params=TINY)
def family(request):
    return request.param


# --- what comes out -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    settings, millions, entries = PUBLISHED[name]
    shapes = official_shapes(settings)
    count = sum(math.prod(shape) for name, shape in shapes.items() if is_parameter(name))
    assert len(shapes) == entries and round(count / 1e6, 2) == millions
    assert settings_of(without_memory(shapes)) == settings


@pytest.mark.parametrize("name", ["convnext_t", "swin_b"])
def test_every_published_entry_has_its_place(name):
    settings, *_ = PUBLISHED[name]
    assert_complete(official_shapes(settings), settings)


def assert_complete(shapes, settings):
    arrays = {name: array for name, array in without_memory(shapes).items() if not is_unused(name)}
    ours = jax.tree.map(lambda leaf: tuple(leaf.shape), abstract_values(settings))
    assert differences(arrays, DDP_TABLE, ours) == []
    count = sum(math.prod(shape) for name, shape in shapes.items() if is_parameter(name))
    assert sum(math.prod(leaf.shape) for leaf in flat(abstract_values(settings)["params"]).values()
               ) == count  # fmt: skip


def is_unused(name):
    return any(re.fullmatch(pattern, name) for pattern in UNUSED)


def test_every_value_reaches_its_place(family):
    arrays = tiny_file(family)
    assert is_ddp(arrays)
    settings = settings_of(arrays)
    assert settings == TINY[family]
    assert_is(load_ddp(arrays, settings), arrays, family)


def test_what_a_file_does_not_tell_is_as_published():
    settings = settings_of(tiny_file("convnext"))
    told = {"groups": 32, "down_epsilon": 1e-5, "code": "embedding", "code_scale": 0.01,
            "points": 4, "drop_path": 0.0}  # fmt: skip
    assert {name: dataclasses.asdict(settings)[name] for name in told} == told


def test_buffers_may_be_absent():
    arrays = {name: array for name, array in tiny_file("swin").items() if not is_unused(name)}
    assert_is(load_ddp(arrays, TINY["swin"]), arrays, "swin")


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize(("family", "name", "place"), [
    ("swin", "backbone.stages.2.blocks.1.attn.w_msa.proj.bias",
     "params.backbone.stage2.block1.attention.out.bias"),
    ("swin", "backbone.stages.1.downsample.reduction.weight",
     "params.backbone.merge1.reduction.kernel"),
    ("convnext", "backbone.stages.1.1.gamma", "params.backbone.stage1.block1.gamma"),
    ("convnext", "decode_head.encoder.layers.1.time_mlp.1.weight",
     "params.decoder.layer1.time.kernel"),
    ("convnext", "auxiliary_head.convs.0.bn.running_var", "stats.auxiliary.norm.var"),
])  # fmt: skip
def test_a_missing_entry_is_named(family, name, place):
    arrays = dict(tiny_file(family))
    del arrays[name]
    with pytest.raises(UserError, match=rf"x\.pth has no entry for {re.escape(place)} \(1 missing"):
        load_ddp(arrays, settings_of(arrays), "x.pth")


@pytest.mark.parametrize("name", [
    "backbone.norm4.weight", "backbone.stages.0.blocks.5.norm1.weight", "decode_head.norm.weight",
    "neck.0.lateral_convs.0.conv.bias", "ema.transform.conv.weight", "transform.weight",
])  # fmt: skip
def test_an_entry_without_a_place_is_named(family, name):
    arrays = {**tiny_file(family), name: np.zeros(3, np.float32)}
    with pytest.raises(UserError, match=rf"x\.pth has {re.escape(name)}, which has no counterpart"):
        load_ddp(arrays, TINY[family], "x.pth")


@pytest.mark.parametrize(("name", "shape"), [
    ("embedding_table.weight", (5, 32)), ("transform.conv.weight", (32, 37, 1, 1)),
    ("decode_head.encoder.layers.1.attentions.0.sampling_offsets.weight", (16, 32)),
    ("decode_head.encoder.layers.1.attentions.0.attention_weights.weight", (32, 16)),
    ("time_mlp.0.weights", (7,)), ("neck.1.down.conv.weight", (32, 32, 1, 1)),
    ("auxiliary_head.convs.0.conv.weight", (32, 32, 1, 1)), ("backbone.norm3.bias", (12,)),
])  # fmt: skip
def test_a_misshapen_entry_is_named(family, name, shape):
    arrays = {**tiny_file(family), name: np.zeros(shape, np.float32)}
    with pytest.raises(UserError, match=re.escape(f"x.pth: {name} has shape {shape}")):
        load_ddp(arrays, settings_of(arrays), "x.pth")


def test_another_order_of_relative_positions_is_refused():
    name = "backbone.stages.2.blocks.0.attn.w_msa.relative_position_index"
    for wrong in (relative_index(3).T, relative_index(3)[:4], np.array(3), relative_index(2)[1:]):
        arrays = {**tiny_file("swin"), name: wrong}
        with pytest.raises(UserError, match=rf"x\.pth: {re.escape(name)} is not Swin's order"):
            load_ddp(arrays, TINY["swin"], "x.pth")


def part(family, *prefixes):
    return {name: a for name, a in tiny_file(family).items() if name.startswith(prefixes)}


OTHERS = {
    "a backbone": (part("swin", "backbone."), "is a backbone alone"),
    "another backbone": (part("convnext", "backbone."), "is a backbone alone"),
    "depth": ({**part("swin", "backbone", "time_mlp"), "decode_head.conv_depth.weight": 0},
              "is a checkpoint of DDP for depth"),
    "BEV": ({**part("swin", "time_mlp", "transform"), "heads.map.conv_seg.weight": 0},
            "is a checkpoint of DDP for maps seen from above"),
    "no diffusion": (part("convnext", "backbone", "decode_head", "auxiliary"),
                     "it has no transform.conv.weight"),
    "no backbone": (part("convnext", "neck", "decode_head", "transform", "embedding"),
                    "it has no backbone.patch_embed.projection.weight or backbone.downsample"),
    "no network": ({"w": np.zeros(3)}, "is no checkpoint of DDP: its first entry is w"),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize(
    "call", [settings_of, lambda arrays, source: load_ddp(arrays, None, source)]
)
def test_other_networks_are_told_apart(name, call):
    arrays, sentence = OTHERS[name]
    with pytest.raises(UserError, match=re.escape(sentence)) as caught:
        call(arrays, "x.pth")
    assert str(caught.value).startswith("x.pth is ") and "ddp_convnext_t" in str(caught.value)


@pytest.mark.parametrize(("family", "name", "shape", "sentence"), [
    ("swin", "backbone.stages.0.blocks.0.attn.w_msa.relative_position_bias_table", (36, 1),
     "no table of relative positions"),
    ("swin", "backbone.stages.1.blocks.0.attn.w_msa.relative_position_bias_table", (25,),
     "it of shape (25,)"),
    ("swin", "backbone.stages.1.blocks.0.attn.w_msa.relative_position_bias_table", (25, 3),
     "not match any supported DDP network: heads holds 3"),
    ("swin", "backbone.norm2.weight", (24,), "doubles them"),
    ("convnext", "transform.conv.weight", (30, 62, 1, 1), "width is 30"),
    ("convnext", "decode_head.conv_seg.weight", (), "it of shape ()"),
    ("convnext", "backbone.norm1.weight", None, "no such entry"),
])  # fmt: skip
def test_shapes_of_no_network_are_refused(family, name, shape, sentence):
    arrays = dict(tiny_file(family))
    del arrays[name]
    if shape is not None:
        arrays[name] = np.zeros(shape, np.float32)
    with pytest.raises(UserError, match=re.escape(sentence)) as caught:
        settings_of(arrays, "x.pth")
    assert str(caught.value).startswith("x.pth")


def test_groups_that_do_not_divide_the_width_are_to_be_changed(family):
    settings = dataclasses.replace(TINY[family], width=40)
    arrays = random_file(settings)
    with pytest.raises(UserError, match=r"has 40 channels, which 32 groups .* such as groups=8\."):
        load_ddp(arrays, settings_of(arrays))
    found = dataclasses.replace(settings_of(arrays), groups=8)
    assert_is(load_ddp(arrays, found), arrays, settings.backbone)


def test_a_stage_without_blocks_is_refused(family):
    arrays = {n: a for n, a in tiny_file(family).items() if not n.startswith("backbone.stages.3.")}
    with pytest.raises(UserError, match=r"should hold backbone\.stages\.3\..*no such entry"):
        settings_of(arrays, "x.pth")


# --- recorded files -------------------------------------------------------------------------------


def is_segmentation(tensors):
    return "decode_head.conv_seg.weight" in tensors


@pytest.mark.golden
def test_recorded_names_of_presets(golden):
    for path in golden("ddp/keys_*.json"):
        record = json.loads(path.read_text())
        shapes = {name: tuple(shape) for name, (shape, *_) in record["tensors"].items()}
        if not is_segmentation(shapes):
            with pytest.raises(UserError, match="of DDP for (depth|maps)"):
                settings_of(without_memory(shapes), path.name)
            continue
        settings = settings_of(without_memory(shapes))
        assert official_shapes(settings) == shapes, path.name
        assert_complete(shapes, settings)
        leaves = flat(abstract_values(settings)["params"]).values()
        assert sum(math.prod(leaf.shape) for leaf in leaves) == record["n_parameters"], path.name


@pytest.mark.golden
def test_recorded_networks(golden):
    for path in golden("ddp/ddp_seg_*.pth"):
        config = json.loads(path.with_suffix(".json").read_text())["config"]
        arrays = read_arrays(path)
        settings = dataclasses.replace(settings_of(arrays), groups=config["groups"])
        told = (config["E"], config["K"], config["layers"], config["heads"], config["ffn"])
        assert told == (settings.width, settings.num_classes, settings.layers,
                        settings.decoder_heads, settings.mlp), path.name  # fmt: skip
        assert settings.depths == tuple(config["depths"]), path.name
        assert settings.channels == tuple(config["channels"]), path.name
        assert settings.heads == tuple(config.get("num_heads", ())), path.name
        assert settings.window == config.get("window", 0), path.name
        assert_is(load_ddp(arrays, settings, path.name), arrays, settings.backbone)


@pytest.mark.golden
def test_recorded_networks_of_other_tasks(golden):
    for path in (*golden("ddp/depth_ddp_*.pth"), *golden("ddp/bev_ddp_*.pth")):
        arrays = read_arrays(path)
        assert is_ddp(arrays)
        with pytest.raises(UserError, match="of DDP for (depth|maps)"):
            settings_of(arrays, path.name)
