"""Depthwise convolution: one kernel per channel."""

import jax
import jax.numpy as jnp
from flax import nnx

ROWS, PARTS = 4, 4  # image rows per block of the kernel gradient, and parts of a row


@jax.custom_vjp
def depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """f[B,H,W,C] * f[k,k,1,C] -> f[B,H,W,C], k odd, k // 2 zeros on all sides, in the dtype of x.

    XLA's CPU backend runs grouped convolutions far slower than a sum of shifted products, which it
    fuses into a single loop (`bench_forms.py --form=depthwise,depthwise_halved`).
    """
    return jax.lax.platform_dependent(x, kernel, cpu=_shifted_sum, default=_grouped)


def _forward(x, kernel):
    return depthwise(x, kernel), (x, kernel)


def _backward(saved, dy):
    def sums(dy):
        turned = _shifted_sum(dy, kernel[::-1, ::-1])
        return turned, _kernel_gradient(x, dy, kernel.shape[0]).astype(kernel.dtype)

    x, kernel = saved
    return jax.lax.platform_dependent(dy, cpu=sums, default=jax.vjp(_grouped, x, kernel)[1])


depthwise.defvjp(_forward, _backward)


def _grouped(x, kernel):
    half = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), [(half, half)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[3],
    )  # fmt: skip


def _frame(x, half, after=(0, 0)):
    return jnp.pad(x, ((0, 0), (half, half + after[0]), (half, half + after[1]), (0, 0)))


def _shifted_sum(x, kernel):
    rows, columns = x.shape[1:3]
    size = kernel.shape[0]
    padded = _frame(x, size // 2)
    total = jnp.zeros((), jnp.float32)
    for i in range(size):
        for j in range(size):
            shifted = padded[:, i : i + rows, j : j + columns]
            total = total + shifted.astype(jnp.float32) * kernel[i, j, 0].astype(jnp.float32)
    return _finished(total).astype(x.dtype)


def depthwise_halved(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The same at stride 2: f[B,H,W,C] * f[k,k,1,C] -> f[B,H//2,W//2,C], in the dtype of x.

    k // 2 zeros are added after the image and one less before it, as TensorFlow pads even sides.
    """
    return jax.lax.platform_dependent(x, kernel, cpu=_halved_sum, default=_grouped_halved)


def _grouped_halved(x, kernel):
    half = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        x, kernel, (2, 2), [(half - 1, half)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[3],
    )  # fmt: skip


def _halved_sum(x, kernel):
    size, half = kernel.shape[0], kernel.shape[0] // 2
    padded = jnp.pad(x, ((0, 0), (half - 1, half), (half - 1, half), (0, 0)))
    rows, columns = (side - size + 1 for side in padded.shape[1:3])
    total = jnp.zeros((), jnp.float32)
    for i in range(size):
        for j in range(size):
            taken = padded[:, i : i + rows : 2, j : j + columns : 2]
            total = total + taken.astype(jnp.float32) * kernel[i, j, 0].astype(jnp.float32)
    return _finished(total).astype(x.dtype)


def _finished(x):
    """x itself, whose last products XLA's CPU backend does not fuse with a following reduction.

    It would write the others to memory one by one (`bench_forms.py --form=finished`).
    """
    return jnp.where(jnp.isnan(x), jnp.nan, x)


def _kernel_gradient(x, dy, size):
    """f32[size,size,1,C] from f[B,H,W,C] of input and output gradient, by blocks of ROWS rows.

    A reduction over all pixels for each of the size^2 taps would read both maps from memory each
    time; here a block stays in the cache while all taps read it (`bench_forms.py --form=taps`).
    """
    batch, rows, columns, channels = x.shape
    blocks, part = -(-rows // ROWS), -(-columns // PARTS)
    after = (blocks * ROWS - rows, part * PARTS - columns)
    padded, dy = _frame(x, size // 2, after), _frame(dy, 0, after)

    def block(array, step, count):
        start = (step // blocks, step % blocks * ROWS, 0, 0)
        taken = jax.lax.dynamic_slice(array, start, (1, count, *array.shape[2:]))
        return taken[0].astype(jnp.float32)

    def add(step, totals):
        seen, given = block(padded, step, ROWS + size - 1), block(dy, step, ROWS)
        return [_add_column(total, seen, given, j, part) for j, total in enumerate(totals)]

    start = [jnp.zeros((size, part, channels), jnp.float32)] * size
    totals = jax.lax.fori_loop(0, batch * blocks, add, start)
    return jnp.stack([jnp.sum(total, 1) for total in totals], 1)[:, :, None]


def _add_column(total, seen, given, j, part):
    """total f32[size,part,C] of all kernel rows in column j, plus the terms of one block."""
    size = total.shape[0]
    for r in range(ROWS):
        for first in range(0, given.shape[1], part):
            pixels = seen[r : r + size, first + j : first + j + part]
            total = total + pixels * given[r, first : first + part]
    return total


class DepthwiseConv(nnx.Module):
    """Depthwise convolution with bias, in the dtype of x: f[B,H,W,C] -> f[B,H/stride,W/stride,C].

    size    height and width of the kernel, odd
    stride  1 with the padding of `depthwise`, or 2 with that of `depthwise_halved`
    """

    def __init__(self, channels, size, *, stride=1, kernel_init, rngs: nnx.Rngs):
        self.kernel = nnx.Param(kernel_init(rngs.params(), (size, size, 1, channels)))
        self.bias = nnx.Param(jnp.zeros(channels))
        self.stride = stride

    def __call__(self, x: jax.Array) -> jax.Array:
        convolve = depthwise if self.stride == 1 else depthwise_halved
        y = convolve(x, self.kernel[...].astype(x.dtype))
        return y + self.bias[...].astype(x.dtype)
