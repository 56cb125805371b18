"""ConvNeXt against recorded activations, and by itself."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffseg_jax.models.convnext import ConvNeXt, ConvNeXtBlock
from diffseg_jax.models.network import Network
from diffseg_jax.weights.formats import read_arrays
from diffseg_jax.weights.tables import convert

LIMIT = 2e-5  # float32, of the largest recorded value
# Compiling takes far longer than running networks this small.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
TINY = dict(channels=(4, 8, 8, 12), depths=(1, 2, 1, 0))
BLOCK = r"backbone\.stages\.(\d+)\.(\d+)\."
TABLE = (
    (r"backbone\.downsample_layers\.0\.0\.weight", "stem.conv.kernel", "oihw->hwio"),
    (r"backbone\.downsample_layers\.0\.0\.bias", "stem.conv.bias", "o->o"),
    (r"backbone\.downsample_layers\.0\.1\.weight", "stem.norm.scale", "o->o"),
    (r"backbone\.downsample_layers\.0\.1\.bias", "stem.norm.bias", "o->o"),
    (r"backbone\.downsample_layers\.(\d)\.0\.weight", "down{0}.norm.scale", "o->o"),
    (r"backbone\.downsample_layers\.(\d)\.0\.bias", "down{0}.norm.bias", "o->o"),
    (r"backbone\.downsample_layers\.(\d)\.1\.weight", "down{0}.conv.kernel", "oihw->hwio"),
    (r"backbone\.downsample_layers\.(\d)\.1\.bias", "down{0}.conv.bias", "o->o"),
    (BLOCK + "gamma", "stage{0}.block{1}.gamma", "o->o"),
    (BLOCK + r"depthwise_conv\.weight", "stage{0}.block{1}.depthwise.kernel", "cihw->hwic"),
    (BLOCK + r"depthwise_conv\.bias", "stage{0}.block{1}.depthwise.bias", "o->o"),
    (BLOCK + r"norm\.weight", "stage{0}.block{1}.norm.scale", "o->o"),
    (BLOCK + r"norm\.bias", "stage{0}.block{1}.norm.bias", "o->o"),
    (BLOCK + r"pointwise_conv(\d)\.weight", "stage{0}.block{1}.mlp.fc{2}.kernel", "oi->io"),
    (BLOCK + r"pointwise_conv(\d)\.bias", "stage{0}.block{1}.mlp.fc{2}.bias", "o->o"),
    (r"backbone\.norm(\d)\.weight", "norm{0}.scale", "o->o"),
    (r"backbone\.norm(\d)\.bias", "norm{0}.bias", "o->o"),
)


def convnext(**options):
    return Network(lambda rngs: ConvNeXt(rngs=rngs, **options))


def difference(actual, expected):
    """Largest difference as a share of the largest expected value."""
    assert actual.shape == expected.shape
    return np.max(np.abs(np.asarray(actual, np.float64) - expected)) / np.max(np.abs(expected))


def filled(network, seed=0):
    """Random values for every parameter, scaled so that activations stay near 1."""
    generator = np.random.default_rng(seed)

    def draw(path, leaf):
        noise = generator.standard_normal(leaf.shape, np.float32)
        if path[-1].key == "kernel":
            return jnp.asarray(noise / math.sqrt(math.prod(leaf.shape[:-1])))
        return jnp.asarray(0.1 * noise + (path[-1].key in ("scale", "gamma")))

    return jax.tree_util.tree_map_with_path(draw, network.abstract["params"])


@functools.cache
def forward(network):
    return quick(lambda params, image, keys: network.bind(params, {})(image, keys))


@functools.cache
def tiny():
    network = convnext(**TINY)
    return network, filled(network)


def images(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def recorded(path, **options):
    """(network, params, inputs, {(k, our name): recorded array}) of a case."""
    config, arrays = json.loads(path.read_text())["config"], np.load(path.with_suffix(".npz"))
    options = {"down_epsilon": config["eps_downsample"], **options}
    network = convnext(channels=config["channels"], depths=config["depths"], **options)
    shapes = jax.tree.map(lambda leaf: leaf.shape, network.abstract["params"])
    released = read_arrays(path.with_suffix(".pth"))  # without the prefix that all names share
    released = {f"backbone.{name.removeprefix('backbone.')}": a for name, a in released.items()}
    params = convert(released, TABLE, shapes)
    inputs, outputs = {}, {}
    for name in arrays.files:
        array = arrays[name].transpose(0, 2, 3, 1)
        k, _, rest = name.partition("_")
        if not rest:
            inputs[k] = array
        elif rest.startswith("s") and rest[1].isdigit():  # s0b0
            outputs[k, rest.replace("s", "stage").replace("b", ".block")] = array
        else:
            outputs[k, rest] = array
    return network, params, inputs, outputs


@pytest.mark.golden
def test_recorded_activations(golden):
    for path in golden("ddp/convnext*.json"):
        network, params, inputs, outputs = recorded(path)
        assert inputs and outputs
        for k, image in inputs.items():
            maps, features = forward(network)(params, image, None)
            ours = features | {f"out{i}": x for i, x in enumerate(maps)}
            for name in [name for which, name in outputs if which == k]:
                assert difference(ours[name], outputs.pop((k, name))) < LIMIT, (path.name, k, name)
        assert not outputs  # all were compared


@pytest.mark.golden
def test_the_epsilon_before_downsampling_matters(golden):
    for path in golden("ddp/convnext*.json"):
        epsilon = json.loads(path.read_text())["config"]["eps_downsample"]
        for down_epsilon, fits in ((epsilon, True), (epsilon / 10, False)):
            network, params, inputs, outputs = recorded(path, down_epsilon=down_epsilon)
            (k, image), *_ = inputs.items()
            features = forward(network)(params, image, None)[1]
            error = difference(features["down1"], outputs[k, "down1"])
            assert error < LIMIT if fits else 10 * LIMIT < error < 0.5, down_epsilon


@pytest.mark.parametrize(("depths", "channels", "millions"), [
    ((3, 3, 9, 3), (96, 192, 384, 768), 27.82),
    ((3, 3, 27, 3), (96, 192, 384, 768), 49.46),
    ((3, 3, 27, 3), (128, 256, 512, 1024), 87.57),
    ((3, 3, 27, 3), (192, 384, 768, 1536), 196.23),
])  # fmt: skip
def test_parameter_counts_of_the_published_sizes(depths, channels, millions):
    params = convnext(channels=channels, depths=depths).abstract["params"]
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert round(count / 1e6, 2) == millions


@pytest.mark.parametrize("size", [(32, 32), (39, 65), (67, 93)])
def test_sizes_of_maps_round_down(size):
    network, params = tiny()
    image = jnp.zeros((1, *size, 3))
    maps, features = jax.eval_shape(lambda x: network.bind(params, {})(x), image)
    height, width = (side // 4 for side in size)
    for i, x in enumerate(maps):
        assert x.shape == (1, height, width, TINY["channels"][i])
        height, width = height // 2, width // 2
    blocks = {f"stage{i}.block{j}" for i, n in enumerate(TINY["depths"]) for j in range(n)}
    assert set(features) == blocks | {"stem", "down1", "down2", "down3"}


def test_pixels_that_fill_no_patch_are_not_read():
    network, params = tiny()
    image = images(1, 35, 33, 3)
    cut, _ = forward(network)(params, image[:, :32, :32], None)
    for x, expected in zip(forward(network)(params, image, None)[0], cut):
        np.testing.assert_array_equal(x, expected)


def test_a_batch_is_its_images():
    network, params = tiny()
    image = images(2, 32, 32, 3)
    together, _ = forward(network)(params, image, None)
    for k in range(2):
        alone, _ = forward(network)(params, image[k : k + 1], None)
        for x, expected in zip(together, alone):
            assert difference(x[k : k + 1], expected) < 1e-5


def test_drop_path_draws_by_image():
    network = convnext(drop_path=0.5, **TINY)
    params, image = filled(network), np.repeat(images(1, 32, 32, 3), 8, 0)
    keys = jax.random.split(jax.random.key(0), 8)
    _, features = forward(network)(params, image, keys)
    first, last = (np.asarray(features[name]) for name in ("stage0.block0", "stage2.block0"))
    np.testing.assert_allclose(first, first[:1].repeat(8, 0), rtol=1e-5, atol=1e-5)  # rate 0
    assert len({row.tobytes() for row in last}) > 1
    turned = forward(network)(params, image, keys[::-1])[1]["stage2.block0"]
    np.testing.assert_allclose(turned, last[::-1], rtol=1e-5, atol=1e-5)
    down = features["down2"]
    kept = [not np.array_equal(row, before) for row, before in zip(last, down)]
    assert 0 < sum(kept) < 8  # the last block has the full rate
    undropped = forward(network)(params, image[:1], None)[0]
    plain = forward(tiny()[0])(params, image[:1], None)[0]
    np.testing.assert_array_equal(undropped[3], plain[3])


def test_rates_rise_in_a_line_over_all_blocks():
    module = convnext(drop_path=0.4, channels=(4, 4, 4, 4), depths=(2, 1, 1, 1)).bind
    network = module(filled(convnext(channels=(4, 4, 4, 4), depths=(2, 1, 1, 1))), {})
    names = [(0, 0), (0, 1), (1, 0), (2, 0), (3, 0)]
    rates = [getattr(getattr(network, f"stage{i}"), f"block{j}").rate for i, j in names]
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.3, 0.4])


def test_recomputing_changes_nothing():
    small = dict(channels=(4, 4, 4, 4), depths=(1, 1, 0, 0), drop_path=0.3)
    params = filled(convnext(**small))
    image, keys = images(2, 32, 32, 3), jax.random.split(jax.random.key(0), 2)

    def gradients(remat):
        made = convnext(remat=remat, **small)
        loss = lambda p: sum(jnp.sum(jnp.sin(x)) for x in made.bind(p, {})(image, keys)[0])
        return quick(jax.grad(loss))(params)

    for a, b in zip(*(jax.tree.leaves(gradients(remat)) for remat in (False, True))):
        assert difference(a, np.asarray(b)) < 1e-4
        assert np.any(np.asarray(a) != 0)


def test_bfloat16_is_near_float32():
    network, params = tiny()
    image = images(1, 32, 32, 3)
    half, _ = forward(convnext(dtype=jnp.bfloat16, **TINY))(params, image, None)
    for x, expected in zip(half, forward(network)(params, image, None)[0]):
        assert x.dtype == jnp.bfloat16
        assert difference(x.astype(jnp.float32), np.asarray(expected)) < 0.1


def test_parameters_have_their_initial_values():
    params = quick(convnext(**TINY).init)(jax.random.key(0))["params"]
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path[-1].key
        if name == "kernel":
            assert np.max(np.abs(leaf)) < 0.05 and 0.012 < np.std(leaf) < 0.028
        else:
            np.testing.assert_array_equal(leaf, 0.0 if name == "bias" else 1.0)


def test_a_block_computes_its_convolution_once_in_evaluation():
    """XLA's CPU backend would repeat all taps in each of the three passes of the norm."""
    make = lambda: ConvNeXtBlock(8, rate=0.0, name="", dtype=jnp.float32, rngs=nnx.Rngs(0))
    block = nnx.view(nnx.eval_shape(make), use_running_average=True)
    x = jax.ShapeDtypeStruct((1, 8, 8, 8), jnp.float32)
    compiled = quick(lambda block, x: block(x)).lower(block, x).compile()
    assert 49 <= compiled.as_text().count(" multiply(") < 2 * 49
