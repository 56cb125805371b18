"""The mesh of devices, and the sharding of batches and parameters over it."""

import math
import os

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from diffseg_jax.errors import UserError, counted

AXES = ("data", "fsdp")
SMALLEST_SPLIT = 2**14  # elements; a smaller array is cheaper to copy than to gather


def make_mesh(data: int = -1, fsdp: int = 1) -> Mesh:
    """Mesh over all devices with axes ("data", "fsdp"); -1 is inferred from the other axis.

    Raises UserError when the two do not multiply to the number of devices.
    """
    count, given = jax.device_count(), f"{data} x {fsdp}"
    data = count // fsdp if data == -1 and fsdp > 0 else data
    fsdp = count // data if fsdp == -1 and data > 0 else fsdp
    if data < 1 or fsdp < 1 or data * fsdp != count:
        raise UserError(
            f"mesh.data x mesh.fsdp is {given}, but it must be the number of devices, {count}. "
            f"Try --config.mesh.data=-1 --config.mesh.fsdp={count}."
        )
    return jax.make_mesh((data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2)


def local_mesh(device: str | None = None) -> Mesh:
    """A mesh with all local devices of `find_devices` along the first axis."""
    devices = find_devices(device)
    return Mesh(np.reshape(devices, (len(devices), 1)), AXES, axis_types=(AxisType.Auto,) * 2)


def find_devices(device: str | None = None) -> list[jax.Device]:
    """The local devices of a platform, "cpu", "cuda", "gpu" or "tpu"; None: jax's choice.

    Raises UserError when there are none.
    """
    try:
        return jax.local_devices(backend=device)
    except (RuntimeError, AssertionError):  # an unknown JAX_PLATFORMS raises the latter
        platform = device or os.environ.get("JAX_PLATFORMS", "")
    extra = {"gpu": "cuda", "cuda": "cuda", "tpu": "tpu"}.get(platform)
    advice = "Known: cpu, cuda (or gpu), tpu"
    advice = f'Try pip install "diffseg_jax[{extra}]"' if extra else advice
    check = " and see that nvidia-smi shows the GPU" if extra == "cuda" else ""
    raise UserError(
        f'jax finds no device of the kind "{platform}". {advice}{check}, or leave the choice to '
        "jax (no --device, no JAX_PLATFORMS)."
    )


def process_mesh(mesh: Mesh) -> Mesh:
    """A mesh over the devices of this process only; "fsdp" is the largest common divisor."""
    count = jax.local_device_count()
    fsdp = math.gcd(mesh.shape["fsdp"], count)
    devices = np.reshape(jax.local_devices(), (count // fsdp, fsdp))
    return Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 2)


def check_batch(batch_size: int, accumulate: int, where: str):
    """Raises UserError when the devices cannot share a batch of that size in equal parts."""
    share = jax.device_count() * accumulate
    if batch_size < 1 or batch_size % share:
        near = max(share, batch_size // share * share)
        parts = f" in {accumulate} parts" if accumulate > 1 else ""
        raise UserError(
            f"{where} is {batch_size}, but {counted(jax.device_count(), 'device')} must share it "
            f"evenly{parts}. Try --config.{where}={near} or {near + share}."
        )


def describe_devices(mesh: Mesh) -> str:
    """The number of devices of a mesh and their arrangement, as text."""
    text = counted(mesh.size, "device")
    if mesh.size > 1:
        text += f" (data {mesh.shape['data']} x fsdp {mesh.shape['fsdp']})"
    if jax.process_count() > 1:
        text += f" of {jax.process_count()} processes"
    return text


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The sharding of batch arrays: their first axis is split over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def state_shardings(tree, mesh: Mesh):
    """A sharding per leaf: the largest axis that `fsdp` divides is split, small ones are copied."""
    size = mesh.shape["fsdp"]

    def shard(leaf):
        axes = [a for a, n in enumerate(leaf.shape) if n % size == 0]
        if size == 1 or np.prod(leaf.shape) < SMALLEST_SPLIT or not axes:
            return NamedSharding(mesh, PartitionSpec())
        largest = max(axes, key=lambda a: leaf.shape[a])
        return NamedSharding(mesh, PartitionSpec(*[None] * largest, "fsdp"))

    return jax.tree.map(shard, tree)


def place_tree(tree, shardings):
    """Host arrays, the same in all processes, as global arrays with the given shardings."""

    def put_one(array, sharding):
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(put_one, tree, shardings)


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """The rows of each batch that are on the devices of this process, in ascending order."""
    indices = batch_sharding(mesh).addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[rows] for (rows,) in indices]))


def to_devices(batch: dict, mesh: Mesh, batch_size: int) -> dict:
    """The rows of a batch that `local_rows` names -> global arrays, split over all devices."""
    sharding, local = batch_sharding(mesh), local_rows(mesh, batch_size)

    def put_rows(rows):
        part = lambda index: rows[np.searchsorted(local, np.arange(batch_size)[index[0]])]
        return jax.make_array_from_callback((batch_size, *rows.shape[1:]), sharding, part)

    return {name: put_rows(np.asarray(rows)) for name, rows in batch.items()}
