"""What a stage takes on some devices, from its compiled step: memory, operations, communication.

Nothing runs, and no image is read. Of weights, only the network of a feature source is.
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
from diffseg_jax.experiment import blank
from diffseg_jax.experiment.gradient_stage import blank_stage
from diffseg_jax.systems.task import Task
from diffseg_jax.training import fit_loop, loop, resources
from diffseg_jax.training.operations import Products, activation_bytes, products_of
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

    The program is the one for TPUs, whose layers differ from those for CPUs, compiled for CPUs.

    collectives    between devices
    accessed       bytes that it reads and writes; its loops count once
    memory         bytes that it takes;  between  bytes of those that stay between steps
    platform_flop  FLOP of the program for this platform, as its training logs them
    seconds        that tracing and compiling took
    """

    collectives: Sequence[Collective]
    accessed: float
    memory: int
    between: int
    platform_flop: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class FitSize:
    """What a fit of classifiers learns from, on every device.

    own_order           whether each member draws its own pixels
    images              without their variants;  assumed  whether the config does not say how many
    variants            of each image, itself among them
    feature_bytes       of the features on a device; 0 where the host keeps them
    feature_operations  FLOP of the features of an image, which are computed once
    """

    members: int
    own_order: bool
    images: int
    variants: int
    assumed: bool
    feature_bytes: int
    feature_operations: float


@dataclasses.dataclass(frozen=True)
class StageCost:
    """What a step of a stage takes; bytes and FLOP of one device, unless they say otherwise.

    count        images that a step reads, of all devices; of a fit, pixels
    state        key of `STATE_PARTS` -> numbers, bytes, bytes on each device
    stepped      bytes of the parts of the state that a step takes: of a fit without the network
                 that computed the features
    gradient     bytes
    activations  bytes that a gradient needs, see `activation_bytes`
    products     matrix products of the program for accelerators
    moved        bytes of memory that products and the update of the state read and write
    program      None: not compiled
    fit          None for other stages
    """

    name: str
    mesh: Mesh
    count: int
    state: Mapping[str, tuple[int, int, int]]
    stepped: int
    gradient: int
    activations: int
    products: Products
    moved: float
    program: Program | None = None
    fit: FitSize | None = None

    @property
    def checkpoint(self) -> int:
        """Bytes of a checkpoint."""
        return sum(total for _, total, _ in self.state.values())

    @property
    def needed(self) -> int:
        """Bytes of state, features, gradient and activations."""
        features = self.fit.feature_bytes if self.fit else 0
        return self.stepped + features + self.gradient + self.activations

    def on(self, name: str) -> dict:
        """The time of a step on an accelerator, from its peaks: JSON values.

        parts    seconds that products, memory and links take at their peaks, with only the products
                 and the update in memory; links None where nothing was compiled
        seconds  the largest of them;  limited_by  its key;  utilisation  share of the products
        seconds_with_all_accesses      the same with all that the compiled program accesses, or None
        utilisation_with_all_accesses  at that time
        images_per_second              of all devices, at `seconds`; not of a fit
        memory   "too little"; "doubtful", too little for the program as compiled for CPUs; or
                 "not excluded"
        """
        device, program = ACCELERATORS[name], self.program
        links = sum(each.sent for each in program.collectives) / device.link if program else None
        parts = {
            "products": device.product_seconds(self.products.operations),
            "memory": self.moved / device.bandwidth, "links": links,
        }  # fmt: skip
        limit = max(parts, key=lambda part: parts[part] or 0.0)
        found = {
            "parts": parts, "seconds": parts[limit], "limited_by": limit,
            "utilisation": parts["products"] / parts[limit], "memory": self._memory_on(device),
            "seconds_with_all_accesses": None, "utilisation_with_all_accesses": None,
        }  # fmt: skip
        if program:
            seconds = max(parts[limit], program.accessed / device.bandwidth)
            found["seconds_with_all_accesses"] = seconds
            found["utilisation_with_all_accesses"] = parts["products"] / seconds
        rate = {} if self.fit else {"images_per_second": self.count / parts[limit]}
        return found | rate

    def _memory_on(self, device):
        if self.needed > device.memory:
            return "too little"
        if self.program and self.program.memory > device.memory:
            return "doubtful"
        return "not excluded"


