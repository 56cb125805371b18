"""EfficientNet-Lite0 against recorded activations, and by itself."""

import functools
import hashlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffseg_jax.errors import UserError
from diffseg_jax.models.efficientnet_lite import (
    EFFICIENTNET_MEAN,
    EFFICIENTNET_STD,
    EfficientNetLite,
    EfficientNetSettings,
    efficientnet_default_taps,
    efficientnet_taps,
)
from diffseg_jax.models.network import Network
from diffseg_jax.weights.efficientnet_lite import efficientnet_settings, load_efficientnet
from diffseg_jax.weights.formats import read_arrays
from diffseg_jax.weights.packaged import packaged_efficientnet

LIMITS = {"own": 1e-5, "packaged": 5e-5, "float16": 1e-3}  # of the largest recorded value
# Compiling takes far longer than running networks this small.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SMALL = EfficientNetSettings(stem=4, channels=(2, 3, 4, 5, 6, 7, 8), head=9)


@functools.cache
def network(settings):
    return Network(lambda rngs: EfficientNetLite(settings, rngs=rngs))


def difference(actual, expected):
    """Largest difference as a share of the largest expected value."""
    assert actual.shape == expected.shape
    error = np.abs(np.asarray(actual, np.float64) - expected.astype(np.float64))
    return np.max(error) / np.max(np.abs(expected.astype(np.float64)))


def weights_of(path, case):
    """The file beside a recording, or that of the installed package."""
    if "weights_file" not in case:
        return path.with_suffix(".pth")
    found = packaged_efficientnet()
    assert found.as_posix().endswith(case["weights_file"])
    assert hashlib.sha256(found.read_bytes()).hexdigest() == case["sha256"]
    return found


def maps_of(arrays, image):
    """All maps of an image by our names, and the logits."""
    settings = efficientnet_settings(arrays, "the file")
    net, taps = network(settings), efficientnet_taps(settings)
    loaded = load_efficientnet(arrays, settings, "the file")
    run = quick(lambda weights, x: net.bind_eval(weights["params"], weights["stats"])(x, taps))
    maps = run(loaded, image)
    logits = np.mean(maps["head"], (1, 2)) @ arrays["_fc.weight"].T + arrays["_fc.bias"]
    return settings, {**maps, "logits": logits}


@pytest.mark.golden
def test_recorded_activations(golden):
    for path in golden("backbones/efficientnet_*.json"):
        case, arrays = json.loads(path.read_text()), dict(np.load(path.with_suffix(".npz")))
        image = (arrays.pop("image_u8") - np.float32(EFFICIENTNET_MEAN)) / EFFICIENTNET_STD[0]
        np.testing.assert_allclose(image, arrays.pop("input").transpose(0, 2, 3, 1), atol=1e-6)
        settings, ours = maps_of(read_arrays(weights_of(path, case)), image)
        limit = LIMITS["packaged" if "weights_file" in case else "own"]
        for name, array in arrays.items():
            base, _, pixels = name.partition("_pixel")
            mine = ours[base.replace("block0", "block")]
            if pixels == "_idx":
                continue
            if pixels:
                flat = np.asarray(mine).reshape(len(mine), -1, mine.shape[-1])
                assert difference(flat[:, arrays[f"{base}_pixel_idx"]], array) < limit, name
            else:
                expected = array.transpose(0, 2, 3, 1) if array.ndim == 4 else array
                half = array.dtype == np.float16
                assert difference(mine, expected) < (LIMITS["float16"] if half else limit), name
        best = np.argsort(-ours["logits"], axis=1)[:, : len(case["config"]["top5"][0])]
        np.testing.assert_array_equal(best, case["config"]["top5"])
        taps = case["config"]["tap_of_reduction"].values()
        assert efficientnet_default_taps(settings) == tuple(f"block{int(tap[5:])}" for tap in taps)


@pytest.mark.parametrize(("size", "shapes"), [
    ((224, 160), [(112, 80, 2), (56, 40, 3), (28, 20, 4), (14, 10, 6), (7, 5, 8)]),
    ((95, 33), [(47, 16, 2), (23, 8, 3), (11, 4, 4), (5, 2, 6), (2, 1, 8)]),
])  # fmt: skip
def test_the_default_taps_halve_the_sides_and_round_down(size, shapes):
    net, taps = network(SMALL), efficientnet_default_taps(SMALL)
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    run = lambda params, x: net.bind_eval(params, {})(x, taps)
    maps = jax.eval_shape(run, net.abstract["params"], images)
    assert [maps[tap].shape[1:] for tap in taps] == shapes


def test_nothing_is_computed_after_the_last_tap():
    net = network(SMALL)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)

    def equations(*taps):
        run = lambda p, x: net.bind_eval(p, {})(x, taps)
        return len(jax.make_jaxpr(run)(net.abstract["params"], images).eqns)

    assert equations("stem") < equations("block1") == equations("block1", "stem")
    assert equations("block1") < equations("block15") < equations("head")
    with pytest.raises(UserError, match='unknown tap "block16".*Did you mean "block'):
        equations("block16")
