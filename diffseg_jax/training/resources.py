"""Resources of a stage: arrays and bytes before it runs, operations and memory of its step."""

import jax
import numpy as np

from diffseg_jax.display.progress import duration
from diffseg_jax.errors import scaled, size

STATE_PARTS = {  # of the state, see `training.state`
    "params": "trained parameters",
    "frozen": "frozen parameters",
    "stats": "statistics",
    "ema": "moving averages",
    "opt": "optimizer",
}


def of_state(abstract: dict, shardings: dict) -> str:
    """A table of the parts of a state: numbers, total bytes, bytes on each device.

    abstract   shapes of the state
    shardings  of its arrays, in the same structure
    """
    lines = [f"  {'':<22}{'numbers':>14}{'total':>11}{'per device':>12}"]
    totals = np.zeros(3)
    for part, name in STATE_PARTS.items():
        pairs = zip(jax.tree.leaves(abstract[part]), jax.tree.leaves(shardings[part]), strict=True)
        rows = [_sizes(leaf, sharding) for leaf, sharding in pairs]
        if rows:
            sums = np.sum(rows, axis=0)
            totals += sums
            lines.append(_line(name, *sums))
    return "\n".join([*lines, _line("total", *totals)])


def _sizes(leaf, sharding):
    """Numbers, bytes, bytes on each device."""
    part = int(np.prod(sharding.shard_shape(leaf.shape)))
    return leaf.size, leaf.size * leaf.dtype.itemsize, part * leaf.dtype.itemsize


def _line(name, numbers, total, per_device):
    return f"  {name:<22}{int(numbers):>14,}{size(total):>11}{size(per_device):>12}"


def of_step(lowered, compiled, devices: int, seconds: float) -> str:
    """A sentence about a step: seconds to compile, operations, and the memory of each device.

    lowered   `jax.jit(step).lower(...)`; its loops, such as parts of a batch, count once
    compiled  `lowered.compile()`
    """
    parts = [f"compiled in {duration(seconds)}"]
    operations = (lowered.cost_analysis() or {}).get("flops", 0.0)
    if operations > 0:
        parts.append(f"{scaled(operations / devices, 'FLOP')} per device and step")
    memory = compiled.memory_analysis()
    if memory is not None:
        kept = memory.argument_size_in_bytes - memory.alias_size_in_bytes
        kept += memory.output_size_in_bytes
        peak = kept + memory.temp_size_in_bytes
        parts.append(
            f"{size(peak)} of memory expected on each device, {size(kept)} of it between steps"
        )
    return "; ".join(parts)
