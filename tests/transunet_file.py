"""Weights of TransUNet networks in the names of both foreign layouts, and the shapes of ours.

Written down independently of the converter.
"""

import re

import numpy as np

TINY = dict(width_factor=0.5, num_blocks=(1, 2, 1), hidden_size=32, mlp_dim=64, num_heads=4,
            num_layers=2, head_channels=24, decoder_channels=(20, 16, 16, 8), n_classes=7, grid=4,
            n_skip=3)
FULL = dict(width_factor=1, num_blocks=(3, 4, 9), hidden_size=768, mlp_dim=3072, num_heads=12,
            num_layers=12, head_channels=512, decoder_channels=(256, 128, 64, 16), n_classes=19,
            grid=14, n_skip=3)


# --- shapes of our trees --------------------------------------------------------------------------


def norm(n, *names):
    return {name: (n,) for name in names or ("scale", "bias")}


def dense(n_in, n_out):
    return {"kernel": (n_in, n_out), "bias": (n_out,)}


def unit_shapes(n_in, features, first):
    out = 4 * features
    sizes = ((1, n_in, features), (3, features, features), (1, features, out))
    tree = {}
    for i, (k, a, b) in enumerate(sizes, start=1):
        tree |= {f"conv{i}": {"kernel": (k, k, a, b)}, f"norm{i}": norm(b)}
    if first:
        tree |= {"conv_proj": {"kernel": (1, 1, n_in, out)}, "norm_proj": norm(out)}
    return tree


def layer_shapes(c):
    width, heads = c["hidden_size"], c["num_heads"]
    each = width // heads
    projection = {"kernel": (width, heads, each), "bias": (heads, each)}
    out = {"kernel": (heads, each, width), "bias": (width,)}
    return {
        "norm1": norm(width), "norm2": norm(width),
        "attention": {**{n: projection for n in ("query", "key", "value")}, "out": out},
        "mlp": {"fc1": dense(width, c["mlp_dim"]), "fc2": dense(c["mlp_dim"], width)},
    }


def encoder_shapes(c):
    stem, width = int(64 * c["width_factor"]), c["hidden_size"]
    tree = {"root": {"conv": {"kernel": (7, 7, 3, stem)}, "norm": norm(stem)}}
    channels = stem
    for b, units in enumerate(c["num_blocks"], start=1):
        features = stem * 2 ** (b - 1)
        tree[f"block{b}"] = {}
        for u in range(1, units + 1):
            tree[f"block{b}"][f"unit{u}"] = unit_shapes(channels, features, u == 1)
            channels = 4 * features
    tree["patch_embedding"] = {"kernel": (1, 1, channels, width), "bias": (width,)}
    tree["position_embedding"] = (1, c["grid"] ** 2, width)
    tree |= {f"layer{i}": layer_shapes(c) for i in range(c["num_layers"])}
    return tree | {"norm": norm(width)}


def decoder_shapes(c, leaves):
    """The decoder's tree with `leaves(n_in, n_out)` for each convolution and its batch norm."""
    stem, bridge = int(64 * c["width_factor"]), c["head_channels"]
    tree, channels = {"bridge": leaves(c["hidden_size"], bridge)}, bridge
    for s, (out, skip) in enumerate(zip(c["decoder_channels"], (8, 4, 1, 0), strict=True)):
        first = leaves(channels + (skip * stem if s < c["n_skip"] else 0), out)
        tree[f"stage{s}"] = {"conv1": first, "conv2": leaves(out, out)}
        channels = out
    return tree


def shapes(c):
    """(params, stats) of section 2 of the specification; skips of 512, 256 and 64 at width 1."""
    params = {
        "encoder": encoder_shapes(c),
        "decoder": decoder_shapes(
            c, lambda a, b: {"conv": {"kernel": (3, 3, a, b)}, "norm": norm(b)}),
        "head": {"kernel": (3, 3, c["decoder_channels"][-1], c["n_classes"]),
                 "bias": (c["n_classes"],)},
    }
    stats = decoder_shapes(c, lambda a, b: {"norm": norm(b, "mean", "var")})
    return params, {"decoder": stats}


def flat(tree, prefix=""):
    result = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            result |= flat(value, f"{prefix}{key}.")
        else:
            result[prefix + key] = value
    return result


