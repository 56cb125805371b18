"""The old name of `diffseg_jax.cli`, for one version."""

import warnings

from diffseg_jax.cli import CACHE, use_cache, user_errors

__all__ = ["CACHE", "use_cache", "user_errors"]

warnings.warn(
    "diffseg_jax.command is now diffseg_jax.cli; the next version has only the new name.",
    FutureWarning,
    stacklevel=2,
)
