"""Noise levels and noising: recorded values, inverses, and scaled inputs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffseg_jax.diffusion.process import add_noise, predict_clean
from diffseg_jax.diffusion.schedules import (
    LEVELS,
    gamma_to_sigma,
    scaled_level,
    sigma_to_gamma,
    simple_level,
)
from diffseg_jax.layers.conv import Arithmetic
from diffseg_jax.losses import squared_error
from diffseg_jax.models.plain import Network
from diffseg_jax.models.transunet import Root

LIMIT = 3e-5  # float32, of the largest recorded value
SIGMAS = jnp.asarray([0.0, 0.1, 0.22, 1.0, 30.0])


def close(actual, expected):
    assert np.shape(actual) == np.shape(expected)
    assert np.max(np.abs(actual - expected)) <= LIMIT * np.max(np.abs(expected))


def pictures(count, seed=0):
    """Clean images and noise, f32[count, 6, 4, 3]."""
    generator = np.random.default_rng(seed)
    draw = lambda: jnp.asarray(generator.standard_normal((count, 6, 4, 3)), jnp.float32)
    return draw(), draw()


@pytest.mark.golden
@pytest.mark.parametrize("kind", LEVELS)
def test_recorded_corruptions(golden, kind):
    for path in golden("ddep/corruption*.json"):
        cases, arrays = json.loads(path.read_text())["cases"], np.load(path.with_suffix(".npz"))
        clean, noise = arrays["clean"], arrays["noise"]
        for i, case in enumerate(cases):
            alpha, sigma = LEVELS[kind](jnp.full(len(clean), case["sigma"]))
            close(add_noise(clean, noise, alpha, sigma), arrays[f"s{i}_{kind}"])
            np.testing.assert_allclose(sigma_to_gamma(case["sigma"]), case["gamma"], rtol=1e-12)
            np.testing.assert_allclose(gamma_to_sigma(case["gamma"]), case["sigma"], rtol=1e-12)
            if kind == "scaled":
                np.testing.assert_allclose(alpha**2, case["gamma"], rtol=1e-6)


@pytest.mark.golden
@pytest.mark.parametrize("target", ["noise", "image"])
def test_recorded_losses(golden, target):
    for path in golden("ddep/corruption*.npz"):
        arrays = np.load(path)
        goal = arrays["noise" if target == "noise" else "clean"]
        loss, weight = squared_error(arrays["prediction"], goal)
        assert weight == goal.size
        np.testing.assert_allclose(loss / weight, arrays[f"loss_{target}_target_l2"], rtol=LIMIT)


def test_gamma_and_sigma_are_inverses():
    sigma = np.linspace(0, 5, 101)
    gamma = sigma_to_gamma(sigma)
    np.testing.assert_allclose(gamma_to_sigma(gamma), sigma, atol=1e-9)
    assert gamma[0] == 1 and np.all(np.diff(gamma) < 0)


def test_scaled_levels_keep_unit_power():
    alpha, sigma = scaled_level(SIGMAS)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=1e-6)
    np.testing.assert_allclose(alpha**2, sigma_to_gamma(SIGMAS), rtol=1e-5)
    np.testing.assert_allclose(sigma**2, 1 - sigma_to_gamma(SIGMAS), atol=1e-6)


def test_both_kinds_have_the_ratio_of_noise_to_signal_that_was_asked_for():
    for level in LEVELS.values():
        alpha, sigma = level(SIGMAS)
        assert alpha.dtype == sigma.dtype == jnp.float32
        np.testing.assert_allclose(sigma / alpha, SIGMAS, rtol=1e-6)


@pytest.mark.parametrize("kind", LEVELS)
def test_clean_image_returns(kind):
    clean, eps = pictures(5)
    alpha, sigma = LEVELS[kind](SIGMAS)
    noisy = add_noise(clean, eps, alpha, sigma)
    np.testing.assert_allclose(predict_clean(noisy, eps, alpha, sigma), clean, atol=1e-4)


@pytest.mark.parametrize("kind", LEVELS)
def test_level_zero_is_the_identity(kind):
    clean, eps = pictures(2)
    np.testing.assert_array_equal(add_noise(clean, eps, *LEVELS[kind](jnp.zeros(2))), clean)


def test_every_image_has_its_own_level():
    clean, eps = pictures(5)
    alpha, sigma = simple_level(SIGMAS)
    noisy = add_noise(clean, eps, alpha, sigma)
    for i in range(5):
        alone = add_noise(clean[i : i + 1], eps[i : i + 1], alpha[i : i + 1], sigma[i : i + 1])
        np.testing.assert_array_equal(noisy[i : i + 1], alone)
        np.testing.assert_allclose(alone[0], clean[i] + SIGMAS[i] * eps[i], rtol=1e-5, atol=1e-5)


def test_nothing_is_clipped():
    clean, eps = jnp.ones((1, 8, 8, 3)), jnp.ones((1, 8, 8, 3))
    assert jnp.all(add_noise(clean, eps, *simple_level(jnp.asarray([2.0]))) == 3)


def test_the_network_cannot_tell_scaled_from_simple():
    """The two inputs differ by one factor, which the stem's bias-free convolution and norm remove.

    Nothing else of a TransUNet reads the image: where the stem agrees, all the rest does.
    """
    stem = Network(lambda rngs: Root(32, arithmetic=Arithmetic.OFFICIAL, rngs=rngs))
    values = jax.jit(stem.init)(jax.random.key(0))
    generator = np.random.default_rng(0)
    clean, eps = generator.uniform(-1, 1, (2, 2, 32, 32, 3)).astype(np.float32)
    run = jax.jit(lambda x: stem.bind(values["params"], values["stats"])(x))
    for sigma in (0.1, 0.22, 1.0):
        sigma = jnp.full(2, sigma)
        simple = add_noise(clean, eps, *simple_level(sigma))
        scaled = add_noise(clean, eps, *scaled_level(sigma))
        assert np.max(np.abs(simple - scaled)) > 1e-3
        close(run(scaled), run(simple))
