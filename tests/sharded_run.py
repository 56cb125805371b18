"""Runs the stages of a tiny config on a mesh over the devices of this process.

python tests/sharded_run.py <system> <workdir> <data> <fsdp> [<workdir of another mesh>]

Leaves metrics.jsonl with every loss and the last checkpoints, and prints a line of JSON: how many
leaves of the state are split, and whether the other run's checkpoint is restored unchanged.
"""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np

from configs import tiny_ddep, tiny_ddp, tiny_ddpm_seg
from diffseg_jax.devices import mesh as meshes
from diffseg_jax.experiment.ensemble_stage import fit_stage
from diffseg_jax.experiment.gradient_stage import make_stage
from diffseg_jax.experiment.plan import make_plan
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.storage.networks import open_network
from diffseg_jax.storage.workdir import make_workdir
from diffseg_jax.training import loop
from diffseg_jax.training.state import flatten, network_of

STEPS = 20
TINY = {"ddep": tiny_ddep, "ddp": tiny_ddp, "ddpm_seg": tiny_ddpm_seg}
STAGES = {  # system -> stages that are run
    "ddep": ("pretrain", "finetune"),
    "ddp": ("train", "align"),
    "ddpm_seg": ("pretrain", "fit"),
}


def small_config(system, data, fsdp):
    """The tiny config with a batch that 8 devices can share, and two stages."""
    config = TINY[system].get_config()
    config.mesh = dict(data=data, fsdp=fsdp)
    config.run = STAGES[system]
    for name in config.run:
        stage = config.stages[name]
        if stage.kind == "fit":
            config.ensemble.recipe = "fast"  # of the same number of steps, whatever the losses
            continue
        stage.steps, stage.batch_size = STEPS, 8
        stage.optim.peak_lr = 1e-3
        stage.optim.epsilon = 1e-3  # or Adam blows up rounding where a gradient is truly zero
        stage.every = dict(log=1, checkpoint=STEPS, evaluate=STEPS)
    return config


def is_split(leaf):
    """Whether all devices hold equal parts of the array, and none holds all of it."""
    sizes = {shard.data.size for shard in leaf.addressable_shards}
    return len(sizes) == 1 and sizes.pop() < leaf.size


def same_as_stored(restored, ema, directory):
    """Whether a restored state equals bit for bit the arrays that numpy reads."""
    network, _ = open_network(directory)
    ours, stored = flatten(jax.device_get(network_of(restored, ema))), flatten(network)
    return ours.keys() == stored.keys() and all(
        np.array_equal(ours[path], stored[path]) for path in ours
    )


def main(system, workdir, data, fsdp, other=None):
    """Trains, counts the split leaves of the state, and restores the other run's last state."""
    if system != "ddep":
        meshes.SMALLEST_SPLIT = 2**8  # so that the small arrays of tiny networks are split
    config = small_config(system, int(data), int(fsdp))
    first, second = config.run
    if other:  # both second stages start from the same arrays, which limits rounding errors
        config.stages[second].start = f"{other}/checkpoints/{first}"
    run = make_plan(config, Path(workdir))
    make_workdir(run.workdir)
    report = {"devices": jax.device_count()}
    for plan in run.stages:
        name = plan.name
        if plan.task.fit:
            with StageCheckpoints(plan.directory) as checkpoints:
                fit_stage(plan, checkpoints)
            continue
        stage = dataclasses.replace(make_stage(plan), evaluate=None)
        with StageCheckpoints(plan.directory) as checkpoints:
            state = loop.train_network(stage, checkpoints, plan.mesh, plan.log)
        leaves = {part: jax.tree.leaves(state[part]) for part in ("params", "opt")}
        report[name] = {part: sum(map(is_split, found)) for part, found in leaves.items()}
        if other:
            directory = Path(other) / "checkpoints" / name
            with StageCheckpoints(directory, read_only=True) as checkpoints:
                restored = checkpoints.restore(STEPS, loop.abstract_state(stage), run.mesh)
            report[name]["restored"] = same_as_stored(restored, stage.ema, directory)
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
