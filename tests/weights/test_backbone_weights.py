"""ImageNet weights: every format gives the same backbone, and what does not fit is named."""

import functools
import re

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from diffseg_jax.errors import UserError
from diffseg_jax.models.ddp_network import DDPSettings
from diffseg_jax.models.swin import relative_index, resize_bias_table
from diffseg_jax.weights.backbones import BACKBONE_FORMATS, by_channel, load_backbone
from diffseg_jax.weights.ddp import abstract_values

pytestmark = pytest.mark.quick

SMALL = dict(width=32, layers=1, decoder_heads=4, mlp=32, num_classes=3)
SWIN = DDPSettings(
    backbone="swin", channels=(8, 16, 32, 64), depths=(2, 1, 2, 1), heads=(1, 2, 4, 8), window=3,
    **SMALL,
)  # fmt: skip
CONVNEXT = DDPSettings(
    backbone="convnext", channels=(8, 12, 20, 24), depths=(1, 2, 2, 1), heads=(), window=0, **SMALL
)
SETTINGS = {"swin": SWIN, "convnext": CONVNEXT}
LAST = "norm3"  # the norm before the classifier of a ConvNeXt


@functools.cache
def shapes_of(settings):
    """`params["backbone"]` with a shape tuple at each leaf."""
    tree = abstract_values(settings)["params"]["backbone"]
    return jax.tree.map(lambda leaf: tuple(leaf.shape), tree)


def flat(tree):
    return flatten_dict(tree, sep=".")


@functools.cache
def leaves(family):
    """Random parameters of a backbone by dotted path."""
    draw = np.random.default_rng(0)
    shapes = flat(shapes_of(SETTINGS[family]))
    return {path: draw.standard_normal(shape, np.float32) for path, shape in shapes.items()}


# --- the same weights in each format, by plain string replacement ---------------------------------

NAMES = {  # ours and theirs, in turn
    ("the original", "swin"): (
        (r"^patch_embedding\.conv", "patch_embed.proj"), (r"^patch_embedding", "patch_embed"),
        (r"^stage(\d)\.block(\d)", r"layers.\1.blocks.\2"),
        (r"^merge(\d)", r"layers.\1.downsample"),
        (r"attention\.bias_table", "attn.relative_position_bias_table"),
        (r"attention\.qkv", "attn.qkv"), (r"attention\.out", "attn.proj"),
    ),
    ("OpenMMLab's", "swin"): (
        (r"^patch_embedding\.conv", "patch_embed.projection"),
        (r"^patch_embedding", "patch_embed"),
        (r"^stage(\d)\.block(\d)", r"stages.\1.blocks.\2"),
        (r"^merge(\d)", r"stages.\1.downsample"),
        (r"attention\.bias_table", "attn.w_msa.relative_position_bias_table"),
        (r"attention\.qkv", "attn.w_msa.qkv"), (r"attention\.out", "attn.w_msa.proj"),
        (r"mlp\.fc1", "ffn.layers.0.0"), (r"mlp\.fc2", "ffn.layers.1"),
    ),
    ("Hugging Face's", "swin"): (
        (r"^patch_embedding\.conv", "embeddings.patch_embeddings.projection"),
        (r"^patch_embedding", "embeddings"),
        (r"^stage(\d)\.block(\d)", r"encoder.layers.\1.blocks.\2"),
        (r"^merge(\d)", r"encoder.layers.\1.downsample"),
        (r"attention\.bias_table", "attention.self.relative_position_bias_table"),
        (r"attention\.out", "attention.output.dense"), (r"attention\.qkv", "attention.self.qkv"),
        (r"\.norm1", ".layernorm_before"), (r"\.norm2", ".layernorm_after"),
        (r"mlp\.fc1", "intermediate.dense"), (r"mlp\.fc2", "output.dense"),
    ),
    ("the original", "convnext"): (
        (r"^stem\.conv", "downsample_layers.0.0"), (r"^stem\.norm", "downsample_layers.0.1"),
        (r"^down(\d)\.norm", r"downsample_layers.\1.0"),
        (r"^down(\d)\.conv", r"downsample_layers.\1.1"),
        (r"^stage(\d)\.block(\d)", r"stages.\1.\2"),
        (r"depthwise", "dwconv"), (r"mlp\.fc", "pwconv"), (r"^norm3", "norm"),
    ),
    ("Hugging Face's", "convnext"): (
        (r"^stem\.conv", "embeddings.patch_embeddings"), (r"^stem\.norm", "embeddings.layernorm"),
        (r"^down(\d)\.norm", r"encoder.stages.\1.downsampling_layer.0"),
        (r"^down(\d)\.conv", r"encoder.stages.\1.downsampling_layer.1"),
        (r"^stage(\d)\.block(\d)", r"encoder.stages.\1.layers.\2"),
        (r"\.norm\.", ".layernorm."), (r"depthwise", "dwconv"), (r"mlp\.fc", "pwconv"),
        (r"gamma", "layer_scale_parameter"), (r"^norm3", "layernorm"),
    ),
}  # fmt: skip
NAMES["OpenMMLab's", "convnext"] = (
    *NAMES["the original", "convnext"][:-1],
    (r"dwconv", "depthwise_conv"), (r"pwconv", "pointwise_conv"),
)  # fmt: skip
PREFIX = {
    ("OpenMMLab's", "swin"): "backbone.", ("OpenMMLab's", "convnext"): "backbone.",
    ("Hugging Face's", "swin"): "swin.", ("Hugging Face's", "convnext"): "convnext.",
}  # fmt: skip
CLASSIFIER = {  # what only classification needs, after the prefix or without it
    "the original": ("norm.weight", "norm.bias", "head.weight", "head.bias"),
    "OpenMMLab's": ("head.fc.weight", "head.fc.bias"),
    "Hugging Face's": ("layernorm.weight", "layernorm.bias", "classifier.weight"),
}
ALL = tuple(NAMES)


