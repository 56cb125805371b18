"""Losses: recorded ones, the bound of a chain by two routes, and who receives a gradient."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffseg_jax.diffusion.bounds import (
    LOSSES,
    discretised_normal_log_likelihood,
    normal_kl,
    prior_bits,
    training_losses,
    variational_bound,
)
from diffseg_jax.diffusion.process import TARGETS, Process, make_process, noising, velocity
from diffseg_jax.errors import UserError

SHORT = make_process("cosine", 12)
NAMES = {"eps": "noise", "x0": "image", "range": "learned", "fixed": "fixed_large"}
NAMES |= {"fixedlarge": "fixed_large", "fixedsmall": "fixed_small"}
KINDS = {"mse": "hybrid", "rescaledmse": "hybrid_rescaled", "rescaledkl": "kl"}


def recorded_files(golden, key):
    """(arrays, a reader that gives NHWC, process or None) of every file that has a key."""
    for path in golden("adm/diffusion*.npz"):
        arrays = np.load(path)
        if key in arrays:
            named = "schedule" in arrays
            yield (
                arrays,
                functools.partial(nhwc_of, arrays),
                named and make_process(str(arrays["schedule"]), int(arrays["num_timesteps"])),
            )


def nhwc_of(arrays, name):
    return jnp.asarray(arrays[name].transpose(0, 2, 3, 1))


def bound_alone(process, target, variance, output, x_0, x_t, t):
    """The bound without the factor T, as the original's loss "kl" is before it is rescaled."""
    return {"loss": variational_bound(process, output, x_0, x_t, t, target, variance)}


@pytest.mark.golden
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_recorded_losses(golden, transform):
    cases = 0
    for arrays, nhwc, process in recorded_files(golden, "model_output"):
        x_0, eps, x_t = nhwc("x0"), nhwc("noise"), nhwc("q_sample__x_t")
        t = jnp.asarray(arrays["t"], jnp.int32)
        for key in arrays:
            match = re.fullmatch(r"(loss_(\w+?)_(\w+?)_(\w+?))__loss", key)
            if not match:
                continue
            target, variance, kind = NAMES[match[2]], NAMES[match[3]], match[4]
            output = nhwc("model_output")
            output = output if variance == "learned" else output[..., : x_t.shape[-1]]
            if kind == "kl":
                run = functools.partial(bound_alone, process, target, variance)
                found = transform(run)(output, x_0, x_t, t)
            else:
                fixed = variance != "learned" and kind.endswith("mse")
                ours = "simple" if fixed else KINDS[kind]
                run = functools.partial(
                    training_losses, process, target=target, variance=variance, kind=ours
                )
                found = transform(run)(output, x_0, x_t, t, eps)
            for part in ("loss", "mse", "vb"):
                if f"{match[1]}__{part}" in arrays:
                    recorded = arrays[f"{match[1]}__{part}"]
                    # Bits of nearly equal normals are the rounding of exp(d) - 1, which a compiler
                    # may do in another order; the likelihood at t = 0 is that of the difference of
                    # two values of tanh.
                    near = 2e-8 if transform is jax.jit else 1e-9
                    for chosen, rtol in ((t > 0, 1e-5), (t == 0, 5e-3)):
                        np.testing.assert_allclose(
                            found[part][chosen], recorded[chosen], rtol, near, err_msg=match[1]
                        )
                    cases += 1
        prior = transform(functools.partial(prior_bits, process))(x_0)
        np.testing.assert_allclose(prior, arrays["prior_bpd"], rtol=1e-5)
    assert cases


@pytest.mark.golden
def test_recorded_discretised_log_likelihoods(golden):
    cases = 0
    for arrays, _, _ in recorded_files(golden, "dgll__x"):
        inputs = [arrays[f"dgll__{name}"] for name in ("x", "means", "log_scales")]
        recorded = arrays["dgll__log_probs"]
        found = discretised_normal_log_likelihood(*map(jnp.asarray, inputs))
        counts = recorded > -8  # rounding dominates below
        np.testing.assert_allclose(found[counts], recorded[counts], rtol=0, atol=1e-4)
        cases += np.sum(counts)
    assert cases


