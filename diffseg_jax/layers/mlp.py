"""Linear layers with PyTorch's initial values, the exact GELU, and the MLP of both."""

import math

import jax
from flax import nnx


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
        dtype=dtype, rngs=rngs,
    )  # fmt: skip


class Mlp(nnx.Module):
    """Linear, GELU, linear: f[..., D] -> f[..., D] in `dtype`; `hidden` values in between."""

    def __init__(self, dim, hidden, *, kernel_init=None, bias_init=None, dtype, rngs: nnx.Rngs):
        options = dict(kernel_init=kernel_init, bias_init=bias_init, dtype=dtype, rngs=rngs)
        self.fc1 = linear(dim, hidden, **options)
        self.fc2 = linear(hidden, dim, **options)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(gelu(self.fc1(x)))
