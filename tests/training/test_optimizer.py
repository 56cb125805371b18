"""Learning rates as recorded; optimizers on problems whose first steps are known."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffseg_jax.errors import UserError
from diffseg_jax.training.optimizer import SCHEDULES, decayed, make_optimizer, make_schedule

pytestmark = pytest.mark.quick

LR = 0.1


@pytest.mark.golden
def test_recorded_cosine(golden):
    for path in golden("ddep/cosine*.json"):
        record, rates = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))["lr"]
        schedule = make_schedule("cosine", record["base_lr"], record["total_steps"], 0, 0.0)
        ours = np.array([schedule(t) for t in range(len(rates))])
        assert np.max(np.abs(ours - rates)) <= 1e-6 * record["base_lr"]


@pytest.mark.golden
def test_recorded_polynomial_schedules_with_a_warm_up(golden):
    for path in golden("ddp/lr_schedules*.json"):
        cases = {k: v for k, v in json.loads(path.read_text()).items() if "_poly_" in k}
        assert cases
        for name, case in cases.items():
            assert case["iters"], name
            assert case.get("power", 1.0) == 1.0 and case.get("min_lr", 0.0) == 0.0, name
            schedule = make_schedule(
                "polynomial", case["base_lr"], case["max_iters"],
                case["warmup_iters"], case["warmup_ratio"],
            )  # fmt: skip
            ours = [float(jax.jit(schedule)(jnp.asarray(t))) for t in case["iters"]]
            np.testing.assert_allclose(ours, case["lr"], rtol=1e-6, err_msg=name)


@pytest.mark.golden
def test_recorded_rates_of_depth(golden):
    """A cosine to a trace of the peak rate, of which the warm-up takes a rising share."""
    for path in golden("ddp/lr_schedules*.json"):
        cases = {k: v for k, v in json.loads(path.read_text()).items() if "_cosine_" in k}
        assert cases
        for name, case in cases.items():
            assert case["iters"] and case["min_lr_ratio"] == 1e-8, name
            schedule = make_schedule(
                "cosine_to_trace", case["base_lr"], case["max_iters"],
                case["warmup_iters"], case["warmup_ratio"],
            )  # fmt: skip
            ours = [float(jax.jit(schedule)(jnp.asarray(t))) for t in case["iters"]]
            np.testing.assert_allclose(ours, case["lr"], rtol=1e-6, err_msg=name)


@pytest.mark.golden
def test_recorded_cosine_after_a_warm_up(golden):
    """MAE's rates, 40 of 400 epochs of warm-up; with n steps per epoch, all fall on a step."""
    for path in golden("baselines/mae_*.json"):
        record, arrays = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))
        epochs, rates = arrays["lr_epoch"], arrays["lr_value"]
        n = next(n for n in range(1, 2**15) if np.ptp(epochs * n - np.rint(epochs * n)) < 1e-6)
        schedule = make_schedule("cosine_after_warmup", 6e-4, 400 * n, 40 * n, 0.0)
        ours = [float(jax.jit(schedule)(jnp.asarray(round(epoch * n)))) for epoch in epochs]
        np.testing.assert_allclose(ours, rates, rtol=record["tolerance"]["lr"]["rtol"])


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_begin_at_the_peak_and_never_rise(name):
    schedule = make_schedule(name, 3e-4, 40, 0, 0.0)
    rates = np.array([schedule(t) for t in range(45)])
    np.testing.assert_allclose(rates[0], 3e-4, rtol=1e-6)
    assert np.all(np.diff(rates) <= 0) and np.all(rates >= 0)
    if name != "constant":
        np.testing.assert_allclose(rates[[20, 40, 44]], [1.5e-4, 0, 0], atol=1e-9)


def test_warm_up_multiplies_a_line_and_then_leaves_the_schedule_alone():
    warm, base = (make_schedule("cosine", 1.0, 100, n, 0.2) for n in (10, 0))
    for t in range(100):
        line = min(0.2 + 0.8 * t / 10, 1)
        np.testing.assert_allclose(warm(t), base(t) * line, rtol=1e-5)


def test_schedules_run_inside_jit():
    schedule = make_schedule("polynomial", 1.0, 10, 2, 0.5)
    np.testing.assert_allclose(jax.jit(schedule)(jnp.asarray(5)), schedule(5), rtol=1e-6)


def test_an_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match='unknown schedule "cosin".*Did you mean "cosine"'):
        make_schedule("cosin", 1.0, 10, 0, 0.0)
    with pytest.raises(UserError, match='unknown optimizer "adamm"'):
        make("adamm")


