"""Several processes as one program: agreeing, and leaving without making the others wait.

The work is done by jax.distributed. Processes that lose one of theirs are ended by its runtime
(SIGABRT, code 134), which no Python code can catch: whatever started them says what to do next.
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
    """The processes of a run did not find each other in time, or one of them cannot go on."""


def require_one(what: str):
    """Raises UserError for what one process does, where there are several."""
    if jax.process_count() > 1:
        raise UserError(
            f"{what} runs in one process, but there are {jax.process_count()}. Start it once, with "
            "--coordinator=none."
        )


def is_first() -> bool:
    """Whether this is the one process that writes what is written once."""
    return jax.process_index() == 0


def barrier(purpose: str):
    """Returns when all processes have come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(purpose)


def require_same_everywhere(what: str, content):
    """Raises UserError in the processes whose JSON values differ from those of the first one."""
    if jax.process_count() == 1:
        return
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()
    mine = np.frombuffer(digest, np.uint8).astype(np.int32)
    if not np.array_equal(multihost_utils.broadcast_one_to_all(mine), mine):
        raise UserError(
            f"process {jax.process_index()} has another {what} than process 0. Start all processes "
            "with the same command but for --process."
        )


def true_in_all(mine: bool) -> bool:
    """Whether it is true in every process."""
    return maximum_over(int(not mine)) == 0


def maximum_over(mine: int) -> int:
    """The largest of the numbers of all processes."""
    if jax.process_count() == 1:
        return mine
    return int(np.max(multihost_utils.process_allgather(np.int32(mine))))


def broadcast_from_first(mine: int | None) -> int | None:
    """What the first process has: files may not look the same from all hosts at once."""
    if jax.process_count() == 1:
        return mine
    said = multihost_utils.broadcast_one_to_all(np.int32(-1 if mine is None else mine))
    return None if said < 0 else int(said)


def sum_over(mine: np.ndarray) -> np.ndarray:
    """The sum u32[n] of what all processes have, modulo 2**32."""
    if jax.process_count() == 1:
        return mine
    parts = multihost_utils.process_allgather(mine.view(np.int32))  # signed ones travel
    return np.sum(parts.view(np.uint32), axis=0, dtype=np.uint32)


def exit_process(code: int, immediately: bool = False):
    """Ends the program; one of several at once, as an orderly end would wait for the others.

    immediately  also the only one, where an orderly end would try again what just failed
    """
    several = jax.distributed.is_initialized() and jax.process_count() > 1
    if several or immediately:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
