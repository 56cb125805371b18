"""Noise levels, noising and reverse steps: recorded values, inverses, and Bayes' rule."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffseg_jax.diffusion.process import (
    TARGETS,
    VARIANCES,
    Process,
    check_timesteps,
    clean_from_noise,
    clean_from_velocity,
    make_process,
    noise_from_clean,
    noised,
    noising,
    posterior,
    reverse,
    velocity,
)
from diffseg_jax.diffusion.schedules import (
    LEVELS,
    add_noise,
    gamma_to_sigma,
    predict_clean,
    scaled_level,
    sigma_to_gamma,
    simple_level,
)
from diffseg_jax.errors import UserError
from diffseg_jax.layers.conv import Arithmetic
from diffseg_jax.models.network import Network
from diffseg_jax.models.transunet import Root
from diffseg_jax.training.losses import squared_error

pytestmark = pytest.mark.quick

LIMIT = 3e-5  # float32, of the largest recorded value
SIGMAS = jnp.asarray([0.0, 0.1, 0.22, 1.0, 30.0])


def close(actual, expected):
    assert np.shape(actual) == np.shape(expected)
    assert np.max(np.abs(actual - expected)) <= LIMIT * np.max(np.abs(expected))


def clean_and_noise(count, seed=0):
    """Clean images and noise, f32[count, 6, 4, 3]."""
    generator = np.random.default_rng(seed)
    draw = lambda: jnp.asarray(generator.standard_normal((count, 6, 4, 3)), jnp.float32)
    return draw(), draw()


@pytest.mark.golden
@pytest.mark.parametrize("kind", LEVELS)
def test_recorded_corruptions(golden, kind):
    for path in golden("ddep/corruption*.json"):
        cases, arrays = json.loads(path.read_text())["cases"], np.load(path.with_suffix(".npz"))
        assert cases
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
    clean, eps = clean_and_noise(5)
    alpha, sigma = LEVELS[kind](SIGMAS)
    noisy = add_noise(clean, eps, alpha, sigma)
    np.testing.assert_allclose(predict_clean(noisy, eps, alpha, sigma), clean, atol=1e-4)


@pytest.mark.parametrize("kind", LEVELS)
def test_level_zero_is_the_identity(kind):
    clean, eps = clean_and_noise(2)
    np.testing.assert_array_equal(add_noise(clean, eps, *LEVELS[kind](jnp.zeros(2))), clean)


def test_every_image_has_its_own_level():
    clean, eps = clean_and_noise(5)
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


NAMES = {  # names of recorded cases and ours
    "eps": "noise",
    "x0": "image",
    "range": "learned",
    "fixedlarge": "fixed_large",
    "fixedsmall": "fixed_small",
    "pred_xstart": "clean",
}
SHORT = make_process("cosine", 12)
PROCESSES = {
    "linear": make_process(),
    "respaced": make_process("linear", 1000, "ddim25"),
    "short": SHORT,
    "single": make_process("linear", 1000, "1"),
}


def nhwc(array):
    """Recorded images are NCHW, other values one per image."""
    array = array.transpose(0, 2, 3, 1) if array.ndim == 4 else array[:, None, None, None]
    return jnp.asarray(array)


def recorded_processes(golden):
    """(arrays, process, t) of every file that has a batch of its own."""
    for path in golden("adm/diffusion*.npz"):
        arrays = np.load(path)
        if "q_sample__x_t" in arrays:
            process = make_process(str(arrays["schedule"]), int(arrays["num_timesteps"]))
            yield arrays, process, jnp.asarray(arrays["t"], jnp.int32)


@pytest.mark.golden
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_recorded_noising_and_posterior(golden, transform):
    cases = 0
    for arrays, process, t in recorded_processes(golden):
        x_0, eps = nhwc(arrays["x0"]), nhwc(arrays["noise"])
        np.testing.assert_allclose(nhwc(arrays["x0_uint8"]) / 127.5 - 1, x_0, atol=1e-6)
        x_t = transform(functools.partial(noising, process))(x_0, t, eps)
        np.testing.assert_allclose(x_t, nhwc(arrays["q_sample__x_t"]), atol=1e-6)
        x_t = nhwc(arrays["q_sample__x_t"])
        for key, found in (
            ("q", transform(functools.partial(noised, process))(x_0, t)),
            ("posterior", transform(functools.partial(posterior, process))(x_0, x_t, t)),
        ):
            for name, value in zip(("mean", "variance", "log_variance"), found):
                recorded = nhwc(arrays[f"{key}__{name}"])
                assert value.shape == recorded.shape
                np.testing.assert_allclose(value, recorded, atol=1e-6, err_msg=name)
                cases += 1
    assert cases


@pytest.mark.golden
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_recorded_reverse_steps(golden, transform):
    cases = 0
    for arrays, process, t in recorded_processes(golden):
        x_t, output = nhwc(arrays["q_sample__x_t"]), nhwc(arrays["model_output"])
        for key in arrays:
            match = re.fullmatch(r"(pmv_(\w+?)_(\w+?)_(clip|noclip))__mean", key)
            if not match:
                continue
            target, variance = NAMES[match[2]], NAMES[match[3]]
            used = output if variance == "learned" else output[..., : x_t.shape[-1]]
            options = dict(target=target, variance=variance, clip=match[4] == "clip")
            step = transform(functools.partial(reverse, process, **options))(used, x_t, t)
            for name in ("mean", "variance", "log_variance", "pred_xstart"):
                found = getattr(step, NAMES.get(name, name))
                recorded = nhwc(arrays[f"{match[1]}__{name}"])
                # x_0 = a x_t - b eps is a small difference of large numbers at late steps, where
                # a is 157 or far more. A compiler rounds it elsewhere than the original did.
                a = 1 / process.sqrt_alphas_cumprod[t][:, None, None, None]
                atol = np.maximum(5e-5, 1e-6 * a) if transform is jax.jit else 0
                excess = np.abs(found - recorded) - 1e-5 * np.abs(recorded)
                assert np.all(excess <= atol), (match[1], name, np.max(excess))
                cases += 1
    assert cases


@pytest.mark.golden
def test_recorded_rescaled_times(golden):
    cases = 0
    for arrays, plain, t in recorded_processes(golden):
        name = str(arrays["schedule"])
        scaled = make_process(name, plain.steps, rescale_timesteps=True)
        np.testing.assert_array_equal(scaled.network_time(t), arrays["rescaled_timesteps__plain"])
        keep = arrays.get("rescaled_timesteps__respacing", "ddim50")  # the original's example
        respaced = make_process(name, plain.steps, str(keep), rescale_timesteps=True)
        index = arrays["rescaled_timesteps__respaced_index"]
        recorded = arrays["rescaled_timesteps__respaced"]
        np.testing.assert_array_equal(respaced.network_time(index), recorded)
        cases += 1
    assert cases


def test_the_network_is_told_the_steps_it_was_trained_on():
    t = jnp.arange(4)
    plain = make_process("cosine", 10, "4").network_time(t)
    np.testing.assert_array_equal(plain, [0, 3, 6, 9])
    assert plain.dtype == jnp.int32
    scaled = make_process("cosine", 10, "4", rescale_timesteps=True).network_time(t)
    np.testing.assert_array_equal(scaled, [0, 300, 600, 900])
    assert scaled.dtype == jnp.float32


def chain(process, size=4, seed=0):
    """x_0 in [-1, 1], eps and t for a batch that visits the first, the last and steps between."""
    generator = np.random.default_rng(seed)
    x_0 = jnp.asarray(generator.uniform(-1, 1, (size, 5, 4, 3)), jnp.float32)
    eps = jnp.asarray(generator.standard_normal(x_0.shape), jnp.float32)
    return x_0, eps, jnp.linspace(0, process.steps - 1, size).astype(jnp.int32)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_conversions_invert_each_other(process):
    x_0, eps, t = chain(process)
    x_t, v = noising(process, x_0, t, eps), velocity(process, x_0, eps, t)
    # x_0 from the noise is a difference divided by its small share of x_t: 1e-6 / sqrt(alpha_bar)
    share = process.sqrt_alphas_cumprod[t][:, None, None, None]
    error = np.abs(clean_from_noise(process, x_t, eps, t) - x_0) * share
    assert np.max(error) <= 1e-6
    spread = process.sqrt_one_minus_alphas_cumprod[t][:, None, None, None]
    error = np.abs(noise_from_clean(process, x_t, x_0, t) - eps) * spread
    assert np.max(error) <= 1e-6
    np.testing.assert_allclose(clean_from_velocity(process, x_t, v, t), x_0, atol=1e-6)


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_posterior_is_bayes_rule(process):
    """N(x_{t-1}; sqrt(ab) x_0, 1 - ab) N(x_t; sqrt(1 - b) x_{t-1}, b): precisions add up."""
    x_0, eps, t = chain(process)
    x_t = noising(process, x_0, t, eps)
    mean, variance, log_variance = posterior(process, x_0, x_t, t)
    for i, step in enumerate(t.tolist()):
        if step == 0:  # nothing is left to guess
            np.testing.assert_allclose(mean[i], x_0[i], atol=1e-6)
            assert variance[i].item() == 0
            np.testing.assert_array_equal(
                log_variance[i], posterior(process, x_0, x_t, min(1, process.steps - 1))[2][0]
            )
            continue
        level, beta = np.prod(1 - process.betas[:step]), process.betas[step]
        precision = 1 / (1 - level) + (1 - beta) / beta
        weighted = np.sqrt(level) / (1 - level) * x_0[i] + np.sqrt(1 - beta) / beta * x_t[i]
        np.testing.assert_allclose(variance[i].item(), 1 / precision, rtol=1e-5)
        np.testing.assert_allclose(log_variance[i].item(), -np.log(precision), rtol=1e-5)
        np.testing.assert_allclose(mean[i], weighted / precision, atol=1e-5)


def test_neighbouring_levels_differ_by_one_step():
    for process in PROCESSES.values():
        step = process.alphas_cumprod_prev * (1 - process.betas)
        np.testing.assert_allclose(process.alphas_cumprod, step, rtol=1e-9)
        assert process.alphas_cumprod_prev[0] == 1


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_process_that_keeps_all_steps_is_the_plain_one(schedule):
    plain, kept = make_process(schedule, 50), make_process(schedule, 50, "25,25")
    assert kept.timesteps == plain.timesteps == tuple(range(50))
    np.testing.assert_array_equal(kept.betas, plain.betas)


def test_a_respaced_step_has_the_noise_of_the_step_it_keeps():
    whole, few = PROCESSES["linear"], PROCESSES["respaced"]
    x_0, eps, t = chain(few)
    kept = few.network_time(t)
    np.testing.assert_allclose(noising(few, x_0, t, eps), noising(whole, x_0, kept, eps), atol=1e-6)


def network_output(process, target, x_0, eps, t):
    """The output of a perfect network."""
    return {"noise": eps, "image": x_0, "velocity": velocity(process, x_0, eps, t)}[target]


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("target", TARGETS)
def test_a_perfect_network_gives_the_posterior(target, variance):
    x_0, eps, t = chain(SHORT)
    t = jnp.minimum(t, 10)  # the last level has no signal left
    x_t = noising(SHORT, x_0, t, eps)
    output = network_output(SHORT, target, x_0, eps, t)
    v = jnp.full_like(output, -1.0)  # the lower end of the range is the posterior's variance
    output = jnp.concatenate([output, v], -1) if variance == "learned" else output
    step = reverse(SHORT, output, x_t, t, target, variance)
    mean, _, log_variance = posterior(SHORT, x_0, x_t, t)
    np.testing.assert_allclose(step.clean, x_0, atol=1e-4)
    np.testing.assert_allclose(step.mean, mean, atol=1e-4)
    if variance != "fixed_large":
        np.testing.assert_allclose(step.log_variance, log_variance + jnp.zeros_like(x_0), rtol=1e-6)


def test_learned_variance_runs_from_posterior_to_beta_and_beyond():
    x_0, eps, t = chain(SHORT)
    log_variance = lambda v: reverse(
        SHORT, jnp.concatenate([eps, jnp.full_like(eps, v)], -1), x_0, t, "noise", "learned"
    ).log_variance[:, 0, 0, 0]
    small, large = SHORT.posterior_log_variance[t], np.log(SHORT.betas[t])
    np.testing.assert_allclose(log_variance(-1.0), small, rtol=1e-6)
    np.testing.assert_allclose(log_variance(1.0), large, rtol=1e-5)
    np.testing.assert_allclose(log_variance(0.0), (small + large) / 2, rtol=1e-5)
    np.testing.assert_allclose(log_variance(3.0), 2 * large - small, rtol=1e-5)  # not clipped


def test_fixed_variances_are_the_posterior_or_beta():
    x_0, eps, _ = chain(SHORT)
    t = jnp.asarray([0, 1, 5, 11])
    step = lambda name: reverse(SHORT, eps, x_0, t, "noise", name)
    value = lambda array: array[:, 0, 0, 0]
    large, small = step("fixed_large"), step("fixed_small")
    assert large.variance.shape == small.log_variance.shape == x_0.shape
    posterior_variance, betas = SHORT.posterior_variance, SHORT.betas
    expected = [posterior_variance[1], betas[1], betas[5], betas[11]]
    np.testing.assert_allclose(value(large.variance), expected, rtol=1e-6)
    np.testing.assert_allclose(value(large.log_variance), np.log(expected), rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(value(small.variance), posterior_variance[t], rtol=1e-6)
    logs = np.log(posterior_variance[[1, 1, 5, 11]])
    np.testing.assert_allclose(value(small.log_variance), logs, rtol=1e-6)


@pytest.mark.parametrize("target", TARGETS)
def test_clipping_moves_the_mean_to_the_clipped_image(target):
    x_0, eps, t = chain(SHORT)
    x_0 = 3 * x_0
    x_t = noising(SHORT, x_0, t, eps)
    output = network_output(SHORT, target, x_0, eps, t)
    free = reverse(SHORT, output, x_t, t, target, "fixed_small", clip=False)
    bound = reverse(SHORT, output, x_t, t, target, "fixed_small")
    assert np.max(np.abs(free.clean)) > 2 and np.max(np.abs(bound.clean)) == 1
    np.testing.assert_array_equal(bound.clean, jnp.clip(free.clean, -1, 1))
    expected = posterior(SHORT, jnp.clip(free.clean, -1, 1), x_t, t)[0]
    np.testing.assert_allclose(bound.mean, expected, atol=1e-6)


def test_one_t_serves_the_whole_batch():
    x_0, eps, _ = chain(SHORT)
    for t in (7, np.int64(7), jnp.asarray(7)):
        many = jnp.full(4, 7)
        np.testing.assert_array_equal(noising(SHORT, x_0, t, eps), noising(SHORT, x_0, many, eps))
        alone = reverse(SHORT, eps, x_0, t, "velocity", "fixed_large")
        for a, b in zip(alone, reverse(SHORT, eps, x_0, many, "velocity", "fixed_large")):
            np.testing.assert_array_equal(a, b)
    assert SHORT.network_time(7).shape == ()


def test_a_process_of_one_step_works():
    process = PROCESSES["single"]
    assert process.steps == 1 and process.timesteps == (0,)
    x_0, eps, t = chain(process)
    for variance in VARIANCES:
        output = jnp.concatenate([eps, x_0], -1) if variance == "learned" else eps
        step = reverse(process, output, noising(process, x_0, t, eps), t, "noise", variance)
        np.testing.assert_allclose(step.mean, x_0, atol=1e-4)
        assert all(np.all(np.isfinite(value)) for value in step)


def test_sixteen_bit_outputs_are_converted_to_float32():
    x_0, eps, t = chain(SHORT)
    step = reverse(SHORT, eps.astype(jnp.bfloat16), x_0, t, "noise", "fixed_large")
    assert all(value.dtype == jnp.float32 for value in step)


@pytest.mark.parametrize("t", [12, -1, [0, 12], np.int64(99)])
def test_known_t_out_of_range_is_refused(t):
    x_0, eps, _ = chain(SHORT)
    t = jnp.asarray(t)
    calls = (
        lambda: check_timesteps(t, 12),
        lambda: SHORT.network_time(t),
        lambda: noising(SHORT, x_0, t, eps),
        lambda: noised(SHORT, x_0, t),
        lambda: posterior(SHORT, x_0, eps, t),
        lambda: clean_from_noise(SHORT, x_0, eps, t),
        lambda: noise_from_clean(SHORT, x_0, eps, t),
        lambda: velocity(SHORT, x_0, eps, t),
        lambda: clean_from_velocity(SHORT, x_0, eps, t),
        lambda: reverse(SHORT, eps, x_0, t, "noise", "fixed_large"),
    )
    for call in calls:
        with pytest.raises(UserError, match="the process has 12 steps.*from 0 to 11"):
            call()


def test_fractional_t_is_refused_even_when_traced():
    with pytest.raises(UserError, match="whole numbers"):
        check_timesteps(jnp.asarray([0.5]), 12)
    with pytest.raises(UserError, match="whole numbers"):
        jax.jit(lambda t: check_timesteps(t, 12))(jnp.asarray([1.0]))
    assert jax.jit(lambda t: check_timesteps(t, 12))(jnp.asarray(99)) == 99  # not known: passes


def test_wrong_choices_are_refused():
    x_0, eps, t = chain(SHORT)
    with pytest.raises(UserError, match='unknown schedule "linaer".*Did you mean "linear"'):
        make_process("linaer")
    with pytest.raises(UserError, match='unknown target "noize".*Did you mean "noise"'):
        reverse(SHORT, eps, x_0, t, "noize", "fixed_large")
    with pytest.raises(UserError, match='unknown variance "fixedlarge".*"fixed_large"'):
        reverse(SHORT, eps, x_0, t, "noise", "fixedlarge")


@pytest.mark.parametrize(
    "variance, channels, sentence",
    [
        ("learned", 3, 'gives 3 channels.*needs 6. Use variance "fixed_large"'),
        ("fixed_small", 6, 'gives 6 channels.*needs 3. Use variance "learned"'),
        ("fixed_large", 4, "gives 4 channels.*needs 3. Change"),
        ("learned", 5, "gives 5 channels.*needs 6. Change"),
    ],
)
def test_a_wrong_number_of_channels_is_refused(variance, channels, sentence):
    x_0, _, t = chain(SHORT)
    output = jnp.zeros((*x_0.shape[:-1], channels))
    with pytest.raises(UserError, match=sentence):
        reverse(SHORT, output, x_0, t, "noise", variance)


def test_tables_are_float64_and_rounded_once():
    process = PROCESSES["linear"]
    assert process.sqrt_alphas_cumprod.dtype == np.float64
    x_t = noising(process, jnp.ones((1000, 1)), jnp.arange(1000), jnp.zeros((1000, 1)))
    np.testing.assert_array_equal(x_t[:, 0], process.sqrt_alphas_cumprod.astype(np.float32))


def test_processes_compare_by_identity_and_can_be_static():
    run = jax.jit(lambda process, t: process.network_time(t), static_argnums=0)
    assert run(SHORT, jnp.asarray(3)) == 3
    assert Process(SHORT.betas, SHORT.timesteps) != SHORT
