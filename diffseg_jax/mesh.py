"""Devices, axis names, and where batches and parameters live."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffseg_jax.config import UserError

AXES = ("data", "fsdp")
SMALLEST_SPLIT = 2**14  # elements; a smaller array is cheaper to copy than to gather


def make_mesh(data: int = -1, fsdp: int = 1) -> Mesh:
    """Mesh over all devices with axes ("data", "fsdp"); -1 takes what the other axis leaves.

    Raises UserError when the two do not multiply to the number of devices.
    """
    count = jax.device_count()
    data = count // fsdp if data == -1 and fsdp > 0 else data
    fsdp = count // data if fsdp == -1 and data > 0 else fsdp
    if data < 1 or fsdp < 1 or data * fsdp != count:
        raise UserError(
            f"mesh.data x mesh.fsdp is {data} x {fsdp}, but there are {count} devices. "
            f"Try --config.mesh.data=-1 --config.mesh.fsdp={count}."
        )
    return jax.make_mesh((data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2)


def check_batch(batch_size: int, accumulate: int, where: str):
    """Raises UserError when the devices cannot share a batch of that size in equal parts."""
    share = jax.device_count() * accumulate
    if batch_size < 1 or batch_size % share:
        near = max(share, batch_size // share * share)
        devices = "1 device" if jax.device_count() == 1 else f"{jax.device_count()} devices"
        parts = f" in {accumulate} parts" if accumulate > 1 else ""
        raise UserError(
            f"{where} is {batch_size}, but {devices} must share it evenly"
            f"{parts}. "
            f"Try --config.{where}={near} or {near + share}."
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The first axis of every batch array is split over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def state_shardings(tree, mesh: Mesh):
    """A sharding per leaf: the largest axis that `fsdp` divides is split, small ones copied."""
    size = mesh.shape["fsdp"]

    def place(leaf):
        axes = [a for a, n in enumerate(leaf.shape) if n % size == 0]
        if size == 1 or np.prod(leaf.shape) < SMALLEST_SPLIT or not axes:
            return NamedSharding(mesh, PartitionSpec())
        largest = max(axes, key=lambda a: leaf.shape[a])
        return NamedSharding(mesh, PartitionSpec(*[None] * largest, "fsdp"))

    return jax.tree.map(place, tree)


def to_devices(batch: dict, mesh: Mesh) -> dict:
    """This process's rows of a batch -> global arrays, split over all devices."""
    sharding = batch_sharding(mesh)
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(rows))
        for name, rows in batch.items()
    }
