"""Convolutions: the two arithmetics as recorded, and the short cuts against plain convolutions."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffseg_jax.layers.conv import Arithmetic, StdConv, convolve, standardise

LIMIT = 3e-5  # float32, of the largest recorded value


def close(actual, expected, limit=LIMIT):
    assert actual.shape == expected.shape
    assert np.max(np.abs(actual - expected)) <= limit * np.max(np.abs(expected))


def values(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def plain(x, kernel, stride, padding):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.golden
@pytest.mark.parametrize("arithmetic", Arithmetic)
def test_recorded_standardised_convolutions(golden, arithmetic):
    for path in golden("ddep/stdconv*.json"):
        cases, arrays = json.loads(path.read_text())["cases"], np.load(path.with_suffix(".npz"))
        for i, case in enumerate(cases):
            kernel = arrays[f"c{i}_kernel"]
            close(standardise(kernel, arithmetic), arrays[f"c{i}_wstd_{arithmetic.value}"])
            conv = StdConv(
                kernel.shape[2], kernel.shape[3], kernel.shape[0],
                stride=case["stride"], arithmetic=arithmetic, rngs=nnx.Rngs(0),
            )  # fmt: skip
            conv.kernel = nnx.Param(jnp.asarray(kernel))
            close(conv(arrays[f"c{i}_x"]), arrays[f"c{i}_y_{arithmetic.value}"])


@pytest.mark.golden
def test_recorded_columns_are_not_the_same(golden):
    """Padding on the other side moves a strided convolution by more than its own size."""
    for path in golden("ddep/stdconv*.json"):
        cases, arrays = json.loads(path.read_text())["cases"], np.load(path.with_suffix(".npz"))
        for i, case in enumerate(cases):
            if case["stride"] == 1 or case["kernel"] == 1:
                continue
            outputs = [
                StdConv(
                    case["in"][2], case["out_channels"], case["kernel"],
                    stride=case["stride"], arithmetic=arithmetic, rngs=nnx.Rngs(0),
                )(arrays[f"c{i}_x"])
                for arithmetic in Arithmetic
            ]  # fmt: skip
            recorded = arrays[f"c{i}_y_official"] - arrays[f"c{i}_y_port"]
            assert np.max(np.abs(recorded)) > 1
            assert np.max(np.abs(outputs[0] - outputs[1])) > 1


@pytest.mark.parametrize("arithmetic", Arithmetic)
def test_standardised_kernels_have_mean_0_and_deviation_1(arithmetic):
    kernel = standardise(3 + 2 * values(3, 3, 8, 5), arithmetic)
    np.testing.assert_allclose(np.mean(kernel, (0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(np.std(kernel, (0, 1, 2)), 1, atol=1e-3)


def test_epsilons_matter_for_small_kernels():
    small = 1e-3 * values(3, 3, 4, 2)
    official, port = (standardise(small, arithmetic) for arithmetic in Arithmetic)
    var = np.var(small.astype(np.float64), (0, 1, 2))
    np.testing.assert_allclose(port / official, np.broadcast_to(
        (np.sqrt(var) + 1e-5) / np.sqrt(var + 1e-5), port.shape), rtol=1e-4)  # fmt: skip


def test_standardising_lets_gradients_through_mean_and_deviation():
    """A standardised kernel ignores a common offset, so its gradients sum to 0 per channel."""
    kernel, cotangent = jnp.asarray(values(3, 3, 4, 2)), values(3, 3, 4, 2, seed=1)
    grad = jax.grad(lambda k: jnp.sum(standardise(k, Arithmetic.OFFICIAL) * cotangent))(kernel)
    np.testing.assert_allclose(jnp.sum(grad, (0, 1, 2)), 0, atol=1e-4)
    centred = kernel - kernel.mean((0, 1, 2))
    np.testing.assert_allclose(jnp.sum(grad * centred, (0, 1, 2)), 0, atol=2e-3)
    assert np.max(np.abs(grad)) > 0.1


CASES = [
    (size, stride, shape, padding)
    for size in (1, 3)
    for stride in (1, 2)
    for shape in ((6, 8), (7, 5))
    for padding in ("SAME", [(size // 2, size // 2)] * 2)
]


@pytest.mark.parametrize(("size", "stride", "shape", "padding"), CASES)
def test_values_and_gradients_of_a_plain_convolution(size, stride, shape, padding):
    x, kernel = jnp.asarray(values(2, *shape, 6)), jnp.asarray(values(size, size, 6, 4, seed=1))

    def both(conv):
        out, pull = jax.vjp(lambda x, k: conv(x, k, stride, padding), x, kernel)
        return out, *pull(jnp.asarray(values(*out.shape, seed=2)))

    for ours, theirs in zip(jax.jit(both, static_argnums=0)(convolve), both(plain)):
        close(ours, theirs, 1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (16, 16)])
@pytest.mark.parametrize(("size", "stride"), [(7, 2), (3, 1)])
def test_gradients_at_extreme_sizes(shape, size, stride):
    """Maps smaller than the kernel, and wide ones; 7x7 with stride 2 as in the stem."""
    x, kernel = jnp.asarray(values(1, *shape, 3)), jnp.asarray(values(size, size, 3, 4))

    def gradients(conv):
        energy = lambda x, k: jnp.sum(jnp.sin(conv(x, k, stride, "SAME")))
        return jax.grad(energy, argnums=(0, 1))(x, kernel)

    for ours, theirs in zip(gradients(convolve), gradients(plain)):
        close(ours, theirs, 1e-5)


@pytest.mark.parametrize("size", [1, 3])
def test_output_has_the_type_of_the_input(size):
    x, kernel = values(1, 8, 8, 4), values(size, size, 4, 4, seed=1)
    half = convolve(jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    close(half.astype(jnp.float32), convolve(jnp.asarray(x), jnp.asarray(kernel)), 3e-2)
    conv = StdConv(4, 4, size, arithmetic=Arithmetic.OFFICIAL, rngs=nnx.Rngs(0))
    assert conv(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16
