"""The pyramid and its merging against recorded activations, and by themselves."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffseg_jax.errors import UserError
from diffseg_jax.layers.resize import resize_bilinear
from diffseg_jax.models.fpn import FPN, Merge
from diffseg_jax.models.network import Network
from diffseg_jax.weights.formats import read_arrays
from diffseg_jax.weights.tables import convert

LIMIT = 1e-5  # float32, of the largest recorded value
# Compiling takes far longer than running networks this small.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
TABLE = (
    (r"neck\.0\.lateral_convs\.(\d)\.conv\.weight", "lateral{0}.conv.kernel", "oihw->hwio"),
    (r"neck\.0\.lateral_convs\.(\d)\.gn\.weight", "lateral{0}.norm.scale", "o->o"),
    (r"neck\.0\.lateral_convs\.(\d)\.gn\.bias", "lateral{0}.norm.bias", "o->o"),
    (r"neck\.0\.fpn_convs\.(\d)\.conv\.weight", "out{0}.conv.kernel", "oihw->hwio"),
    (r"neck\.0\.fpn_convs\.(\d)\.gn\.weight", "out{0}.norm.scale", "o->o"),
    (r"neck\.0\.fpn_convs\.(\d)\.gn\.bias", "out{0}.norm.bias", "o->o"),
    (r"neck\.1\.down\.conv\.weight", "merge.conv.kernel", "oihw->hwio"),
    (r"neck\.1\.down\.gn\.weight", "merge.norm.scale", "o->o"),
    (r"neck\.1\.down\.gn\.bias", "merge.norm.bias", "o->o"),
)
CHANNELS, SIZES = (3, 4, 5, 6), ((9, 7), (5, 4), (2, 2), (1, 1))


def fpn(channels=CHANNELS, width=8, groups=2, **options):
    return Network(lambda rngs: FPN(channels, width, groups, rngs=rngs, **options))


def difference(actual, expected):
    """Largest difference as a share of the largest expected value."""
    assert actual.shape == expected.shape
    return np.max(np.abs(np.asarray(actual, np.float64) - expected)) / np.max(np.abs(expected))


@functools.cache
def forward(network):
    return quick(lambda params, maps: network.bind(params, {})(maps))


@functools.cache
def tiny():
    network = fpn()
    return network, quick(network.init)(jax.random.key(0))["params"]


def pyramid(batch=1, seed=0):
    generator = np.random.default_rng(seed)
    draw = lambda size, c: generator.standard_normal((batch, *size, c)).astype(np.float32)
    return [draw(size, c) for size, c in zip(SIZES, CHANNELS)]


@pytest.mark.golden
def test_recorded_activations(golden):
    for path in golden("ddp/neck*.json"):
        config, arrays = json.loads(path.read_text())["config"], np.load(path.with_suffix(".npz"))
        network = fpn(config["in_channels"], config["out"], config["groups"])
        shapes = jax.tree.map(lambda leaf: leaf.shape, network.abstract["params"])
        params = convert(read_arrays(path.with_suffix(".pth")), TABLE, shapes)
        nhwc = {name: arrays[name].transpose(0, 2, 3, 1) for name in arrays.files}
        maps = [nhwc.pop(f"in{i}") for i in range(len(config["in_channels"]))]
        merged, features = forward(network)(params, maps)
        ours = features | {"merged": merged}
        assert set(ours) == set(nhwc)
        for name, expected in nhwc.items():
            assert difference(ours[name], expected) < LIMIT, (path.name, name)


@pytest.mark.parametrize(("channels", "millions"), [
    ((96, 192, 384, 768), 2.99), ((128, 256, 512, 1024), 3.12), ((192, 384, 768, 1536), 3.36),
])  # fmt: skip
def test_parameter_counts_of_the_published_sizes(channels, millions):
    params = fpn(channels, 256, 32).abstract["params"]
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert round(count / 1e6, 2) == millions


def test_merging_is_the_convolution_of_what_was_enlarged():
    merge = Merge(4 * 6, 6, 1, groups=2, rngs=nnx.Rngs(0))
    generator = np.random.default_rng(0)
    levels = [jnp.asarray(generator.standard_normal((2, *s, 6)), jnp.float32) for s in SIZES]
    whole = jnp.concatenate([resize_bilinear(x, SIZES[0]) for x in levels], -1)
    expected = merge.norm(whole @ merge.conv.kernel[0, 0])
    assert difference(merge(levels), np.asarray(expected)) < LIMIT


def test_information_flows_down_only():
    """A level sees itself and smaller ones; the merged map sees all."""
    network, params = tiny()
    merged, before = forward(network)(params, pyramid())
    for changed in range(4):
        maps = pyramid()
        maps[changed] = maps[changed] + pyramid(seed=1)[changed]
        after_merged, after = forward(network)(params, maps)
        assert np.max(np.abs(after_merged - merged)) > 1e-3
        for i in range(4):
            moved = np.max(np.abs(after[f"fpn{i}"] - before[f"fpn{i}"]))
            if SIZES[i] == (1, 1) and i == changed:
                continue  # the norm of a single pixel keeps little of it
            assert moved > 1e-3 if i <= changed else moved == 0


def test_a_batch_is_its_images():
    network, params = tiny()
    maps = pyramid(batch=2)
    together, _ = forward(network)(params, maps)
    for k in range(2):
        alone, _ = forward(network)(params, [x[k : k + 1] for x in maps])
        assert difference(together[k : k + 1], np.asarray(alone)) < 1e-5


def test_bfloat16_is_near_float32():
    network, params = tiny()
    half, features = forward(fpn(dtype=jnp.bfloat16))(params, pyramid())
    assert half.dtype == features["fpn2"].dtype == jnp.bfloat16
    expected, _ = forward(network)(params, pyramid())
    assert difference(half.astype(jnp.float32), np.asarray(expected)) < 0.1


def test_parameters_have_their_initial_values():
    params = tiny()[1]
    kernel = params["out1"]["conv"]["kernel"]  # [3, 3, 8, 8]
    bound = math.sqrt(6 / (9 * 8 + 9 * 8))
    assert 0.9 * bound < np.max(np.abs(kernel)) <= bound
    kernel = params["merge"]["conv"]["kernel"]  # [1, 1, 32, 8]
    bound = math.sqrt(6 / (32 + 8))
    assert 0.9 * bound < np.max(np.abs(kernel)) <= bound
    for norm in (params["lateral0"]["norm"], params["merge"]["norm"]):
        np.testing.assert_array_equal(norm["scale"], 1.0)
        np.testing.assert_array_equal(norm["bias"], 0.0)


def test_groups_must_share_the_width():
    with pytest.raises(UserError, match="width is 10, but 4 groups.*width=12"):
        FPN(CHANNELS, 10, 4, rngs=nnx.Rngs(0))
