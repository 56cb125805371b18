"""DINO weights: every layout gives the same network, and what does not fit is named."""

import dataclasses
import functools
import json
import re

import jax
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from diffseg_jax.errors import UserError
from diffseg_jax.models.dino import Dino, DinoSettings, rotary_periods
from diffseg_jax.models.network import Network
from diffseg_jax.weights import dino
from diffseg_jax.weights.dino import dino_settings, load_dino
from diffseg_jax.weights.formats import without_wrappers
from diffseg_jax.weights.tables import differences

pytestmark = pytest.mark.quick

SMALL = dict(patch=2, width=16, depth=2, heads=2, hidden=12)
V2 = DinoSettings(**SMALL, grid=3)
V2_GATED = DinoSettings(**SMALL, grid=3, registers=3, gated=True)
V3 = DinoSettings(**SMALL, grid=0, registers=4, rotary=True, epsilon=1e-5)
V3_GATED = dataclasses.replace(V3, gated=True)
V3_UNBIASED = dataclasses.replace(V3_GATED, qkv_bias=False)
ALL = dict(v2=V2, v2_gated=V2_GATED, v3=V3, v3_gated=V3_GATED, v3_unbiased=V3_UNBIASED)


@functools.cache
def values_of(settings):
    """Random parameters by dotted path, key biases of DINOv3 0."""
    abstract = Network(lambda rngs: Dino(settings, rngs=rngs)).abstract["params"]
    draw = np.random.default_rng(0)
    leaves = flatten_dict(abstract, sep=".")
    values = {name: draw.standard_normal(leaf.shape, np.float32) for name, leaf in leaves.items()}
    for name in values:
        if settings.rotary and name.endswith("qkv.bias"):
            np.split(values[name], 3)[1][:] = 0
    return values


# --- the same weights in each layout, by plain string replacement ---------------------------------

OFFICIAL = (
    (r"class_token", "cls_token"), (r"position_embedding", "pos_embed"),
    (r"patch_embedding", "patch_embed.proj"), (r"block(\d)", r"blocks.\1"),
    (r"attention\.qkv", "attn.qkv"), (r"attention\.out", "attn.proj"),
    (r"\.scale([12])$", r".ls\1.gamma"),
)  # fmt: skip
HUGGING = (
    (r"class_token", "embeddings.cls_token"), (r"registers", "embeddings.register_tokens"),
    (r"position_embedding", "embeddings.position_embeddings"),
    (r"block(\d)", r"encoder.layer.\1"), (r"\.scale([12])$", r".layer_scale\1.lambda1"),
)  # fmt: skip
V2_FILE = (
    (r"patch_embedding", "embeddings.patch_embeddings.projection"), (r"^norm\.", "layernorm."),
    (r"attention\.out", "attention.output.dense"),
)  # fmt: skip
V3_FILE = (
    (r"patch_embedding", "embeddings.patch_embeddings"), (r"encoder\.layer", "layer"),
    (r"attention\.out", "attention.o_proj"),
)  # fmt: skip


