"""--mode=cost: what the stages of a config take on some devices, without running them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from diffseg_jax.config.options import FIT
from diffseg_jax.devices.accelerators import ACCELERATORS
from diffseg_jax.devices.mesh import describe_devices, make_mesh
from diffseg_jax.devices.settings import own_settings
from diffseg_jax.devices.starting import use_fake_devices
from diffseg_jax.display.console import Display
from diffseg_jax.display.progress import duration
from diffseg_jax.errors import UserError, counted, require_known, scaled, size
from diffseg_jax.experiment.plan import check_config, learns
from diffseg_jax.experiment.stage_cost import CHECKPOINT_RATE, StageCost, stage_cost_of
from diffseg_jax.storage.paths import write_json
from diffseg_jax.storage.workdir import make_workdir
from diffseg_jax.systems.methods import SYSTEMS
from diffseg_jax.training.state_sizes import table_of_sizes

COMPILED_NOTE = (
    "collectives, accesses and memory are those of the program for accelerators, but by the "
    "compiler for CPUs: others fuse more, so that less is accessed, compute bfloat16 in less "
    "memory, and make reduce-scatter of some all-reduce; what happens in its loops is accessed "
    "once in these numbers. Activations and products are those of the traced program"
)
ROOFLINE_NOTE = (
    "times follow from published peaks and are not measured: the first if only matrix products "
    "and the update use the memory, the second with all accesses of the compiled program. In the "
    "first, so many images are needed from the input pipeline"
)


@own_settings()
def show_cost(
    config: ConfigDict, workdir: Path | None = None, devices: int = 1,
    accelerators: Sequence[str] = (), display: Display | None = None,
):  # fmt: skip
    """Prints the cost of every stage of a run that learns, and writes <workdir>/cost.json.

    devices       how many; jax must not have been used before, or with as many
    accelerators  names in ACCELERATORS; () = all
    Raises UserError for a config that cannot run on them, and one without such a stage.
    """
    for name in accelerators:
        require_known(name, ACCELERATORS, "accelerator")
    use_fake_devices(devices)
    check_config(config)
    display = display or Display()
    config = SYSTEMS[config.system].complete(config, lambda name: {})
    mesh = make_mesh(config.mesh.data, config.mesh.fsdp)
    names = [name for name in config.run if learns(config, name)]
    if not names:
        raise UserError(
            f"no stage in config.run, {tuple(config.run)}, learns anything: they are skipped or "
            f"have no steps. Try --config.stages.{config.run[0]}.steps=1000."
        )
    chosen, found = tuple(accelerators) or tuple(ACCELERATORS), {}
    for name in names:
        if config.stages[name].kind == FIT and config.ensemble.classifiers:
            display.say(f"{name}: takes published classifiers, so that nothing is compiled")
            continue
        with display.progress(f"{name}: compiles"):
            cost = stage_cost_of(config, name, mesh)
        display.say(text_of(cost, chosen))
        found[name] = values_of(cost, chosen)
    display.say(f"note: {COMPILED_NOTE}\nnote: {ROOFLINE_NOTE}")
    if workdir is not None:
        make_workdir(workdir)
        notes = [COMPILED_NOTE, ROOFLINE_NOTE]
        write_json(workdir / "cost.json", {"notes": notes, "stages": found})
        display.say(f"numbers in {workdir / 'cost.json'}")


def text_of(cost: StageCost, accelerators: Sequence[str]) -> str:
    """Some lines about a stage."""
    lines = [f"{cost.name}: steps of {cost.count} {cost.each}; {describe_devices(cost.mesh)}"]
    lines.append(table_of_sizes(cost.state))
    own = {"gradient": cost.gradient, "activations": cost.kept, "features": cost.data}
    lines += [f"  {name:<47}{size(count):>12}" for name, count in own.items() if count]
    lines.append(f"  {'needed at least':<47}{size(cost.needed):>12}")
    kinds = cost.products.operations.items()
    kinds = ", ".join(f"{scaled(count, 'FLOP')} of {dtype}" for dtype, count in kinds)
    lines.append(f"  products on each device: {kinds}; {size(cost.moved)} moved at least")
    if cost.features:
        lines.append(f"  features of an image, once: {scaled(cost.features, 'FLOP')}")
    seconds = duration(cost.checkpoint / CHECKPOINT_RATE)
    rate = f"{size(CHECKPOINT_RATE)}/s (assumed)"
    lines.append(f"  checkpoint: {size(cost.checkpoint)}, {seconds} at {rate}")
    return "\n".join([*lines, *_of_program(cost.program), *_table(cost, accelerators)])


def _of_program(program):
    lines = [
        f"  compiled in {duration(program.seconds)}: {size(program.memory)} of memory, "
        f"{size(program.between)} of it between steps; {size(program.accessed)} accessed; on this "
        f"platform {scaled(program.logged, 'FLOP')} per device and step"
    ]
    return lines + [
        f"  {each.kind} among {counted(each.group, 'device')}: {size(each.bytes)} in a step, "
        f"{each.count:.3g} of them"
        for each in program.collectives
    ]


def _table(cost, accelerators):
    heading = f"  {'':<9}{'step':>20}{'utilisation':>14}{'limited by':>12}{cost.each + '/s':>12}"
    lines = [f"{heading}  memory"]
    for name in accelerators:
        found, device = cost.on(name), ACCELERATORS[name]
        times = [f"{1e3 * found[key]:.3g}" for key in ("seconds", "seconds_at_most")]
        used = [f"{found[key]:.0%}" for key in ("utilisation_at_least", "utilisation")]
        fits = "enough" if found["fits"] else "too little"
        lines.append(
            f"  {name:<9}{_range(*times) + ' ms':>20}{_range(*used):>14}{found['limited_by']:>12}"
            f"{found['per_second']:>12,.4g}  {size(device.memory)}, {fits}"
        )
    return lines


def _range(low, high):
    return low if low == high else f"{low} to {high}"


def values_of(cost: StageCost, accelerators: Sequence[str]) -> dict:
    """The same as JSON values; bytes and FLOP of each device."""
    kinds = ("numbers", "bytes", "bytes_per_device")
    program = dataclasses.asdict(cost.program)
    collectives = zip(program.pop("collectives"), cost.program.collectives)
    return {
        "devices": dict(cost.mesh.shape),
        cost.each: cost.count,
        "state": {part: dict(zip(kinds, row)) for part, row in cost.state.items()},
        "gradient_bytes": cost.gradient,
        "activation_bytes": cost.kept,
        "data_bytes": cost.data,
        "needed_bytes": cost.needed,
        "product_operations": dict(cost.products.operations),
        "moved_bytes": cost.moved,
        "feature_operations": cost.features,
        "compiled": program,
        "collectives": [{**values, "sent": each.sent} for values, each in collectives],
        "checkpoint": {
            "bytes": cost.checkpoint, "bytes_per_second": CHECKPOINT_RATE,
            "seconds": cost.checkpoint / CHECKPOINT_RATE,
        },
        "accelerators": {name: cost.on(name) for name in accelerators},
    }  # fmt: skip
