"""Orbax prints nothing, and the hooks of the program are restored afterwards."""

import asyncio
import gc
import logging
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import diffseg_jax
from diffseg_jax.devices.mesh import make_mesh
from diffseg_jax.inference.locate import PRETRAINED
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.storage.integrity import Damaged
from diffseg_jax.storage.networks import open_network
from diffseg_jax.storage.quiet import quiet_orbax

ROOT = Path(__file__).parents[2]
LOGGERS = ("absl", "asyncio")


def hooks():
    """All global settings that reading a checkpoint could change."""
    loggers = [logging.getLogger(name) for name in ("", *LOGGERS)]
    settings = [(log.level, log.disabled, [*log.filters], [*log.handlers]) for log in loggers]
    return sys.excepthook, sys.unraisablehook, threading.excepthook, settings


@pytest.fixture(scope="module")
def state():
    """Many arrays, so that several reads are abandoned when one fails."""
    draw = np.random.default_rng(0).standard_normal
    params = {f"layer_{i}": {"kernel": jnp.asarray(draw((300, 300)))} for i in range(30)}
    return {"step": jnp.int32(3), "params": params}


@pytest.fixture(scope="module")
def stage(state, tmp_path_factory):
    """A stage directory in which the files of all arrays are cut."""
    directory = tmp_path_factory.mktemp("damaged") / "stage"
    with StageCheckpoints(directory) as checkpoints:
        checkpoints.save(3, state, {"step": 3})
    for file in (directory / "3/state").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:1000])
    return directory


def test_loading_a_model_leaves_hooks_and_loggers_as_they_were():
    before = hooks()
    diffseg_jax.load("scenes")
    assert hooks() == before


def test_saving_and_restoring_leave_hooks_and_loggers_as_they_were(state, tmp_path):
    before = hooks()
    with StageCheckpoints(tmp_path / "stage") as checkpoints:
        checkpoints.save(1, state, {"step": 1})
        checkpoints.wait()
        checkpoints.restore(1, state, make_mesh())
    assert hooks() == before


def restore(stage, state):
    with StageCheckpoints(stage, read_only=True) as checkpoints:
        checkpoints.restore(3, jax.eval_shape(lambda: state), make_mesh())


@pytest.mark.parametrize("read", [restore, lambda stage, state: open_network(stage)])
def test_a_failed_read_reports_nothing_but_its_error(stage, state, monkeypatch, caplog, read):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)
    monkeypatch.setattr(sys, "excepthook", lambda *error: seen.append(error))
    with pytest.raises(Damaged):
        read(stage, state)
    gc.collect()
    time.sleep(0.5)
    assert seen == caplog.records == []


def test_a_command_on_a_damaged_checkpoint_prints_one_sentence(tmp_path):
    shutil.copytree(PRETRAINED["scenes"], tmp_path / "stage")
    for file in (tmp_path / "stage").rglob("d/*"):
        file.write_bytes(file.read_bytes()[:1000])
    program = [sys.executable, "-m", "diffseg_jax.predict", f"--checkpoint={tmp_path / 'stage'}"]
    flags = [f"--images={ROOT / '.pictures/front.png'}", f"--output={tmp_path / 'out'}"]
    done = subprocess.run(
        [*program, *flags], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: checkpoint {tmp_path}/stage/"), done.stderr
    assert "is damaged (" in done.stderr and done.stderr.count("\n") == 1, done.stderr


def test_other_errors_still_reach_the_hooks_of_the_program(monkeypatch, caplog):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: seen.append(unraisable.exc_value))
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: seen.append(error))

    class Failing:
        def __del__(self):
            raise ValueError("of the program")

    with quiet_orbax():
        Failing()
        sys.excepthook(KeyError, KeyError("of the program"), None)
        logging.getLogger("absl").error("of the program")
        logging.getLogger("asyncio").error("of the program")
    assert [type(error) for error in seen] == [ValueError, KeyError]
    assert [record.message for record in caplog.records] == ["of the program"] * 2


def test_an_error_with_a_frame_of_the_program_reaches_its_hook(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: seen.append(error))
    loop = asyncio.new_event_loop()
    loop.close()
    with pytest.raises(RuntimeError, match="Event loop is closed") as raised, quiet_orbax():
        loop.call_soon_threadsafe(print)
    error = raised.value
    with quiet_orbax():
        sys.excepthook(RuntimeError, error, error.__traceback__)
        error.__traceback__ = error.__traceback__.tb_next  # as from a thread of tensorstore
        sys.excepthook(RuntimeError, error, error.__traceback__)
        foreign = RuntimeError("Event loop is closed")
        sys.excepthook(RuntimeError, foreign, None)  # without a traceback it may be anybody's
    assert seen == [error, foreign]


def test_contexts_of_several_threads_restore_the_hooks_once():
    before = hooks()
    entered, leave = threading.Barrier(3), threading.Event()

    def use():
        with quiet_orbax(), quiet_orbax():
            entered.wait(10)
            leave.wait(10)

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    entered.wait(10)
    with quiet_orbax():
        pass
    assert hooks() != before
    leave.set()
    for thread in threads:
        thread.join(10)
    assert hooks() == before


def test_a_hook_set_by_the_program_in_the_meantime_is_not_replaced(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with quiet_orbax():
        sys.excepthook = mine = lambda *error: None
    assert sys.excepthook is mine