def random_leaves(tree, seed=0):
    generator = np.random.default_rng(seed)
    return {k: generator.standard_normal(s, np.float32) for k, s in flat(tree).items()}


# --- the same weights under foreign names, by plain string replacement ----------------------------


def official_entry(ours):
    """The released array name of a path within our encoder."""
    text = re.sub(r"^layer(\d+)", r"Transformer/encoderblock_\1", ours)
    text = re.sub(r"^norm\.", "Transformer/encoder_norm.", text)
    for mine, theirs in (
        ("root.conv", "conv_root"), ("root.norm", "gn_root"), ("patch_embedding", "embedding"),
        ("position_embedding", "Transformer/posembed_input/pos_embedding"),
        ("attention.", "MultiHeadDotProductAttention_1."),
        ("mlp.fc1", "MlpBlock_3.Dense_0"), ("mlp.fc2", "MlpBlock_3.Dense_1"),
    ):
        text = text.replace(mine, theirs)
    if text.startswith("Transformer"):
        text = text.replace(".norm1", ".LayerNorm_0").replace(".norm2", ".LayerNorm_2")
    return re.sub(r"\.norm(\d|_proj)", r".gn\1", text).replace(".", "/")


def official_file(leaves):
    """A released file with these encoder leaves, class token and head, norms as (1, 1, 1, C)."""
    arrays = {official_entry(path): array for path, array in leaves.items()}
    for name in arrays:
        if "gn" in name:
            arrays[name] = arrays[name][None, None, None]
    table = arrays["Transformer/posembed_input/pos_embedding"]
    width = table.shape[-1]
    arrays["Transformer/posembed_input/pos_embedding"] = np.concatenate(
        [np.full((1, 1, width), 9, np.float32), table], axis=1)
    for name, shape in {"cls": (1, 1, width), "pre_logits/kernel": (width, width),
                        "pre_logits/bias": (width,), "head/kernel": (width, 5),
                        "head/bias": (5,)}.items():
        arrays[name] = np.zeros(shape, np.float32)
    return arrays


def port_entry(ours):
    """The torch name of a path in our params or stats."""
    text = re.sub(r"^encoder\.layer(\d+)", r"transformer.encoder.layer.\1", ours)
    text = text.replace("encoder.norm.", "transformer.encoder.encoder_norm.")
    text = re.sub(r"^encoder\.root", "transformer.embeddings.hybrid_model.root", text)
    text = re.sub(r"^encoder\.block", "transformer.embeddings.hybrid_model.body.block", text)
    text = re.sub(r"^encoder\.(patch|position)_embedding", r"transformer.embeddings.\1_embeddings",
                  text)
    text = re.sub(r"^decoder\.stage(\d)", r"decoder.blocks.\1", text)
    text = text.replace("bridge", "conv_more").replace("head.", "segmentation_head.0.")
    if text.startswith("decoder"):
        text = text.replace(".conv.", ".0.").replace(".norm.", ".1.")
    if ".layer." in text:
        text = text.replace("attention.", "attn.").replace("mlp.", "ffn.")
        text = text.replace("norm1", "attention_norm").replace("norm2", "ffn_norm")
    text = text.replace("conv_proj", "downsample")
    text = re.sub(r"\.norm(\d|_proj)?\.", r".gn\1.", text)
    for mine, theirs in (("kernel", "weight"), ("scale", "weight"),
                         ("mean", "running_mean"), ("var", "running_var")):
        text = re.sub(rf"\.{mine}$", f".{theirs}", text)
    return text


def port_array(path, array):
    """The array as torch lays it out."""
    if path.endswith("kernel") and array.ndim == 4:
        return np.transpose(array, (3, 2, 0, 1))
    if "attention" in path:
        rows = array.shape[0] if re.search("(query|key|value).kernel", path) else 1
        if path.endswith("out.kernel"):
            return array.reshape(-1, array.shape[-1]).T
        return array.reshape(rows, -1).T if path.endswith("kernel") else array.ravel()
    return array.T if path.endswith("kernel") else array


def port_file(leaves):
    arrays = {port_entry(path): port_array(path, array) for path, array in leaves.items()}
    for name in [name for name in arrays if name.endswith("running_mean")]:
        arrays[name.replace("running_mean", "num_batches_tracked")] = np.asarray(3)
    return arrays
