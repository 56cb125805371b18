"""The published UNet and its Adam state on 8 devices: memory to initialise, save and restore.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python tests/benchmarks/large_state.py

Prints seconds and the peak memory of the process after each part of the work. 552,814,086
parameters and two moments are 6.63 GB. It needs 15 GB of memory, because one process holds all
eight devices.
"""

import argparse
import resource
import runpy
import tempfile
import time
from pathlib import Path

import jax

from diffseg_jax.devices.mesh import make_mesh, state_shardings
from diffseg_jax.errors import size
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.storage.integrity import fingerprints
from diffseg_jax.systems import ddpm_seg_config
from diffseg_jax.training import loop
from diffseg_jax.training.optimizer import make_optimizer
from diffseg_jax.training.state_sizes import of_state

CONFIG = Path(__file__).parents[2] / "configs" / "ddpm_published.py"


def stage_of(config):
    """A stage with only what its state needs: no data, no moving average."""
    options = config.stages.pretrain
    task = ddpm_seg_config.make_task(config, "pretrain", tuple(options.augment.crop), 0)
    optimizer = make_optimizer(
        "adamw", 1e-4, b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=0.0, no_decay=(), clip_norm=0.0
    )
    return loop.Stage(
        name="pretrain", steps=1, batch_size=8, batches=None, init=task.init, loss=task.loss,
        trainable=task.trainable, optimizer=optimizer, schedule=None, every={}, meta={},
    )  # fmt: skip


def report(what, begun):
    """Prints the seconds since `begun` and the peak memory of the process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{what}: {time.perf_counter() - begun:.1f} s, peak {size(peak)}", flush=True)
    return time.perf_counter()


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", type=Path, default=CONFIG)
    parser.add_argument("--folder", help="where the checkpoint goes for a while")
    options = parser.parse_args()
    stage = stage_of(runpy.run_path(str(options.config))["get_config"]())
    mesh = make_mesh(1, jax.device_count())
    abstract = loop.abstract_state(stage)
    print(f"{jax.device_count()} devices, fsdp={mesh.shape['fsdp']}")
    print(of_state(abstract, state_shardings(abstract, mesh)))
    begun = report("before", time.perf_counter())
    state = jax.block_until_ready(loop.fresh(stage, mesh))
    begun = report("made in parts", begun)
    most = max(
        sum(part.data.nbytes for leaf in jax.tree.leaves(state) for part in leaf.addressable_shards
            if part.device == device)
        for device in jax.devices()
    )  # fmt: skip
    print(f"the fullest device holds {size(most)}")
    sums = fingerprints(state["params"])
    begun = report("sums of its bits", begun)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        with StageCheckpoints(Path(folder)) as checkpoints:
            checkpoints.save(1, state, {})
            checkpoints.wait()
        begun = report("saved", begun)
        files = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        print(f"on disk: {size(files)}")
        state = jax.tree.map(lambda leaf: leaf.delete(), state)
        with StageCheckpoints(Path(folder), read_only=True) as checkpoints:
            state = jax.block_until_ready(checkpoints.restore(1, abstract, mesh))
        begun = report("restored and compared", begun)
    print("every bit equal" if fingerprints(state["params"]) == sums else "DIFFERENT")


if __name__ == "__main__":
    main()
