"""Guided-diffusion checkpoints: published sizes and names, orders of qkv, and wrong files."""

import dataclasses
import functools
import json
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from benchmarks import lsun_checkpoint
from diffseg_jax.errors import UserError
from diffseg_jax.models.adm_unet import ADMSettings, ADMUNet
from diffseg_jax.models.network import Network
from diffseg_jax.weights.adm import (
    ORDERS,
    PUBLISHED,
    abstract_params,
    adm_table,
    from_flags,
    load_adm,
)
from diffseg_jax.weights.formats import read_arrays
from diffseg_jax.weights.tables import differences

pytestmark = pytest.mark.quick

COUNTS = {  # parameters, tensors of a published file
    "lsun_bedroom": (552_814_086, 566),
    "lsun_cat": (552_814_086, 566),
    "lsun_horse": (552_814_086, 566),
    "lsun_horse_nodropout": (552_814_086, 566),
    "ffhq": (552_814_086, 566),
    "imagenet256_uncond": (552_814_086, 566),
    "imagenet256": (553_838_086, 567),
    "imagenet64": (295_904_454, 541),
    "imagenet128": (421_529_606, 493),
    "imagenet512": (558_997_638, 645),
}
SMALL = ADMSettings(
    channels=32, channel_mult=(1, 2), res_blocks=1, attention_factors=(2,), heads=2, heads_up=4
)
VARIANTS = {
    "resizing in blocks": {},
    "strided": dict(resample_in_blocks=False, scale_shift=False, learn_sigma=False),
    "classes": dict(num_classes=3, attention_factors=(1, 2), head_channels=16, heads=1),
    "three levels": dict(channel_mult=(0.5, 1, 1), channels=64, attention_factors=(), res_blocks=2),
}


def flat(tree):
    return flatten_dict(tree, sep=".")


def official_shapes(settings):
    return lsun_checkpoint.official_shapes(dataclasses.asdict(settings))


def without_memory(settings):
    """A state dict of the right shapes whose arrays all are the same zero."""
    zero = np.float32(0)
    return {name: np.broadcast_to(zero, s) for name, s in official_shapes(settings).items()}


def random_file(settings, seed=0):
    draw = np.random.default_rng(seed)
    return {
        name: draw.standard_normal(shape, np.float32)
        for name, shape in official_shapes(settings).items()
    }


# --- published configurations ---------------------------------------------------------------------


def test_every_published_configuration_is_counted():
    assert COUNTS.keys() == PUBLISHED.keys()


@pytest.mark.parametrize("name", COUNTS)
def test_published_sizes_and_names(name):
    """Every official tensor has its place, every place its tensor, and the sizes agree."""
    settings, order = PUBLISHED[name].settings, PUBLISHED[name].order
    shapes = {path: tuple(leaf.shape) for path, leaf in flat(abstract_params(settings)).items()}
    assert (sum(map(math.prod, shapes.values())), len(shapes)) == COUNTS[name]
    nested = jax.tree.map(lambda leaf: tuple(leaf.shape), abstract_params(settings))
    assert differences(without_memory(settings), adm_table(settings, order), nested) == []


def test_published_recipes():
    assert {name for name, known in PUBLISHED.items() if known.order == "new"} == {"imagenet64"}
    cosine = {n for n, known in PUBLISHED.items() if known.diffusion["schedule"] == "cosine"}
    assert cosine == {"imagenet64"}
    dropout = {name: known.settings.dropout for name, known in PUBLISHED.items()}
    trained_with = {"lsun_bedroom", "lsun_cat", "lsun_horse", "ffhq", "imagenet64"}
    assert dropout == {name: 0.1 if name in trained_with else 0.0 for name in PUBLISHED}
    for known in PUBLISHED.values():
        assert known.diffusion["steps"] == 1000 and not known.diffusion["rescale_timesteps"]
        assert (known.diffusion["target"], known.diffusion["variance"]) == ("noise", "learned")


