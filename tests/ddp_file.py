"""State dicts of DDP networks in the names of the official files, and what each entry becomes.

Written down independently of the converter.
"""

import re

import numpy as np
from flax.traverse_util import flatten_dict

from diffseg_jax.models.ddp_network import DDPSettings

SMALL = dict(width=32, layers=2, decoder_heads=4, mlp=48, num_classes=5)
TINY = {
    "swin": DDPSettings(
        backbone="swin", channels=(8, 16, 32, 64), depths=(2, 1, 3, 1), heads=(1, 2, 4, 8),
        window=3, **SMALL,
    ),
    "convnext": DDPSettings(
        backbone="convnext", channels=(8, 12, 20, 24), depths=(1, 2, 3, 1), heads=(), window=0,
        **SMALL,
    ),
}  # fmt: skip


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
