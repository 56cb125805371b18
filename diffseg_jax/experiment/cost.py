"""--mode=cost: what the stages of a config take on some devices, without running them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

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

TRACED_NOTE = "activations and products are those of the traced program for accelerators"
COMPILED_NOTE = (
    "collectives, memory and accesses are those of the same program, compiled for CPUs. A compiler "
    "for accelerators fuses more and accesses less, needs less memory for bfloat16, and turns some "
    "all-reduces into reduce-scatters. What a loop accesses is counted once. Memory is doubtful "
    "where that program takes more"
)
ROOFLINE_NOTE = (
    "times are computed from published peaks, not measured. A step takes the longest of its "
    "matrix products, the memory that each of them and the update read and write, and the links. "
    "Links are NVLink or those between TPUs; the network between hosts of GPUs is slower"
)
LONGEST_TIME = 8  # characters
INPUT_NOTE = "the input pipeline must deliver the images/s for a step to take that time"


@own_settings()
def show_cost(
    config: ConfigDict, workdir: Path | None = None, devices: int = 1,
    accelerators: Sequence[str] = (), display: Display | None = None, compiled: bool = True,
):  # fmt: skip
    """Prints the cost of every stage of a run that learns, and writes <workdir>/cost.json.

    devices       how many; jax must not have been used before, or with as many
    accelerators  names in ACCELERATORS; () = all
    compiled      whether steps are compiled, for their collectives, memory and accesses
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
    if workdir is not None:
        make_workdir(workdir)
    chosen, found = tuple(accelerators) or tuple(ACCELERATORS), {}
    notes = [TRACED_NOTE, *[COMPILED_NOTE] * compiled, ROOFLINE_NOTE]
    for number, name in enumerate(names, 1):
        does = "compiles" if compiled else "traces"
        with display.progress(f"{name}, stage {number} of {len(names)}: {does}"):
            cost = stage_cost_of(config, name, mesh, compiled)
        if cost is None:
            display.say(f"{name}: takes published classifiers, so that nothing is learned")
            continue
        display.say(text_of(cost, chosen))
        found[name] = values_of(cost, chosen)
        if not cost.fit and INPUT_NOTE not in notes:
            notes.append(INPUT_NOTE)
    display.say("\n".join(f"note: {note}" for note in notes))
    if workdir is not None:
        write_json(workdir / "cost.json", {"notes": notes, "stages": found})
        display.say(f"numbers in {workdir / 'cost.json'}")


def text_of(cost: StageCost, accelerators: Sequence[str]) -> str:
    """Some lines about a stage."""
    lines = [f"{cost.name}: {_reads(cost)}; {describe_devices(cost.mesh)}"]
    lines.append(table_of_sizes(cost.state))
    features = cost.fit.feature_bytes if cost.fit else 0
    own = {"gradient": cost.gradient, "activations": cost.activations, "features": features}
    lines += [f"  {name:<47}{size(count):>12}" for name, count in own.items() if count]
    lines.append(f"  {'needed at least by a step':<47}{size(cost.needed):>12}")
    products = cost.products.operations.items()
    products = ", ".join(f"{scaled(count, 'FLOP')} of {dtype}" for dtype, count in products)
    moved = f"{size(cost.moved)} moved if each reads and writes memory"
    lines.append(f"  products on each device: {products}; {moved}")
    if cost.fit:
        features = scaled(cost.fit.feature_operations, "FLOP")
        lines.append(f"  features, once: {features} for each image")
    seconds = short_time(cost.checkpoint / CHECKPOINT_RATE)
    rate = f"{size(CHECKPOINT_RATE)}/s (assumed)"
    lines.append(f"  checkpoint: {size(cost.checkpoint)}, {seconds} at {rate}")
    program = _of_program(cost.program) if cost.program else []
    return "\n".join([*lines, *program, *_table(cost, accelerators)])


