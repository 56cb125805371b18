"""Resources of a step: its operations and its memory."""

from diffseg_jax.display.progress import duration
from diffseg_jax.errors import scaled, size


def of_step(lowered, compiled, devices: int, seconds: float) -> str:
    """A sentence about a step: seconds to compile, operations, and the memory of each device.

    lowered   `jax.jit(step).lower(...)`;  compiled  `lowered.compile()`
    """
    parts = [f"compiled in {duration(seconds)}"]
    if operations := operations_of(lowered, devices):
        parts.append(f"{scaled(operations, 'FLOP')} per device and step")
    if memory := memory_of(compiled):
        peak, kept = memory
        parts.append(
            f"{size(peak)} of memory expected on each device, {size(kept)} of it between steps"
        )
    return "; ".join(parts)


def operations_of(lowered, devices: int) -> float:
    """FLOP of a step on each device, 0 if unknown.

    Of all operations in the program for this platform, also those that are no products; loops count
    once: parts of a batch, and on CPUs the kernel gradients of convolutions.
    """
    return max((lowered.cost_analysis() or {}).get("flops", 0.0), 0.0) / devices


def memory_of(compiled) -> tuple[int, int] | None:
    """Bytes on each device during a step, and those that stay between steps; None if unknown."""
    memory = compiled.memory_analysis()
    if memory is None:
        return None
    kept = memory.argument_size_in_bytes - memory.alias_size_in_bytes
    kept += memory.output_size_in_bytes
    return kept + memory.temp_size_in_bytes, kept
