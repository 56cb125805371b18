"""Prints, as JSON, what the compiled step of a small stage takes on four fake devices.

python tests/cost_on_four.py
"""

import json
import sys

import jax
import jax.numpy as jnp
import optax

from configs import tiny_ddp
from diffseg_jax.devices.mesh import batch_sharding, make_mesh
from diffseg_jax.devices.starting import use_fake_devices
from diffseg_jax.errors import UserError
from diffseg_jax.experiment import stage_cost, unread
from diffseg_jax.experiment.cost import show_cost
from diffseg_jax.training import loop

WIDTH, BATCH = 256, 8


def loss(params, stats, batch, key):
    hidden = jnp.tanh(batch["x"] @ params["first"])
    each = jnp.sum((hidden @ params["last"]) ** 2, -1)
    return jnp.sum(each), (jnp.float32(len(each)), stats, {})


def make_stage():
    kernel = jnp.zeros((WIDTH, WIDTH))
    return loop.Stage(
        name="toy", steps=1, batch_size=BATCH, batches=lambda start: iter(()),
        init=lambda key: {"params": {"first": kernel, "last": kernel}, "stats": {}},
        trainable=lambda path: True, loss=loss, optimizer=optax.adam(1e-3),
        schedule=lambda step: 1e-3, every={}, meta={},
    )  # fmt: skip


def program(mesh):
    stage = make_stage()
    row = {"x": jnp.zeros(WIDTH)}
    found = stage_cost.program_of(
        loop.jitted_step(stage, mesh), unread.inputs_of(stage, row, mesh), mesh
    )
    sums = {each.kind: [each.group, each.bytes] for each in found.collectives}
    return {"collectives": sums, "between": found.between}


def refused(**changes):
    """The sentence with which a config is refused."""
    config = tiny_ddp.get_config()
    config.update(changes)
    try:
        show_cost(config, devices=4)
    except UserError as error:
        return str(error)


def main():
    use_fake_devices(4)
    config = tiny_ddp.get_config()
    config.stages.train.batch_size = 6
    json.dump(
        {
            "data": program(make_mesh(4, 1)), "fsdp": program(make_mesh(1, 4)),
            "uneven": refused(stages=config.stages), "mesh": refused(mesh=dict(data=3, fsdp=1)),
            "rows": batch_sharding(make_mesh()).shard_shape((BATCH,))[0],
        },
        sys.stdout,
    )  # fmt: skip


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)
    main()
