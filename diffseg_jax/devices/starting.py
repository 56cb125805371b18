"""Settings of jax before its first use: the memory of GPUs, and devices that do not exist.

Only a command may call these, as they are those of the process.
"""

import os

import jax

from diffseg_jax.errors import UserError


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