@pytest.mark.golden
def test_recorded_kl(golden):
    cases = 0
    for arrays, _, _ in recorded_files(golden, "kl__args"):
        found = normal_kl(*map(jnp.asarray, arrays["kl__args"]))
        np.testing.assert_allclose(found, arrays["kl__out"], rtol=1e-6, atol=1e-6)
        cases += 1
    assert cases


def test_kl_is_the_integral_of_the_log_ratio():
    grid = np.linspace(-30, 30, 60_001)
    log_density = lambda mean, log_variance: (
        (-((grid - mean) ** 2) / np.exp(log_variance) / 2 - log_variance / 2)
        - np.log(2 * np.pi) / 2
    )
    for case in [(0.0, 0.0, 1.0, 0.5), (2.0, -1.0, -1.0, 1.0), (0.3, 1.0, 0.3, -0.5)]:
        p, q = log_density(*case[:2]), log_density(*case[2:])
        integral = np.sum(np.exp(p) * (p - q)) * (grid[1] - grid[0])
        np.testing.assert_allclose(normal_kl(*map(jnp.float32, case)), integral, rtol=1e-5)
        np.testing.assert_allclose(normal_kl(*map(jnp.float32, case[:2] * 2)), 0, atol=1e-6)


@pytest.mark.parametrize("mean, log_scale", [(0.0, -1.0), (0.9, 0.5), (-1.3, -2.0)])
def test_the_levels_share_out_all_probability(mean, log_scale):
    levels = jnp.arange(256) / 127.5 - 1
    log_p = discretised_normal_log_likelihood(levels, mean, log_scale)
    np.testing.assert_allclose(np.sum(np.exp(np.float64(log_p))), 1, rtol=1e-4)


def test_a_bin_holds_the_mass_of_the_normal():
    """The published approximation of the normal distribution function is good to 2e-4."""
    cdf = np.vectorize(lambda z: (1 + math.erf(z / math.sqrt(2))) / 2)
    levels = np.arange(256) / 127.5 - 1
    upper, lower = cdf((levels + 1 / 255 - 0.2) / 0.4), cdf((levels - 1 / 255 - 0.2) / 0.4)
    mass = upper - lower
    mass[0], mass[-1] = upper[0], 1 - lower[-1]
    found = np.exp(discretised_normal_log_likelihood(jnp.asarray(levels), 0.2, math.log(0.4)))
    np.testing.assert_allclose(found, mass, atol=3e-4)
    np.testing.assert_allclose(found[60:200], mass[60:200], rtol=0.02)


def test_impossible_levels_have_a_finite_log_likelihood():
    log_p = discretised_normal_log_likelihood(jnp.asarray([-0.5, 1.0]), -1.0, -9.0)
    np.testing.assert_allclose(log_p, math.log(1e-12), rtol=1e-6)
    slope = jax.jit(jax.grad(lambda m: jnp.sum(discretised_normal_log_likelihood(1.0, m, -50.0))))
    assert slope(jnp.float32(-1.0)) == 0


def batch(process, seed=0):
    """x_0 on the 256 levels, eps, x_t, and one image for every t."""
    generator = np.random.default_rng(seed)
    t = jnp.arange(process.steps)
    shape = (process.steps, 4, 5, 3)
    x_0 = jnp.asarray(generator.integers(0, 256, shape) / 127.5 - 1, jnp.float32)
    eps = jnp.asarray(generator.standard_normal(shape), jnp.float32)
    return x_0, eps, noising(process, x_0, t, eps), t


