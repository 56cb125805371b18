"""The pixel classifier: recorded training steps, initial values, and its two halves."""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from diffseg_jax.models.network import stats_of
from diffseg_jax.models.pixel_mlp import widths_for
from diffseg_jax.systems.pixel_ensemble import make_member
from diffseg_jax.systems.pixel_fit import PixelFit
from diffseg_jax.systems.recipes import RECIPES
from diffseg_jax.weights.pixel_mlp import load_ensemble

# Compiling takes far longer than running networks this small.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
D, K, WIDTHS = 5, 3, (7, 4)


@pytest.fixture(autouse=True)
def exact_products():
    """Accelerators multiply float32 with fewer digits unless they are told otherwise."""
    with jax.default_matmul_precision("highest"):
        yield


def fit_of(member):
    return PixelFit(None, member, 1, RECIPES["paper"], small_objects=0, on_host=False)


def states(recorded, folder):
    """[before, after] of a recorded run, by way of files as published ones."""
    for index, moment in enumerate(("init", "final")):
        names = {key: key.removeprefix(f"{moment}__") for key in recorded}
        arrays = {name: recorded[key] for key, name in names.items() if name != key}
        with open(folder / f"model_{index}.pth", "wb") as file:
            np.savez(file, **arrays)
    features, classes = recorded["X"].shape[-1], recorded["final_eval_logits_batch0"].shape[-1]
    both = load_ensemble(folder, features, classes)
    both = jax.tree.map(jnp.asarray, both)
    return [jax.tree.map(operator.itemgetter(index), both) for index in range(2)]


def training_step(fit, optimizer, carry, batch):
    """One update with a recorded batch, as the body of a scan."""
    params, stats, state = carry
    (loss, stats), grads = jax.value_and_grad(fit.loss, has_aux=True)(params, stats, *batch)
    updates, state = optimizer.update(grads, state, params)
    return (optax.apply_updates(params, updates), stats, state), loss


@pytest.mark.golden
def test_recorded_training(golden, tmp_path):
    for path in golden("adm/pixel_classifier_training*.npz"):
        recorded = np.load(path)
        folder = tmp_path / path.stem
        folder.mkdir()
        start, end = states(recorded, folder)
        classes = recorded["final_eval_logits_batch0"].shape[-1]
        member = make_member(recorded["X"].shape[-1], classes, widths_for(classes))
        optimizer = RECIPES["paper"].optimizer(len(recorded["X"]))
        step = functools.partial(training_step, fit_of(member), optimizer)
        carry = start["params"], start["stats"], optimizer.init(start["params"])
        run = quick(functools.partial(jax.lax.scan, step))
        batches = jnp.asarray(recorded["X"]), jnp.asarray(recorded["y"], jnp.int32)
        (params, stats, _), losses = run(carry, batches)
        np.testing.assert_allclose(losses, recorded["losses"], rtol=1e-5)
        made, wanted = (flatten_dict(t, sep=".") for t in ({"params": params, "stats": stats}, end))
        assert made.keys() == wanted.keys()
        for name in wanted:
            np.testing.assert_allclose(made[name], wanted[name], rtol=0, atol=2e-5, err_msg=name)
        logits = member.bind_eval(params, stats)(batches[0][0])
        np.testing.assert_allclose(logits, recorded["final_eval_logits_batch0"], rtol=0, atol=1e-3)


@pytest.mark.parametrize(("classes", "widths"), [
    (2, (128, 32)), (29, (128, 32)), (30, (256, 128)), (150, (256, 128)),
])  # fmt: skip
def test_thirty_classes_or_more_use_the_wide_classifier(classes, widths):
    assert widths_for(classes) == widths


@pytest.mark.parametrize(("features", "classes", "count"), [
    (8448, 29, 1_086_877), (8448, 15, 1_086_415), (8448, 30, 2_200_478), (8448, 34, 2_200_994),
])  # fmt: skip
def test_the_papers_classifiers_have_their_number_of_parameters(features, classes, count):
    abstract = make_member(features, classes, widths_for(classes)).abstract["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(abstract)) == count


def test_parameters_have_their_initial_values():
    network = quick(make_member(400, 50, (30, 20)).init)(jax.random.key(0))
    leaves = flatten_dict(network["params"], sep=".") | flatten_dict(network["stats"], sep=".")
    for name, leaf in leaves.items():
        if name.endswith("kernel"):
            assert abs(np.std(leaf) / 0.02 - 1) < 0.1 and abs(np.mean(leaf)) < 2e-3, name
        else:
            np.testing.assert_array_equal(leaf, float(name.endswith(("scale", "var"))), name)


@functools.cache
def moved():
    """A member and values for it of which none is an initial one."""
    member, draw = make_member(D, K, WIDTHS), np.random.default_rng(0)
    make = lambda leaf: jnp.asarray(draw.uniform(0.3, 1.5, leaf.shape), jnp.float32)
    return member, jax.tree.map(make, member.abstract)


def pixels(count, seed=1):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((count, D)), jnp.float32)


@pytest.mark.parametrize("bind", ["bind", "bind_eval"])
def test_the_second_half_goes_on_from_the_first_layer(bind):
    member, values = moved()
    x, first = pixels(6), values["params"]["linear1"]
    whole = getattr(member, bind)(**values)(x)
    half = getattr(member, bind)(**values).after_first(x @ first["kernel"] + first["bias"])
    assert whole.shape == (6, K)
    np.testing.assert_allclose(half, whole, rtol=1e-5, atol=1e-6)


def test_the_prediction_of_a_pixel_does_not_depend_on_others():
    """But while learning, the batch tells every pixel how to be scaled."""
    member, values = moved()
    x = pixels(6)
    logits = member.bind_eval(**values)(x)
    np.testing.assert_allclose(member.bind_eval(**values)(x[:2]), logits[:2], rtol=1e-5)
    learning = member.bind(**values)
    assert np.abs(learning(x)[:2] - member.bind(**values)(x[:2])).max() > 1e-2
    assert not np.allclose(stats_of(learning)["norm1"]["mean"], values["stats"]["norm1"]["mean"])


def test_the_loss_is_a_mean_over_pixels():
    """A batch twice over costs the same and pulls the same way."""
    member, values = moved()
    x, y = pixels(6), jnp.arange(6) % K
    cost = quick(jax.value_and_grad(fit_of(member).loss, has_aux=True))
    (once, stats), grads = cost(values["params"], values["stats"], x, y)
    (twice, _), same = cost(
        values["params"], values["stats"], jnp.concatenate([x, x]), jnp.concatenate([y, y])
    )
    np.testing.assert_allclose(once, twice, rtol=1e-5)
    for path, leaf in flatten_dict(grads).items():
        np.testing.assert_allclose(leaf, flatten_dict(same)[path], rtol=1e-3, atol=1e-5)
    assert jax.tree.structure(stats) == jax.tree.structure(values["stats"])
    logits = np.asarray(member.bind(**values)(x), np.float64)
    chances = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    np.testing.assert_allclose(once, -np.log(chances[np.arange(6), y]).mean(), rtol=1e-4)
