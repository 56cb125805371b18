"""A compiled function of a network and images -> maps in the host's memory, on a mesh."""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffseg_jax.devices.mesh import batch_sharding, place_tree, process_mesh, state_shardings


def make_forward(
    function: Callable, network: dict, mesh: jax.sharding.Mesh, batch_size: int, stride: int = 1
) -> Callable:
    """(images, valid) -> numpy maps, for `predict`; compiled once per padded image size.

    function  (network, images, valid) -> probabilities or a dict of maps, jitted
    stride    padding to its multiples changes no answer (`Task.stride`)

    Fewer images than `batch_size` are filled up with copies. In one process the batch is split over
    the mesh. Several processes each put the network on their own devices, which share it, and work
    through their own images: none waits for another.
    """
    if jax.process_count() > 1:
        network = jax.tree.map(_on_host, network)
        mesh = process_mesh(mesh)
    if any(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(network)):
        network = place_tree(network, state_shardings(network, mesh))

    def forward(images, valid):
        rows = np.arange(max(batch_size, len(images))) % len(images)
        height, width = images.shape[1:3]
        padding = ((0, 0), (0, -height % stride), (0, -width % stride), (0, 0))
        batch = np.pad(images[rows], padding), valid[rows]
        if len(rows) % mesh.size == 0:
            batch = jax.device_put(batch, batch_sharding(mesh))
        answer = function(network, *batch)
        cut = np.s_[: len(images), :height, :width] if stride > 1 else np.s_[: len(images)]
        return jax.tree.map(lambda part: np.asarray(part)[cut], answer)

    return forward


def _on_host(array):
    """The whole array as numpy, if parts of it live in other processes."""
    if isinstance(array, np.ndarray) or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)
