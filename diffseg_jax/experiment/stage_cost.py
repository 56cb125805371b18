"""What a stage takes on some devices, from its compiled step: memory, operations, communication.

Nothing runs, and neither images nor weights are read.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence

import jax
import jax.export
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from diffseg_jax.devices.accelerators import ACCELERATORS
from diffseg_jax.devices.collectives import Collective, collectives_of
from diffseg_jax.devices.mesh import state_shardings
from diffseg_jax.experiment import unread
from diffseg_jax.experiment.gradient_stage import unread_stage
from diffseg_jax.systems.task import Task
from diffseg_jax.training import fit_loop, loop, resources
from diffseg_jax.training.operations import Products, kept_for_gradient, products_of
from diffseg_jax.training.state import merge_params
from diffseg_jax.training.state_sizes import state_sizes
from diffseg_jax.training.step import train_step

CHECKPOINT_RATE = 1e9  # bytes/s, assumed
QUICKLY = {  # for machine code that is never run
    "xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Program:
    """What the compiled program of a step says; bytes and FLOP of one device.

    It is that for accelerators, whose layers differ from those for CPUs, by the compiler for CPUs.

    collectives  between devices
    accessed     bytes that it reads and writes; its loops count once
    memory       bytes that it takes;  between  bytes of those that stay between steps
    logged       FLOP, as training on this platform logs them
    seconds      that tracing and compiling took
    """

    collectives: Sequence[Collective]
    accessed: float
    memory: int
    between: int
    logged: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class StageCost:
    """What a step of a stage takes; bytes and FLOP of one device, unless they say otherwise.

    each      what a step reads, images or pixels;  count  how many, of all devices
    state     key of `STATE_PARTS` -> numbers, bytes, bytes on each device
    data      bytes of what a fit learns from
    gradient  bytes
    kept      bytes of the activations that a gradient needs, see `kept_for_gradient`
    products  matrix products of the program for any device
    moved     bytes that products and the update of the state move, if nothing else does
    program   None: not compiled
    features  FLOP of the features of an image, which a fit reads once; 0 for other stages
    """

    name: str
    mesh: Mesh
    each: str
    count: int
    state: Mapping[str, tuple[int, int, int]]
    data: int
    gradient: int
    kept: int
    products: Products
    moved: float
    program: Program | None = None
    features: float = 0.0

    @property
    def checkpoint(self) -> int:
        """Bytes of a checkpoint."""
        return sum(total for _, total, _ in self.state.values())

    @property
    def needed(self) -> int:
        """Bytes of state, data, gradient and activations."""
        return sum(own for *_, own in self.state.values()) + self.data + self.gradient + self.kept

    def on(self, name: str) -> dict:
        """The time of a step on an accelerator, from its peaks: JSON values.

        seconds  if products, memory and links work at their peaks at the same time, and only the
                 products and the update use the memory; seconds_at_most: with all that the
                 compiled program accesses
        """
        device, program = ACCELERATORS[name], self.program
        collectives = program.collectives if program else ()
        times = {
            "products": device.product_seconds(self.products.operations),
            "memory": self.moved / device.bandwidth,
            "links": sum(each.sent for each in collectives) / device.link,
        }
        limit = max(times, key=times.get)
        seconds = times[limit]
        most = max(seconds, program.accessed / device.bandwidth if program else 0)
        return {
            "seconds": seconds, "seconds_at_most": most, "of": times, "limited_by": limit,
            "utilisation": times["products"] / seconds,
            "utilisation_at_least": times["products"] / most,
            "per_second": self.count / seconds, "fits": self.needed <= device.memory,
        }  # fmt: skip


def stage_cost_of(config: ConfigDict, name: str, mesh: Mesh, compiled: bool = True) -> StageCost:
    """The cost of a stage of a checked config, on as many devices as the mesh has.

    compiled  whether a program is compiled, which takes minutes for large networks; without it
              neither collectives nor accesses are known
    """
    task = unread.unread_task(config, name)
    if task.fit:
        return _cost_of_fit(config, name, task, mesh, compiled)
    stage = unread_stage(name, config.stages[name], task, config.seed)
    row = unread.blank_row(config, name)
    step, inputs = loop.jitted_step(stage, mesh), unread.inputs_of(stage, row, mesh)
    state = inputs[0]
    sizes = state_sizes(state, state_shardings(state, mesh))
    gradient = sizes["params"][2]
    products = _products_of_share(stage, row, state, mesh)
    changed = sum(sizes[part][2] for part in ("params", "ema", "opt") if part in sizes)
    return StageCost(
        name=name, mesh=mesh, each="images", count=stage.batch_size, state=sizes, data=0,
        gradient=gradient, kept=_kept(stage, row, state, mesh), products=products,
        moved=products.bytes + 2 * (changed + gradient),
        program=program_of(step, inputs, mesh) if compiled else None,
    )  # fmt: skip


def program_of(step, inputs, mesh, steps=1) -> Program:
    """The compiled program of some steps, its numbers those of one."""
    begun = time.perf_counter()
    made = jax.export.export(
        step, platforms=("tpu",), disabled_checks=[jax.export.DisabledSafetyCheck.platform()]
    )(*inputs)
    compiled = jax.jit(made.call, donate_argnums=0).lower(*inputs).compile(QUICKLY)
    seconds = time.perf_counter() - begun
    memory, between = resources.memory_of(compiled)
    collectives = [
        dataclasses.replace(each, count=each.count / steps, bytes=each.bytes / steps)
        for each in collectives_of(compiled.as_text())
    ]
    logged = resources.operations_of(step.lower(*inputs), mesh.size)
    accessed = compiled.cost_analysis()["bytes accessed"]
    return Program(collectives, accessed, memory, between, logged, seconds)


def _products_of_share(stage, row, state, mesh) -> Products:
    """The products of one device: with its rows of a batch, and all parameters."""
    batch = unread.batch_of(row, stage.batch_size // mesh.size)
    key, rate = unread.key_and_rate()

    def step(state, batch, key, rate):
        fixed = stage.loss, stage.optimizer, stage.accumulate, stage.ema
        return train_step(*fixed, state, batch, key, rate)

    return products_of(jax.make_jaxpr(step)(state, batch, key, rate).jaxpr)


def _kept(stage, row, state, mesh) -> int:
    """Bytes that the gradient of a part of the batch keeps on one device."""
    added = {"row": np.int32(0), "step": np.int32(0)}
    batch = unread.batch_of(row | added, stage.batch_size // (mesh.size * stage.accumulate))

    def loss(params, frozen, stats, batch, key):
        return stage.loss(merge_params(params, frozen), stats, batch, key)

    given = state["params"], state["frozen"], state["stats"], batch, unread.key_and_rate()[0]
    return kept_for_gradient(loss, *given)


def _cost_of_fit(config, name, task: Task, mesh, compiled) -> StageCost:
    fit, network, image = unread.fit_of(config, name, task)
    call, inputs = fit_loop.jitted_steps(fit, mesh), unread.inputs_of_fit(fit, mesh)
    learned, steps = inputs[0], fit_loop.steps_per_call(fit)
    state = {"frozen": network["params"], "stats": (network["stats"], learned["stats"]), "ema": {}}
    state |= {"params": learned["params"], "opt": learned["opt"]}
    everywhere = NamedSharding(mesh, PartitionSpec())
    sizes = state_sizes(state, jax.tree.map(lambda leaf: everywhere, state))
    products = Products()
    products.add(products_of(jax.make_jaxpr(call)(*inputs).jaxpr), 1 / (steps * mesh.size))
    share = [sizes[part][2] / mesh.size for part in ("params", "opt")]  # of the members
    return StageCost(
        name=name, mesh=mesh, each="pixels", count=fit.batch_size, state=sizes,
        data=0 if fit.on_host else fit.features.nbytes, gradient=round(share[0]), kept=0,
        products=products, moved=products.bytes + 2 * (sum(share) + share[0]),
        program=program_of(call, inputs, mesh, steps) if compiled else None,
        features=products_of(jax.make_jaxpr(task.fit.extract)(network, *image).jaxpr).total,
    )  # fmt: skip