def stage_cost_of(
    config: ConfigDict, name: str, mesh: Mesh, compiled: bool = True
) -> StageCost | None:
    """The cost of a stage of a checked config, on as many devices as the mesh has.

    None for a stage that takes published classifiers, so that nothing is learned.

    compiled  whether a program is compiled, which takes minutes for large networks; without it
              neither collectives nor accesses are known
    """
    task = blank.blank_task(config, name)
    if task.fit:
        if task.fit.classifiers:
            return None
        return _cost_of_fit(config, name, task, mesh, compiled)
    stage = blank_stage(name, config.stages[name], task, config.seed)
    row = blank.blank_row(config, name)
    step, inputs = loop.jitted_step(stage, mesh), blank.inputs_of(stage, row, mesh)
    state = inputs[0]
    sizes = state_sizes(state, state_shardings(state, mesh))
    gradient = sizes["params"][2]
    products = _products_of_share(stage, row, state, mesh)
    changed = sum(sizes[part][2] for part in ("params", "ema", "opt") if part in sizes)
    return StageCost(
        name=name, mesh=mesh, count=stage.batch_size, state=sizes, stepped=_on_device(sizes),
        gradient=gradient, activations=_activations(stage, row, state, mesh), products=products,
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
    flop = resources.operations_of(step.lower(*inputs), mesh.size)
    accessed = compiled.cost_analysis()["bytes accessed"]
    return Program(collectives, accessed, memory, between, flop, seconds)


def _products_of_share(stage, row, state, mesh) -> Products:
    """The products of one device: with its rows of a batch, and all parameters."""
    batch = blank.batch_of(row, stage.batch_size // mesh.size)
    key, rate = blank.key_and_rate()

    def step(state, batch, key, rate):
        fixed = stage.loss, stage.optimizer, stage.accumulate, stage.ema
        return train_step(*fixed, state, batch, key, rate)

    return products_of(jax.make_jaxpr(step)(state, batch, key, rate).jaxpr)


def _activations(stage, row, state, mesh) -> int:
    """Bytes of the activations of a part of the batch on one device."""
    added = {"row": np.int32(0), "step": np.int32(0)}
    batch = blank.batch_of(row | added, stage.batch_size // (mesh.size * stage.accumulate))

    def loss(params, frozen, stats, batch, key):
        return stage.loss(merge_params(params, frozen), stats, batch, key)

    given = state["params"], state["frozen"], state["stats"], batch, blank.key_and_rate()[0]
    return activation_bytes(loss, *given)


def _on_device(sizes):
    return sum(own for *_, own in sizes.values())


def _cost_of_fit(config, name, task: Task, mesh, compiled) -> StageCost:
    fit, network, image = blank.fit_of(config, name, task)
    call, inputs = fit_loop.jitted_steps(fit, mesh), blank.inputs_of_fit(fit, mesh)
    learned, steps = inputs[0], fit_loop.steps_per_call(fit)
    variants = 1 + config.stages[name].augment.get("variants", 0)
    parts = {"frozen": {}, "ema": {}, **{part: learned[part] for part in ("params", "opt")}}
    of_network = {"frozen": network["params"], "stats": (network["stats"], learned["stats"])}
    products = Products()
    products.add(products_of(jax.make_jaxpr(call)(*inputs).jaxpr), 1 / (steps * mesh.size))
    sizes = _replicated_sizes({**parts, **of_network}, mesh)
    share = [sizes[part][2] / mesh.size for part in ("params", "opt")]  # of the members
    return StageCost(
        name=name, mesh=mesh, count=fit.batch_size, state=sizes,
        stepped=_on_device(_replicated_sizes({**parts, "stats": learned["stats"]}, mesh)),
        gradient=round(share[0]), activations=0, products=products,
        moved=products.bytes + 2 * (sum(share) + share[0]),
        program=program_of(call, inputs, mesh, steps) if compiled else None,
        fit=FitSize(
            members=fit.members, own_order=fit.own_order,
            images=fit.features.count // variants, variants=variants, assumed=not config.data.count,
            feature_bytes=0 if fit.on_host else fit.features.nbytes,
            feature_operations=products_of(
                jax.make_jaxpr(task.fit.extract)(network, *image).jaxpr
            ).total,
        ),
    )  # fmt: skip


def _replicated_sizes(state, mesh):
    everywhere = NamedSharding(mesh, PartitionSpec())
    return state_sizes(state, jax.tree.map(lambda leaf: everywhere, state))
