"""The recipe for very few labels: classifiers, the pixels that they see, and changed copies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffseg_jax.data.labels import IGNORE
from diffseg_jax.experiment.fit_images import examples, read_masks
from diffseg_jax.experiment.labelled_pixels import feature_moments, given_to
from diffseg_jax.experiment.plan import make_plan
from diffseg_jax.models import taps
from diffseg_jax.models.taps import PixelFeatures
from diffseg_jax.systems.pixel_ensemble import ensemble_maps, linear_probs, make_member
from diffseg_jax.systems.pixel_fit import PixelFit
from diffseg_jax.systems.recipes import RECIPES
from diffseg_jax.training.fit_loop import Fit, Orders

D, K, WIDTH = 6, 3, 5
RECIPE = RECIPES["regularised"]


def head(width=WIDTH):
    return make_member(D, K, (width,) if width else ())


def random_stats(member, draw):
    """Statistics of a member with a mean and a deviation that matter."""
    stats = jax.jit(member.init)(jax.random.key(0))["stats"]
    mean, deviation = draw.normal(size=D), draw.uniform(0.5, 2, D)
    return {**stats, "mean": jnp.asarray(mean, jnp.float32),
            "deviation": jnp.asarray(deviation, jnp.float32)}  # fmt: skip


@pytest.mark.parametrize("width", [WIDTH, 0])
def test_maps_are_those_of_standardised_features(width):
    """The first layer takes features as they are: mean and deviation are folded into it."""
    member, draw = head(width), np.random.default_rng(0)
    networks = [jax.jit(member.init)(jax.random.key(i)) for i in range(2)]
    stats = [{**random_stats(member, draw), "seed": n["stats"]["seed"]} for n in networks]
    join = lambda *leaves: jnp.stack(leaves)
    ensemble = {
        "params": jax.tree.map(join, *(n["params"] for n in networks)),
        "stats": jax.tree.map(join, *stats),
    }
    maps = jnp.asarray(draw.normal(size=(1, 2, 3, D)), jnp.float32)
    found = jax.jit(functools.partial(ensemble_maps, member))(
        ensemble, PixelFeatures((maps,), (2, 3))
    )
    probs = 0
    for network, own in zip(networks, stats, strict=True):
        layers = network["params"]
        x = (maps - own["mean"]) / own["deviation"]
        x = x @ layers["linear1"]["kernel"] + layers["linear1"]["bias"]
        if width:
            x = jnp.maximum(x, 0) @ layers["linear2"]["kernel"] + layers["linear2"]["bias"]
        probs += jax.nn.softmax(x) / 2
    np.testing.assert_allclose(found["probs"], probs, atol=1e-5)


def test_a_probe_is_an_ensemble_of_one_linear_member():
    """As a layer it holds the mean and deviation of the features, and only they decide."""
    member, draw = head(0), np.random.default_rng(2)
    params = jax.jit(member.init)(jax.random.key(0))["params"]
    stats = random_stats(member, draw)
    features = PixelFeatures((jnp.asarray(draw.normal(size=(1, 2, 3, D)), jnp.float32),), (4, 6))
    kernel, bias = member.bind_eval(params, stats).first_layer()
    single = jax.tree.map(lambda leaf: leaf[None], {"params": params, "stats": stats})
    probs = linear_probs({"kernel": kernel, "bias": bias}, features)
    np.testing.assert_allclose(probs, ensemble_maps(member, single, features)["probs"], atol=1e-6)


def test_dropout_is_a_function_of_the_step_and_the_member():
    member = head()
    fit = PixelFit(None, member, 2, RECIPE, small_objects=0, on_host=False)
    first, second = (jax.jit(member.init)(jax.random.key(i)) for i in range(2))
    x, y = jnp.ones((4, D)), jnp.zeros(4, jnp.int32)
    loss = jax.jit(lambda seed, step: fit.loss(
        first["params"], {**first["stats"], "seed": seed}, x, y, step)[0])  # fmt: skip
    seeds = [network["stats"]["seed"] for network in (first, second)]
    losses = [float(loss(seed, step)) for seed in seeds for step in (1, 2)]
    assert len(set(losses)) == 4 and losses[0] == float(loss(seeds[0], 1))
    quiet = fit.loss(first["params"], first["stats"], x, y)[0]
    assert float(quiet) not in losses


def test_rare_classes_are_drawn_more_often_than_they_occur():
    labels = np.repeat([0, 1, 4], [9_000, 900, 100]).astype(np.uint8)
    fit = Fit(
        name="fit", features=None, pixels=np.arange(len(labels)), labels=labels, init=None,
        loss=None, members=2, steps=10, batch_size=2_000, stops=False, own_order=False,
        optimizer=None, frozen={}, every={}, meta={}, seed=3, advice="", power=0.5,
    )  # fmt: skip
    rows = Orders(fit).rows(np.arange(4))
    shares = np.bincount(labels[rows].ravel(), minlength=5)[[0, 1, 4]] / rows.size
    np.testing.assert_allclose(shares, np.sqrt([90, 9, 1]) / np.sqrt([90, 9, 1]).sum(), atol=0.02)
    np.testing.assert_array_equal(Orders(fit).rows(np.array([2]))[0], rows[2])
    assert len(np.unique(rows[0][labels[rows[0]] == 0])) > 700


def test_members_start_with_the_moments_of_the_features():
    draw = np.random.default_rng(1)
    values = draw.normal(3, 2, (4, 8, 8, D)).astype(np.float32)
    features = PixelFeatures((jnp.asarray(values),), (8, 8))
    fit = PixelFit(None, head(), 2, RECIPE, small_objects=0, on_host=False)
    moments = functools.partial(feature_moments, features, np.arange(256), 0)
    stats, programs = given_to(fit, moments)(), taps._read._cache_size()
    feature_moments(features, np.arange(100), 0)
    assert taps._read._cache_size() == programs  # also for other numbers of pixels
    flat = values.reshape(-1, D)
    np.testing.assert_allclose(stats["mean"], flat.mean(0), atol=1e-5)
    np.testing.assert_allclose(stats["deviation"], flat.std(0) + 1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    from configs import tiny_ddpm_seg

    config = tiny_ddpm_seg.get_config()
    config.features.sources, config.run = ("colour",), ("fit",)
    config.stages.fit.start = "random"
    with config.unlocked():
        config.stages.fit.augment.update(variants=2, scale=(0.5, 1.5), flip=True)
    return make_plan(config, tmp_path_factory.mktemp("run")).stages[0]


def test_changed_copies_are_shown_after_each_image(plan):
    read = read_masks(plan, 0, copies=2)
    masks, shown = read.masks, read.shown
    assert shown.tolist() == [[i, copy] for i in plan.indices for copy in range(3)]
    plain = read_masks(plan, 0).masks
    np.testing.assert_array_equal(masks[::3], plain)
    differ = [(masks[copy::3] != plain).mean((1, 2)) > 0.05 for copy in (1, 2)]
    assert np.mean(differ) > 0.5 and (masks[1::3] != masks[2::3]).mean() > 0.05
    again = [example["mask"] for example in examples(plan, shown[:3])]
    np.testing.assert_array_equal(np.stack(again), masks[:3])
    assert (masks != IGNORE).any((1, 2)).all()
