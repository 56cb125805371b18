"""Noise levels and steps in continuous time: recorded ones, and what must hold for any."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffseg_jax.diffusion.samplers import ddim_between, ddim_transition, ddpm_transition
from diffseg_jax.diffusion.schedules import LOG_SNRS, alpha_sigma, cosine_gamma, time_pairs
from diffseg_jax.errors import UserError

GRID = 5e-6  # absolute, of log-SNRs on sampling grids


@pytest.mark.golden
@pytest.mark.parametrize("form", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_recorded_levels(golden, form):
    for path in golden("ddp/schedules_encodings*.npz"):
        arrays = np.load(path)
        for name, log_snr in LOG_SNRS.items():
            found = form(log_snr)(jnp.asarray(arrays["t"]))
            np.testing.assert_allclose(found, arrays[f"{name}_log_snr"], atol=1e-3)
            for value, which in zip(alpha_sigma(arrays[f"{name}_log_snr"]), ("alpha", "sigma")):
                np.testing.assert_allclose(value, arrays[f"{name}_{which}"], atol=1e-6)


@pytest.mark.golden
def test_recorded_grids(golden):
    for path in golden("ddp/schedules_encodings*.json"):
        record, arrays = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))
        assert record["pairs"]
        for case in record["pairs"]:
            steps, start = case["timesteps"], case["sample_range0"]
            difference = case["time_difference"]
            key = f"pairs_T{steps}_td{difference}_s{start:g}"
            pairs = time_pairs(steps, difference, start)
            assert pairs.dtype == np.float32 and np.array_equal(pairs, arrays[key])
            levels = LOG_SNRS["cosine"](pairs, np)
            np.testing.assert_allclose(levels, arrays[f"{key}_log_snr"], atol=GRID)


@pytest.mark.golden
@pytest.mark.parametrize("form", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_recorded_gammas_of_depth(golden, form):
    for path in golden("ddp/depth_losses_metrics*.npz"):
        arrays = np.load(path)
        found = form(cosine_gamma)(jnp.asarray(arrays["gamma_t"]))
        np.testing.assert_allclose(found, arrays["gamma"], atol=1e-6)
        np.testing.assert_allclose(found, arrays["gamma_f64"], atol=1e-6)


@pytest.mark.golden
def test_recorded_steps_of_depth(golden):
    """Times are in the names of the results, such as step_out_0p7_to_0p2."""
    for path in golden("ddp/depth_losses_metrics*.npz"):
        arrays = np.load(path)
        scale = json.loads(path.with_suffix(".json").read_text())["step_bit_scale"]
        clean = np.clip(arrays["step_x_pred"], -scale, scale)
        found = [name for name in arrays if name.startswith("step_out_")]
        assert found
        for name in found:
            times = name.removeprefix("step_out_").replace("p", ".").split("_to_")
            gammas = [cosine_gamma(jnp.float32(float(t))) for t in times]
            now, then = ((jnp.sqrt(gamma), jnp.sqrt(1 - gamma)) for gamma in gammas)
            step = ddim_between(arrays["step_x_t"], clean, now, then)
            np.testing.assert_allclose(step, arrays[name], rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_gamma_is_the_share_of_the_signal_at_its_log_snr():
    t = jnp.linspace(0.01, 0.99, 50)
    alpha, _ = alpha_sigma(LOG_SNRS["cosine"](t))
    np.testing.assert_allclose(cosine_gamma(t), alpha**2, atol=2e-6)


def test_no_steps_are_refused():
    with pytest.raises(UserError, match="steps is 0, but it must be 1 or more"):
        time_pairs(0)


@pytest.mark.parametrize("name", LOG_SNRS)
def test_later_is_noisier(name):
    levels = LOG_SNRS[name](jnp.linspace(0.002, 1.0, 101))
    assert np.all(np.diff(levels) < 0)
    alpha, sigma = alpha_sigma(levels)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, atol=1e-6)


def levels(now, then):
    return (LOG_SNRS["cosine"](jnp.float32(t)) for t in (now, then))


def normal(seed):
    return jax.random.normal(jax.random.key(seed), (20_000,))


def test_ddim_keeps_the_noise_of_a_known_map():
    clean, eps = 0.1 * normal(0), normal(1)
    now, then = levels(0.8, 0.3)
    mix = lambda level: sum(w * v for w, v in zip(alpha_sigma(level), (clean, eps)))
    np.testing.assert_allclose(ddim_transition(mix(now), clean, now, then), mix(then), atol=1e-5)


def test_ddpm_arrives_with_the_right_spread():
    clean, eps, fresh = 0.5 * jnp.ones(20_000), normal(1), normal(2)
    now, then = levels(0.8, 0.3)
    alpha, sigma = alpha_sigma(now)
    x = ddpm_transition(alpha * clean + sigma * eps, clean, now, then, fresh)
    alpha, sigma = alpha_sigma(then)
    np.testing.assert_allclose(np.mean(x), alpha * 0.5, atol=0.02)
    mean = ddpm_transition(alpha_sigma(now)[0] * clean, clean, now, then, 0 * fresh)
    np.testing.assert_allclose(mean, alpha * clean, atol=1e-6)  # of the posterior, without noise
    # the posterior's own variance and what it keeps of x's noise add up to that of `then`
    np.testing.assert_allclose(np.std(x), sigma, rtol=0.02)


def test_both_are_linear():
    """So a sampler may work on linear images of its maps."""
    now, then = levels(0.6, 0.1)
    first, second = ([normal(seed + i)[:100] for i in range(3)] for seed in (0, 10))
    summed = [2 * a - 3 * b for a, b in zip(first, second)]
    for step, count in ((ddim_transition, 2), (ddpm_transition, 3)):
        a, b, both = (
            step(*parts[:2], now, then, *parts[2:count]) for parts in (first, second, summed)
        )
        np.testing.assert_allclose(both, 2 * a - 3 * b, atol=1e-4)
