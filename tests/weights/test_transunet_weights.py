"""TransUNet weights: both foreign layouts reach the same place, and nothing is left over."""

import json
import math
import re

import ml_dtypes
import numpy as np
import pytest

from diffseg_jax.errors import UserError
from diffseg_jax.weights.formats import read_arrays
from diffseg_jax.weights.tables import AS_IS, convert, within
from diffseg_jax.weights.transunet import OFFICIAL, PORT, load_official, load_port, table_grid
from transunet_file import (
    FULL,
    TINY,
    encoder_shapes,
    flat,
    official_entry,
    official_file,
    port_array,
    port_entry,
    port_file,
    random_leaves,
    shapes,
)

pytestmark = pytest.mark.quick


def assert_leaves(tree, expected):
    read = flat(tree)
    assert read.keys() == expected.keys()
    for path, value in expected.items():
        assert read[path].dtype == np.float32, path
        np.testing.assert_array_equal(read[path], value, err_msg=path)


@pytest.fixture
def tiny():
    """(encoder leaves, a released file with them)"""
    leaves = random_leaves(encoder_shapes(TINY))
    return leaves, official_file(leaves)


def save(folder, arrays):
    np.savez(folder / "weights.npz", **arrays)
    return folder / "weights.npz"


# --- released files -------------------------------------------------------------------------------


def linen(arrays):
    """The numbering of Flax Linen, and norm vectors without the leading ones."""
    renamed = {}
    for name, array in arrays.items():
        for old, new in (("Attention_1", "Attention_0"), ("LayerNorm_2", "LayerNorm_1"),
                         ("MlpBlock_3", "MlpBlock_0")):
            name = name.replace(old, new)
        renamed[name] = array.reshape(-1) if "gn" in name else array
    return renamed


def headless(arrays):
    return {name: a for name, a in arrays.items() if not re.match("head|pre_logits|cls", name)}


def without_class_row(arrays):
    name = "Transformer/posembed_input/pos_embedding"
    return arrays | {name: arrays[name][:, 1:]}


@pytest.mark.parametrize("change", [dict, linen, headless, without_class_row])
def test_every_form_of_the_released_file_gives_the_same_encoder(tmp_path, tiny, change):
    leaves, arrays = tiny
    path = save(tmp_path, change(arrays))
    assert_leaves(load_official(path, encoder_shapes(TINY)), leaves)


def test_position_table_keeps_the_grid_of_the_file(tmp_path, tiny):
    leaves, arrays = tiny
    path = save(tmp_path, arrays)
    for grid in (4, 6):
        tree = load_official(path, encoder_shapes(TINY | dict(grid=grid)))
        np.testing.assert_array_equal(tree["position_embedding"], leaves["position_embedding"])
    free = encoder_shapes(TINY) | {"position_embedding": None}
    assert_leaves(load_official(path, free), leaves)


@pytest.mark.parametrize("rows", [15, 18, 26 + 1])
def test_position_tables_without_a_square_are_refused(tmp_path, tiny, rows):
    arrays = tiny[1] | {"Transformer/posembed_input/pos_embedding": np.zeros((1, rows, 32))}
    with pytest.raises(UserError, match=r"weights\.npz: .*pos_embedding: .*square grid"):
        load_official(save(tmp_path, arrays), encoder_shapes(TINY))


@pytest.mark.parametrize(("rows", "grid"), [(16, (2, 8)), (17, (2, 8)), (16, (8, 2)), (15, (3, 5))])
def test_a_position_table_of_a_rectangle_is_taken_with_its_grid(tmp_path, tiny, rows, grid):
    leaves, arrays = tiny
    table = np.random.default_rng(0).standard_normal((1, rows, 32), np.float32)
    path = save(tmp_path, arrays | {"Transformer/posembed_input/pos_embedding": table})
    tree = load_official(path, encoder_shapes(TINY), grid)
    np.testing.assert_array_equal(tree["position_embedding"], table[:, rows - math.prod(grid) :])
    assert_leaves(tree | {"position_embedding": leaves["position_embedding"]}, leaves)


