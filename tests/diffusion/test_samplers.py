"""Steps of DDPM and DDIM: recorded ones, and what holds for a network that knows the image."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffseg_jax.diffusion.process import make_process, noising, reverse
from diffseg_jax.diffusion.samplers import ddim_step, ddpm_step
from diffseg_jax.errors import UserError

SHORT = make_process("cosine", 12)


def batch(process, seed=0):
    """x_0 in [-1, 1], eps, x_t, and one image for every t."""
    generator = np.random.default_rng(seed)
    t = jnp.arange(process.steps)
    x_0 = jnp.asarray(generator.uniform(-1, 1, (process.steps, 4, 5, 3)), jnp.float32)
    eps = jnp.asarray(generator.standard_normal(x_0.shape), jnp.float32)
    return x_0, eps, noising(process, x_0, t, eps), t


def standard_normal(shape, seed):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.golden
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_recorded_steps(golden, transform):
    cases = 0
    for path in golden("adm/diffusion*.npz"):
        arrays = np.load(path)
        keys = [key for key in arrays if re.fullmatch(r"dd[ip]m_step.*__sample", key)]
        if not keys:
            continue
        process = make_process(str(arrays["schedule"]), int(arrays["num_timesteps"]))
        t = jnp.asarray(arrays["t"], jnp.int32)
        inputs = [nhwc(arrays[name]) for name in ("q_sample__x_t", "model_output", "step_noise")]
        for key in keys:
            found = transform(functools.partial(recorded_step, process, t, key))(*inputs)
            np.testing.assert_allclose(found, nhwc(arrays[key]), rtol=0, atol=5e-5, err_msg=key)
            cases += 1
    assert cases


def nhwc(array):
    return jnp.asarray(array.transpose(0, 2, 3, 1))


def recorded_step(process, t, key, x_t, output, noise):
    """The step that was recorded under `key`, which names the sampler and its eta."""
    distribution = reverse(process, output, x_t, t, "noise", "learned")
    if key.startswith("ddpm"):
        return ddpm_step(process, distribution, t, noise)
    eta = float(re.fullmatch(r"ddim_step_eta([\d.]+)__sample", key)[1])
    return ddim_step(process, x_t, distribution.clean, t, eta, noise)


def test_ddim_moves_along_the_same_noise():
    """A network that knows the image: each step is the noising at the level below."""
    x_0, eps, x_t, t = batch(SHORT)
    found = ddim_step(SHORT, x_t, x_0, t)
    np.testing.assert_allclose(found[0], x_0[0], atol=1e-6)
    np.testing.assert_allclose(found[1:], noising(SHORT, x_0, t - 1 + (t == 0), eps)[1:], atol=2e-5)


def test_a_complete_ddim_chain_returns_the_image():
    process = make_process("linear", 1000, "ddim10")
    x_0, eps, _, _ = batch(process)
    x = noising(process, x_0, 9, eps)
    for t in range(9, -1, -1):
        x = ddim_step(process, x, x_0, t)
    np.testing.assert_allclose(x, x_0, atol=1e-6)


@pytest.mark.parametrize("process", [SHORT, make_process("linear", 1000, "25")])
def test_ddim_with_eta_one_is_ddpm_with_the_small_variance(process):
    x_0, _, x_t, t = batch(process)
    noise = standard_normal(x_t.shape, 1)
    ddpm = ddpm_step(process, reverse(process, x_0, x_t, t, "image", "fixed_small"), t, noise)
    ddim = ddim_step(process, x_t, x_0, t, 1.0, noise)
    np.testing.assert_allclose(ddim, ddpm, atol=2e-5)
    spread = ddim - ddim_step(process, x_t, x_0, t, 1.0, jnp.zeros_like(noise))
    expected = np.sqrt(process.posterior_variance)[:, None, None, None] * noise
    np.testing.assert_allclose(spread, expected, atol=2e-6)


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_every_eta_has_the_marginal_of_the_level_below(eta):
    """x_t - sqrt(ab) x_0 is normal with variance 1 - ab: so is x_{t-1} at its own level."""
    process, t, count = make_process("cosine", 20), 13, 200_000
    x_0 = jnp.full((count, 1), 0.4)
    x_t = noising(process, x_0, t, standard_normal(x_0.shape, 2))
    found = ddim_step(process, x_t, x_0, t, eta, standard_normal(x_0.shape, 3))
    level = process.alphas_cumprod[t - 1]
    np.testing.assert_allclose(np.mean(found), 0.4 * np.sqrt(level), atol=0.01)
    np.testing.assert_allclose(np.var(found), 1 - level, rtol=0.015)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_a_ddpm_step_draws_from_the_distribution(variance):
    x_0, _, x_t, t = batch(SHORT)
    distribution = reverse(SHORT, x_0, x_t, t, "image", variance)
    draw = lambda size: ddpm_step(SHORT, distribution, t, jnp.full_like(x_t, size))
    np.testing.assert_array_equal(draw(0.0), distribution.mean)
    spread = (draw(1.0) - draw(-1.0)) / 2
    np.testing.assert_allclose(spread[1:] ** 2, distribution.variance[1:], rtol=1e-3, atol=1e-6)
    assert np.min(distribution.variance[1:]) > 0


@pytest.mark.parametrize("steps", [1, 12])
def test_no_noise_is_added_at_the_end(steps):
    process = make_process("cosine", steps)
    x_0, _, x_t, t = batch(process)
    noise = 100 * standard_normal(x_t.shape, 4)
    distribution = reverse(process, x_0, x_t, t, "image", "fixed_large")
    for step in (
        lambda noise: ddpm_step(process, distribution, t, noise),
        lambda noise: ddim_step(process, x_t, x_0, t, 0.7, noise),
    ):
        np.testing.assert_array_equal(step(noise)[0], step(jnp.zeros_like(noise))[0])
        np.testing.assert_allclose(step(noise)[0], x_0[0], atol=1e-6)
        assert steps == 1 or np.max(np.abs(step(noise)[1] - step(0 * noise)[1])) > 0.1


def test_one_t_serves_the_whole_batch():
    x_0, _, x_t, _ = batch(SHORT)
    many = jnp.full(12, 5)
    distribution = reverse(SHORT, x_0, x_t, many, "image", "fixed_large")
    for step in (
        lambda t: ddpm_step(SHORT, distribution, t, x_0),
        lambda t: ddim_step(SHORT, x_t, x_0, t, 0.5, x_0),
    ):
        np.testing.assert_array_equal(step(5), step(many))


def test_ddpm_from_noise_recovers_the_moments_of_normal_data():
    """Data N(0.5, 0.2^2): the perfect network is known, and so is what sampling must return."""
    process, count, mean, std = make_process("cosine", 200), 20_000, 0.5, 0.2

    def backwards(x, inputs):
        t, key = inputs
        level = jnp.asarray(process.alphas_cumprod, jnp.float32)[t]
        gain = jnp.sqrt(level) * std**2 / (level * std**2 + 1 - level)
        clean = mean + gain * (x - jnp.sqrt(level) * mean)  # E[x_0 | x_t]
        step = reverse(process, clean, x, t, "image", "fixed_large", clip=False)
        return ddpm_step(process, step, t, jax.random.normal(key, x.shape)), None

    keys = jax.random.split(jax.random.key(0), process.steps)
    start = standard_normal((count, 1), 5)
    found = jax.lax.scan(backwards, start, (jnp.arange(process.steps)[::-1], keys))[0]
    np.testing.assert_allclose(np.mean(found), mean, atol=0.01)
    np.testing.assert_allclose(np.std(found), std, rtol=0.05)


@pytest.mark.parametrize("eta", [-0.1, 1.5])
def test_eta_out_of_range_is_refused(eta):
    x_0, eps, x_t, t = batch(SHORT)
    with pytest.raises(UserError, match=f"eta is {eta}, but it must be from 0"):
        ddim_step(SHORT, x_t, x_0, t, eta, eps)


def test_a_random_step_needs_noise():
    x_0, _, x_t, t = batch(SHORT)
    with pytest.raises(UserError, match="eta is 0.5, which needs noise"):
        ddim_step(SHORT, x_t, x_0, t, 0.5)


def test_known_t_out_of_range_is_refused():
    x_0, _, x_t, t = batch(SHORT)
    distribution = reverse(SHORT, x_0, x_t, t, "image", "fixed_small")
    for step in (
        lambda t: ddpm_step(SHORT, distribution, t, x_0),
        lambda t: ddim_step(SHORT, x_t, x_0, t),
    ):
        with pytest.raises(UserError, match="from 0 to 11"):
            step(t + 1)
