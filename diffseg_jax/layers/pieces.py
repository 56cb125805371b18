"""Processing many rows in pieces, so that intermediate values stay in the cache."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from diffseg_jax.layers.conv import unfused

ROWS = 1024  # rows per piece
MIN_ROWS = 4 * ROWS  # fewer rows are processed together


class Piecewise(nnx.Module):
    """A module that maps rows independently, in pieces when evaluated on a CPU.

    Large intermediate values then never leave the cache (`bench_forms.py --form=pieces` and
    `map_pieces`). A backward pass would need them again.
    """

    evaluates = False

    def set_view(self, use_running_average: bool | None = None):
        """Called by `nnx.view(model, use_running_average=True)`."""
        if use_running_average is not None:
            self.evaluates = use_running_average

    def over_rows(self, function: Callable, rows: jax.Array) -> jax.Array:
        """function(rows) for an array f[N, ...] and a function that maps rows independently."""
        # Few rows are computed once, or a norm computes a depthwise convolution in each of its
        # three passes (`bench_forms.py --form=few_rows`).
        pieces = lambda rows: in_pieces(function, rows if len(rows) >= MIN_ROWS else unfused(rows))
        return self.by_platform(rows, cpu=pieces, default=function)

    def by_platform(self, *arrays: jax.Array, cpu: Callable, default: Callable) -> jax.Array:
        """cpu(*arrays) in evaluation on CPUs, else default(*arrays)."""
        if not self.evaluates:
            return default(*arrays)
        return jax.lax.platform_dependent(*arrays, cpu=cpu, default=default)


def in_pieces(function: Callable, *arrays: jax.Array) -> jax.Array:
    """function(*arrays) for independent rows, ROWS of them at a time."""
    count = len(arrays[0])
    if count < MIN_ROWS:
        return function(*arrays)
    padded = (jnp.pad(x, ((0, -count % ROWS), *[(0, 0)] * (x.ndim - 1))) for x in arrays)
    parts = tuple(x.reshape(-1, ROWS, *x.shape[1:]) for x in padded)
    found = jax.lax.map(lambda part: function(*part), parts)
    return found.reshape(-1, *found.shape[2:])[:count]
