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
from diffseg_jax.experiment import blank, stage_cost
from diffseg_jax.experiment.cost import show_cost
from diffseg_jax.models.map_decoder import MapDecoder
from diffseg_jax.models.network import Network
from diffseg_jax.training import loop

WIDTH, BATCH = 256, 8
CELLS, EMBEDDING, LAYERS, HEADS, POINTS = (8, 12), 16, 2, 2, 3  # of a decoder of maps


def loss(params, stats, batch, key):
    hidden = jnp.tanh(batch["x"] @ params["first"])
    each = jnp.sum((hidden @ params["last"]) ** 2, -1)
    return jnp.sum(each), (jnp.float32(len(each)), stats, {})


def make_stage(init, loss):
    return loop.Stage(
        name="toy", steps=1, batch_size=BATCH, batches=lambda start: iter(()), init=init,
        trainable=lambda path: True, loss=loss, optimizer=optax.adam(1e-3),
        schedule=lambda step: 1e-3, every={}, meta={},
    )  # fmt: skip


def two_layers(mesh):
    kernel = jnp.zeros((WIDTH, WIDTH))
    init = lambda key: {"params": {"first": kernel, "last": kernel}, "stats": {}}
    return program(make_stage(init, loss), {"x": jnp.zeros(WIDTH)}, mesh)


def map_decoder(mesh):
    """The decoder of DDP, whose constants depend on no image."""
    shape = dict(layers=LAYERS, heads=HEADS, points=POINTS, mlp=32)
    network = Network(lambda rngs: MapDecoder(EMBEDDING, **shape, rngs=rngs))

    def loss(params, stats, batch, key):
        decoder = network.bind(params, stats)
        inputs = decoder.constants(CELLS), decoder.modulations(batch["tau"])
        out, _ = decoder(batch["x"], *inputs)
        return jnp.sum(out**2), (jnp.float32(len(out)), stats, {})

    row = {"x": jnp.zeros((*CELLS, EMBEDDING)), "tau": jnp.zeros(4 * EMBEDDING)}
    found = program(make_stage(network.init, loss), row, mesh)
    sizes = jax.tree.map(lambda leaf: leaf.size, network.abstract["params"])
    cells = (CELLS[0] * CELLS[1] - 1) * 3 * HEADS * POINTS * LAYERS  # -1: they hold the biases'
    return found | {"gradients": 4 * sum(jax.tree.leaves(sizes)), "constants": 4 * cells}


def program(stage, row, mesh):
    found = stage_cost.program_of(
        loop.jitted_step(stage, mesh), blank.inputs_of(stage, row, mesh), mesh
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
            "data": two_layers(make_mesh(4, 1)), "fsdp": two_layers(make_mesh(1, 4)),
            "decoder": map_decoder(make_mesh(4, 1)),
            "uneven": refused(stages=config.stages), "mesh": refused(mesh=dict(data=3, fsdp=1)),
            "rows": batch_sharding(make_mesh()).shard_shape((BATCH,))[0],
        },
        sys.stdout,
    )  # fmt: skip


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)
    main()
