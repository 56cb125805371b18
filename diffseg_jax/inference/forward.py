"""Runs a compiled function of a network and images on a mesh, with results on the host."""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffseg_jax.devices.mesh import batch_sharding, place_tree, process_mesh, state_shardings
from diffseg_jax.devices.settings import own_settings
from diffseg_jax.sources.map_files import MapFiles


@own_settings()
def make_forward(
    function: Callable, network: dict, mesh: jax.sharding.Mesh, batch_size: int, stride: int = 1,
    files: MapFiles | None = None,
) -> Callable:  # fmt: skip
    """(images, valid) -> numpy maps, for `predict`; compiled once per padded image size.

    function  (network, images, valid, *maps) -> probabilities or a dict of maps, jitted
    files     whose maps it takes after `valid`, by `names`, a further argument of the result
    stride    padding to its multiples changes no output (`Task.stride`)

    Fewer images than `batch_size` are padded with copies. In one process the batch is split over
    the mesh. Each of several processes puts the network on its own devices and works through its
    own images, so that no process waits for another.
    """
    network, mesh = on_own_devices(network, mesh)

    @own_settings()
    def forward(images, valid, names=()):
        rows = np.arange(max(batch_size, len(images))) % len(images)
        height, width = images.shape[1:3]
        padding = ((0, 0), (0, -height % stride), (0, -width % stride), (0, 0))
        maps = files.read(names) if files else ()
        batch = np.pad(images[rows], padding), valid[rows], *(each[rows] for each in maps)
        if len(rows) % mesh.size == 0:
            batch = jax.device_put(batch, batch_sharding(mesh))
        output = function(network, *batch)
        inside = np.s_[: len(images), :height, :width] if stride > 1 else np.s_[: len(images)]
        return jax.tree.map(lambda maps: np.asarray(maps)[inside], output)

    return forward


def on_host(array):
    """The complete array as numpy, gathered if other processes hold parts of it."""
    if isinstance(array, np.ndarray) or array.is_fully_replicated:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def on_own_devices(network: dict, mesh: jax.sharding.Mesh) -> tuple[dict, jax.sharding.Mesh]:
    """The network on the devices of a mesh; of several processes, on those of this one."""
    if jax.process_count() > 1:
        network = jax.tree.map(on_host, network)
        mesh = process_mesh(mesh)
    if any(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(network)):
        network = place_tree(network, state_shardings(network, mesh))
    return network, mesh