def names_of(settings, layout):
    """Replacements from our names, the parts of qkv and the parts of a gated fc1, and fc2."""
    if layout == "official":
        registers = "storage_tokens" if settings.rotary else "register_tokens"
        gate = (("mlp.w1", "mlp.w2") if settings.rotary else ("mlp.w12",), "mlp.w3")
        return (*OFFICIAL, (r"registers", registers)), ("attn.qkv",), gate
    gate = (("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")
    parts = tuple(f"attention.{letter}_proj" for letter in "qkv")
    if settings.rotary:
        plain = () if settings.gated else ((r"mlp\.fc1", "mlp.up_proj"), (r"fc2", "down_proj"))
        memory = ((r"^layer", "model.layer"),) if layout == "memory" else ()
        return (*HUGGING, *V3_FILE, *plain, *memory), parts, gate
    if layout == "memory":
        return (*HUGGING, *V2_FILE, (r"attention\.output\.dense", "attention.o_proj")), parts, gate
    parts = tuple(f"attention.attention.{part}" for part in ("query", "key", "value"))
    return (*HUGGING, *V2_FILE), parts, (("mlp.weights_in",), "mlp.weights_out")


def file_of(settings, layout="official"):
    """The arrays of a file with `values_of(settings)`."""
    names, qkv, (fc1, fc2) = names_of(settings, layout)
    token = "mask_token" if layout == "official" else "embeddings.mask_token"
    arrays = {token: np.ones((1, settings.width), np.float32)}
    for name, array in values_of(settings).items():
        array = array.copy()
        for ours, theirs in names:
            name = re.sub(ours, theirs, name)
        name = re.sub(r"\.(kernel|scale)$", ".weight", name)
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
        array = array.T if re.search(r"(attn|attention|mlp)\..*weight", name) else array
        array = array[None] if re.search("token|pos", name) else array
        array = array[None] if array.ndim == 2 and "cls_token" in name else array
        parts = qkv if ".qkv." in name else fc1 if settings.gated and ".fc1." in name else None
        if parts:
            stem, _, leaf = re.split(r"\b(attn\.qkv|attention\.qkv|mlp\.fc1)\.", name)
            pieces = np.split(array, len(parts))
            arrays |= {f"{stem}{part}.{leaf}": piece for part, piece in zip(parts, pieces)}
        else:
            arrays[name.replace("mlp.fc2", fc2) if settings.gated else name] = array
    if settings.rotary:
        arrays = {name: array for name, array in arrays.items() if "k_proj.bias" not in name}
    if settings.rotary and layout == "official":
        arrays["rope_embed.periods"] = rotary_periods(settings.width // settings.heads)
        for name in [name for name in arrays if name.endswith("qkv.bias")]:
            np.split(arrays[name], 3)[1][:] = np.nan
            arrays[f"{name}_mask"] = np.repeat([1, 0, 1], settings.width).astype(np.float32)
    return arrays


def loaded(arrays, settings):
    """The loaded parameters by dotted path, with the sizes that the arrays have."""
    assert dino_settings(arrays, "w.pth", settings.heads) == settings
    found = load_dino(arrays, settings, "w.pth")
    periods = found["stats"].get("periods", ())
    expected = rotary_periods(settings.width // settings.heads) if settings.rotary else ()
    np.testing.assert_array_equal(periods, expected)
    return flatten_dict(found["params"], sep=".")


def assert_same(found, settings):
    assert found.keys() == values_of(settings).keys()
    for name, expected in values_of(settings).items():
        np.testing.assert_array_equal(found[name], expected, err_msg=name)


@pytest.mark.parametrize("case", ALL)
@pytest.mark.parametrize("layout", ["official", "transformers", "memory"])
def test_every_layout_gives_the_same_network(case, layout):
    own = "official" if layout == "official" else "transformers"
    settings = dataclasses.replace(ALL[case], layout=own)
    assert_same(loaded(file_of(settings, layout), settings), settings)


@pytest.mark.parametrize("case", ["v2", "v3"])
def test_what_stands_around_the_network_is_dropped(case):
    settings = ALL[case]
    arrays, head = file_of(settings), {"dino_head.mlp.0.weight": np.ones((2, 2), np.float32)}
    chunked = {re.sub(r"^blocks\.1", "blocks.1.1", name): a for name, a in arrays.items()}
    chunked = {re.sub(r"^blocks\.0", "blocks.0.0", name): a for name, a in chunked.items()}
    assert_same(loaded(chunked, settings), settings)
    teacher = {f"backbone.{name}": array for name, array in chunked.items()}
    assert_same(loaded(teacher | head, settings), settings)
    wrapped = without_wrappers({f"module.dinov2.{name}": array for name, array in arrays.items()})
    assert_same(loaded(wrapped | {"classifier.weight": head.popitem()[1]}, settings), settings)


def test_what_features_do_not_need_is_dropped():
    norm = {f"local_cls_norm.{leaf}": np.ones(16, np.float32) for leaf in ("weight", "bias")}
    assert_same(loaded(file_of(V3) | norm, V3), V3)
    none = {"embeddings.register_tokens": np.ones((1, 0, 16), np.float32)}
    settings = dataclasses.replace(V3, registers=0, layout="transformers")
    assert_same(loaded(file_of(settings, "transformers") | none, settings), settings)


def test_stored_periods_are_used():
    arrays = file_of(V3) | {"rope_embed.periods": np.array([1, 3], ml_dtypes.bfloat16)}
    np.testing.assert_array_equal(load_dino(arrays, V3, "w.pth")["stats"]["periods"], [1, 3])


# --- published networks -------------------------------------------------------------------------


def sample(shape):
    """An array of this shape; a large one takes no memory, not even if it is concatenated."""
    return np.ones(shape, np.float32) if len(shape) < 2 else np.empty(shape, "V0")


@pytest.mark.golden
def test_names_and_shapes_of_published_networks_fit(golden, monkeypatch):
    check = lambda arrays, rows, shapes, **_: {"left": differences(arrays, rows, shapes)}
    monkeypatch.setattr(dino, "convert", check)
    for path in golden("backbones/keys_*.json"):
        for name, keys in json.loads(path.read_text()).items():
            if not name.startswith("dino"):
                continue
            names = {
                key.replace("{i}", str(i)): shape
                for i in range(keys["depth"]) for key, shape in keys["block"].items()
            } | keys["common"]  # fmt: skip
            assert len(names) == keys["entries"]
            settings = dino_settings({key: sample(s) for key, s in names.items()}, name)
            assert settings.depth == keys["depth"]
            assert settings.width // settings.heads == (128 if "7b" in name else 64)
            first = {key: sample(s) for key, s in names.items() if not re.search(r"\.[1-9]", key)}
            one = dataclasses.replace(settings, depth=1)
            left = load_dino(first, one, name)["left"]
            unused = "".join(rf"(?!{pattern} )" for pattern in dino.DINO_UNUSED)
            assert not [clause for clause in left if re.match(unused, clause)], name


# --- files that do not fit ------------------------------------------------------------------------


def without(arrays, pattern):
    return {name: array for name, array in arrays.items() if not re.search(pattern, name)}


HEAD = {"neck.convs.0.weight": np.ones(1, np.float32)}
OTHERS = {
    "a ResNet": {"layer1.0.conv1.weight": np.ones(1, np.float32)},
    "a ConvNeXt|its first entry is stages": {"stages.0.0.dwconv.weight": np.ones(1)},
    "plain vision transformer": without(file_of(V2), r"\.ls"),
    "no mask_token.*timm": without(file_of(V2), "mask_token"),
    "a table of 9 positions": file_of(V2) | {"pos_embed": np.ones((1, 9, 16), np.float32)},
    "a table of 0 positions": without(file_of(V2), "pos_embed"),
    "lacks the patch embedding": without(file_of(V2), "patch_embed"),
    "lacks the patch embedding .*first block": without(file_of(V3), "fc2"),
    r"also has neck.*--source=dinov3 --input=w.pth --output=dinov3 --part=backbone": HEAD
    | {f"backbone.{name}": array for name, array in file_of(V3).items()},
    r"also has student.*--source=dinov2 .* --part=teacher.backbone": {
        f"{part}.backbone.{name}": array
        for part in ("student", "teacher")
        for name, array in file_of(V2).items()
    },
    "no entry for params.block1.norm1.bias": without(file_of(V3), r"blocks\.1\.norm1\.bias"),
    "no entry for params.block0.attention.qkv.bias": without(file_of(V3), r"\.0\.attn\.qkv\.bias"),
    "has blocks.0.mlp.w1.* but no blocks.0.mlp.w2": without(file_of(V3_GATED), r"0\.mlp\.w2"),
    "query.bias .*but no encoder.layer.1.attention.attention.key.bias": without(
        file_of(V2, "transformers"), r"1\.attention\.attention\.key\.bias"
    ),
    "NaN": file_of(V3) | {"blocks.1.attn.qkv.bias_mask": np.full(48, np.nan, np.float32)},
    "extra, which has no counterpart": file_of(V2) | {"extra": np.ones(1, np.float32)},
}


@pytest.mark.parametrize("message", OTHERS)
def test_other_files_are_named(message):
    with pytest.raises(UserError, match=message):
        load_dino(OTHERS[message], dino_settings(OTHERS[message], "w.pth", 2), "w.pth")


def test_another_size_is_named():
    wider = dataclasses.replace(V2, hidden=24)
    with pytest.raises(UserError, match="MLPs of 12 and 0 registers, but .* MLPs of 24 and"):
        load_dino(file_of(V2), wider, "w.pth")
    with pytest.raises(UserError, match="DINOv3 .* but the network is DINOv2"):
        load_dino(file_of(V3), V2, "w.pth")


@pytest.mark.parametrize(
    ("heads", "message"), [(None, "no published network has"), (3, "3 heads do not"), (32, "32")]
)
def test_heads_that_are_unknown_or_do_not_share_the_channels_are_refused(heads, message):
    with pytest.raises(UserError, match=f"16 channels, .*{message}.*--source=dinov2 --heads=N"):
        dino_settings(file_of(V2), "w.pth", heads)


def test_stored_periods_tell_the_heads():
    assert dino_settings(file_of(V3), "w.pth") == V3


def test_the_layout_can_be_chosen():
    chosen = dataclasses.replace(V2, layout="transformers")
    found = load_dino(file_of(V2), chosen, "w.pth")
    jax.tree.map(np.testing.assert_array_equal, found, load_dino(file_of(V2), V2, "w.pth"))