def test_channels_of_the_blocks_that_are_read():
    """Blocks 5, 6, 7, 8, 12 of the LSUN network give 2816 channels, at these resolutions."""
    settings = PUBLISHED["lsun_bedroom"].settings
    network = Network(lambda rngs: ADMUNet(settings, rngs=rngs))
    forward = lambda params, x, t: network.bind(params, {})(x, t, until="output_12")
    x = jax.ShapeDtypeStruct((1, 256, 256, 3), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.int32)
    out, features = jax.eval_shape(forward, network.abstract["params"], x, t)
    assert out is None
    shapes = [features[f"output_{block}"].shape for block in (5, 6, 7, 8, 12)]
    assert shapes == [
        (1, 32, 32, 1024), (1, 32, 32, 512), (1, 32, 32, 512), (1, 64, 64, 512), (1, 128, 128, 256),
    ]  # fmt: skip
    assert sum(shape[-1] for shape in shapes) == 2816
    assert features["middle"].shape == (1, 8, 8, 1024)
    assert features["input_12"].shape == (1, 16, 16, 512)


# --- names, layouts and orders --------------------------------------------------------------------


def official_entry(path, settings):
    """The official name of one of our parameters."""
    text = re.sub(r"(kernel|scale)$", "weight", path)
    if place := re.match(r"output_(\d+)\.enlarge\.", text):
        level = settings.levels - 1 - int(place[1]) // (settings.res_blocks + 1)
        position = 2 if 2**level in settings.attention_factors else 1
        inner = "" if settings.resample_in_blocks else "conv."
        text = text.replace(".enlarge.", f".enlarge{position}.{inner}")
    for ours, theirs in (
        (r"^time1", "time_embed.0"), (r"^time2", "time_embed.2"), (r"^classes", "label_emb.weight"),
        (r"^norm", "out.0"), (r"^head", "out.2"), (r"^input_0\.", "input_blocks.0.0."),
        (r"^(in|out)put_(\d+)\.residual", r"\1put_blocks.\2.0"),
        (r"^(in|out)put_(\d+)\.attention", r"\1put_blocks.\2.1"),
        (r"^input_(\d+)\.conv\.", r"input_blocks.\1.0.op."),
        (r"^output_(\d+)\.enlarge(\d)\.", r"output_blocks.\1.\2."),
        (r"^middle\.residual1", "middle_block.0"), (r"^middle\.attention", "middle_block.1"),
        (r"^middle\.residual2", "middle_block.2"), (r"\.out\.(?=weight|bias)", ".proj_out."),
        (r"\.norm1\.", ".in_layers.0."), (r"\.conv1\.", ".in_layers.2."),
        (r"\.emb\.", ".emb_layers.1."), (r"\.norm2\.", ".out_layers.0."),
        (r"\.conv2\.", ".out_layers.3."), (r"\.skip\.", ".skip_connection."),
    ):  # fmt: skip
        text = re.sub(ours, theirs, text)
    return text


def official_array(name, array):
    """One of our arrays as PyTorch lays it out."""
    if array.ndim == 4:
        array = np.transpose(array, (3, 2, 0, 1))
        return array[..., 0] if re.search(r"qkv|proj_out", name) else array
    return array.T if array.ndim == 2 and name != "label_emb.weight" else array


@pytest.mark.parametrize("change", VARIANTS.values(), ids=VARIANTS)
def test_loaded_file_is_written_back_the_same(change):
    settings = dataclasses.replace(SMALL, **change)
    arrays = random_file(settings)
    written = {}
    for path, array in flat(load_adm(arrays, settings, "new")).items():
        name = official_entry(path, settings)
        assert array.dtype == np.float32
        written[name] = official_array(name, array)
    assert written.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(written[name], array, err_msg=name)


def head_by_head(arrays, settings):
    """The same network as a legacy file, row by row: head, then q, k or v, then channel."""
    arrays = dict(arrays)
    for name, new in arrays.items():
        if ".qkv." not in name:
            continue
        width, up = len(new) // 3, name.startswith("output")
        heads = settings.num_heads(width, up)
        each = width // heads
        legacy = np.empty_like(new)
        for head in range(heads):
            for part in range(3):
                rows = slice(each * (3 * head + part), each * (3 * head + part + 1))
                legacy[rows] = new[width * part + each * head : width * part + each * (head + 1)]
        arrays[name] = legacy
    return arrays


