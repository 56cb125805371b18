"""Published DDP checkpoints: sizes and settings from names and shapes, places, and wrong files."""

import dataclasses
import functools
import json
import math
import re

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from diffseg_jax.errors import UserError
from diffseg_jax.models.ddp_network import Settings
from diffseg_jax.weights.ddp import DDP, UNUSED, abstract_values, is_ddp, load_ddp, settings_of
from diffseg_jax.weights.reader import read_arrays
from diffseg_jax.weights.tables import differences

SMALL = dict(width=32, layers=2, decoder_heads=4, mlp=48, num_classes=5)
TINY = {
    "swin": Settings(
        backbone="swin", channels=(8, 16, 32, 64), depths=(2, 1, 3, 1), heads=(1, 2, 4, 8),
        window=3, **SMALL,
    ),
    "convnext": Settings(
        backbone="convnext", channels=(8, 12, 20, 24), depths=(1, 2, 3, 1), heads=(), window=0,
        **SMALL,
    ),
}  # fmt: skip


def swin(width, blocks, window, classes):
    heads = {96: 3, 128: 4, 192: 6}[width]
    return Settings(
        backbone="swin", channels=tuple(width * 2**i for i in range(4)), depths=(2, 2, blocks, 2),
        heads=tuple(heads * 2**i for i in range(4)), window=window, num_classes=classes,
    )  # fmt: skip


