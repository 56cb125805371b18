"""MAE's files in all layouts give the same network, and others are refused."""

import dataclasses
import re

import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from diffseg_jax.errors import UserError
from diffseg_jax.models.mae import MAESettings, position_table
from diffseg_jax.weights.formats import read_arrays
from diffseg_jax.weights.mae import load_mae, mae_grid, mae_settings
from mae_case import TINY, network_for

ENCODER = dataclasses.replace(
    TINY, decoder_width=0, decoder_depth=0, decoder_heads=0, decoder_mlp=0
)  # fmt: skip


def block_shapes(name, width, hidden):
    return {
        f"{name}.norm1.weight": (width,), f"{name}.norm1.bias": (width,),
        f"{name}.attn.qkv.weight": (3 * width, width), f"{name}.attn.qkv.bias": (3 * width,),
        f"{name}.attn.proj.weight": (width, width), f"{name}.attn.proj.bias": (width,),
        f"{name}.norm2.weight": (width,), f"{name}.norm2.bias": (width,),
        f"{name}.mlp.fc1.weight": (hidden, width), f"{name}.mlp.fc1.bias": (hidden,),
        f"{name}.mlp.fc2.weight": (width, hidden), f"{name}.mlp.fc2.bias": (width,),
    }  # fmt: skip


def official_shapes(s, patches):
    """Names and shapes of an official file of pretraining, of section 2.3 of the specification."""
    width, inner, pixels = s.width, s.decoder_width, 3 * s.patch**2
    shapes = {
        "cls_token": (1, 1, width), "pos_embed": (1, 1 + patches, width),
        "mask_token": (1, 1, inner), "decoder_pos_embed": (1, 1 + patches, inner),
        "patch_embed.proj.weight": (width, 3, s.patch, s.patch), "patch_embed.proj.bias": (width,),
        "norm.weight": (width,), "norm.bias": (width,),
        "decoder_embed.weight": (inner, width), "decoder_embed.bias": (inner,),
        "decoder_norm.weight": (inner,), "decoder_norm.bias": (inner,),
        "decoder_pred.weight": (pixels, inner), "decoder_pred.bias": (pixels,),
    }  # fmt: skip
    for i in range(s.depth):
        shapes |= block_shapes(f"blocks.{i}", width, s.mlp)
    for i in range(s.decoder_depth):
        shapes |= block_shapes(f"decoder_blocks.{i}", inner, s.decoder_mlp)
    return shapes


def official_file(settings=TINY, grid=(3, 3), **replaced):
    generator = np.random.default_rng(0)
    arrays = {
        name: position_table(*grid, shape[-1])[None]
        if name.endswith("pos_embed") else generator.standard_normal(shape, np.float32)
        for name, shape in official_shapes(settings, grid[0] * grid[1]).items()
    }  # fmt: skip
    return {**arrays, **replaced}


def encoder_alone(arrays):
    return {n: a for n, a in arrays.items() if not n.startswith(("decoder_", "mask_token"))}


