"""The arrays of a state: numbers, and bytes of all devices and of each."""

import math
from collections.abc import Mapping

import jax
import numpy as np

from diffseg_jax.errors import size

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
    return table_of_sizes(state_sizes(abstract, shardings))


def table_of_sizes(sizes: Mapping[str, tuple[int, int, int]]) -> str:
    """The table of what `state_sizes` returns, with a line of sums."""
    lines = [f"  {'':<22}{'numbers':>14}{'total':>11}{'per device':>12}"]
    lines += [_line(STATE_PARTS[part], *row) for part, row in sizes.items()]
    return "\n".join([*lines, _line("total", *np.sum([*sizes.values()], axis=0))])


def state_sizes(abstract: dict, shardings: dict) -> dict[str, tuple[int, int, int]]:
    """Key of STATE_PARTS -> numbers, bytes, bytes on each device, where a state has any."""
    sizes = {}
    for part in STATE_PARTS:
        pairs = zip(jax.tree.leaves(abstract[part]), jax.tree.leaves(shardings[part]), strict=True)
        rows = [_sizes(leaf, sharding) for leaf, sharding in pairs]
        if rows:
            sizes[part] = tuple(map(sum, zip(*rows)))
    return sizes


def _sizes(leaf, sharding):
    """Numbers, bytes, bytes on each device."""
    part = math.prod(sharding.shard_shape(leaf.shape))
    return leaf.size, leaf.size * leaf.dtype.itemsize, part * leaf.dtype.itemsize


def _line(name, numbers, total, per_device):
    return f"  {name:<22}{int(numbers):>14,}{size(total):>11}{size(per_device):>12}"
