"""The train step with a toy loss: parts, rows, metrics, averages, and what must not change."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffseg_jax.training.state import merge_params, network_of, new_state, split_params
from diffseg_jax.training.step import train_step

pytestmark = pytest.mark.quick

SGD = optax.sgd(0.1)
KEY = jax.random.key(0)


def toy_loss(params, stats, batch, key):
    """Weighted squared error of a line; metrics add up row numbers."""
    error = batch["x"] @ params["head"]["slope"] + params["encoder"]["offset"] - batch["y"]
    loss = jnp.sum(batch["weight"] * error**2)
    row = batch["row"].astype(jnp.float32)
    metrics = {"row_times_y": jnp.sum(row * batch["y"]), "rows": jnp.sum(row)}
    return loss, (jnp.sum(batch["weight"]), {"seen": stats["seen"] + len(error)}, metrics)


def noisy_loss(params, stats, batch, key):
    """A loss that draws: its value tells which key came."""
    draw = jax.random.uniform(key)
    return jnp.sum(params["head"]["slope"]) * 0 + draw, (jnp.ones(()), stats, {"draw": draw})


def network():
    params = {
        "encoder": {"offset": jnp.asarray(0.5)},
        "head": {"slope": jnp.asarray([1.0, -1.0, 2.0])},
    }
    return {"params": params, "stats": {"seen": jnp.zeros(())}}


def start(optimizer=SGD, ema=(), frozen=("encoder",)):
    return new_state(network(), lambda path: path[0] not in frozen, optimizer, ema)


@functools.cache
def batch():
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((8, 3)), generator.standard_normal(8)
    weight = np.array([0, 3, 1, 0, 2, 0, 5, 1])  # parts of it weigh differently
    return {name: jnp.asarray(v, jnp.float32) for name, v in dict(x=x, y=y, weight=weight).items()}


@functools.partial(jax.jit, static_argnames=("loss", "accumulate", "ema", "optimizer"))
def step(state, rows, key=KEY, *, loss=toy_loss, accumulate=1, ema=(), optimizer=SGD):
    return train_step(loss, optimizer, accumulate, ema, state, rows, key)


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_micro_batches_equal_one_batch(parts):
    once, together = step(start(), batch())
    again, apart = step(start(), batch(), accumulate=parts)
    chex.assert_trees_all_close(once, again, rtol=1e-5)
    chex.assert_trees_all_close(together, apart, rtol=1e-5)
    moved = once["params"]["head"]["slope"] - start()["params"]["head"]["slope"]
    assert jnp.max(jnp.abs(moved)) > 0.01


def test_one_step_of_gradient_descent_by_hand():
    rows = {name: np.asarray(v, np.float64) for name, v in batch().items()}
    slope = np.array([1.0, -1.0, 2.0])
    error = rows["x"] @ slope + 0.5 - rows["y"]
    gradient = 2 * (rows["weight"] * error) @ rows["x"] / rows["weight"].sum()
    new, metrics = step(start(), batch())
    np.testing.assert_allclose(new["params"]["head"]["slope"], slope - 0.1 * gradient, rtol=1e-5)
    mean = np.average(error**2, weights=rows["weight"])
    np.testing.assert_allclose(metrics["loss"], mean, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(gradient), rtol=1e-5)
    assert metrics["finite"] == 1 and new["step"] == 1


@pytest.mark.parametrize("parts", [1, 4])
def test_rows_keep_their_numbers_in_any_number_of_parts(parts):
    _, metrics = step(start(), batch(), accumulate=parts)
    weight = float(batch()["weight"].sum())
    np.testing.assert_allclose(metrics["rows"] * weight, np.arange(8).sum(), rtol=1e-6)
    expected = np.arange(8) @ np.asarray(batch()["y"])
    np.testing.assert_allclose(metrics["row_times_y"] * weight, expected, rtol=1e-5)


@pytest.mark.parametrize("parts", [1, 4])
def test_statistics_pass_through_all_parts(parts):
    new, _ = step(start(), batch(), accumulate=parts)
    assert new["stats"]["seen"] == 8


def test_metrics_are_numbers_in_float32():
    _, metrics = step(start(), batch())
    assert set(metrics) == {"loss", "grad_norm", "finite", "rows", "row_times_y"}
    assert all(v.shape == () and v.dtype == jnp.float32 for v in metrics.values())


@pytest.mark.parametrize("parts", [1, 2])
def test_a_batch_without_counted_pixels_changes_nothing(parts):
    ignored = batch() | {"weight": jnp.zeros(8)}
    new, metrics = step(start(), ignored, accumulate=parts)
    chex.assert_trees_all_equal(new["params"], start()["params"])
    assert metrics["loss"] == 0 and metrics["finite"] == 1


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_reported(value):
    broken = batch() | {"y": batch()["y"].at[1].set(value)}
    assert step(start(), broken)[1]["finite"] == 0


@pytest.mark.parametrize("rates", [(0.9,), (0.99, 0.5)], ids=["one", "two"])
def test_every_moving_average_follows_its_formula(rates):
    state, averages = start(ema=rates), {rate: np.array([1.0, -1.0, 2.0]) for rate in rates}
    chex.assert_trees_all_equal(network_of(state, rates), network())  # they start as copies
    for _ in range(3):
        state, _ = step(state, batch(), ema=rates)
        params = np.asarray(state["params"]["head"]["slope"], np.float64)
        averages = {rate: rate * averages[rate] + (1 - rate) * params for rate in rates}
    assert set(state["ema"]) == {str(rate) for rate in rates}
    for rate, average in averages.items():
        np.testing.assert_allclose(state["ema"][str(rate)]["head"]["slope"], average, rtol=1e-5)
        averaged = network_of(state, (rate, *rates))["params"]
        np.testing.assert_allclose(averaged["head"]["slope"], average, rtol=1e-5)
        assert averaged["encoder"] == {"offset": 0.5}


def test_without_a_moving_average_the_network_has_the_parameters():
    state, _ = step(start(), batch())
    assert state["ema"] == {}
    chex.assert_trees_all_equal(network_of(state, ())["params"]["head"], state["params"]["head"])


def test_frozen_parameters_have_no_optimizer_state_and_do_not_move():
    state = start(optax.adam(0.1))
    shapes = {leaf.shape for leaf in jax.tree.leaves(state["opt"])}
    assert shapes == {(), (3,)} and set(state["params"]) == {"head"}
    assert len([leaf for leaf in jax.tree.leaves(state["opt"]) if leaf.shape == (3,)]) == 2
    new, _ = step(start(), batch())
    assert new["frozen"] == {"encoder": {"offset": 0.5}}


def test_everything_learns_when_nothing_is_frozen():
    new, _ = step(start(frozen=()), batch())
    assert new["frozen"] == {} and new["params"]["encoder"]["offset"] != 0.5


def test_same_inputs_give_the_same_outputs():
    first, second = step(start(), batch()), step(start(), batch())
    chex.assert_trees_all_equal(first, second)


def test_every_step_has_its_own_key_and_a_resumed_step_has_it_again():
    draws, state, kept = [], start(), None
    for i in range(3):
        kept = state if i == 1 else kept
        state, metrics = step(state, batch(), loss=noisy_loss)
        draws.append(float(metrics["draw"]))
    assert len(set(draws)) == 3
    assert float(step(kept, batch(), loss=noisy_loss)[1]["draw"]) == draws[1]
    other = step(start(), batch(), jax.random.key(1), loss=noisy_loss)[1]["draw"]
    assert float(other) != draws[0]


def test_parts_share_the_key_of_their_step():
    """What is drawn per row must come from the row's number, not from the part it falls into."""
    alone = step(start(), batch(), loss=noisy_loss)[1]["draw"]
    parts = step(start(), batch(), loss=noisy_loss, accumulate=4)[1]["draw"]
    np.testing.assert_allclose(parts, alone, rtol=1e-6)


def test_split_and_merge_are_inverses():
    params = network()["params"] | {"decoder": {"stage": {"a": 1, "b": 2}}}
    for trainable in (lambda p: True, lambda p: False, lambda p: p[-1] in ("a", "offset")):
        trained, frozen = split_params(params, trainable)
        assert merge_params(trained, frozen) == params
        assert len(jax.tree.leaves(trained)) + len(jax.tree.leaves(frozen)) == 4