def test_a_torch_position_table_has_no_class_row(tmp_path):
    params, stats = shapes(TINY)
    arrays = port_file(random_leaves(params) | random_leaves(stats))
    name = "transformer.embeddings.position_embeddings"
    path = save(tmp_path, arrays)
    for grid in ((), (2, 8)):
        table = load_port(path, params, stats, grid=grid)[0]["encoder"]["position_embedding"]
        np.testing.assert_array_equal(table, arrays[name])
    path = save(tmp_path, arrays | {name: np.zeros((1, 17, 32), np.float32)})
    for grid, wanted in (((), "square grid"), ((2, 8), "grid of 2x8")):
        with pytest.raises(UserError, match=rf"{name}: the 17 rows .* form no {wanted}\. Write"):
            load_port(path, params, stats, grid=grid)


@pytest.mark.parametrize(("length", "grid"), [(15, "3, 5"), (2049, "32, 64"), (2048, "32, 64")])
def test_a_table_without_a_square_is_answered_with_a_grid_to_write(length, grid):
    with pytest.raises(UserError, match=rf"c\.weights_grid = \({grid}\)"):
        table_grid(length, class_row=True)


def test_missing_entry_is_named_and_counted(tmp_path, tiny):
    arrays = tiny[1]
    for name in ("scale", "bias"):
        del arrays[f"Transformer/encoderblock_1/LayerNorm_2/{name}"]
    sentence = r"weights\.npz has no entry for encoder\.layer1\.norm2\.scale \(2 missing in all\)\."
    with pytest.raises(UserError, match=sentence):
        load_official(save(tmp_path, arrays), encoder_shapes(TINY))


@pytest.mark.parametrize("name", [
    "Transformer/encoderblock_2/LayerNorm_0/scale",       # a deeper network
    "Transformer/encoderblock_0/LayerNorm_3/scale", "Transformer/encoderblock_0/LayerNorm_0/mean",
    "block4/unit1/conv1/kernel", "block1/unit1/conv4/kernel", "block2/unit2/conv_proj/kernel",
    "xcls", "head/extra", "conv_root/bias",
])
def test_entry_without_a_place_is_named_and_counted(tmp_path, tiny, name):
    arrays = {name: np.zeros(3, np.float32), **tiny[1], "zzz": np.zeros(3)}
    sentence = rf"weights\.npz has {name}, which has no counterpart .*\(2 such entries in all\)"
    with pytest.raises(UserError, match=sentence):
        load_official(save(tmp_path, arrays), encoder_shapes(TINY))


def test_both_numberings_at_once_are_refused(tmp_path, tiny):
    arrays = tiny[1]
    arrays["Transformer/encoderblock_0/LayerNorm_1/bias"] = np.zeros(32, np.float32)
    with pytest.raises(UserError, match="has both .*LayerNorm_2/bias and .*LayerNorm_1/bias for"):
        load_official(save(tmp_path, arrays), encoder_shapes(TINY))


@pytest.mark.parametrize(("name", "shape"), [
    ("embedding/kernel", (1, 1, 32, 512)),                                    # transposed
    ("conv_root/kernel", (7, 7, 32, 3)),
    ("Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel", (64, 32)),
    ("Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel", (32, 8, 4)),
    ("Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel", (32, 32)),
    ("Transformer/encoder_norm/scale", (16,)), ("gn_root/scale", (1, 1, 1, 64)),
    ("gn_root/scale", (2, 1, 1, 16)), ("Transformer/posembed_input/pos_embedding", (1, 17, 16)),
])
def test_misshapen_entry_is_named_with_both_shapes(tmp_path, tiny, name, shape):
    arrays = tiny[1] | {name: np.zeros(shape, np.float32)}
    sentence = re.escape(f"weights.npz: {name} has shape {shape}, which does not fit encoder.")
    with pytest.raises(UserError, match=sentence):
        load_official(save(tmp_path, arrays), encoder_shapes(TINY))


def test_integers_are_no_parameters(tmp_path, tiny):
    arrays = tiny[1] | {"embedding/bias": np.zeros(32, np.int64)}
    with pytest.raises(UserError, match=r"embedding/bias is int64, but encoder\.patch_embedding"):
        load_official(save(tmp_path, arrays), encoder_shapes(TINY))


# --- torch files ----------------------------------------------------------------------------------


def test_torch_layout_gives_the_same_parameters(tmp_path):
    params, stats = shapes(TINY)
    leaves, statistics = random_leaves(params), random_leaves(stats, seed=1)
    read = load_port(save(tmp_path, port_file(leaves | statistics)), params, stats)
    assert_leaves(read[0], leaves)
    assert_leaves(read[1], statistics)


