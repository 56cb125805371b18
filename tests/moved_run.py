"""Restores the state in a stage directory on a mesh over all devices, and saves it in another
directory.

python tests/moved_run.py <from> <to> <fsdp>

Prints the fingerprints of all arrays, as the devices hold them.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict as unflatten

from diffseg_jax.devices.mesh import make_mesh
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.storage.integrity import fingerprints


def main(source, target, fsdp):
    """Restores, saves and prints a line of JSON."""
    mesh = make_mesh(-1, int(fsdp))
    with StageCheckpoints(Path(source), read_only=True) as checkpoints:
        step = checkpoints.latest()
        meta = checkpoints.meta(step)
        arrays = meta.pop("arrays")
        abstract = unflatten({
            tuple(path.split("/")): jax.ShapeDtypeStruct(entry["shape"], jnp.dtype(entry["dtype"]))
            for path, entry in arrays.items()
        })  # fmt: skip
        state = checkpoints.restore(step, abstract, mesh)
    with StageCheckpoints(Path(target)) as checkpoints:
        checkpoints.save(step, state, meta)
    split = sum(not leaf.is_fully_replicated for leaf in jax.tree.leaves(state))
    sums = {path: entry["sum"] for path, entry in fingerprints(state).items()}
    print(json.dumps({"devices": jax.device_count(), "split": split, "sums": sums}))


if __name__ == "__main__":
    main(*sys.argv[1:])
