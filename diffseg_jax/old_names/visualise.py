"""The old name of `diffseg_jax.figures`, for one version: all drawings of the old module."""

import warnings

from diffseg_jax.figures.label_images import *  # noqa: F403
from diffseg_jax.figures.layout import *  # noqa: F403
from diffseg_jax.figures.sheets import *  # noqa: F403

warnings.warn(
    "diffseg_jax.visualise is now diffseg_jax.figures: label_images, layout and sheets; the next "
    "version has only the new names.",
    FutureWarning,
    stacklevel=2,
)