def by_place(array):
    """Channels of a merged patch, the last axis, place by place: the inverse of `by_channel`."""
    return np.stack([array[..., 2 * dy + dx :: 4] for dx in (0, 1) for dy in (0, 1)], -2).reshape(
        array.shape
    )


def entry(kind, path, array):
    """Name and array of one of our leaves in a file of that kind, without prefix."""
    author, family = kind
    name = path
    for pattern, theirs in NAMES[kind]:
        name = re.sub(pattern, theirs, name)
    if path.endswith("kernel"):
        array = array.transpose((3, 2, 0, 1) if array.ndim == 4 else (1, 0))
    if path.startswith("merge") and author != "OpenMMLab's":
        array = by_place(array)
    return re.sub(r"\.(kernel|scale)$", ".weight", name), array


def file_of(kind, prefixed=True):
    """A classifier's state dict with the values of `leaves`."""
    author, family = kind
    prefix = PREFIX.get(kind, "") if prefixed else ""
    arrays = {}
    for path, array in leaves(family).items():
        if re.match(r"norm\d", path) and not (family == "convnext" and path.startswith(LAST)):
            continue
        name, array = entry(kind, path, array)
        if "self.qkv" in name:
            parts = zip(("query", "key", "value"), np.split(array, 3))
            arrays |= {prefix + name.replace("qkv", word): part for word, part in parts}
        else:
            arrays[prefix + name] = array
        if "relative_position_bias_table" in name:
            index = name.replace("bias_table", "index")
            arrays[prefix + index] = relative_index(SWIN.window).astype(np.int64)
    for name in CLASSIFIER[author]:
        inner = prefix if name.startswith("layernorm") else ""
        arrays.setdefault(inner + name, np.ones((7, 5), np.float32))
    if kind == ("the original", "swin"):
        arrays["layers.0.blocks.1.attn_mask"] = np.zeros((4, 9, 9), np.float32)
    return arrays


def save(folder, arrays):
    path = folder / "weights.npz"
    np.savez(path, **arrays)
    return path


def loaded(folder, arrays, settings):
    return flat(load_backbone(save(folder, arrays), shapes_of(settings), settings))


def kept(kind):
    """The leaves that a file of that kind gives."""
    ours, last = leaves(kind[1]).items(), kind[1] == "convnext"
    return {p: a for p, a in ours if not p.startswith("norm") or (last and p.startswith(LAST))}


def assert_same(one, other):
    assert one.keys() == other.keys()
    for path, array in other.items():
        assert one[path].dtype == np.float32
        np.testing.assert_array_equal(one[path], array, err_msg=path)


# --- what comes out -------------------------------------------------------------------------------


def test_every_known_format_is_tried():
    recorded = {(author, family) for author in ("timm's", "torchvision's") for family in SETTINGS}
    assert {(known.author, known.family) for known in BACKBONE_FORMATS} == {*ALL, *recorded}


@pytest.mark.parametrize("kind", ALL, ids=" ".join)
def test_every_format_gives_the_same_backbone(tmp_path, kind):
    assert_same(loaded(tmp_path, file_of(kind), SETTINGS[kind[1]]), kept(kind))


