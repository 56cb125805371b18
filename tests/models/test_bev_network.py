"""The network for maps seen from above against recorded runs of the original, and by itself."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from bev_case import TINY, bev_network, difference, quick, recorded_case, rig
from conftest import filled
from diffseg_jax.data.bev_transforms import affine_maps
from diffseg_jax.diffusion.schedules import LOG_SNRS, add_noise, alpha_sigma
from diffseg_jax.metrics.bev import THRESHOLDS, layer_counts, layer_ious, layer_scores
from diffseg_jax.models.bev_decoder import Enlarged
from diffseg_jax.models.bev_network import (
    codes_of_layers,
    combination_table,
    combinations,
    grid_matrix,
)
from diffseg_jax.systems.ddp_bev import code_of_layers
from diffseg_jax.training.layer_loss import layer_focal_losses
from diffseg_jax.weights.ddp_bev import load_bev
from diffseg_jax.weights.formats import read_arrays

FEATURES, PROBABILITIES, NOISY, LOSSES, GRADIENTS = 1e-5, 5e-5, 1e-5, 1e-5, 1e-4


def nhwc(array):
    return np.moveaxis(array, -3, -1)


@functools.cache
def recorded_run(path):
    """Features, losses and gradients of a recorded case, by one program.

    Only the recorded gradients are computed: (found, {path of a parameter: (ours, recorded)}).
    """
    _, arrays, settings, network, values, cameras = recorded_case(path)
    recorded = {n.removeprefix("train/grad/"): a for n, a in arrays.items() if "/grad/" in n}
    released = read_arrays(path.with_suffix(".pth"))
    params = flatten_dict(values["params"])
    placed = flatten_dict(load_bev({**released, **recorded}, settings, path.name)["params"])
    expected = {
        at: leaf for at, leaf in placed.items() if not np.array_equal(leaf, params[at])
    }  # fmt: skip
    assert len(expected) == len(recorded) > 0
    level = LOG_SNRS["cosine"](arrays["train/times"], np)

    def losses(chosen, params, stats):
        model = network.bind_eval(unflatten_dict({**params, **chosen}), stats)
        x, features = model.encode(nhwc(arrays["img"]), cameras)
        truth = nhwc(arrays["gt"])
        clean = code_of_layers(model, truth, x.shape[1:3])
        noisy = add_noise(clean, nhwc(arrays["train/noise"]), *alpha_sigma(jnp.asarray(level)))
        mixed = model.project_features(x) + model.project_codes(noisy)
        logits = model.decode(mixed, model.constants(x), model.modulations(jnp.asarray(level)))
        each = layer_focal_losses(logits, truth)
        found = features | {"grid_out": model.regrid(x), "losses": each, "noisy": noisy}
        return jnp.sum(each), found

    chosen = {at: params[at] for at in expected}
    run = quick(jax.grad(losses, has_aux=True))
    gradients, found = run(chosen, params, values["stats"])
    return found, {at: (gradients[at], leaf) for at, leaf in expected.items()}


@pytest.mark.golden
def test_recorded_features(golden):
    for path in golden("ddp/bev_ddp_*.json"):
        arrays, (found, _) = recorded_case(path)[1], recorded_run(path)
        names = dict(
            camera_neck="cam_neck", points="geometry", pooled="bev_pooled", bev="bev",
            feature="feature", grid_out="grid_out",
        )  # fmt: skip
        compared = [ours for ours, theirs in names.items() if theirs in arrays]
        assert {"camera_neck", "pooled", "bev", "feature"} <= set(compared)
        for ours in compared:
            expected = arrays[names[ours]]
            expected = expected if ours == "points" else nhwc(expected)
            assert difference(found[ours], expected) < FEATURES, (path.name, ours)


@pytest.mark.golden
def test_recorded_loss_and_gradients(golden):
    for path in golden("ddp/bev_ddp_*.json"):
        told, arrays, *_ = recorded_case(path)
        found, gradients = recorded_run(path)
        if "train/noised" in arrays:
            assert difference(found["noisy"], nhwc(arrays["train/noised"])) < NOISY
        for name, loss in zip(told["config"]["classes"], found["losses"], strict=True):
            expected = told["losses"][f"loss/map/{name}/focal"]
            assert abs(float(loss) - expected) < LOSSES * expected, (path.name, name)
        for at, (ours, expected) in gradients.items():
            assert difference(ours, expected) < GRADIENTS, (path.name, at)


@pytest.mark.golden
def test_recorded_iou(golden):
    for path in golden("ddp/bev_ddp_*.json"):
        told, arrays, *_ = recorded_case(path)
        np.testing.assert_array_equal(THRESHOLDS, np.float32(told["iou_thresholds"]))
        counts = layer_counts(np.moveaxis(arrays["out"], 0, -1), nhwc(arrays["gt"][0]))
        np.testing.assert_allclose(layer_ious(counts).T, arrays["iou"], rtol=1e-6, atol=1e-9)
        scored = layer_scores(counts, told["config"]["classes"])
        assert abs(scored["mIoU"] - told["mean_iou_at_max"]) < 1e-6


# ---- parts by themselves ---------------------------------------------------------------------


def test_the_code_of_a_cell_is_the_mean_of_its_rows():
    table = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
    rows = (table[0] + table[2] + table[3]) / 3  # without the first class, with the others
    expected = 0.01 * (2 / (1 + np.exp(-rows)) - 1)
    found = codes_of_layers(jnp.asarray([0, 1, 1]), jnp.asarray(table), 0.01)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_combinations_are_numbered_both_ways():
    table = combination_table(4)
    np.testing.assert_array_equal(combinations(jnp.asarray(table)), np.arange(16))


def test_a_grid_reads_what_lies_at_its_cells():
    """A ramp over the source is the same ramp at the centres of the target."""
    source, target = (-51.2, 51.2, 0.4), (-50.0, 50.0, 0.5)
    centres = -51.2 + 0.8 * (np.arange(128) + 0.5)
    read = grid_matrix(source, 128, target) @ centres
    np.testing.assert_allclose(read, -50 + 0.5 * (np.arange(200) + 0.5), atol=1e-9)


def test_a_grid_is_zero_beyond_its_source():
    weights = grid_matrix((-2.0, 2.0, 1.0), 4, (-6.0, 6.0, 1.0)).sum(1)
    np.testing.assert_array_equal(weights, [0] * 4 + [1] * 4 + [0] * 4)


def test_a_camera_fills_the_cells_that_it_sees():
    """With one camera that looks ahead, no cell behind it gets features."""
    network = bev_network()
    values = filled(network.abstract)
    matrices = [each[:1] if each.ndim > 2 else each for each in rig(number=1)]
    images = np.random.default_rng(0).standard_normal((1, 1, 32, 48, 3)).astype(np.float32)

    def pooled(values, images, cameras):
        model = network.bind_eval(values["params"], values["stats"])
        return model.encode(images, cameras)[1]["pooled"]

    found = np.abs(quick(pooled)(values, images, affine_maps(*matrices)[None])).sum(-1)[0]
    assert found[:8].max() == 0 and found[9:].max() > 0


def test_features_of_a_lidar_join_those_of_the_cameras():
    settings = dataclasses.replace(
        TINY, lidar=5, features=12, fused=8, fusion=((1, 4, 1), (1, 8, 2))
    )
    assert not settings.problem()
    network = bev_network(settings)

    def encode(params, stats, images, cameras, lidar):
        return network.bind_eval(params, stats).encode(images, cameras, None, lidar)[0]

    sizes = (1, 3, 32, 48, 3), (1, 3, 2, 3, 4), (1, *settings.noisy, 5)
    given = [jax.ShapeDtypeStruct(size, jnp.float32) for size in sizes]
    found = jax.eval_shape(encode, network.abstract["params"], network.abstract["stats"], *given)
    assert found.shape == (1, *settings.noisy, 12)


def test_a_pixel_becomes_a_block_by_its_own_products():
    layer = Enlarged(3, 4, 2, rngs=nnx.Rngs(0))
    view = nnx.view(layer, use_running_average=True)
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 2, 3, 3)), jnp.float32)
    found = view(x)
    assert found.shape == (1, 4, 6, 4)
    first = x[0, 0, 0] @ layer.kernel[0, 1]  # the upper right pixel of the first block
    np.testing.assert_allclose(found[0, 0, 1], nnx.relu(first / np.sqrt(1 + 1e-3)), atol=1e-5)


@pytest.mark.parametrize(("change", "sentence"), [
    (dict(num_classes=12), "num_classes is 12"),
    (dict(width=9), "width is 9"),
    (dict(x=(-12.8, 12.8, 1.7)), "x is (-12.8, 12.8, 1.7), but the size of a cell"),
    (dict(y=(-12.0, 12.0, 2.0)), "multiple of 8"),
    (dict(output=(5.0, -5.0, 1.0)), "output is (5.0, -5.0, 1.0)"),
    (dict(z=(0.0, 0.0, 0.0)), "z is (0.0, 0.0, 0.0)"),
    (dict(z=(-10.0, 10.0, 10.0)), "makes 2 layers"),
    (dict(window=0), "window is 0"),
    (dict(lidar=4, features=7), "take an even number of features"),
])  # fmt: skip
def test_settings_that_make_no_network_are_named(change, sentence):
    assert not TINY.problem()
    assert sentence in dataclasses.replace(TINY, **change).problem()
