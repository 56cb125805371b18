"""Two processes never write to one folder, and a lock that was left behind holds nobody up."""

import json
import os
import subprocess
import threading
import time

import pytest

from diffseg_jax.errors import UserError
from diffseg_jax.storage import lock
from diffseg_jax.storage.lock import locked, require_free

pytestmark = pytest.mark.quick


@pytest.fixture
def short(monkeypatch):
    """Times of tests in place of those of machines."""
    monkeypatch.setattr(lock, "BEAT", 0.05)
    monkeypatch.setattr(lock, "EXPIRES", 0.5)
    monkeypatch.setattr(lock, "SETTLES", 0.05)


def left_by(folder, **changes):
    """Writes the lock of another process, as a kill would leave it."""
    holder = {**lock._this_process(), "since": 0.0, "token": "theirs", "beat": 0, **changes}
    (folder / ".train.lock").write_text(json.dumps(holder))


def take(folder):
    with locked(folder, "train", "--workdir"):
        return json.loads((folder / ".train.lock").read_text())["token"]


def test_a_second_holder_is_told_who_writes_and_what_to_type(tmp_path):
    with locked(tmp_path, "train", "--workdir"):
        for refused in (lambda: take(tmp_path), lambda: require_free(tmp_path, "train", "--a")):
            with pytest.raises(UserError, match=rf"process {os.getpid()} .* kill {os.getpid()} on"):
                refused()
        with locked(tmp_path, "eval", "--workdir"):
            pass  # another task
    take(tmp_path)


@pytest.mark.parametrize("error", [UserError("stop"), KeyboardInterrupt(), SystemExit(75)])
def test_every_way_out_releases_the_lock(tmp_path, error):
    with pytest.raises(type(error)), locked(tmp_path, "train", "--workdir"):
        raise error
    assert not list(tmp_path.iterdir())


def test_a_killed_holder_on_this_machine_holds_nobody_up(tmp_path, short, monkeypatch):
    monkeypatch.setattr(lock, "EXPIRES", 1000)
    process = subprocess.Popen(["sleep", "1000"])
    left_by(tmp_path, process=process.pid, started=lock._started(process.pid))
    with pytest.raises(UserError, match=f"process {process.pid}"):
        take(tmp_path)
    process.kill()
    while lock._started(process.pid):
        time.sleep(0.01)
    take(tmp_path)  # not waited for yet: a zombie
    left_by(tmp_path, process=process.pid, started="1")
    process.wait()
    take(tmp_path)
    left_by(tmp_path, started="1")  # this process has a number that was used before
    take(tmp_path)


def test_a_holder_that_proc_hides_is_recognised_by_its_writing(tmp_path, short, monkeypatch):
    """As of another user, where /proc is mounted with hidepid."""

    def not_permitted(pid, signal):
        raise PermissionError

    monkeypatch.setattr(os, "kill", not_permitted)
    hidden = 2**22 + 1  # above the largest number of a process
    left_by(tmp_path, process=hidden)
    threading.Timer(0.2, lambda: left_by(tmp_path, process=hidden, beat=1)).start()
    with pytest.raises(UserError, match=f"process {hidden} on"):
        take(tmp_path)
    take(tmp_path)  # it has not written for a while


def test_a_lock_of_another_machine_expires_unless_it_is_written(tmp_path, short, capsys):
    left_by(tmp_path, host="far", machine=["far", "", ""])
    take(tmp_path)
    assert "process" in capsys.readouterr().err
    left_by(tmp_path, host="far", machine=["far", "", ""])
    beat = lambda: left_by(tmp_path, host="far", machine=["far", "", ""], beat=1)
    threading.Timer(0.2, beat).start()
    with pytest.raises(UserError, match=r"on far writes .* on far, or give another --workdir"):
        take(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"process": "x"}'])
def test_a_lock_that_cannot_be_read_expires(tmp_path, short, content):
    (tmp_path / ".train.lock").write_text(content)
    take(tmp_path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_holder_that_was_taken_over_ends(tmp_path, short, capsys, monkeypatch):
    ended = threading.Event()

    def end(code):
        ended.set()
        raise SystemExit(code)  # ends the thread only

    monkeypatch.setattr(os, "_exit", end)
    with locked(tmp_path, "train", "--workdir"):
        left_by(tmp_path, host="far")
        assert ended.wait(5)
    assert "taken over by process" in capsys.readouterr().err
    assert "theirs" in (tmp_path / ".train.lock").read_text()