def _reads(cost):
    if not cost.fit:
        return f"steps of {counted(cost.count, 'image')}"
    fit, each = cost.fit, "for each" if cost.fit.own_order else "shared by all"
    images = counted(fit.images, "image")
    images += f" in {fit.variants} variants" if fit.variants > 1 else ""
    images += ", assumed: try --config.data.count=N" if fit.assumed else ""
    return (
        f"steps of {counted(cost.count, 'pixel')} {each} of "
        f"{counted(fit.members, 'classifier')}; {images}"
    )


def _of_program(program):
    lines = [
        f"  compiled in {duration(program.seconds)}: {size(program.memory)} of memory, "
        f"{size(program.between)} of it between steps; {size(program.accessed)} accessed; on this "
        f"platform {scaled(program.platform_flop, 'FLOP')} per device and step"
    ]
    return lines + [
        f"  {each.kind} among {counted(each.group, 'device')}: {size(each.bytes)} in a step, "
        + (counted(int(each.count), "time") if each.count % 1 == 0 else "on average")
        for each in program.collectives
    ]


def _table(cost, accelerators):
    names = ["step", "accesses", "utilisation", "limited by", *["images/s"] * (not cost.fit)]
    widths = [max(len(name), LONGEST_TIME) for name in names]
    lines = [_row("", names, widths, "memory")]
    for name in accelerators:
        found = cost.on(name)
        accesses = found["seconds_with_all_accesses"]
        texts = [short_time(found["seconds"]), short_time(accesses) if accesses else "unknown"]
        texts += [f"{found['utilisation']:.0%}", found["limited_by"]]
        if not cost.fit:
            texts.append(_rate(found["images_per_second"]))
        named = f"{name}, {size(ACCELERATORS[name].memory)}"
        lines.append(_row(named, texts, widths, found["memory"]))
    return lines


def _row(name, texts, widths, memory):
    """At most 80 columns."""
    cells = " ".join(f"{text:>{width}}" for text, width in zip(texts, widths))
    return f"  {name:<14} {cells}  {memory}"


def _rate(rate):
    """Three digits: 1,230; from a million on as 1.23 M."""
    return f"{float(f'{rate:.3g}'):,.0f}" if rate < 999_500 else scaled(rate, "")


def short_time(seconds: float) -> str:
    """Seconds of three digits, at most LONGEST_TIME characters: 21.4 ms, 0.31 µs, 1.53 min."""
    longer = (86_400, "d"), (3600, "h"), (60, "min")
    units = *longer, (1, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")
    each, unit = next((pair for pair in units if float(f"{seconds / pair[0]:.3g}") >= 1), units[-1])
    return f"{seconds / each:.3g} {unit}"


def values_of(cost: StageCost, accelerators: Sequence[str]) -> dict:
    """The same as JSON values; bytes and FLOP of each device, but for totals, which say so."""
    names = ("numbers", "total_bytes", "bytes_per_device")
    return {
        "devices": dict(cost.mesh.shape),
        "pixels" if cost.fit else "images": cost.count,
        "fit": dataclasses.asdict(cost.fit) if cost.fit else None,
        "state": {part: dict(zip(names, row)) for part, row in cost.state.items()},
        "gradient_bytes": cost.gradient,
        "activation_bytes": cost.activations,
        "needed_bytes": cost.needed,
        "product_operations": dict(cost.products.operations),
        "moved_bytes": cost.moved,
        **_values_of_program(cost.program),
        "checkpoint": {
            "total_bytes": cost.checkpoint, "bytes_per_second": CHECKPOINT_RATE,
            "seconds": cost.checkpoint / CHECKPOINT_RATE,
        },
        "accelerators": {name: cost.on(name) for name in accelerators},
    }  # fmt: skip


def _values_of_program(program):
    if program is None:
        return {"compiled": None, "collectives": None}
    values = dataclasses.asdict(program)
    collectives = zip(values.pop("collectives"), program.collectives)
    return {
        "compiled": values,
        "collectives": [{**each, "sent": own.sent} for each, own in collectives],
    }