@pytest.mark.parametrize("kind", PREFIX, ids=" ".join)
def test_the_prefix_may_be_absent(tmp_path, kind):
    assert_same(loaded(tmp_path, file_of(kind, prefixed=False), SETTINGS[kind[1]]), kept(kind))


def test_safetensors_are_read(tmp_path):
    kind = ("Hugging Face's", "swin")
    contiguous = {name: np.ascontiguousarray(array) for name, array in file_of(kind).items()}
    save_file(contiguous, tmp_path / "model.safetensors")
    tree = load_backbone(tmp_path / "model.safetensors", shapes_of(SWIN), SWIN)
    assert_same(flat(tree), kept(kind))


def test_output_norms_of_a_segmentation_backbone_are_taken(tmp_path):
    """A file that holds norm0..norm3 gives all of them."""
    kind = ("OpenMMLab's", "swin")
    norms = {p: a for p, a in leaves("swin").items() if p.startswith("norm")}
    more = {f"backbone.{name}": a for name, a in (entry(kind, p, a) for p, a in norms.items())}
    assert_same(loaded(tmp_path, file_of(kind) | more, SWIN), leaves("swin"))


def test_channels_of_a_merged_patch_are_reordered():
    """Place by place as (0,0), (1,0), (0,1), (1,1); then channel by channel, its places by row."""
    channels = 5
    theirs = np.arange(4 * channels)
    places = [(0, 0), (1, 0), (0, 1), (1, 1)]
    for c in range(channels):
        for place, (dy, dx) in enumerate(places):
            assert by_channel(theirs)[4 * c + 2 * dy + dx] == place * channels + c
    table = np.stack([theirs, theirs + 100])
    np.testing.assert_array_equal(by_channel(table)[1], by_channel(theirs) + 100)
    np.testing.assert_array_equal(by_place(by_channel(table)), table)


def test_merging_is_the_same_before_and_after():
    """The original gathers four shifted maps, OpenMMLab unfolds; both mean the same numbers."""
    draw = np.random.default_rng(1)
    x, weight = draw.standard_normal((6, 4, 3)), draw.standard_normal((7, 12))
    shifted = np.concatenate([x[dy::2, dx::2] for dx in (0, 1) for dy in (0, 1)], -1)
    unfolded = x.reshape(3, 2, 2, 2, 3).transpose(0, 2, 4, 1, 3).reshape(3, 2, 12)
    np.testing.assert_allclose(unfolded @ by_channel(weight).T, shifted @ weight.T, rtol=1e-12)
    np.testing.assert_array_equal(by_channel(shifted), unfolded)


@pytest.mark.parametrize(("window", "other"), [(7, 12), (12, 7), (3, 4)])
def test_tables_of_another_window_are_resized(tmp_path, window, other):
    kind, draw = ("the original", "swin"), np.random.default_rng(2)
    arrays = file_of(kind)
    for name, array in arrays.items():
        if name.endswith("bias_table"):
            shape = ((2 * window - 1) ** 2, array.shape[1])
            arrays[name] = draw.standard_normal(shape, np.float32)
        elif name.endswith("relative_position_index"):
            arrays[name] = relative_index(window)
    settings = DDPSettings(**{**vars(SWIN), "window": other})
    found, expected = loaded(tmp_path, arrays, settings), kept(kind)
    for path, array in found.items():
        if path.endswith("bias_table"):
            table = arrays[entry(kind, path, array)[0]]
            assert array.shape == ((2 * other - 1) ** 2, table.shape[1])
            np.testing.assert_array_equal(array, resize_bias_table(table, other), err_msg=path)
        else:
            np.testing.assert_array_equal(array, expected[path], err_msg=path)


# --- what is refused ------------------------------------------------------------------------------


def refusal(folder, arrays, settings):
    path = save(folder, arrays)
    with pytest.raises(UserError) as caught:
        load_backbone(path, shapes_of(settings), settings)
    assert str(caught.value).startswith(str(path)) and str(caught.value).endswith(".")
    return str(caught.value)


@pytest.mark.parametrize("arrays", [
    {"conv1.weight": np.zeros((64, 3, 7, 7))},
    {"patch_embed.proj.weight": np.zeros((8, 3, 4, 4)), "blocks.0.attn.qkv.weight": np.zeros(3)},
    {"a": np.zeros(3), "stages.0.blocks.0.mlp.grn.weight": np.zeros(3)},
    {"layers.0.blocks.0.attn.qkv.weight": np.zeros((3, 3)),
     "layers.0.blocks.0.attn.logit_scale": np.zeros(3)},
], ids=["unknown", "vision transformer", "ConvNeXt V2", "Swin Transformer V2"])  # fmt: skip
def test_unknown_formats_are_refused_with_the_known_ones(tmp_path, arrays, request):
    said, network = refusal(tmp_path, arrays, SWIN), request.node.callspec.id
    assert network == "unknown" or network in said
    assert f"its first entry is {next(iter(arrays))}" in said
    assert all(f"{author} {family}" in said for author in CLASSIFIER
               for family in ("Swin", "ConvNeXt"))  # fmt: skip


