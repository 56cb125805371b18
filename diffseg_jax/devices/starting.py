"""A command's process: when it was started, and settings of jax before its first use.

Only a command may call these, as they are those of the process: the memory of GPUs, that of the C
library, and devices that do not exist.
"""

import contextlib
import ctypes
import os
import time
from pathlib import Path

import jax

from diffseg_jax.errors import UserError

BUSIEST = 10.0  # programs on a core; a longer start was none, as of a shell that became the command

# glibc's numbers of what mallopt(3) sets; -1: no threshold
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
REUSED = {M_TRIM_THRESHOLD: -1, M_MMAP_MAX: 0, M_ARENA_MAX: 1}


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


def reuse_memory():
    """Lets freed memory of the host serve the next step; before the first thread of jax begins.

    glibc returns the buffers of a step to the system, which must clear their pages again for the
    next one. Here freed memory stays with the process, in one arena for all threads, so that it
    never takes less than at its peak.
    Does nothing without glibc, or where the environment has settings of the C library's memory.
    """
    if any(name == "GLIBC_TUNABLES" or name.startswith("MALLOC_") for name in os.environ):
        return
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library, or system
        mallopt = ctypes.CDLL(None).mallopt
        for setting, value in REUSED.items():
            mallopt(setting, value)


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
