"""Processes are joined by flags, by the environment, or not at all; mistakes are refused."""

import socket

import jax
import pytest

from diffseg_jax.devices import joining, processes
from diffseg_jax.errors import UserError

pytestmark = pytest.mark.quick

ADDRESS = "10.0.0.1:1234"
JOINED = dict(coordinator_address=ADDRESS, num_processes=4, process_id=3)


@pytest.fixture(autouse=True)
def no_tpu(monkeypatch):
    monkeypatch.setattr(joining, "on_tpu_host", lambda: False)


def test_an_address_comes_with_a_count_and_an_index():
    assert joining.initialize_arguments(ADDRESS, 4, 3) == JOINED


@pytest.mark.parametrize("count, process", [(-1, -1), (4, 4), (4, -1), (0, 0), (-1, 0)])
def test_an_index_outside_the_count_is_refused(count, process):
    with pytest.raises(UserError, match="--process is .* count from 0"):
        joining.initialize_arguments(ADDRESS, count, process)


@pytest.mark.parametrize("address", ["", "host", ":12", "host:", "host:0", "host:65536", "cluster"])
def test_a_malformed_address_is_refused(address):
    with pytest.raises(UserError, match="must be auto, none or host:port"):
        joining.initialize_arguments(address, 2, 0)


@pytest.mark.parametrize("coordinator", ["auto", "none"])
def test_a_count_without_an_address_is_refused(coordinator):
    with pytest.raises(UserError, match="go with the address of process 0"):
        joining.initialize_arguments(coordinator, 2, 0)


ENVIRONMENTS = {  # name -> variables, arguments of initialize
    "nothing": ({}, None),
    "jax": (
        dict(JAX_COORDINATOR_ADDRESS=ADDRESS, JAX_NUM_PROCESSES="4", JAX_PROCESS_ID="3"), JOINED,
    ),
    "slurm step of 4": (dict(SLURM_STEP_NODELIST="n[1-4]", SLURM_NTASKS="4"), {}),
    "slurm step of 1": (dict(SLURM_STEP_NODELIST="n1", SLURM_NTASKS="1"), None),
    "slurm job without a step": (dict(SLURM_NTASKS="4"), None),
    "open mpi of 2": (dict(OMPI_COMM_WORLD_SIZE="2"), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_environment_describes_the_other_processes(name):
    environment, expected = ENVIRONMENTS[name]
    assert joining.from_environment(environment) == expected


def test_a_tpu_host_asks_its_pod(monkeypatch):
    monkeypatch.setattr(joining, "on_tpu_host", lambda: True)
    assert joining.from_environment({}) == {}


@pytest.mark.parametrize("numbers", [{}, {"JAX_NUM_PROCESSES": "2"}, {"JAX_PROCESS_ID": "x"}])
def test_half_of_an_address_in_the_environment_is_refused(numbers):
    with pytest.raises(UserError, match="Set all three, or none"):
        joining.from_environment({"JAX_COORDINATOR_ADDRESS": ADDRESS, **numbers})


def test_join_passes_the_address_and_the_timeouts_on(monkeypatch):
    called = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **given: called.update(given))
    monkeypatch.setattr(joining, "await_listener", lambda address, seconds: None)
    joining.join(ADDRESS, 4, 3, join_within=60, lost_after=17)
    timeouts = dict(heartbeat_timeout_seconds=17, initialization_timeout=60)
    assert called == {**JOINED, **timeouts}


def test_a_single_process_joins_nothing(monkeypatch):
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: pytest.fail("joined"))
    joining.join("none", -1, -1, join_within=60, lost_after=30)


def test_unreachable_processes_are_reported_in_one_sentence(monkeypatch):
    def fail(**_):
        raise RuntimeError("DEADLINE_EXCEEDED: barrier timed out\nmany more lines")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    monkeypatch.setattr(joining, "await_listener", lambda address, seconds: None)
    message = f"at {ADDRESS} within 60 s .*barrier timed out.*none"
    with pytest.raises(processes.ProcessesLost, match=message) as caught:
        joining.join(ADDRESS, 4, 3, join_within=60, lost_after=30)
    assert "\n" not in str(caught.value)


def test_a_mode_for_one_process_is_refused_to_several(monkeypatch):
    processes.require_one("--mode=check")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(UserError, match="--mode=check runs in one process, but there are 2"):
        processes.require_one("--mode=check")


def test_the_collectives_of_a_single_process_return_its_value():
    assert processes.true_in_all(True) and not processes.true_in_all(False)
    processes.require_same_everywhere("config", {"a": 1})
    processes.barrier("nowhere")
    assert processes.is_first()


def test_a_single_process_exits_in_order():
    with pytest.raises(SystemExit) as caught:
        processes.exit_process(75)
    assert caught.value.code == 75


def test_an_address_without_a_listener_times_out():
    with socket.socket() as bound:  # a port without a listener
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
        message = f"did not find each other at {address} within 0.1"
        with pytest.raises(processes.ProcessesLost, match=message):
            joining.await_listener(address, 0.1)
        bound.listen()
        joining.await_listener(address, 5)


def test_a_used_port_is_reported_in_one_sentence():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} of this machine is used"):
            joining.require_free_port(f"127.0.0.1:{port}")
    joining.require_free_port(f"127.0.0.1:{port}")
