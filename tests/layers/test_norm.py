"""Batch norm against numpy, with PyTorch's running variance; group norm against flax's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffseg_jax.layers.norm import BatchNorm, GroupNorm


def make(channels, seed=0, **options):
    """A norm with random scale, bias and running averages."""
    generator = np.random.default_rng(seed)
    norm = BatchNorm(channels, **options)
    for name in ("scale", "bias", "mean"):
        getattr(norm, name)[...] = jnp.asarray(generator.standard_normal(channels), jnp.float32)
    norm.var[...] = jnp.asarray(generator.uniform(0.5, 2, channels), jnp.float32)
    return norm


def random_image(*shape, seed=1):
    return (2 + 3 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def as_numpy(norm):
    return [np.array(v[...], np.float64) for v in (norm.scale, norm.bias, norm.mean, norm.var)]


@pytest.mark.parametrize("shape", [(2, 3, 5, 4), (1, 1, 2, 3), (4, 1, 1, 2)])
def test_training_uses_the_batch_and_moves_the_averages(shape):
    norm, x = make(shape[-1]), random_image(*shape)
    scale, bias, mean, var = as_numpy(norm)
    out = norm(jnp.asarray(x))
    batch, spread = x.mean((0, 1, 2), dtype=np.float64), x.var((0, 1, 2), dtype=np.float64)
    expected = (x - batch) / np.sqrt(spread + 1e-5) * scale + bias
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)
    count = x[..., 0].size
    np.testing.assert_allclose(norm.mean[...], 0.9 * mean + 0.1 * batch, rtol=1e-5)
    unbiased = spread * count / (count - 1)
    np.testing.assert_allclose(norm.var[...], 0.9 * var + 0.1 * unbiased, rtol=1e-5)


def test_momentum_and_epsilon_are_used():
    norm, x = make(3, momentum=0.5, epsilon=0.1), random_image(2, 2, 2, 3)
    scale, bias, mean, _ = as_numpy(norm)
    spread = x.var((0, 1, 2))
    expected = (x - x.mean((0, 1, 2))) / np.sqrt(spread + 0.1) * scale + bias
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(norm.mean[...], 0.5 * mean + 0.5 * x.mean((0, 1, 2)), rtol=1e-5)


def test_evaluation_uses_the_averages_and_leaves_them():
    norm, x = make(4), random_image(2, 3, 3, 4)
    scale, bias, mean, var = as_numpy(norm)
    seen = nnx.view(norm, use_running_average=True)
    expected = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
    np.testing.assert_allclose(seen(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-4)
    for before, after in zip((scale, bias, mean, var), as_numpy(norm)):
        np.testing.assert_array_equal(before, after)


def test_evaluation_treats_every_image_alone():
    seen = nnx.view(make(4), use_running_average=True)
    x = jnp.asarray(random_image(3, 2, 2, 4))
    np.testing.assert_array_equal(seen(x)[1:2], seen(x[1:2]))


def test_a_single_value_per_channel_is_safe():
    """One image of one pixel has no variance: the output is the bias, nothing divides by zero."""
    norm = make(3)
    _, bias, _, var = as_numpy(norm)
    out = norm(jnp.asarray(random_image(1, 1, 1, 3)))
    np.testing.assert_allclose(out, bias[None, None, None], atol=1e-3)
    np.testing.assert_allclose(norm.var[...], 0.9 * var, rtol=1e-6)


def test_large_offsets_do_not_cancel():
    x = 1000 + random_image(2, 8, 8, 2)
    norm = BatchNorm(2)
    np.testing.assert_allclose(np.std(norm(jnp.asarray(x)), (0, 1, 2)), 1, atol=1e-2)


def test_bfloat16_in_and_out_with_float32_statistics():
    norm, x = make(3), random_image(4, 8, 8, 3)
    half = make(3)
    out = half(jnp.asarray(x, jnp.bfloat16))
    assert out.dtype == jnp.bfloat16 and half.var[...].dtype == jnp.float32
    np.testing.assert_allclose(out.astype(jnp.float32), norm(jnp.asarray(x)), atol=0.06)
    np.testing.assert_allclose(half.var[...], norm.var[...], rtol=1e-2)


def test_gradients_pass_through_the_statistics_of_the_batch():
    """Shifting or scaling the input changes nothing, so gradients are orthogonal to both."""
    x, cotangent = jnp.asarray(random_image(2, 3, 3, 2)), random_image(2, 3, 3, 2, seed=2)
    grad = np.asarray(jax.grad(lambda x: jnp.sum(make(2)(x) * cotangent))(x))
    assert np.max(np.abs(grad)) > 0.01
    np.testing.assert_allclose(grad.sum((0, 1, 2)), 0, atol=1e-4)
    centred = x - x.mean((0, 1, 2))
    np.testing.assert_allclose(np.sum(grad * centred, (0, 1, 2)), 0, atol=1e-3)


def group_norm(channels, groups, seed=0, **options):
    """A group norm with random scale and bias."""
    generator = np.random.default_rng(seed)
    norm = GroupNorm(channels, groups, **options)
    for parameter in (norm.scale, norm.bias):
        parameter[...] = jnp.asarray(generator.standard_normal(channels), jnp.float32)
    return norm


@pytest.mark.parametrize("groups", [1, 3, 6])
@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (1, 1, 1, 12), (3, 1, 7, 6)])
def test_groups_are_normalised_as_flax_does_with_gradients(shape, groups):
    x, cotangent = jnp.asarray(random_image(*shape)), random_image(*shape, seed=2)
    ours = group_norm(shape[-1], groups, epsilon=1e-3)
    theirs = nnx.GroupNorm(
        shape[-1], num_groups=groups, epsilon=1e-3, use_fast_variance=False, rngs=nnx.Rngs(0)
    )
    theirs.scale[...], theirs.bias[...] = ours.scale[...], ours.bias[...]

    @jax.jit  # one program compiles sooner than one for each operation
    def both(x, cotangent):
        ways = [jax.vjp(lambda x, norm=norm: norm(x), x) for norm in (ours, theirs)]
        return [(out, *pull(cotangent)) for out, pull in ways]

    for actual, expected in zip(*both(x, cotangent)):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=2e-5)


def test_groups_of_large_offset_do_not_cancel():
    x = 1000 + random_image(2, 8, 8, 4)
    out = np.asarray(GroupNorm(4, 2)(jnp.asarray(x))).reshape(2, 64, 2, 2)
    np.testing.assert_allclose(out.std((1, 3)), 1, atol=1e-2)


def test_group_norm_keeps_bfloat16_and_computes_in_float32():
    norm, x = group_norm(6, 2), jnp.asarray(random_image(1, 8, 8, 6), jnp.bfloat16)
    out = norm(x)
    assert out.dtype == jnp.bfloat16
    expected = norm(x.astype(jnp.float32)).astype(jnp.bfloat16)
    np.testing.assert_array_equal(out, expected)
