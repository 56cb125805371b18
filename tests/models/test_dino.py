"""DINOv2 and DINOv3 against recorded outputs of their programs, and by themselves."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffseg_jax.errors import UserError
from diffseg_jax.layers.norm import in_float32
from diffseg_jax.models.dino import (
    Dino,
    DinoSettings,
    dino_default_taps,
    dino_taps,
    resized_positions,
    rotary_angles,
    rotation,
)
from diffseg_jax.models.network import Network
from diffseg_jax.weights.dino import dino_settings, load_dino
from diffseg_jax.weights.formats import read_arrays

pytestmark = pytest.mark.quick

FORWARD = 1e-5  # limit in float32, of the largest recorded value
TINY = DinoSettings(patch=2, width=8, depth=3, heads=2, hidden=8, grid=3)


def recorded_cases(pattern, golden):
    """(case, config, weights file, recorded arrays) of each."""
    for path in golden(pattern):
        weights = next(path.parent.glob(f"{path.stem}.*t[eh]*"))
        config = json.loads(path.read_text())["config"]
        yield path.stem, config, weights, dict(np.load(path.with_suffix(".npz")))


def outputs(network, settings, values, images):
    """Everything that recordings hold, by their names."""
    module = network.bind_eval(**values)
    named = dict(module.tokens(images))
    module.tokens = lambda images: iter(named.items())  # not to compute them twice
    maps = module(images, dino_taps(settings)[-2:])
    tokens = list(named.values())
    *_, before, last = [in_float32(module.norm, x) for x in tokens[-2:]]
    first = 1 + settings.registers
    size = tuple(side // settings.patch for side in images.shape[1:3])
    found = {f"hidden{i:02}": x for i, x in enumerate(tokens)}
    found |= {f"block{i:02}": x for i, x in enumerate(tokens[1:])}
    for i, (x, normed) in enumerate(zip(maps.values(), (before, last))):
        found |= {f"last2_{i}_patches": x.transpose(0, 3, 1, 2), f"last2_{i}_class": normed[:, 0]}
    found |= {"last_hidden_state": last, "norm_class": last[:, 0]}
    found |= {"norm_registers": last[:, 1:first], "norm_patch": last[:, first:]}
    if settings.rotary:
        angles = rotary_angles(*size, module.periods[...])
        return found | {"rope_sin": jnp.sin(angles), "rope_cos": jnp.cos(angles)}
    return found | {"pos_embed": resized_positions(module.position_embedding[...], size, settings)}


def worst_error(config, weights, recorded):
    """The largest error of all recorded arrays and the name of the array."""
    arrays = read_arrays(weights)
    settings = dino_settings(arrays, weights.name, config["num_heads"])
    network = Network(lambda rngs: Dino(settings, rngs=rngs))
    values = load_dino(arrays, settings, weights.name)
    inputs = [name for name in recorded if name.startswith("input_")]
    images = {name[len("input_") :]: recorded[name].transpose(0, 2, 3, 1) for name in inputs}
    run = functools.partial(outputs, network, settings)
    found = jax.jit(lambda values, images: {i: run(values, x) for i, x in images.items()})(
        values, images
    )
    errors = {}
    for name in set(recorded) - set(inputs):
        kind, _, i = name.rpartition("_")
        actual = np.reshape(found[i][kind], recorded[name].shape)
        error = np.abs(actual - recorded[name]).max() / np.abs(recorded[name]).max()
        errors[name] = error
    return max(zip(errors.values(), errors))


@pytest.mark.golden
@pytest.mark.parametrize("version", [2, 3])
def test_all_recorded_outputs_agree(version, golden):
    for case, *given in recorded_cases(f"backbones/dinov{version}_*.json", golden):
        error, name = worst_error(*given)
        assert error < FORWARD, (case, name)


def tiny(settings=TINY):
    network, draw = Network(lambda rngs: Dino(settings, rngs=rngs)), np.random.default_rng(0)
    fill = lambda leaf: draw.standard_normal(leaf.shape, np.float32)
    return network.bind_eval(**jax.tree.map(fill, network.abstract))


def shapes_of(module, shape, taps):
    call = lambda images: module(images, taps)
    images = jax.ShapeDtypeStruct((1, *shape, 3), jnp.float32)
    return {name: found.shape for name, found in jax.eval_shape(call, images).items()}


def test_blocks_after_the_last_tap_are_not_computed():
    module = tiny()
    module.block2 = None
    assert shapes_of(module, (4, 8), ("block1", "block0")) == {
        "block1": (1, 2, 4, 8),
        "block0": (1, 2, 4, 8),
    }
    assert shapes_of(module, (4, 8), ()) == {}


def test_default_taps_are_those_of_the_authors():
    taken = lambda depth: [int(tap[5:]) for tap in dino_default_taps(DinoSettings(depth=depth))]
    assert taken(12) == [2, 5, 8, 11]
    assert taken(24) == [4, 11, 17, 23]
    assert taken(40) == [9, 19, 29, 39]
    assert taken(2) == [0, 1]


@pytest.mark.parametrize(
    ("shape", "below", "above"), [((4, 7), "4x6", "4x8"), ((1, 4), "2x4", "2x4")]
)
def test_an_image_that_is_not_made_of_patches_is_refused(shape, below, above):
    module = tiny()
    with pytest.raises(UserError, match=f"{shape[0]}x{shape[1]} .*{below} or .*{above}"):
        shapes_of(module, shape, ("block0",))
    for size in (below, above):
        assert shapes_of(module, tuple(map(int, size.split("x"))), ("block0",))


def test_an_unknown_tap_is_named():
    with pytest.raises(UserError, match='unknown feature "block3".*Did you mean "block'):
        shapes_of(tiny(), (2, 2), ("block3",))


@pytest.mark.parametrize("registers", [0, 4])
@pytest.mark.parametrize("layout", ["official", "transformers"])
def test_a_constant_table_stays_constant_and_the_class_row_is_kept(registers, layout):
    settings = DinoSettings(grid=3, registers=registers, layout=layout)
    table = np.concatenate([np.full((1, 2), 7.0), np.full((9, 2), 0.5)]).astype(np.float32)
    assert resized_positions(table, (3, 3), settings) is table
    found = resized_positions(table, (5, 2), settings)
    np.testing.assert_allclose(found, np.array([[7.0]] + 10 * [[0.5]]) * [1, 1], rtol=1e-5)


def test_scores_of_rotated_queries_and_keys_depend_on_relative_positions_only():
    draw = np.random.default_rng(0)
    query, key = draw.standard_normal(
        (2, 1, 7, 1, 8), np.float32
    )  # a token without a position, then 2x3
    angles = np.asarray(rotary_angles(2, 3, np.array([1.0, 4.0], np.float32)))
    turns = np.tile(draw.standard_normal(4), 2)

    def scores(angles):
        rotate = rotation(jnp.asarray(angles), 1)
        return jnp.einsum("bqhd,bkhd->qk", rotate(query), rotate(key))

    base, moved = scores(angles), scores(angles + turns)
    np.testing.assert_allclose(moved[1:, 1:], base[1:, 1:], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(base[0, 0], jnp.sum(query[:, 0] * key[:, 0]), rtol=1e-5)
    assert not np.allclose(base[1:, 1:], scores(0 * angles)[1:, 1:], atol=0.1)