def test_torch_file_of_a_network_in_data_parallel(tmp_path):
    params, stats = shapes(TINY)
    leaves = random_leaves(params)
    arrays = port_file(leaves | random_leaves(stats))
    path = save(tmp_path, {f"module.{name}": array for name, array in arrays.items()})
    assert_leaves(load_port(path, params, stats)[0], leaves)


@pytest.mark.parametrize("name", [
    "decoder.blocks.3.conv2.1.running_var", "segmentation_head.0.bias",
    "transformer.encoder.layer.1.attn.out.weight",
])
def test_torch_file_with_a_missing_entry_is_refused(tmp_path, name):
    params, stats = shapes(TINY)
    arrays = port_file(random_leaves(params) | random_leaves(stats))
    del arrays[name]
    with pytest.raises(UserError, match=r"has no entry for .*\(1 missing in all\)"):
        load_port(save(tmp_path, arrays), params, stats)


@pytest.mark.parametrize(("name", "shape"), [
    ("segmentation_head.0.weight", (9, 8, 3, 3)), ("segmentation_head.0.bias", (9,)),
    ("decoder.conv_more.0.weight", (32, 24, 3, 3)),
    ("transformer.encoder.layer.0.ffn.fc1.weight", (32, 64)),
    ("transformer.encoder.layer.0.attn.query.bias", (24,)),
    ("transformer.embeddings.patch_embeddings.weight", (32, 512)),
])
def test_misshapen_torch_entry_is_refused(tmp_path, name, shape):
    params, stats = shapes(TINY)
    arrays = port_file(random_leaves(params) | random_leaves(stats))
    assert name in arrays
    arrays[name] = np.zeros(shape, np.float32)
    with pytest.raises(UserError, match=re.escape(f"{name} has shape {shape}")):
        load_port(save(tmp_path, arrays), params, stats)


def test_full_size_names_and_counts():
    """Sections 2.9, 3.2 and 3.3: 353 + 54 + 2 torch entries, 358 released arrays."""
    params, stats = shapes(FULL)
    zeros = {path: np.broadcast_to(np.float32(0), shape) for path, shape in flat(params).items()}
    encoder = {p.removeprefix("encoder."): a for p, a in zeros.items() if p.startswith("encoder.")}
    counts = {path: math.prod(shape) for path, shape in flat(params).items()}
    assert sum(counts.values()) == 105_278_531
    assert sum(n for path, n in counts.items() if path.startswith("encoder.")) == 97_888_576
    statistics = {path: np.zeros(shape, np.float32) for path, shape in flat(stats).items()}
    assert sum(array.size for array in statistics.values()) == 2 * 1440
    port = port_file(zeros | statistics)
    assert len(port) == 409
    tree = convert(port, PORT, {"params": params, "stats": stats}, ignore=("decoder.*_tracked",))
    assert {path: array.shape for path, array in flat(tree["params"]).items()} == flat(params)
    released = {official_entry(path): array for path, array in encoder.items()}
    assert len(released) == 353
    tree = convert(released, OFFICIAL, {"encoder": params["encoder"]})
    assert {path: array.shape for path, array in flat(tree["encoder"]).items()} == flat(
        params["encoder"])


# --- the engine -----------------------------------------------------------------------------------


def test_table_rows_move_axes_and_split_them():
    table = within(r"net\.(\d)\.", "net{0}.", (
        (r"weight", "kernel", "oihw->hwio"),
        (r"(q|k)", "{1}.kernel", "oi->io"),
        (r"flip", "flip", lambda array: array[::-1]),
        (r"vector", "vector", AS_IS),
    ))
    arrays = {
        "net.0.weight": np.arange(120.0).reshape(2, 3, 4, 5),
        "net.1.q": np.arange(24.0).reshape(6, 4),
        "net.1.flip": np.array([1, 2, 3], ml_dtypes.bfloat16),
        "net.1.vector": np.float16([[[1, 2]]]),
        "counter": np.int64(3),
        "net.2.vector": np.zeros(2),                     # has a row, but this network has no net2
    }
    shape = {"net0": {"kernel": (4, 5, 3, 2)},
             "net1": {"q": {"kernel": (4, 2, 3)}, "flip": (None,), "vector": (2,)}}
    tree = flat(convert(arrays, table, shape, ignore=("counter", r"net\.2.*")))
    weight, query = arrays["net.0.weight"], arrays["net.1.q"]
    assert {array.dtype for array in tree.values()} == {np.dtype(np.float32)}
    assert tree["net0.kernel"][1, 2, 0, 1] == weight[1, 0, 1, 2]
    assert tree["net1.q.kernel"][3, 1, 2] == query[1 * 3 + 2, 3]     # rows are head, then feature
    np.testing.assert_array_equal(tree["net1.flip"], [3, 2, 1])
    np.testing.assert_array_equal(tree["net1.vector"], [1, 2])


