"""Products of rows, linear layers with PyTorch's initial values, the exact GELU, and their MLP."""

import math

import jax
from flax import nnx

LAST_BY_FIRST = (((-1,), (0,)), ((), ()))  # the last axis of x with the first of the kernel


def by_rows(x: jax.Array, kernel: jax.Array, axes=LAST_BY_FIRST, **options) -> jax.Array:
    """f[..., in] f[in, out] -> f[..., out] as a product of two matrices; `dot_general` of layers.

    axes     those of `jax.lax.dot_general`: the last ones of x with the first ones of the kernel
    options  as there

    Of arrays with more axes, XLA's CPU backend transposes the output's gradient before it
    multiplies it for the kernel's (`bench_forms.py --form=by_rows`).
    """
    count = len(axes[0][0])
    size = math.prod(kernel.shape[:count])
    matrices = x.reshape(-1, size), kernel.reshape(size, -1)
    product = jax.lax.dot_general(*matrices, (((1,), (0,)), ((), ())), **options)
    return product.reshape(*x.shape[:-count], *kernel.shape[count:])


def gelu(x: jax.Array) -> jax.Array:
    """x Phi(x) by the error function, not its approximation by tanh.

    `jax.nn.gelu(x, approximate=False)` uses the complementary function, which differs in the last
    digits and is slower on CPUs (`bench_forms.py --form=gelu`).
    """
    return x * (0.5 + 0.5 * jax.lax.erf(x * math.sqrt(0.5)))


def linear(dim: int, features: int, *, kernel_init=None, bias_init=None, dtype, rngs: nnx.Rngs):
    """A linear layer f[..., dim] -> f[..., features]; by default uniform in +-1 / sqrt(dim)."""
    bound = 1 / math.sqrt(dim)

    def uniform(key, shape, dtype=None):
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    return nnx.Linear(
        dim, features, kernel_init=kernel_init or uniform, bias_init=bias_init or uniform,
        dtype=dtype, dot_general=by_rows, rngs=rngs,
    )  # fmt: skip


class Mlp(nnx.Module):
    """Linear, GELU, linear: f[..., D] -> f[..., D] in `dtype`; `hidden` values in between."""

    def __init__(self, dim, hidden, *, kernel_init=None, bias_init=None, dtype, rngs: nnx.Rngs):
        options = dict(kernel_init=kernel_init, bias_init=bias_init, dtype=dtype, rngs=rngs)
        self.fc1 = linear(dim, hidden, **options)
        self.fc2 = linear(hidden, dim, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(gelu(self.fc1(x)))
