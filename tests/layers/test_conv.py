"""Convolutions: the two arithmetics as recorded, and the short cuts against plain convolutions."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from diffseg_jax.layers import conv
from diffseg_jax.layers.conv import (
    Arithmetic,
    Conv,
    StdConv,
    convolve,
    convolve_enlarged,
    standardise,
)

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
        assert cases
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
    """Padding on the other side moves a strided convolution by about its own size."""
    compared = 0
    for path in golden("ddep/stdconv*.json"):
        cases, arrays = json.loads(path.read_text())["cases"], np.load(path.with_suffix(".npz"))
        for i, case in enumerate(cases):
            sides = arrays[f"c{i}_x"].shape[1:3]
            if case["kernel"] == 1 or all((side - 1) % case["stride"] == 0 for side in sides):
                continue  # both arithmetics pad the same amount on both sides
            outputs = [
                StdConv(
                    case["in"][2], case["out_channels"], case["kernel"],
                    stride=case["stride"], arithmetic=arithmetic, rngs=nnx.Rngs(0),
                )(arrays[f"c{i}_x"])
                for arithmetic in Arithmetic
            ]  # fmt: skip
            for official, port in (
                (arrays[f"c{i}_y_official"], arrays[f"c{i}_y_port"]), outputs,
            ):  # fmt: skip
                assert np.max(np.abs(official - port)) > 0.25 * np.max(np.abs(official))
            compared += 1
    if not compared:
        pytest.skip("no case of ddep/stdconv*.json has a stride and an even side")


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
def test_values_and_gradients_are_those_of_a_plain_convolution(size, stride, shape, padding):
    x, kernel = jnp.asarray(values(2, *shape, 6)), jnp.asarray(values(size, size, 6, 4, seed=1))

    def both(conv):
        out, pull = jax.vjp(lambda x, k: conv(x, k, stride, padding), x, kernel)
        return out, *pull(jnp.asarray(values(*out.shape, seed=2)))

    both = jax.jit(both, static_argnums=0)
    for ours, theirs in zip(both(convolve), both(plain)):
        close(ours, theirs, 1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (16, 16)])
@pytest.mark.parametrize(("size", "stride"), [(7, 2), (3, 1)])
def test_gradients_are_right_at_extreme_sizes(shape, size, stride):
    """Maps smaller than the kernel, and wide ones; 7x7 with stride 2 as in the stem."""
    x, kernel = jnp.asarray(values(1, *shape, 3)), jnp.asarray(values(size, size, 3, 4))

    def gradients(conv):
        energy = lambda x, k: jnp.sum(jnp.sin(conv(x, k, stride, "SAME")))
        return jax.jit(jax.grad(energy, argnums=(0, 1)))(x, kernel)

    for ours, theirs in zip(gradients(convolve), gradients(plain)):
        close(ours, theirs, 1e-5)


@pytest.mark.parametrize("size", [1, 3])
def test_output_has_the_dtype_of_the_input(size):
    x, kernel = values(1, 8, 8, 4), values(size, size, 4, 4, seed=1)
    half = convolve(jnp.asarray(x, jnp.bfloat16), jnp.asarray(kernel, jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    close(half.astype(jnp.float32), convolve(jnp.asarray(x), jnp.asarray(kernel)), 3e-2)
    conv = StdConv(4, 4, size, arithmetic=Arithmetic.OFFICIAL, rngs=nnx.Rngs(0))
    assert conv(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.bfloat16


WIDE_CASES = [(size, shape) for size in (2, 3) for shape in ((1, 1), (2, 3), (8, 5))]


@pytest.mark.parametrize(("size", "shape"), WIDE_CASES)
def test_the_kernel_gradient_equals_a_product(monkeypatch, size, shape):
    """With one zero around, as wide convolutions of few pixels take it on CPUs."""
    monkeypatch.setattr("diffseg_jax.layers.conv.MIN_WIDE", 1)
    x, kernel = jnp.asarray(values(2, *shape, 6)), jnp.asarray(values(size, size, 6, 4, seed=1))
    around = [(1, 1)] * 2
    plain_out, plain_pull = jax.vjp(lambda x, k: plain(x, k, 1, around), x, kernel)
    out, pull = jax.vjp(lambda x, k: convolve(x, k, 1, around), x, kernel)
    cotangent = jnp.asarray(values(*out.shape, seed=2))
    assert "platform_index" in str(jax.make_jaxpr(pull)(cotangent))  # the short cut was taken
    for ours, theirs in zip((out, *pull(cotangent)), (plain_out, *plain_pull(cotangent))):
        close(ours, theirs, 1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("channels", [(6, 4), (4, 6)])
def test_gradients_by_blocks_are_those_of_a_plain_convolution(monkeypatch, channels, dtype):
    """Blocks of two rows, the last of which goes beyond the image; windows of either side."""
    for name, value in dict(MIN_BLOCKED=35, BLOCKED=[4], BLOCK=2 * 5 * 9 * 4).items():
        monkeypatch.setattr(conv, name, value)
    x, kernel = values(2, 7, 5, channels[0]), values(3, 3, *channels, seed=1)
    out, plain_pull = jax.vjp(lambda x, kernel: plain(x, kernel, 1, "SAME"), x, kernel)
    dy = values(*out.shape, seed=2)
    _, pull = jax.vjp(convolve, jnp.asarray(x, dtype), jnp.asarray(kernel, dtype))
    assert "scan[" in str(jax.make_jaxpr(pull)(jnp.asarray(dy, dtype)))
    for ours, theirs in zip(jax.jit(pull)(jnp.asarray(dy, dtype)), plain_pull(dy)):
        assert ours.dtype == dtype
        close(ours.astype(jnp.float32), theirs, 1e-5 if dtype == jnp.float32 else 2e-2)


@pytest.mark.parametrize(
    ("shape", "channels", "loops"),
    [
        ((1, 24, 24, 16), 8, True),
        ((1, 24, 23, 16), 8, False),  # too few pixels
        ((1, 24, 24, 16), 7, False),  # too few channels
        ((1, 24, 24, 256), 128, True),
        ((1, 24, 24, 256), 129, False),  # too many: a sum is as large as a block
    ],
)
def test_kernel_gradients_of_many_pixels_are_summed_by_blocks(monkeypatch, shape, channels, loops):
    x, kernel = (jax.ShapeDtypeStruct(s, np.float32) for s in (shape, (3, 3, shape[3], channels)))
    gradient = jax.grad(lambda x, kernel: jnp.sum(convolve(x, kernel)), 1)
    assert ("scan[" in str(jax.make_jaxpr(gradient)(x, kernel))) == loops
    monkeypatch.setattr(jax, "device_count", lambda: 2)  # these would exchange their images
    assert "scan[" not in str(jax.make_jaxpr(lambda *given: gradient(*given))(x, kernel))


def conv_of(channels_in, channels, size=3, **options):
    """A convolution whose kernel and bias are drawn anew, so that neither is zero."""
    conv = Conv(channels_in, channels, size, **options, rngs=nnx.Rngs(0))
    conv.kernel[...] = jnp.asarray(values(*conv.kernel.shape, seed=1))
    conv.bias[...] = jnp.asarray(values(channels, seed=2))
    return conv


@pytest.mark.parametrize("shape", [(1, 1), (2, 3), (5, 4), (8, 6), (11, 1)])
def test_filtered_rows_equal_the_direct_convolution(monkeypatch, shape):
    """Values and both gradients of the way with half the products, for all remainders of 4 rows."""
    monkeypatch.setattr("diffseg_jax.layers.conv.MIN_WIDE", 1)
    monkeypatch.setattr("diffseg_jax.layers.conv.MIN_FILTERED", (0, 1))
    x, kernel = values(40, *shape, 3), values(3, 3, 3, 5, seed=1)  # more pixels than channels
    dy = values(40, *shape, 5, seed=2)

    @jax.jit  # one program compiles sooner than one for each operation
    def both(x, kernel, dy):
        forms = (functools.partial(f, stride=1, padding=[(1, 1)] * 2) for f in (convolve, plain))
        return [(y, *pull(dy)) for y, pull in (jax.vjp(form, x, kernel) for form in forms)]

    for ours, theirs in zip(*both(x, kernel, dy)):
        close(ours, theirs)


@pytest.mark.parametrize(
    ("shape", "dtype", "way"),
    [
        ((1, 4, 4, 128), jnp.float32, "_patch_product"),  # fewer pixels than channels
        ((1, 64, 64, 128), jnp.float32, "_filter_rows"),
        ((1, 64, 64, 128), jnp.bfloat16, "_with_frame"),  # too coarse for sums and differences
        ((1, 32, 64, 128), jnp.float32, "_with_frame"),
    ],
)
def test_each_size_has_the_expected_implementation(shape, dtype, way):
    kernel = jax.ShapeDtypeStruct((3, 3, 128, 128), dtype)
    assert conv._cpu_form(jax.ShapeDtypeStruct(shape, dtype), kernel).__name__ == way


@pytest.mark.parametrize("size", [1, 3])
def test_strided_convolution_has_its_zeros_on_all_sides(size):
    """Each output is the plain one at every second index from 0, which SAME would not give."""
    whole, strided = conv_of(4, 5, size), conv_of(4, 5, size, stride=2)
    x = jnp.asarray(values(2, 6, 8, 4))
    close(strided(x), whole(x)[:, ::2, ::2], 1e-6)
    half = strided(x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    close(half.astype(jnp.float32), strided(x), 3e-2)


def test_convolutions_start_uniform_or_at_zero():
    conv, zero = (Conv(16, 32, 3, zero=flag, rngs=nnx.Rngs(0)) for flag in (False, True))
    bound = 1 / 12  # 1 / sqrt(3 * 3 * 16)
    for leaf in (conv.kernel, conv.bias):
        assert 0.9 * bound < np.max(np.abs(leaf[...])) <= bound
    np.testing.assert_allclose(np.std(conv.kernel[...]), bound / np.sqrt(3), rtol=0.05)
    assert not np.any(zero.kernel[...]) and not np.any(zero.bias[...])


# always folded, never folded; a map of one pixel, and one with pixels inside
@pytest.mark.parametrize("folded", [0, 10**9])
@pytest.mark.parametrize("shape", [(1, 1, 1, 6), (2, 4, 5, 6)])
def test_enlarged_convolution_equals_that_of_repeated_pixels(monkeypatch, folded, shape):
    monkeypatch.setattr("diffseg_jax.layers.conv.MIN_FOLDED_RATIO", folded)
    conv, x = conv_of(6, 4), jnp.asarray(values(*shape))
    inputs = (x, conv.kernel[...], conv.bias[...])

    def repeated(x, kernel, bias):
        return plain(jnp.repeat(jnp.repeat(x, 2, 1), 2, 2), kernel, 1, "SAME") + bias

    def ours(x, kernel, bias):
        conv = Conv(6, 4, 3, rngs=nnx.Rngs(0))
        conv.kernel, conv.bias = nnx.Param(kernel), nnx.Param(bias)
        return convolve_enlarged(x, conv)

    cotangent = jnp.asarray(values(shape[0], 2 * shape[1], 2 * shape[2], 4, seed=3))

    @functools.partial(jax.jit, static_argnums=0)
    def everything(conv, inputs):
        out, pull = jax.vjp(conv, *inputs)
        return out, *pull(cotangent)

    for mine, theirs in zip(*(everything(form, inputs) for form in (ours, repeated))):
        close(mine, theirs, 1e-5)


def test_enlarging_folds_the_kernel_where_pixels_are_many():
    conv = conv_of(6, 4)
    largest = lambda x: max(
        max(v.aval.size for v in eqn.outvars)
        for eqn in jax.make_jaxpr(lambda x: convolve_enlarged(x, conv))(x).eqns
        if eqn.primitive.name == "conv_general_dilated"
    )  # fmt: skip
    many, few = jnp.zeros((1, 4, 6, 6)), jnp.zeros((1, 23, 1, 6))
    assert largest(many) == 5 * 7 * 16  # four kernels of 4 channels, no enlarged input
    assert largest(few) == 2 * 23 * 2 * 4


def test_enlarged_convolution_keeps_the_dtype():
    conv, x = conv_of(6, 4), jnp.asarray(values(1, 8, 8, 6))
    half = convolve_enlarged(x.astype(jnp.bfloat16), conv)
    assert half.dtype == jnp.bfloat16
    close(half.astype(jnp.float32), convolve_enlarged(x, conv), 3e-2)


def test_any_number_of_images_has_one_implementation():
    """Also a number that is known only when an exported program runs."""
    (count,) = jax.export.symbolic_shape("n")
    for side, channels in ((8, 1024), (64, 128)):
        x = jax.ShapeDtypeStruct((count, side, side, channels), jnp.float32)
        kernel = jax.ShapeDtypeStruct((3, 3, channels, channels), jnp.float32)
        assert jax.eval_shape(convolve, x, kernel).shape == x.shape
