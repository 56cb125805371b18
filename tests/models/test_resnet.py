"""ResNets against recorded activations of SwAV's networks, and by themselves."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffseg_jax.errors import UserError
from diffseg_jax.models.network import Network
from diffseg_jax.models.resnet import (
    ResNet,
    ResNetSettings,
    resnet_default_taps,
    resnet_taps,
    swav_default_taps,
)
from diffseg_jax.models.taps import PixelFeatures
from diffseg_jax.weights.formats import read_arrays
from diffseg_jax.weights.resnet import load_resnet, resnet_settings

# Compiling takes far longer than running networks this small.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SMALL = ResNetSettings(stem=2, inner=(1, 2, 3, 4), channels=(5, 6, 7, 8), depths=(2, 1, 1, 3))


@functools.cache
def network(settings):
    return Network(lambda rngs: ResNet(settings, rngs=rngs))


def shapes_of(settings, size, taps):
    """The maps of an image as shapes, without weights."""
    net, images = network(settings), jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    run = lambda params, x: net.bind_eval(params, {})(x, taps)
    return jax.eval_shape(run, net.abstract["params"], images)


def embedding_of(arrays, maps):
    """SwAV's normalised embedding and its scores, from the last stage."""
    x = np.mean(maps["layer4"], (1, 2)) @ arrays["projection_head.0.weight"].T
    x += arrays["projection_head.0.bias"]
    weight, bias, mean, var = (
        arrays[f"projection_head.1.{entry}"]
        for entry in ("weight", "bias", "running_mean", "running_var")
    )
    x = np.maximum((x - mean) / np.sqrt(var + 1e-5) * weight + bias, 0)
    x = x @ arrays["projection_head.3.weight"].T + arrays["projection_head.3.bias"]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    return x, x @ arrays["prototypes.weight"].T


@pytest.mark.golden
def test_recorded_activations(golden):
    for path in golden("baselines/swav*.json"):
        case, recorded = json.loads(path.read_text()), dict(np.load(path.with_suffix(".npz")))
        if case.get("kind") != "swav_resnet":
            continue
        close = functools.partial(np.testing.assert_allclose, **case["tolerance"]["features"])
        arrays = read_arrays(path.with_name(case["checkpoint"]))
        settings = resnet_settings(arrays, "the file")
        assert settings.depths == tuple(case["config"]["layers"])
        taps = swav_default_taps(settings)
        assert taps == tuple(f"{name}.in" for name in case["tap_names"])
        net, loaded = network(settings), load_resnet(arrays, settings, "the file")
        names = resnet_taps(settings)
        run = quick(lambda params, x, net=net, n=names: net.bind_eval(params, {})(x, n))
        for which in sorted(name[-1] for name in recorded if name.startswith("input_")):
            image = recorded.pop(f"input_{which}").transpose(0, 2, 3, 1)
            maps = run(loaded["params"], image)
            for number, tap in enumerate(taps):
                close(maps[tap], recorded.pop(f"tap{number}_{which}").transpose(0, 2, 3, 1))
            if which == "a":
                stacked = PixelFeatures(tuple(maps[tap] for tap in taps), image.shape[1:3])
                rows, columns = np.divmod(recorded.pop("pixel_idx"), image.shape[2])
                found = stacked.gather(np.zeros_like(rows), rows, columns)
                close(found, recorded.pop("pixel_feats"))
                embedding, scores = embedding_of(arrays, maps)
                close(embedding, recorded.pop("embedding"))
                close(scores, recorded.pop("prototype_scores"))
        assert not recorded  # all were compared


@pytest.mark.parametrize(("width", "total", "numbers"), [
    (1, 6720, 23_508_032), (2, 13440, 93_907_072),
])  # fmt: skip
def test_swav_has_the_channels_and_the_parameters_of_the_paper(width, total, numbers):
    standard = ResNetSettings()
    wider = lambda sizes: tuple(width * size for size in sizes)
    settings = ResNetSettings(width * 64, wider(standard.inner), wider(standard.channels))
    maps = shapes_of(settings, (256, 256), swav_default_taps(settings))
    assert sum(leaf.shape[-1] for leaf in maps.values()) == total
    assert [maps[tap].shape[1] for tap in swav_default_taps(settings)] == [
        64, 64, 64, 32, 32, 16, 16, 16, 8,
    ]  # fmt: skip
    sizes = [math.prod(leaf.shape) * (1 if len(leaf.shape) > 1 else 2)  # bias and scale of a norm
             for leaf in jax.tree.leaves(network(settings).abstract["params"])]  # fmt: skip
    assert sum(sizes) == numbers


def test_the_output_of_a_stage_enters_the_next_one():
    net = network(SMALL)
    draw = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: draw.standard_normal(leaf.shape, np.float32),
                          net.abstract["params"])  # fmt: skip
    image = draw.standard_normal((1, 37, 50, 3), np.float32)
    maps = quick(lambda p, x: net.bind_eval(p, {})(x, resnet_taps(SMALL)))(params, image)
    for stage in (1, 2, 3):
        np.testing.assert_array_equal(maps[f"layer{stage}"], maps[f"layer{stage + 1}.0.in"])
    shapes = [maps[tap].shape[1:] for tap in ("stem", *resnet_default_taps(SMALL))]
    assert shapes == [(19, 25, 2), (10, 13, 5), (5, 7, 6), (3, 4, 7), (2, 2, 8)]


def test_nothing_is_computed_after_the_last_tap():
    net, images = network(SMALL), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)

    def equations(*taps):
        run = lambda p, x: net.bind_eval(p, {})(x, taps)
        return len(jax.make_jaxpr(run)(net.abstract["params"], images).eqns)

    order = [equations(tap) for tap in ("stem", "layer1.0.in", "layer1.1.in", "layer4")]
    assert order == sorted(set(order)) and equations("layer1", "stem") < order[-1]
    with pytest.raises(UserError, match='unknown tap "layer2.1.in"'):
        equations("layer2.1.in")
