"""The old name of `diffseg_jax.figures.sheets`, for one version."""

import warnings

from diffseg_jax.figures.sheets import *  # noqa: F403

warnings.warn(
    "diffseg_jax.visualise is now diffseg_jax.figures.sheets; the next version has only the new "
    "name.",
    FutureWarning,
    stacklevel=2,
)