@pytest.mark.parametrize("kind", ALL, ids=" ".join)
def test_the_other_backbone_is_refused(tmp_path, kind):
    other = CONVNEXT if kind[1] == "swin" else SWIN
    said = refusal(tmp_path, file_of(kind), other)
    ours, theirs = ("ConvNeXt", "Swin") if kind[1] == "swin" else ("Swin", "ConvNeXt")
    assert f"format of {kind[0]} {theirs}, but the network's backbone is {ours}. Give" in said


@pytest.mark.parametrize("kind", ALL, ids=" ".join)
def test_another_size_is_refused(tmp_path, kind):
    settings, file = SETTINGS[kind[1]], file_of(kind)
    depths = settings.depths
    fewer = DDPSettings(**{**vars(settings), "depths": (*depths[:2], depths[2] - 1, depths[3])})
    more = DDPSettings(**{**vars(settings), "depths": (*depths[:2], depths[2] + 1, depths[3])})
    wide = DDPSettings(**{**vars(settings), "channels": tuple(2 * c for c in settings.channels)})
    for other in (fewer, more, wide):
        said = refusal(tmp_path, file, other)
        assert f"channels {settings.channels} and depths {settings.depths}, but the network" in said
        assert f"has {other.channels} and {other.depths}. Give a file of this size" in said


@pytest.mark.parametrize("kind", ALL, ids=" ".join)
def test_missing_and_extra_entries_are_named(tmp_path, kind):
    arrays = file_of(kind)
    prefix = PREFIX.get(kind, "")
    block = "stage1.block0." + ("norm1" if kind[1] == "swin" else "norm") + ".scale"
    name = prefix + entry(kind, block, leaves(kind[1])[block])[0]
    fewer = {other: array for other, array in arrays.items() if other != name}
    said = refusal(tmp_path, fewer, SETTINGS[kind[1]])
    assert f"has no entry for {block} (1 missing in all)" in said
    said = refusal(tmp_path, arrays | {f"{name}_extra": np.zeros(3)}, SETTINGS[kind[1]])
    assert f"has {name}_extra, which has no counterpart" in said


@pytest.mark.parametrize("prefix", ["backbone.", "model.backbone.", "encoder.trunk."])
def test_a_backbone_in_a_larger_network_is_taken_by_its_name(tmp_path, prefix):
    kind = ("the original", "convnext")
    arrays = {f"{prefix}{name}": array for name, array in file_of(kind).items()}
    path = save(tmp_path, arrays | {"decode_head.conv_seg.weight": np.zeros((3, 3), np.float32)})
    with pytest.raises(UserError, match="a whole network of which") as refusal:
        load_backbone(path, shapes_of(CONVNEXT), CONVNEXT)
    (part,) = re.findall(r"--part=([\w.]+\w)", str(refusal.value))
    tree = load_backbone(path, shapes_of(CONVNEXT), CONVNEXT, part)
    assert_same(flat(tree), kept(kind))


def test_half_an_attention_is_refused(tmp_path):
    arrays = file_of(("Hugging Face's", "swin"))
    key = "swin.encoder.layers.2.blocks.1.attention.self.key.weight"
    whole = arrays.pop(key)
    said = refusal(tmp_path, arrays, SWIN)
    assert "2.blocks.1.attention.self.query.weight of shape (32, 32), but no " + key in said
    assert f"but no {key} like it" in refusal(tmp_path, arrays | {key: whole[:, :16]}, SWIN)


@pytest.mark.parametrize("shape", [(24, 2), (16, 2), (25,), ()])
def test_tables_without_a_window_are_refused(tmp_path, shape):
    name = "layers.1.blocks.0.attn.relative_position_bias_table"
    arrays = file_of(("the original", "swin")) | {name: np.zeros(shape, np.float32)}
    said = refusal(tmp_path, arrays, SWIN)
    assert f"{name} of shape {shape} is no table of relative positions" in said


def test_another_order_of_relative_positions_is_refused(tmp_path):
    name = "swin.encoder.layers.1.blocks.0.attention.self.relative_position_index"
    arrays = file_of(("Hugging Face's", "swin"))
    arrays[name] = arrays[name].T
    assert f"{name} is not Swin's order" in refusal(tmp_path, arrays, SWIN)