@pytest.mark.parametrize(("have", "want", "fits"), [
    ((6, 4), (2, 3, 4), True), ((6, 4), (6, 2, 2), True), ((1, 1, 6), (6,), True),
    ((6,), (1, 6, 1), True), ((), (1,), True), ((6, 4), (6, None), True), ((6, 4), None, True),
    ((6, 4), (1, None), False), ((6, 4), (4, 6), False), ((6, 4), (24,), False),
    ((2, 3, 4), (6, 4), False), ((6, 4), (3, 8), False), ((6,), (6, 2), False),
    ((6, 4), (6,), False), ((6, 4), (None,), False),
])
def test_axes_split_but_never_merge(have, want, fits):
    table = (("a", "a", AS_IS),)
    try:
        convert({"a": np.zeros(have)}, table, {"a": want})
    except UserError:
        assert not fits
    else:
        assert fits


def test_shapes_are_compared_before_anything_is_copied():
    enormous = np.broadcast_to(np.float32(0), (2**40, 2))
    with pytest.raises(UserError, match="does not fit"):
        convert({"a": enormous}, (("a", "a", "oi->io"),), {"a": (2, 3)})


def test_loaded_arrays_are_copies():
    array = np.zeros(3, np.float32)
    tree = convert({"a": array}, (("a", "a", AS_IS),), {"a": (3,)})
    tree["a"] += 1
    assert not array.any()


# --- recorded files -------------------------------------------------------------------------------


def target(name, table):
    for pattern, ours, _ in table:
        match = re.fullmatch(pattern, name)
        if match:
            return ours.format(*match.groups())


@pytest.mark.golden
def test_recorded_name_map(golden):
    for path in golden("ddep/name_map*.json"):
        pairs = json.loads(path.read_text())["map"]
        assert pairs
        for torch, entry in pairs.items():
            ours = target(torch, PORT)
            assert ours == f"params.{target(entry['official'], OFFICIAL)}", torch
            assert (port_entry(ours.removeprefix("params.")), entry["official"]) == (
                torch, official_entry(ours.removeprefix("params.encoder."))), torch


def recorded_config(path):
    record = json.loads(path.read_text())
    config = record["config"]
    return record, TINY | config | dict(grid=config.get("img_size", 0) // 16)


@pytest.mark.golden
def test_recorded_torch_files(golden):
    for path in golden("ddep/transunet_*_state.pt"):
        record, config = recorded_config(path.with_name(path.name.replace("_state.pt", ".json")))
        raw = read_arrays(path)
        params, stats = load_port(path, *shapes(config))
        assert {n: list(a.shape) for n, a in raw.items()} == record["state_shapes"]
        for leaf, array in (flat(params) | flat(stats)).items():
            expected = raw[port_entry(leaf)].astype(np.float32)
            np.testing.assert_array_equal(port_array(leaf, array), expected, err_msg=leaf)


@pytest.mark.golden
def test_recorded_released_files(golden):
    for path in golden("ddep/flax_hybrid*_params.npz"):
        name = path.name.replace("_params.npz", ".json")
        record, config = recorded_config(path.with_name(name))
        raw, grid = read_arrays(path), tuple(-(-side // 16) for side in record["image"])
        for leaf, array in flat(load_official(path, encoder_shapes(config), grid)).items():
            expected = raw[official_entry(leaf)]
            if leaf == "position_embedding":
                expected = expected[:, -math.prod(grid) :]
            np.testing.assert_array_equal(array, expected.reshape(array.shape), err_msg=leaf)