def convnext(width, blocks, classes=19):
    channels = tuple(width * 2**i for i in range(4))
    return Settings(
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


# --- official names and shapes, written down independently of the converter -----------------------


def weight_and_bias(name, *shape, bias=True):
    return {f"{name}.weight": shape, **({f"{name}.bias": shape[:1]} if bias else {})}


def swin_shapes(s):
    shapes = weight_and_bias("patch_embed.projection", s.channels[0], 3, 4, 4)
    shapes |= weight_and_bias("patch_embed.norm", s.channels[0])
    for i, (c, heads) in enumerate(zip(s.channels, s.heads)):
        for j in range(s.depths[i]):
            block, tokens = f"stages.{i}.blocks.{j}.", s.window**2
            shapes |= weight_and_bias(block + "norm1", c) | weight_and_bias(block + "norm2", c)
            attention = block + "attn.w_msa."
            rows = (2 * s.window - 1) ** 2
            shapes[attention + "relative_position_bias_table"] = (rows, heads)
            shapes[attention + "relative_position_index"] = (tokens, tokens)
            shapes |= weight_and_bias(attention + "qkv", 3 * c, c)
            shapes |= weight_and_bias(attention + "proj", c, c)
            shapes |= weight_and_bias(block + "ffn.layers.0.0", 4 * c, c)
            shapes |= weight_and_bias(block + "ffn.layers.1", c, 4 * c)
        if i < 3:
            merge = f"stages.{i}.downsample."
            shapes |= weight_and_bias(merge + "norm", 4 * c)
            shapes |= weight_and_bias(merge + "reduction", 2 * c, 4 * c, bias=False)
        shapes |= weight_and_bias(f"norm{i}", c)
    return shapes


def convnext_shapes(s):
    shapes = weight_and_bias("downsample_layers.0.0", s.channels[0], 3, 4, 4)
    shapes |= weight_and_bias("downsample_layers.0.1", s.channels[0])
    for i, c in enumerate(s.channels):
        if i:
            before = s.channels[i - 1]
            shapes |= weight_and_bias(f"downsample_layers.{i}.0", before)
            shapes |= weight_and_bias(f"downsample_layers.{i}.1", c, before, 2, 2)
        for j in range(s.depths[i]):
            block = f"stages.{i}.{j}."
            shapes[block + "gamma"] = (c,)
            shapes |= weight_and_bias(block + "depthwise_conv", c, 1, 7, 7)
            shapes |= weight_and_bias(block + "norm", c)
            shapes |= weight_and_bias(block + "pointwise_conv1", 4 * c, c)
            shapes |= weight_and_bias(block + "pointwise_conv2", c, 4 * c)
        shapes |= weight_and_bias(f"norm{i}", c)
    return shapes


def official_shapes(s):
    """Name -> shape of the state dict of a segmentation network."""
    e, k, n = s.width, s.num_classes, s.decoder_heads
    backbone = {"swin": swin_shapes, "convnext": convnext_shapes}[s.backbone](s)
    shapes = {f"backbone.{name}": shape for name, shape in backbone.items()}
    for i, c in enumerate(s.channels):
        for level, (inner, side) in (("lateral_convs", (c, 1)), ("fpn_convs", (e, 3))):
            shapes[f"neck.0.{level}.{i}.conv.weight"] = (e, inner, side, side)
            shapes |= weight_and_bias(f"neck.0.{level}.{i}.gn", e)
    shapes["neck.1.down.conv.weight"] = (e, 4 * e, 1, 1)
    shapes |= weight_and_bias("neck.1.down.gn", e)
    for l in range(s.layers):
        layer = f"decode_head.encoder.layers.{l}."
        shapes |= weight_and_bias(layer + "attentions.0.sampling_offsets", n * 4 * 2, e)
        shapes |= weight_and_bias(layer + "attentions.0.attention_weights", n * 4, e)
        shapes |= weight_and_bias(layer + "attentions.0.value_proj", e, e)
        shapes |= weight_and_bias(layer + "attentions.0.output_proj", e, e)
        shapes |= weight_and_bias(layer + "ffns.0.layers.0.0", s.mlp, e)
        shapes |= weight_and_bias(layer + "ffns.0.layers.1", e, s.mlp)
        shapes |= weight_and_bias(layer + "norms.0", e) | weight_and_bias(layer + "norms.1", e)
        shapes |= weight_and_bias(layer + "time_mlp.1", 2 * e, 4 * e)
    shapes |= weight_and_bias("decode_head.conv_seg", k, e, 1, 1)
    shapes |= weight_and_bias("auxiliary_head.conv_seg", k, e, 1, 1)
    shapes["auxiliary_head.convs.0.conv.weight"] = (e, e, 3, 3)
    shapes |= weight_and_bias("auxiliary_head.convs.0.bn", e)
    shapes |= {f"auxiliary_head.convs.0.bn.running_{word}": (e,) for word in ("mean", "var")}
    shapes["auxiliary_head.convs.0.bn.num_batches_tracked"] = ()
    shapes["embedding_table.weight"] = (k + 1, e)
    shapes |= weight_and_bias("transform.conv", e, 2 * e, 1, 1)
    shapes["time_mlp.0.weights"] = (8,)
    shapes |= weight_and_bias("time_mlp.1", 4 * e, 17)
    return shapes | weight_and_bias("time_mlp.3", 4 * e, 4 * e)


def relative_index(window):
    """Row of the bias table for every pair of tokens, pair by pair."""
    places = [(y, x) for y in range(window) for x in range(window)]
    row = lambda q, k: (q[0] - k[0] + window - 1) * (2 * window - 1) + q[1] - k[1] + window - 1
    return np.array([[row(query, key) for key in places] for query in places], np.int64)


def random_file(settings, seed=0):
    draw = np.random.default_rng(seed)
    arrays = {}
    for name, shape in official_shapes(settings).items():
        arrays[name] = draw.standard_normal(shape, np.float32)
        if name.endswith("relative_position_index"):
            arrays[name] = relative_index(settings.window)
    return arrays | {"auxiliary_head.convs.0.bn.num_batches_tracked": np.array(7)}


def without_memory(shapes):
    """A state dict of the right shapes whose arrays all are the same zero."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}


def is_parameter(name):
    return not name.endswith(("_index", "_tracked", "running_mean", "running_var"))


RENAMED = (  # ours, theirs; in turn, on the path without "params." or "stats."
    (r"^backbone\.patch_embedding\.conv", "backbone.patch_embed.projection"),
    (r"^backbone\.patch_embedding", "backbone.patch_embed"),
    (r"^backbone\.stem\.conv", "backbone.downsample_layers.0.0"),
    (r"^backbone\.stem\.norm", "backbone.downsample_layers.0.1"),
    (r"^backbone\.down(\d)\.norm", r"backbone.downsample_layers.\1.0"),
    (r"^backbone\.down(\d)\.conv", r"backbone.downsample_layers.\1.1"),
    (r"^backbone\.merge(\d)", r"backbone.stages.\1.downsample"),
    (r"^(backbone.*)attention\.bias_table", r"\1attn.w_msa.relative_position_bias_table"),
    (r"^(backbone.*)attention\.qkv", r"\1attn.w_msa.qkv"),
    (r"^(backbone.*)attention\.out", r"\1attn.w_msa.proj"),
    (r"^neck\.lateral(\d)", r"neck.0.lateral_convs.\1"),
    (r"^neck\.out(\d)", r"neck.0.fpn_convs.\1"),
    (r"^neck\.merge", "neck.1.down"),
    (r"^(neck.*)\.norm", r"\1.gn"),
    (r"^decoder\.layer(\d)", r"decode_head.encoder.layers.\1"),
    (r"^(decode_head.*)attention\.offsets", r"\1attentions.0.sampling_offsets"),
    (r"^(decode_head.*)attention\.weights", r"\1attentions.0.attention_weights"),
    (r"^(decode_head.*)attention\.(value|out)", r"\1attentions.0.\2_proj"),
    (r"\.out_proj", ".output_proj"),
    (r"^(decode_head.*)\.norm1", r"\1.norms.0"),
    (r"^(decode_head.*)\.norm2", r"\1.norms.1"),
    (r"^(decode_head.*)\.mlp", r"\1.ffns.0.mlp"),
    (r"^(decode_head.*)\.time", r"\1.time_mlp.1"),
    (r"^head", "decode_head.conv_seg"),
    (r"^auxiliary\.head", "auxiliary_head.conv_seg"),
    (r"^auxiliary\.conv", "auxiliary_head.convs.0.conv"),
    (r"^auxiliary\.norm\.(mean|var)", r"auxiliary_head.convs.0.bn.running_\1"),
    (r"^auxiliary\.norm", "auxiliary_head.convs.0.bn"),
    (r"^transform", "transform.conv"),
    (r"^embedding\.table", "embedding_table.weight"),
    (r"^time\.weights", "time_mlp.0.weights"),
    (r"^time\.fc1", "time_mlp.1"),
    (r"^time\.fc2", "time_mlp.3"),
    (r"\.(kernel|scale)$", ".weight"),
)
OF_FAMILY = {
    "swin": (
        (r"^backbone\.stage(\d)\.block(\d+)", r"backbone.stages.\1.blocks.\2"),
        (r"\.mlp\.fc1", ".ffn.layers.0.0"), (r"\.mlp\.fc2", ".ffn.layers.1"),
    ),
    "convnext": (
        (r"^backbone\.stage(\d)\.block(\d+)", r"backbone.stages.\1.\2"),
        (r"\.depthwise", ".depthwise_conv"),
        (r"(backbone.*)\.mlp\.fc", r"\1.pointwise_conv"),
    ),
}  # fmt: skip
IN_DECODER = (
    (r"ffns\.0\.mlp\.fc1", "ffns.0.layers.0.0"),
    (r"ffns\.0\.mlp\.fc2", "ffns.0.layers.1"),
)


def official_name(ours, family):
    """The entry of a published file for a path such as params.head.kernel."""
    text = re.sub(r"^(params|stats)\.", "", ours)
    in_backbone = OF_FAMILY[family] if text.startswith("backbone") else ()
    for pattern, theirs in (*in_backbone, *RENAMED, *IN_DECODER):
        text = re.sub(pattern, theirs, text)
    return text


def official_array(array, ours, shape):
    """An array of ours in torch's layout."""
    if ours.endswith("kernel"):
        array = array.transpose((3, 2, 0, 1) if array.ndim == 4 else (1, 0))
    return array.reshape(shape)


def flat(tree):
    return flatten_dict(tree, sep=".")


def assert_is(tree, arrays, family):
    """Every leaf is the file's entry, and every entry is a leaf."""
    seen = set()
    for ours, array in flat(tree).items():
        name = official_name(ours, family)
        expected = arrays[name].astype(np.float32)
        assert array.dtype == np.float32, ours
        moved = official_array(array, ours, expected.shape)
        np.testing.assert_array_equal(moved, expected, err_msg=f"{ours} {name}")
        seen.add(name)
    kept = {name for name in arrays if not name.endswith(("_index", "_tracked"))}
    assert seen == kept


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
    assert differences(arrays, DDP, ours) == []
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


def test_a_wrapped_network_is_the_same(family):
    wrapped = {f"module.{name}": array for name, array in tiny_file(family).items()}
    assert is_ddp(wrapped) and settings_of(wrapped) == TINY[family]
    assert_is(load_ddp(wrapped, TINY[family]), tiny_file(family), family)


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
    with pytest.raises(UserError, match=rf"x\.pth has {re.escape(name)}, which has no place"):
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
        with pytest.raises(UserError, match=rf"x\.pth: {re.escape(name)} is not the order"):
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
     "no network that there is: heads holds 3"),
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
        settings = settings_of(arrays)
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
