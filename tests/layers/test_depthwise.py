"""The sum of shifted products is the grouped convolution, forwards and backwards."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffseg_jax.layers.depthwise import (
    DepthwiseConv,
    _grouped,
    _grouped_halved,
    depthwise,
    depthwise_halved,
)

LIMIT = 1e-5  # float32, of the largest expected value
# Compiling takes far longer than running arrays this small.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SIZES = [(1, 16, 24, 8), (2, 9, 13, 3), (1, 1, 1, 4), (3, 2, 5, 1), (1, 4, 1, 6), (2, 5, 4, 5)]


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def _with_gradients(x, kernel, dy):
    y, pull = jax.vjp(depthwise, x, kernel)
    return y, *pull(dy)


def close(actual, expected, limit=LIMIT):
    assert actual.shape == expected.shape
    peak = np.max(np.abs(expected))
    assert np.max(np.abs(np.asarray(actual, np.float32) - expected)) <= limit * peak


@pytest.mark.parametrize("shape", SIZES)
@pytest.mark.parametrize("size", [3, 7])
def test_equals_the_grouped_convolution_with_gradients(shape, size):
    x, kernel, dy = draw(*shape), draw(size, size, 1, shape[-1], seed=1), draw(*shape, seed=2)

    @quick
    def both(x, kernel, dy):
        ways = [jax.vjp(f, x, kernel) for f in (depthwise, _grouped)]
        return [(y, *pull(dy)) for y, pull in ways]

    for actual, expected in zip(*both(x, kernel, dy)):
        close(actual, expected)


@pytest.mark.parametrize(("size", "shape"), [(3, (2, 9, 13, 3)), (5, (1, 8, 6, 4))])
def test_stride_2_equals_the_grouped_convolution_with_gradients(size, shape):
    x, kernel = draw(*shape), draw(size, size, 1, shape[-1], seed=1)
    dy = draw(shape[0], shape[1] // 2, shape[2] // 2, shape[3], seed=2)

    @quick
    def both(x, kernel, dy):
        ways = [jax.vjp(f, x, kernel) for f in (depthwise_halved, _grouped_halved)]
        return [(y, *pull(dy)) for y, pull in ways]

    for actual, expected in zip(*both(x, kernel, dy)):
        close(actual, expected)


def test_every_tap_reads_its_own_neighbour():
    """A kernel of one tap moves the image; zeros come in from outside."""
    x = draw(1, 6, 5, 2)
    for i, j in [(0, 0), (3, 3), (6, 1), (2, 5)]:
        kernel = jnp.zeros((7, 7, 1, 2)).at[i, j].set(1)
        padded = np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
        np.testing.assert_array_equal(depthwise(x, kernel), padded[:, i : i + 6, j : j + 5])


def test_channels_do_not_mix():
    x, kernel = draw(1, 5, 6, 3), draw(7, 7, 1, 3, seed=1)
    alone = [depthwise(x[..., c : c + 1], kernel[..., c : c + 1]) for c in range(3)]
    close(depthwise(x, kernel), np.concatenate(alone, -1))


def test_nan_stays_nan():
    x = jnp.zeros((1, 9, 9, 2)).at[0, 4, 4, 0].set(jnp.nan)
    y = np.isnan(depthwise(x, jnp.ones((7, 7, 1, 2))))
    assert y[..., 0].sum() == 49 and y[..., 1].sum() == 0


def test_bfloat16_sums_in_float32():
    x, kernel, dy = draw(1, 8, 8, 4), draw(7, 7, 1, 4, seed=1), draw(1, 8, 8, 4, seed=2)
    half = [a.astype(jnp.bfloat16) for a in (x, kernel, dy)]
    rounded = [a.astype(jnp.float32) for a in half]
    results = []
    for a, k, d in (half, rounded):
        results.append(quick(_with_gradients)(a, k, d))
    for actual, expected in zip(*results):
        assert actual.dtype == jnp.bfloat16
        close(actual, expected, 4e-3)  # one rounding at the end


def test_module_adds_a_bias_that_starts_at_zero():
    init = nnx.initializers.truncated_normal(0.02)
    conv, x = DepthwiseConv(3, 7, kernel_init=init, rngs=nnx.Rngs(0)), draw(2, 4, 5, 3)
    assert conv.kernel.shape == (7, 7, 1, 3) and 0.01 < np.std(conv.kernel[...]) < 0.03
    without = depthwise(x, conv.kernel[...])
    np.testing.assert_array_equal(conv(x), without)
    conv.bias[...] = jnp.array([1.0, -2.0, 0.5])
    np.testing.assert_allclose(conv(x), without + conv.bias[...], atol=1e-6)
    assert conv(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