HUGGING = (  # of a whole block of either part; then of each part
    (r"\.attn\.proj\.", ".attention.output.dense."), (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."), (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"^decoder_blocks\.", "decoder.decoder_layers."), (r"^decoder_", "decoder.decoder_"),
    (r"^mask_token", "decoder.mask_token"), (r"^blocks\.", "vit.encoder.layer."),
    (r"^norm\.", "vit.layernorm."), (r"^cls_token", "vit.embeddings.cls_token"),
    (r"^pos_embed", "vit.embeddings.position_embeddings"),
    (r"^patch_embed\.proj", "vit.embeddings.patch_embeddings.projection"),
)  # fmt: skip


def hugging_file(arrays):
    """The same network as ViTMAEForPreTraining saves it."""
    named = {}
    for name, array in arrays.items():
        for pattern, theirs in HUGGING:
            name = re.sub(pattern, theirs, name)
        if ".attn.qkv." not in name:
            named[name] = array
            continue
        for part, values in zip(("query", "key", "value"), np.split(array, 3)):
            named[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = values
    return named


def leaves(arrays, settings=TINY):
    loaded = load_mae(arrays, settings, "file")
    assert loaded["stats"] == {}
    return flatten_dict(loaded["params"], sep=".")


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert np.array_equal(found[name], array), name


def test_every_parameter_is_that_of_the_file():
    arrays, found = official_file(), leaves(official_file())
    assert len(found) == len(arrays) - 2  # position tables
    same = {
        "class_token": arrays["cls_token"].ravel(),
        "decoder.mask_token": arrays["mask_token"].ravel(),
        "block1.attention.qkv.kernel": arrays["blocks.1.attn.qkv.weight"].T,
        "block0.norm2.scale": arrays["blocks.0.norm2.weight"],
        "decoder.block0.mlp.fc2.kernel": arrays["decoder_blocks.0.mlp.fc2.weight"].T,
        "decoder.prediction.bias": arrays["decoder_pred.bias"],
    }
    assert_same({name: found[name] for name in same}, same)
    kernel = found["patch_embedding.kernel"].reshape(4, 4, 3, -1)
    assert np.array_equal(kernel[1, 2, 0], arrays["patch_embed.proj.weight"][:, 0, 1, 2])


def test_layouts_agree():
    arrays, found = official_file(), leaves(official_file())
    assert_same(leaves(hugging_file(arrays)), found)
    encoder = {name: array for name, array in found.items() if "decoder." not in name}
    alone = encoder_alone(arrays)
    for file in (alone, hugging_file(alone)):
        assert mae_settings(file, "file", heads=2) == ENCODER
        assert_same(leaves(file, ENCODER), encoder)
    bare = {n.removeprefix("vit."): a for n, a in hugging_file(alone).items()}  # ViTMAEModel
    assert_same(leaves(bare, ENCODER), encoder)
    for whole in (arrays, hugging_file(arrays)):
        assert_same(leaves(whole, ENCODER), encoder)  # the decoder is dropped


@pytest.mark.golden
def test_recorded_files_have_the_sizes_of_their_networks(golden):
    """The official layout, with settings of the training program beside the network."""
    for path in golden("baselines/mae_*.pth"):
        arrays = read_arrays(path)
        settings = mae_settings(arrays, str(path), heads=1)  # which no shape shows
        rows, columns = mae_grid(arrays, str(path))
        shapes = {name: array.shape for name, array in arrays.items()}
        assert shapes == official_shapes(settings, rows * columns)


def test_sizes_of_published_files_are_read():
    """ViT-L/8 of the paper, 398 arrays; ViT-B/16; ViT-H/14, whose 16 heads have 80 channels."""
    large = MAESettings(patch=8)
    base = MAESettings(16, 768, 12, 12, 3072)
    huge = MAESettings(14, 1280, 32, 16, 5120)
    for settings, patches in ((large, 1024), (base, 196), (huge, 256)):
        shapes = official_shapes(settings, patches)
        arrays = {n: np.broadcast_to(np.float32(0), shape) for n, shape in shapes.items()}
        assert mae_settings(arrays, "file") == settings
    assert len(official_shapes(large, 1024)) == 398


def test_the_grid_is_that_of_the_position_table():
    for grid in ((3, 3), (2, 8), (8, 2), (1, 1)):
        assert mae_grid(official_file(grid=grid), "file") == grid
    rounded = {n: a.astype(ml_dtypes.bfloat16) for n, a in official_file(grid=(4, 4)).items()}
    assert mae_grid(rounded, "file") == (4, 4)
    assert leaves(rounded)["norm.bias"].dtype == np.float32


def refused(arrays, message, settings=TINY):
    with pytest.raises(UserError, match=message):
        load_mae(arrays, settings, "file")


def test_a_missing_or_an_additional_array_is_refused():
    for layout in (official_file(), hugging_file(official_file())):
        for name in [*layout][::5] + [n for n in layout if "pos" in n or "token" in n]:
            refused({n: a for n, a in layout.items() if n != name}, "file (has|is)")
        refused({**layout, "head.weight": layout[next(iter(layout))]}, "has head.weight")


def test_position_tables_that_were_learned_are_refused():
    table = official_file()["pos_embed"]
    for other in (table + 0.01, table[..., ::-1], table[:, 1:], table[0], table * np.nan):
        refused(official_file(pos_embed=other), "pos_embed of shape .* is not MAE's fixed table")
    small = official_file(grid=(2, 2))["decoder_pos_embed"]
    refused(official_file(decoder_pos_embed=small), "position tables of different grids")


def test_another_network_is_named():
    resnet = {"layer1.0.conv1.weight": np.zeros((4, 4, 1, 1), np.float32)}
    refused(resnet, "is no MAE: it is a ResNet")
    with pytest.raises(UserError, match="5 heads cannot share the 16 channels"):
        mae_settings(official_file(), "file", heads=5)
    with pytest.raises(UserError, match="16 channels, which no published .* --heads=N, with"):
        mae_settings(official_file(), "file")


def test_the_advice_for_another_size_works():
    wanted = dataclasses.replace(TINY, width=32, depth=3)
    with pytest.raises(UserError, match="MAE with mae.width 16, mae.depth 2, but") as error:
        load_mae(official_file(), wanted, "file")
    advice = re.findall(r"--config\.mae\.(\w+)=(\d+)", str(error.value))
    leaves(official_file(), dataclasses.replace(wanted, **{n: int(v) for n, v in advice}))
    refused(encoder_alone(official_file()), "with mae.decoder_width 0")


def test_a_network_has_no_other_parameters():
    names = {".".join(path) for path in flatten_dict(network_for(TINY).abstract["params"])}
    assert names == leaves(official_file()).keys()
