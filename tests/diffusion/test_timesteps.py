"""Drawing t: the recorded history, and what importance weights promise."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffseg_jax.diffusion.timesteps import HISTORY, draw, probabilities, start, update
from diffseg_jax.errors import UserError

T = 6


def filled(losses):
    """The state after ten equal losses for each t."""
    steps = len(losses)
    t = jnp.tile(jnp.arange(steps), HISTORY)
    state = start("loss_second_moment", steps)
    return update(state, t, jnp.tile(jnp.asarray(losses, jnp.float32), HISTORY))


@pytest.mark.golden
def test_recorded_history(golden):
    cases = 0
    for path in golden("adm/diffusion*.npz"):
        arrays = np.load(path)
        if "lsm__ts" not in arrays:
            continue
        steps = len(arrays["lsm__weights_cold"])
        counts = {int(m[1]): k for k in arrays if (m := re.fullmatch(r"lsm__weights_(\d+)", k))}
        with jax.enable_x64(True):
            state = start("loss_second_moment", steps)
            state = {**state, "losses": state["losses"].astype(jnp.float64)}
            ts, losses = jnp.asarray(arrays["lsm__ts"]), jnp.asarray(arrays["lsm__losses"])
            done = 0
            for count, key in sorted({0: "lsm__weights_cold", **counts}.items()):
                state = update(state, ts[done:count], losses[done:count])
                done, expected = count, arrays[key] / arrays[key].sum()
                found = probabilities(state, steps)
                assert found.dtype == jnp.float64
                np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9, err_msg=key)
                cases += 1
            importance = 1 / (steps * probabilities(update(state, ts[done:], losses[done:]), steps))
            np.testing.assert_allclose(importance, arrays["lsm__importance"], rtol=1e-9)
    assert cases


def test_uniform_needs_no_state():
    state = start("uniform", T)
    assert state == {} and update(state, jnp.arange(3), jnp.ones(3)) == {}
    np.testing.assert_allclose(probabilities(state, T), np.full(T, 1 / T), rtol=1e-6)


def test_uniform_until_every_t_has_ten_losses():
    state = start("loss_second_moment", T)
    t, loss = jnp.tile(jnp.arange(T), HISTORY), jnp.tile(jnp.arange(1.0, T + 1), HISTORY)
    early = update(state, t[:-1], loss[:-1])
    np.testing.assert_allclose(probabilities(early, T), np.full(T, 1 / T), rtol=1e-6)
    full = probabilities(update(early, t[-1:], loss[-1:]), T)
    expected = 0.999 * np.arange(1, T + 1) / np.arange(1, T + 1).sum() + 0.001 / T
    np.testing.assert_allclose(full, expected, rtol=1e-5)


def test_only_the_last_ten_losses_count():
    state = filled(np.ones(T))
    later = np.linspace(1, 4, 13, dtype=np.float32)
    state = update(state, jnp.full(13, 2), jnp.asarray(later))
    size = np.ones(T)
    size[2] = np.sqrt(np.mean(later[-HISTORY:] ** 2))
    expected = 0.999 * size / size.sum() + 0.001 / T
    np.testing.assert_allclose(probabilities(state, T), expected, rtol=1e-5)


def test_one_batch_equals_its_images_one_by_one():
    generator = np.random.default_rng(0)
    t = jnp.asarray(generator.integers(0, 3, 80), jnp.int32)  # every t repeats
    loss = jnp.asarray(generator.uniform(0.1, 2, 80), jnp.float32)
    compiled = jax.jit(update)
    together = compiled(start("loss_second_moment", 3), t, loss)
    single = start("loss_second_moment", 3)
    for i in range(80):
        single = compiled(single, t[i : i + 1], loss[i : i + 1])
    np.testing.assert_array_equal(together["losses"], single["losses"])
    np.testing.assert_array_equal(together["counts"], np.bincount(t))
    for step in range(3):
        kept = np.sort(together["losses"][step])
        np.testing.assert_array_equal(kept, np.sort(loss[t == step][-HISTORY:]))


def test_losses_that_are_not_finite_are_skipped():
    state = filled(np.arange(1, T + 1))
    after = update(state, jnp.asarray([1, 2]), jnp.asarray([jnp.nan, jnp.inf]))
    for name in state:
        np.testing.assert_array_equal(after[name], state[name])


def test_losses_of_zero_draw_uniformly():
    np.testing.assert_allclose(probabilities(filled(np.zeros(T)), T), np.full(T, 1 / T), rtol=1e-6)


@pytest.mark.parametrize("losses", [None, [1, 1, 2, 4, 0, 8]])
def test_draws_follow_the_probabilities_and_weights_undo_them(losses):
    state = filled(losses) if losses else start("uniform", T)
    keys = jax.random.split(jax.random.key(0), 20_000)
    t, weight = jax.jit(jax.vmap(lambda key: draw(state, T, key)))(keys)
    assert t.dtype == jnp.int32 and weight.dtype == jnp.float32
    p = np.asarray(probabilities(state, T), np.float64)
    np.testing.assert_allclose(np.bincount(t, minlength=T) / len(t), p, atol=0.015)
    np.testing.assert_allclose(weight, 1 / (T * p[t]), rtol=1e-5)
    np.testing.assert_allclose(np.sum(p * 1 / (T * p)), 1, rtol=1e-6)


def test_every_t_can_be_drawn():
    p = probabilities(filled([0, 0, 0, 0, 0, 1e6]), T)
    np.testing.assert_allclose(p[:5], 0.001 / T, rtol=1e-4)
    np.testing.assert_allclose(np.sum(p), 1, rtol=1e-6)


def test_the_same_key_draws_the_same():
    state, key = filled(np.arange(1, T + 1)), jax.random.key(3)
    assert draw(state, T, key) == draw(state, T, key)
    drawn = {int(draw(state, T, jax.random.key(i))[0]) for i in range(40)}
    assert len(drawn) > 3


def test_the_state_stays_float32():
    state = jax.jit(update)(filled(np.ones(T)), jnp.arange(T), jnp.ones(T, jnp.bfloat16))
    assert state["losses"].dtype == jnp.float32 and state["counts"].dtype == jnp.int32
    assert probabilities(state, T).dtype == jnp.float32


def test_wrong_input_is_refused():
    with pytest.raises(UserError, match='unknown timestep sampler "loss".*loss_second_moment'):
        start("loss", T)
    with pytest.raises(UserError, match="t is 6, but the process has 6 steps"):
        update(start("loss_second_moment", T), jnp.asarray([6]), jnp.ones(1))
