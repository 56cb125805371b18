"""A command's process: when it was started, and settings of jax before its first use.

Only a command may call these, as they are those of the process: the memory of GPUs, and devices
that do not exist.
"""

import os
import time
from pathlib import Path

import jax

from diffseg_jax.errors import UserError

BUSIEST = 10.0  # programs on a core; a longer start was none, as of a shell that became the command


def use_fake_devices(count: int):
    """Lets jax see so many CPU devices, whatever the machine has, to compile programs for them.

    Raises UserError in a process that has used jax with another number of devices.
    """
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # it has been used
        pass
    if jax.device_count() != count:
        raise UserError(
            f"devices is {count}, but this process has used jax with {jax.device_count()} already. "
            "Give the command in a process of its own."
        )


def use_memory(fraction: float | None):
    """Sets the share of a GPU's memory taken at the start; 0: none, None: the default of jax."""
    if fraction is not None:
        os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "true" if fraction else "false"
    if fraction:
        os.environ["XLA_PYTHON_CLIENT_MEM_FRACTION"] = str(fraction)


def seconds_of_process() -> float:
    """Seconds since this process was started; where no system tells, those of its CPU time."""
    computed = time.process_time()
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        passed = time.clock_gettime(time.CLOCK_BOOTTIME) - started
    except (OSError, AttributeError, LookupError, ValueError):
        return computed
    return passed if 0 < passed <= BUSIEST * computed else computed