@pytest.mark.parametrize(("heads", "heads_up", "head_channels"), [
    (2, 4, -1), (1, 1, -1), (9, 9, 16),
])  # fmt: skip
def test_both_orders_of_one_network_load_alike(heads, heads_up, head_channels):
    settings = dataclasses.replace(
        SMALL, heads=heads, heads_up=heads_up, head_channels=head_channels
    )
    new = random_file(settings)
    legacy = head_by_head(new, settings)
    ours, theirs = (flat(load_adm(*each)) for each in (
        (new, settings, "new"), (legacy, settings, "legacy")))  # fmt: skip
    for path, array in ours.items():
        np.testing.assert_array_equal(theirs[path], array, err_msg=path)
    mistaken = flat(load_adm(legacy, settings, "new"))
    other = {path for path, array in ours.items() if not np.array_equal(mistaken[path], array)}
    assert all(".qkv." in path for path in other)
    changed = 0 if heads == 1 else sum(".qkv." in path for path in ours)
    assert len(other) == changed  # the order of a single head is the same in both


@pytest.mark.golden
def test_recorded_files_have_a_place_for_every_tensor(golden):
    for path in golden("adm/unet_*.json"):
        record = json.loads(path.read_text())
        known = from_flags(**flags_of(record))
        arrays = {}
        for file in record["weight_files"]:
            arrays |= read_arrays(path.with_name(file))
        leaves = flat(load_adm(arrays, known.settings, known.order))
        assert len(arrays) == len(leaves) == record["num_tensors"]
        assert sum(leaf.size for leaf in leaves.values()) == record["num_params"]
        for leaf, array in leaves.items():
            name = official_entry(leaf, known.settings)
            if ".qkv." not in name or known.order == "new":
                np.testing.assert_array_equal(official_array(name, array), arrays[name])


def flags_of(record):
    """The flags of a recorded network, without what the file adds to them."""
    names = from_flags.__kwdefaults__
    return {name: record[name] for name in names if record.get(name) is not None}


# --- files of another network ---------------------------------------------------------------------


@functools.cache
def small_zeros():
    return without_memory(SMALL)


def refusal(arrays, settings=SMALL, order="new", source="x.pt"):
    with pytest.raises(UserError) as caught:
        load_adm(arrays, settings, order, source)
    return str(caught.value)


def test_leftover_tensor_is_named():
    name = "middle_block.3.in_layers.0.weight"
    sentence = refusal(small_zeros() | {name: np.zeros(64, np.float32)})
    assert sentence.startswith("x.pt does not match the requested network: ")
    assert f": {name} has no counterpart. " in sentence


def test_missing_tensors_are_named_and_counted():
    arrays = dict(small_zeros())
    del arrays["output_blocks.1.2.out_layers.3.weight"], arrays["time_embed.2.bias"]
    sentence = refusal(arrays)
    pattern = r"(time2\.bias|enlarge\.conv2\.kernel) is missing; .* is missing\. No"
    assert re.search(pattern, sentence)


@pytest.mark.parametrize(("name", "shape", "has"), [
    ("input_blocks.1.0.in_layers.2.weight", (32, 32, 1, 1), (1, 1, 32, 32)),
    ("time_embed.0.weight", (32, 128), (128, 32)),
    ("middle_block.1.qkv.weight", (64, 64, 1), None),
    ("middle_block.1.qkv.weight", (), None),
    ("middle_block.1.qkv.bias", (), ()),
    ("out.0.weight", (16,), (16,)),
])  # fmt: skip
def test_misshapen_tensor_is_named_with_both_shapes(name, shape, has):
    for order in ORDERS:
        sentence = refusal(small_zeros() | {name: np.zeros(shape, np.float32)}, order=order)
        assert re.search(rf"{re.escape(name)} is \(.*\), where \(.*\) is expected\. ", sentence)
        if has is not None:
            assert f"is {has}, where" in sentence


def test_two_tensors_for_one_place_are_refused():
    arrays = dict(small_zeros())
    arrays["output_blocks.1.1.in_layers.0.bias"] = arrays["output_blocks.1.2.in_layers.0.bias"]
    assert "x.pt has both output_blocks.1" in refusal(arrays)


