"""The old home of `diffseg_jax.storage.networks.open_network`, for one version."""

import os
import warnings

from diffseg_jax.storage import networks
from diffseg_jax.storage.paths import open_path

warnings.warn(
    "diffseg_jax.checkpoints.open_network is now diffseg_jax.storage.networks.open_network, which "
    "takes a Path; the next version has only the new name.",
    FutureWarning,
    stacklevel=2,
)


def open_network(
    path: str | os.PathLike, step: int | None = None, ema: float | str | None = None
) -> tuple[dict, dict]:
    """The network of a stage directory and its metadata, as in version 0.1.0."""
    return networks.open_network(open_path(path), step, ema)
