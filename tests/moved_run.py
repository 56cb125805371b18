"""Restores the state in a stage directory on a mesh, saves it in another directory, and goes on
from there with the next mesh.

python tests/moved_run.py <from> <folder of the others> <data>x<fsdp> ...

Each mesh is over the first devices of this process. Prints the fingerprints of all arrays, as the
devices hold them, a line of JSON for each mesh.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict as unflatten
from jax.sharding import AxisType, Mesh

from diffseg_jax.devices.mesh import AXES
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.storage.integrity import fingerprints


def main(source, folder, *shapes):
    """Moves the state from mesh to mesh."""
    for text in shapes:
        shape = tuple(map(int, text.split("x")))
        devices = np.reshape(jax.devices()[: np.prod(shape)], shape)
        mesh = Mesh(devices, AXES, axis_types=(AxisType.Auto,) * 2)
        source = move(Path(source), Path(folder) / text, mesh)


def move(source, target, mesh):
    """Restores, saves and prints; returns the directory of the copy."""
    with StageCheckpoints(source, read_only=True) as checkpoints:
        step = checkpoints.latest()
        meta = checkpoints.meta(step)
        arrays = meta.pop("arrays")
        abstract = unflatten({
            tuple(path.split("/")): jax.ShapeDtypeStruct(entry["shape"], jnp.dtype(entry["dtype"]))
            for path, entry in arrays.items()
        })  # fmt: skip
        state = checkpoints.restore(step, abstract, mesh)
    with StageCheckpoints(target) as checkpoints:
        checkpoints.save(step, state, meta)
    used = set().union(*(leaf.sharding.device_set for leaf in jax.tree.leaves(state)))
    split = sum(not leaf.is_fully_replicated for leaf in jax.tree.leaves(state))
    sums = {path: entry["sum"] for path, entry in fingerprints(state).items()}
    print(json.dumps({"devices": len(used), "split": split, "sums": sums}))
    return target


if __name__ == "__main__":
    main(*sys.argv[1:])