def test_other_flags_are_told_which_published_network_fits():
    arrays = without_memory(PUBLISHED["lsun_cat"].settings)
    sentence = refusal(arrays, PUBLISHED["imagenet256"].settings)
    assert "classes is missing. It fits " in sentence
    fitting = {"lsun_bedroom", "lsun_cat", "lsun_horse", "ffhq", "lsun_horse_nodropout",
               "imagenet256_uncond"}  # fmt: skip
    named = re.search(r"It fits (.*): give", sentence)[1]
    assert set(named.split(", ")) == fitting


def test_file_that_fits_nothing_is_told_to_give_its_flags():
    arrays = small_zeros()
    sentence = refusal(arrays, dataclasses.replace(SMALL, attention_factors=(1, 2)))
    assert "; and " in sentence and " more. No published" in sentence
    assert sentence.endswith("give the settings that it was trained with.")


@pytest.mark.parametrize(("change", "clause"), [
    (dict(num_classes=10), r"classes is missing\."),
    (dict(learn_sigma=False), r"out\.2\.weight is \(3, 3, 32, 6\), where \(3, 3, 32, 3\) is"),
    (dict(scale_shift=False), r"emb_layers\.1\.weight is \(128, 64\), where \(128, 32\) is"),
    (dict(resample_in_blocks=False), r"blocks\.2\.0\.in_layers\.0\.weight has no counterpart"),
    (dict(res_blocks=2), r"input_blocks\.3\.0\.in_layers\.2\.weight is \(3, 3, 32, 64\), where"),
])  # fmt: skip
def test_wrong_flags_say_what_differs(change, clause):
    assert re.search(clause, refusal(small_zeros(), dataclasses.replace(SMALL, **change)))


# --- flags ----------------------------------------------------------------------------------------


def test_defaults_are_those_of_the_training_script():
    known = from_flags()
    assert known.settings == ADMSettings(
        channels=128, channel_mult=(1, 2, 3, 4), res_blocks=2, attention_factors=(4, 8), heads=4,
        heads_up=-1, head_channels=-1, resample_in_blocks=False, scale_shift=True, num_classes=0,
        learn_sigma=False, dropout=0.0,
    )  # fmt: skip
    assert (known.image_size, known.order) == (64, "legacy")
    assert known.diffusion["schedule"] == "linear" and known.diffusion["steps"] == 1000
    assert known.diffusion["variance"] == "fixed_large" and known.diffusion["loss"] == "simple"
    assert from_flags(predict_xstart=True).diffusion["target"] == "image"
    assert from_flags(learn_sigma=True).diffusion["variance"] == "learned"
    assert from_flags(class_cond=True).settings.num_classes == 1000


@pytest.mark.parametrize(("size", "widths"), [
    (64, (1, 2, 3, 4)), (128, (1, 1, 2, 3, 4)), (256, (1, 1, 2, 2, 4, 4)),
    (512, (0.5, 1, 1, 2, 2, 4, 4)),
])  # fmt: skip
def test_levels_follow_from_the_image_size(size, widths):
    settings = from_flags(image_size=size, attention_resolutions=(16, 8)).settings
    assert settings.widths == tuple(int(128 * width) for width in widths)
    assert settings.attention_factors == (size // 16, size // 8)


@pytest.mark.parametrize(("flags", "sentence"), [
    (dict(image_size=96), "image_size is 96, for which no channel_mult is known"),
    (dict(attention_resolutions=(16, 7)), "holds 7, which does not divide image_size 64"),
    (dict(attention_resolutions=(0,)), "holds 0, which does not divide"),
    (dict(attention_resolutions=(4,)), "attention_factors holds 16, but 4 levels reduce by 1, 2"),
    (dict(noise_schedule="cosin"), 'unknown schedule "cosin".*cosine'),
    (dict(num_channels=48), "gives a level of 48 channels, but each must be a multiple of 32"),
    (dict(channel_mult=(0, 1)), "gives a level of 0 channels"),
    (dict(num_heads=3), "512 channels cannot be shared evenly by heads"),
    (dict(num_heads=0), "cannot be shared evenly"),
    (dict(num_heads_upsample=5), "heads_up 5"),
    (dict(num_head_channels=48), "head_channels 48"),
    (dict(num_head_channels=0), "head_channels 0"),
])  # fmt: skip
def test_flags_that_make_no_network_are_refused(flags, sentence):
    with pytest.raises(UserError, match=sentence):
        from_flags(**flags)
