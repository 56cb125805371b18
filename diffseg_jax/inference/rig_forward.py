"""Runs a compiled function of a network and rigs of images on a mesh, with results on the host."""

from collections.abc import Callable, Mapping

import jax
import numpy as np

from diffseg_jax.data.bev_transforms import RigView, network_input
from diffseg_jax.devices.mesh import batch_sharding
from diffseg_jax.devices.settings import own_settings
from diffseg_jax.inference.forward import on_own_devices


def view_of(meta: Mapping) -> RigView:
    """What a network sees of photographs, by its `Task.meta`."""
    return RigView(tuple(meta["size"]), meta["resize"])


@own_settings()
def make_rig_forward(
    function: Callable, network: dict, mesh: jax.sharding.Mesh, batch_size: int, view: RigView
) -> Callable:
    """(examples, batch_size or None) -> numpy maps; compiled once per number of cameras.

    function  (network, {"images", "cameras"}, valid) -> a tree of maps, jitted
    view      what the network sees of photographs

    An example has photographs and their calibration; all of a call have as many. Fewer than
    `batch_size` are padded with copies. In one process the batch is split over the mesh; each of
    several processes works through its own examples.
    """
    network, mesh = on_own_devices(network, mesh)

    @own_settings()
    def forward(examples):
        inputs = [network_input(example, view) for example in examples]
        rows = np.arange(max(batch_size, len(examples))) % len(examples)
        rig = {key: np.stack([each[key] for each in inputs])[rows] for key in inputs[0]}
        batch = rig, np.tile(np.array(view.size, np.int32), (len(rows), 1))
        if len(rows) % mesh.size == 0:
            batch = jax.device_put(batch, batch_sharding(mesh))
        output = function(network, *batch)
        return jax.tree.map(lambda maps: np.asarray(maps)[: len(examples)], output)

    return forward
