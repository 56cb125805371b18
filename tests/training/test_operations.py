"""Products of a traced program are counted by their formulas, on whatever device it is traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffseg_jax.devices.accelerators import EXACT_FLOAT32
from diffseg_jax.training.operations import activation_bytes, products_of

pytestmark = pytest.mark.quick

ROW = jax.ShapeDtypeStruct((5, 8), jnp.float32)
SQUARE = jax.ShapeDtypeStruct((8, 8), jnp.float32)
PRODUCT = 2 * 5 * 8 * 8  # FLOP


def products(function, *inputs):
    return products_of(jax.make_jaxpr(function)(*inputs).jaxpr)


def test_a_product_is_two_operations_for_each_pair_of_numbers():
    found = products(lambda x, w: x @ w, ROW, SQUARE)
    assert found.operations == {"float32": PRODUCT}
    assert found.bytes == 4 * (40 + 64 + 40)


def test_its_gradient_takes_twice_as_much():
    both = jax.grad(lambda x, w: jnp.sum(jnp.sin(x @ w)), (0, 1))
    assert products(both, ROW, SQUARE).total == 3 * PRODUCT


def test_loops_count_as_often_as_they_run():
    def run(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=7)

    assert products(jax.jit(run), ROW, SQUARE).total == 7 * PRODUCT


def test_dtypes_are_told_apart_and_products_in_full_precision():
    def two(x, w):
        exact = jnp.matmul(x, w, precision="highest")
        return exact, x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16)

    assert products(two, ROW, SQUARE).operations == {EXACT_FLOAT32: PRODUCT, "bfloat16": PRODUCT}


def test_the_program_for_accelerators_counts_where_cpus_have_their_own():
    def choose(x, w):
        other = lambda x, w: (x @ w) @ (w @ w)
        return jax.lax.platform_dependent(x, w, cpu=other, default=lambda x, w: x @ w)

    assert products(choose, ROW, SQUARE).total == PRODUCT


@pytest.mark.parametrize("platforms", [("cuda", "tpu"), ("tpu", "cuda"), ("cuda",), ("tpu",)])
def test_the_programs_for_tpus_then_for_gpus_count_before_the_one_for_the_rest(platforms):
    programs = {"tpu": lambda x, w: x @ w, "cuda": lambda x, w: (x @ w) @ w}
    chosen = {name: programs[name] for name in platforms}

    def choose(x, w):
        return jax.lax.platform_dependent(x, w, **chosen, default=lambda x, w: ((x @ w) @ w) @ w)

    count = 1 if "tpu" in platforms else 2
    assert products(choose, ROW, SQUARE).total == count * PRODUCT


@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_and_both_of_its_gradients_take_the_same(stride):
    """Without padding; zeros between the values of a strided gradient do not count."""
    x = jax.ShapeDtypeStruct((2, 12, 12, 3), jnp.float32)
    kernel = jax.ShapeDtypeStruct((stride, stride, 3, 5), jnp.float32)

    def convolve(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        strides = (stride, stride)
        return jax.lax.conv_general_dilated(x, kernel, strides, "VALID", dimension_numbers=numbers)

    once = products(convolve, x, kernel).total
    assert once == 2 * 2 * (12 // stride) ** 2 * 5 * stride**2 * 3
    both = jax.grad(lambda x, kernel: jnp.sum(jnp.sin(convolve(x, kernel))), (0, 1))
    assert products(both, x, kernel).total == 3 * once


def test_kept_are_the_values_that_the_backward_half_reads():
    def loss(params, x):
        hidden = jnp.sin(x @ params["first"])  # its cosine is kept
        return jnp.sum((hidden @ params["last"]) ** 2), hidden  # and hidden, and twice the result

    params = {"first": SQUARE, "last": SQUARE}
    assert activation_bytes(loss, params, ROW) == 3 * 4 * 40
    remat = activation_bytes(jax.checkpoint(loss), params, ROW)
    assert remat == 0  # all is computed again from what is given


def repeated(layer):
    """A loss of three such layers in a loop, then one."""

    def loss(params, x):
        x, _ = jax.lax.scan(lambda x, w: (layer(x, w), None), x, jnp.stack([params] * 3))
        return jnp.sum(jax.jit(layer)(x, params)), None

    return loss


def test_what_only_other_platforms_keep_does_not_count():
    ours = lambda x, w: jnp.sin(x @ w)
    other = lambda x, w: jnp.cos(jnp.sin(x @ w) @ (w @ w))
    both = lambda x, w: jax.lax.platform_dependent(x, w, tpu=ours, default=other)
    linear = lambda x, w: jax.lax.platform_dependent(x, w, tpu=jnp.matmul, default=other)
    kept, needed = (activation_bytes(repeated(layer), SQUARE, ROW) for layer in (both, ours))
    assert kept == needed > 0
    assert activation_bytes(lambda w, x: (jnp.sum(linear(x, w)), None), SQUARE, ROW) == 0


def test_kept_grows_with_the_batch():
    loss = lambda params, x: (jnp.sum(jnp.tanh(x @ params)), None)
    sizes = [
        activation_bytes(loss, SQUARE, jax.ShapeDtypeStruct((rows, 8), jnp.float32))
        for rows in (3, 6, 9)
    ]
    assert np.diff(sizes).tolist() == [sizes[0]] * 2