def test_the_terms_of_a_chain_add_up_to_the_divergence_of_the_whole_chain():
    """Sum over t >= 1 of E KL(q(x_{t-1} | x_t, x_0) || p) + prior = KL(q(x_0 .. x_{T-1}) || p).

    The case has one dimension and a network that always predicts the same noise. Both chains are
    normal with known means and covariances, so the right side is one matrix formula; the left is
    integrated exactly by Gauss-Hermite points, because its terms are quadratic in x_t.
    """
    process = Process(np.array([0.1, 0.3, 0.4, 0.6]), (0, 1, 2, 3))
    steps, clean, predicted = 4, 0.7, -0.4
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    weights = weights / weights.sum()
    bits = prior_bits(process, jnp.full((1, 1), clean))[0]

    @jax.jit
    def term_of(t):
        x_0, eps = jnp.full((8, 1), clean), jnp.asarray(nodes[:, None], jnp.float32)
        x_t = noising(process, x_0, t, eps)
        output = jnp.full((8, 1), predicted)
        return variational_bound(process, output, x_0, x_t, t, "noise", "fixed_large")

    for t in range(1, steps):
        bits += np.sum(weights * term_of(t))

    level = np.cumprod(1 - process.betas)
    mean_q = np.sqrt(level) * clean
    cov_q = np.array(
        [
            [
                np.sqrt(level[max(i, j)] / level[min(i, j)]) * (1 - level[min(i, j)])
                for j in range(4)
            ]
            for i in range(4)
        ]
    )
    mean_p, cov_p = np.zeros(4), np.zeros((4, 4))  # downwards from x_{T-1} ~ N(0, 1)
    cov_p[3, 3] = 1
    for t in range(3, 0, -1):
        beta = process.betas[t]  # Ho et al. (2020), equation 11
        factor = 1 / np.sqrt(1 - beta)
        mean_p[t - 1] = factor * (mean_p[t] - beta / np.sqrt(1 - level[t]) * predicted)
        cov_p[t - 1, t:] = cov_p[t:, t - 1] = factor * cov_p[t, t:]
        cov_p[t - 1, t - 1] = factor**2 * cov_p[t, t] + beta
    inverse, shift = np.linalg.inv(cov_p), mean_p - mean_q
    ratio = np.linalg.slogdet(cov_p)[1] - np.linalg.slogdet(cov_q)[1]
    nats = (np.trace(inverse @ cov_q) - steps + shift @ inverse @ shift + ratio) / 2
    np.testing.assert_allclose(bits, nats / math.log(2), rtol=1e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_a_perfect_network_pays_only_for_the_last_step(target):
    x_0, eps, x_t, t = batch(SHORT)
    x_0, eps, x_t, t = x_0[:-1], eps[:-1], x_t[:-1], t[:-1]  # the last level has no signal left
    output = {"noise": eps, "image": x_0, "velocity": velocity(SHORT, x_0, eps, t)}[target]
    perfect = variational_bound(SHORT, output, x_0, x_t, t, target, "fixed_small")
    np.testing.assert_allclose(perfect[1:], 0, atol=1e-4)
    assert perfect[0] > 0
    worse = variational_bound(SHORT, output + 0.3, x_0, x_t, t, target, "fixed_small")
    assert np.all(worse > perfect + 1e-4)


def test_the_first_term_is_the_likelihood_of_the_image():
    x_0, eps, x_t, _ = batch(SHORT)
    found = variational_bound(SHORT, x_0, x_0, x_t, 0, "image", "fixed_large")
    log_scale = SHORT.posterior_log_variance[1] / 2
    nats = -np.mean(discretised_normal_log_likelihood(x_0, x_0, log_scale), axis=(1, 2, 3))
    np.testing.assert_allclose(found, nats / math.log(2), rtol=1e-5)


def test_the_estimate_is_clipped_only_on_demand():
    x_0, eps, x_t, t = batch(SHORT)
    bound = lambda out, clip: variational_bound(
        SHORT, out, x_0, x_t, t, "image", "fixed_large", clip
    )
    output = 5 * eps
    assert np.all(bound(output, False) > bound(output, True))
    clipped = bound(jnp.clip(output, -1, 1), False)
    np.testing.assert_allclose(bound(output, True), clipped, rtol=1e-6)


def test_prior_shrinks_with_the_signal_that_is_left():
    x_0, _, _, _ = batch(SHORT)
    full = prior_bits(make_process("linear", 1000), x_0)
    few = prior_bits(Process(np.full(3, 0.1), (0, 1, 2)), x_0)
    assert np.all(full < 1e-4) and np.all(few > 0.1)


def losses(kind, output, variance="learned", target="noise", process=SHORT):
    x_0, eps, x_t, t = batch(process)
    return training_losses(process, output, x_0, x_t, t, eps, target, variance, kind)


@functools.partial(jax.jit, static_argnums=0)
def slopes(kind, output):
    """The gradient of the summed loss; one program compiles sooner than one for each operation."""
    return jax.grad(lambda output: jnp.sum(losses(kind, output)["loss"]))(output)


def some_output(process=SHORT, channels=6):
    shape = (process.steps, 4, 5, channels)
    return jnp.asarray(np.random.default_rng(1).standard_normal(shape), jnp.float32) / 2


@pytest.mark.parametrize("kind", LOSSES)
def test_a_loss_trains_the_half_of_the_output_that_it_names(kind):
    output = some_output()
    slope = slopes(kind, output)
    assert np.all(np.isfinite(slope))
    mean_half, v = np.abs(slope[..., :3]).max(axis=(1, 2, 3)), np.abs(slope[..., 3:]).max((1, 2, 3))
    assert np.all(mean_half > 0)
    assert np.all((v > 0) == (kind != "simple"))
    simple = slopes("simple", output)
    same = np.allclose(slope[..., :3], simple[..., :3], rtol=1e-6, atol=1e-9)
    assert same == (kind != "kl")  # the bound reaches the mean only there


@pytest.mark.parametrize("process", [SHORT, make_process("linear", 1000, "7")])
def test_losses_are_sums_of_their_terms(process):
    output = some_output(process)
    x_0, eps, x_t, t = batch(process)
    bound = functools.partial(variational_bound, process, target="noise", variance="learned")
    vb = jax.jit(bound)(output, x_0, x_t, t)
    mse = np.mean((output[..., :3] - eps) ** 2, axis=(1, 2, 3))
    expected = {
        "simple": {"loss": mse, "mse": mse},
        "hybrid": {"loss": mse + vb, "mse": mse, "vb": vb},
        "hybrid_rescaled": {
            "loss": mse + vb * process.steps / 1000,
            "mse": mse,
            "vb": vb * process.steps / 1000,
        },
        "kl": {"loss": vb * process.steps, "vb": vb},
    }
    compiled = jax.jit(losses, static_argnames=("kind", "process"))
    for kind in LOSSES:
        found = compiled(kind, output, process=process)
        assert found.keys() == expected[kind].keys()
        for name, value in found.items():
            assert value.shape == (process.steps,) and value.dtype == jnp.float32
            np.testing.assert_allclose(value, expected[kind][name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("target", TARGETS)
def test_the_perfect_output_has_no_squared_error(target):
    x_0, eps, _, t = batch(SHORT)
    goal = {"noise": eps, "image": x_0, "velocity": velocity(SHORT, x_0, eps, t)}[target]
    np.testing.assert_array_equal(losses("simple", goal, "fixed_small", target)["loss"], 0)
    shifted = losses("simple", goal + 0.5, "fixed_small", target)["loss"]
    np.testing.assert_allclose(shifted, 0.25, rtol=1e-5)


def test_a_process_of_one_step_has_losses():
    process = make_process("cosine", 1)
    compiled = jax.jit(losses, static_argnames=("kind", "variance", "process"))
    for kind in LOSSES:
        found = compiled(kind, some_output(process), process=process)
        assert all(np.all(np.isfinite(value)) for value in found.values())
    fixed = compiled("kl", some_output(process, 3), variance="fixed_small", process=process)
    assert np.isfinite(fixed["loss"])


@pytest.mark.parametrize("kind", LOSSES)
def test_large_outputs_keep_finite_gradients(kind):
    output = some_output() * jnp.asarray([100.0] * 3 + [3.0] * 3)
    slope = slopes(kind, output)
    assert np.all(np.isfinite(slope))


def test_wrong_choices_are_refused():
    output = some_output()
    with pytest.raises(UserError, match='unknown loss "hybird".*Did you mean "hybrid"'):
        losses("hybird", output)
    for kind in LOSSES:
        with pytest.raises(UserError, match='unknown target "epsilon"'):
            losses(kind, output, target="epsilon")
        with pytest.raises(UserError, match='unknown variance "range"'):
            losses(kind, output, variance="range")
        with pytest.raises(UserError, match="gives 3 channels.*needs 6"):
            losses(kind, output[..., :3])
    with pytest.raises(UserError, match='loss "hybrid" trains a learned variance'):
        losses("hybrid", output[..., :3], variance="fixed_small")


def test_known_t_out_of_range_is_refused():
    x_0, eps, x_t, t = batch(SHORT)
    with pytest.raises(UserError, match="from 0 to 11"):
        variational_bound(SHORT, eps, x_0, x_t, t + 1, "noise", "fixed_large")
    for kind in ("simple", "kl"):
        with pytest.raises(UserError, match="from 0 to 11"):
            training_losses(SHORT, eps, x_0, x_t, t + 1, eps, "noise", "fixed_large", kind)
