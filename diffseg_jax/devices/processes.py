"""Several processes as one program: collectives on the host, and exit without deadlock.

jax.distributed does the work. When a process is lost, its runtime ends the others (SIGABRT, code
134), which Python code cannot catch: the program that started them decides what to do next.
"""

import hashlib
import json
import os
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

from diffseg_jax.errors import UserError


class ProcessesLost(Exception):
    """The processes of a run did not find each other in time, or one of them was lost."""


def require_one(what: str):
    """Raises UserError if there are several processes; `what` is named in the message."""
    if jax.process_count() > 1:
        raise UserError(
            f"{what} runs in one process, but there are {jax.process_count()}. Start it once, with "
            "--coordinator=none."
        )


def is_first() -> bool:
    """Whether this is process 0, which alone writes shared files."""
    return jax.process_index() == 0


def barrier(purpose: str):
    """Waits until all processes have reached this call."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(purpose)


def require_same_everywhere(what: str, content):
    """Raises UserError in the processes whose JSON values differ from those of process 0."""
    if jax.process_count() == 1:
        return
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
    mine = np.frombuffer(digest, np.uint8).astype(np.int32)
    if not np.array_equal(multihost_utils.broadcast_one_to_all(mine), mine):
        raise UserError(
            f"process {jax.process_index()} has another {what} than process 0. Start all processes "
            "with the same command, except for --process."
        )


def true_in_all(mine: bool) -> bool:
    """Whether the value is true in every process."""
    return maximum_over(int(not mine)) == 0


def maximum_over(mine: int) -> int:
    """The maximum of the numbers of all processes."""
    if jax.process_count() == 1:
        return mine
    return int(np.max(multihost_utils.process_allgather(np.int32(mine))))


def broadcast_from_first(mine: int | None) -> int | None:
    """The value of process 0; hosts of a network file system may see files at different times."""
    if jax.process_count() == 1:
        return mine
    value = multihost_utils.broadcast_one_to_all(np.int32(-1 if mine is None else mine))
    return None if value < 0 else int(value)


def sum_over(mine: np.ndarray) -> np.ndarray:
    """The sum u32[n] of the arrays of all processes, modulo 2**32."""
    if jax.process_count() == 1:
        return mine
    parts = multihost_utils.process_allgather(mine.view(np.int32))  # gathered as i32
    return np.sum(parts.view(np.uint32), axis=0, dtype=np.uint32)


def exit_process(code: int, immediately: bool = False):
    """Ends the program; one of several without cleanup, which would wait for the others.

    immediately  skips the cleanup of a single process too, which would retry a failed write
    """
    several = jax.distributed.is_initialized() and jax.process_count() > 1
    if several or immediately:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