def make(name, **options):
    known = dict(
        b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=0.0, no_decay=(), clip_norm=0.0
    )  # fmt: skip
    return make_optimizer(name, make_schedule("constant", LR, 10, 0, 0.0), **known | options)


def first_step(optimizer, params, grads):
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    return optax.apply_updates(params, updates)


PARAMS = {"conv": {"kernel": jnp.asarray([1.0, -2.0])}, "norm": {"scale": jnp.asarray([4.0])}}
ZEROS = jax.tree.map(jnp.zeros_like, PARAMS)


def test_decay_joins_the_update_in_adamw_and_the_gradient_in_adam_and_sgd():
    """Without gradients: AdamW shrinks by lr x decay, SGD too, Adam makes steps of one length."""
    decoupled = first_step(make("adamw", weight_decay=0.5), PARAMS, ZEROS)["conv"]["kernel"]
    np.testing.assert_allclose(decoupled, [1 - LR * 0.5, -2 + LR * 0.5 * 2], rtol=1e-6)
    coupled = first_step(make("adam", weight_decay=0.5), PARAMS, ZEROS)["conv"]["kernel"]
    np.testing.assert_allclose(coupled, [1 - LR, -2 + LR], rtol=1e-5)
    plain = first_step(make("sgd", weight_decay=0.5), PARAMS, ZEROS)["conv"]["kernel"]
    np.testing.assert_allclose(plain, [1 - LR * 0.5, -2 + LR], rtol=1e-6)


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_follows_its_equations(name):
    """Three steps of Kingma and Ba (2015), algorithm 1, epsilon outside of the root."""
    optimizer, params = make(name, epsilon=1e-3), jnp.asarray([1.0, -3.0])
    state, x, m, v = optimizer.init({"x": params}), np.array([1.0, -3.0]), 0.0, 0.0
    params = {"x": params}
    for t in range(1, 4):
        gradient = 2 * x
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        x = x - LR * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-3)
        updates, state = optimizer.update({"x": 2 * params["x"]}, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["x"], x, rtol=1e-5)


def test_no_decay_patterns_are_regular_expressions():
    params = {"backbone": {"norm": {"scale": 1.0}}, "decoder": {"norm": {"scale": 1.0}}}
    found = decayed(params, (r"backbone\..*norm",))
    assert found == {"backbone": {"norm": {"scale": False}}, "decoder": {"norm": {"scale": True}}}



@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize(("patterns", "spared"), [
    ((), ()), (("norm",), ("norm",)), (("nor",), ("norm",)),
    (("kernel", "scale"), ("conv", "norm")),
])  # fmt: skip
def test_no_decay_patterns_spare_the_paths_that_hold_them(name, patterns, spared):
    stepped = first_step(make(name, weight_decay=0.5, no_decay=patterns), PARAMS, ZEROS)
    for part, leaf in (("conv", "kernel"), ("norm", "scale")):
        moved = bool(jnp.any(PARAMS[part][leaf] != stepped[part][leaf]))
        assert moved == (part not in spared)


def test_gradients_are_clipped_to_a_norm_over_all_parameters():
    grads = {"conv": {"kernel": jnp.asarray([0.0, 30.0])}, "norm": {"scale": jnp.asarray([40.0])}}
    stepped = first_step(make("sgd", b1=0.0, clip_norm=1.0), PARAMS, grads)
    np.testing.assert_allclose(stepped["conv"]["kernel"], [1, -2 - LR * 0.6], rtol=1e-6)
    np.testing.assert_allclose(stepped["norm"]["scale"], [4 - LR * 0.8], rtol=1e-6)
    small = jax.tree.map(lambda g: g / 1000, grads)
    stepped = first_step(make("sgd", b1=0.0, clip_norm=1.0), PARAMS, small)
    np.testing.assert_allclose(stepped["norm"]["scale"], [4 - LR * 0.04], rtol=1e-6)
    stepped = first_step(make("sgd", b1=0.0), PARAMS, grads)
    np.testing.assert_allclose(stepped["norm"]["scale"], [4 - LR * 40], rtol=1e-6)


def test_sgd_keeps_momentum():
    optimizer, params = make("sgd", b1=0.5), {"x": jnp.asarray(0.0)}
    state = optimizer.init(params)
    for expected in (-0.1, -0.25, -0.425):  # velocities 1, 1.5, 1.75
        updates, state = optimizer.update({"x": jnp.asarray(1.0)}, state, params)
        params = optax.apply_updates(params, updates)
        np.testing.assert_allclose(params["x"], expected, rtol=1e-6)
