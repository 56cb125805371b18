"""Joining the processes of a run: addresses, counts, and the variables that a cluster sets."""

import errno
import glob
import importlib.util
import os
import socket
import sys
import time
from collections.abc import Mapping

import jax

from diffseg_jax.devices.processes import ProcessesLost
from diffseg_jax.errors import UserError

JOIN_EXAMPLE = "such as --coordinator=10.0.0.1:1234 --processes=2 --process=0"


def join(coordinator: str, processes: int, process: int, join_within: int, lost_after: int):
    """Joins the other processes of the run, if any; to be called before any other use of jax.

    coordinator  host:port of process 0, with the number of processes and the index of this one;
                 "auto" to use the environment (`from_environment`); "none" for a single process
    join_within  seconds that processes wait for each other
    lost_after   seconds without a heartbeat after which a process counts as lost and the others end

    Raises UserError when the arguments contradict each other, ProcessesLost when the other
    processes cannot be reached.
    """
    given = initialize_arguments(coordinator, processes, process)
    if given is None:
        return
    address = given.get("coordinator_address", "the address given by the cluster")
    if given.get("process_id"):
        await_listener(address, join_within)
    elif given:
        require_free_port(address)
    # if a process is missing, initialize does not raise: it ends this one (SIGABRT, code 134)
    print(f"waits up to {join_within} s for the other processes at {address}", file=sys.stderr)
    timeouts = dict(heartbeat_timeout_seconds=lost_after, initialization_timeout=join_within)
    try:
        jax.distributed.initialize(**given, **timeouts)
    except (RuntimeError, ValueError, OSError) as error:
        raise _not_met(address, join_within, error) from None


def require_free_port(address: str):
    """Raises UserError if another program on this machine listens at the port of host:port."""
    port = int(address.rpartition(":")[2])
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"port {port} of this machine is used by another program. Give another port in "
                "--coordinator, to all processes."
            ) from None


def await_listener(address: str, seconds: float):
    """Waits until process 0 listens at host:port; raises ProcessesLost after that time."""
    host, _, port = address.rpartition(":")
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise _not_met(address, seconds, error) from None
        time.sleep(0.5)


def _not_met(address, seconds, error):
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ProcessesLost(
        f"the processes of this run did not find each other at {address} within {seconds} s "
        f"({reason}). Start all of them with the same --coordinator and --processes, "
        f"{JOIN_EXAMPLE}, or one alone with --coordinator=none."
    )


def initialize_arguments(coordinator: str, processes: int, process: int) -> dict | None:
    """The arguments of `jax.distributed.initialize`, or None if there is a single process.

    Raises UserError for an address without the number of processes and an index, and vice versa.
    """
    if coordinator in ("auto", "none"):
        if processes != -1 or process != -1:
            raise UserError(
                f"--processes and --process go with the address of process 0, {JOIN_EXAMPLE}."
            )
        return from_environment(os.environ) if coordinator == "auto" else None
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdigit() and 0 < int(port) < 2**16):
        raise UserError(
            f"--coordinator is {coordinator}, but it must be auto, none or host:port, "
            f"{JOIN_EXAMPLE}."
        )
    if not 0 <= process < processes:
        raise UserError(
            f"--process is {process} of --processes={processes}, but indices count from 0 to the "
            f"number of processes minus 1, {JOIN_EXAMPLE}."
        )
    return dict(coordinator_address=coordinator, num_processes=processes, process_id=process)


def from_environment(environment: Mapping[str, str]) -> dict | None:
    """The arguments of `initialize` from the environment, or None if it describes one process.

    JAX_COORDINATOR_ADDRESS with JAX_NUM_PROCESSES and JAX_PROCESS_ID; a SLURM step or an Open MPI
    job of several tasks; a TPU host, of a pod or alone. Raises UserError where the first of these
    variables is set without numbers in the other two.
    """
    if address := environment.get("JAX_COORDINATOR_ADDRESS"):
        numbers = [environment.get(f"JAX_{name}", "") for name in ("NUM_PROCESSES", "PROCESS_ID")]
        if not all(number.isdigit() for number in numbers):
            raise UserError(
                f"JAX_COORDINATOR_ADDRESS is {address}, but JAX_NUM_PROCESSES and JAX_PROCESS_ID "
                "are not both numbers. Set all three, or none."
            )
        return initialize_arguments(address, *map(int, numbers))
    tasks = environment.get("SLURM_NTASKS", "1") if "SLURM_STEP_NODELIST" in environment else "1"
    ranks = environment.get("OMPI_COMM_WORLD_SIZE", "1")
    if tasks != "1" or ranks != "1" or on_tpu_host():
        return {}
    return None


def on_tpu_host() -> bool:
    """Whether this machine has a TPU and the library that drives it."""
    chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    chosen = os.environ.get("JAX_PLATFORMS", "tpu")
    return bool(chips) and "tpu" in chosen and importlib.util.find_spec("libtpu") is not None
