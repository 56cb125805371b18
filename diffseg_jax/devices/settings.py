"""Settings of jax and numpy on which results depend, as this package needs them.

A program that imports the package, or the environment of a command, may have set others for its own
code: 64-bit types, strict promotion, another generator of random numbers, a guard of transfers.
Settings with which somebody looks for errors or chooses a precision are left alone:
jax_debug_nans, jax_disable_jit, jax_default_matmul_precision.
"""

import contextlib
from collections.abc import Iterator

import jax
import numpy as np


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """Within it, this thread computes with the settings of this package; also a decorator.

    Not for generator functions, whose caller would run with them, too.
    """
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.default_prng_impl("threefry2x32"),
        jax.threefry_partitionable(True),
        jax.transfer_guard("allow"),
        np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"),
    ):
        yield
