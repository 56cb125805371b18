"""Two processes never write to one folder, and a lock that was left behind holds nobody up."""

import json
import os
import subprocess
import threading
import time
from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict

from conftest import called
from diffseg_jax import features, predict, sample
from diffseg_jax.errors import UserError
from diffseg_jax.experiment import (
    corruption_study,
    prepare_data,
    stages,
    steps_study,
    tap_study,
)
from diffseg_jax.inference import batch, feature_files
from diffseg_jax.inference.label_output import LABEL_OUTPUT
from diffseg_jax.inference.options import PredictOptions
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
    left_by(tmp_path, host="far", machine=["far", "", ""], token="new")
    beat = lambda: left_by(tmp_path, host="far", machine=["far", "", ""], token="new", beat=1)
    threading.Timer(0.2, beat).start()
    with pytest.raises(UserError, match=r"on far writes .* on far, or give another --workdir"):
        take(tmp_path)


def test_a_lock_of_another_machine_is_waited_for_once(tmp_path, short, monkeypatch):
    left_by(tmp_path, host="far", machine=["far", "", ""])
    require_free(tmp_path, "train", "--workdir")
    monkeypatch.setattr(lock, "EXPIRES", 1000)
    take(tmp_path)


def test_a_full_disk_leaves_no_empty_lock(tmp_path, monkeypatch):
    def write(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tmp_path), "write_bytes", write)
    with pytest.raises(OSError, match="No space left"):
        take(tmp_path)
    assert not list(tmp_path.iterdir())


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


def segmenter():
    """What the commands that write for images need of one before they write."""
    task = SimpleNamespace(palette=[[0, 0, 0]], names=["a"])
    task.predict_named = lambda *_, **__: iter(())
    task.meta, task.system, task.network = {"task": {"kind": "fit"}}, "ddpm_seg", {}
    task.output = LABEL_OUTPUT
    return task


def predicts(folder, monkeypatch):
    monkeypatch.setattr(batch, "find_images", lambda *_: ([], ()))
    monkeypatch.setattr(batch, "metadata_of", lambda *_: {})
    batch.predict_files(segmenter(), [__file__], str(folder), PredictOptions())


def writes_features(folder, monkeypatch):
    source = SimpleNamespace(extract=lambda: None)
    monkeypatch.setattr(feature_files, "find_images", lambda *_: ([], ()))
    monkeypatch.setattr(feature_files, "source_of", lambda *_: source)
    feature_files.write_features(segmenter(), [__file__], str(folder))


def prepares(folder, monkeypatch):
    monkeypatch.setattr(prepare_data, "check_config", lambda config: None)
    prepare_data.prepare({}, folder)


def studies_steps(folder, monkeypatch):
    monkeypatch.setattr(steps_study, "plan_sweep", lambda *_: [])
    steps_study.choose_steps(None, folder)


def studies_taps(folder, monkeypatch):
    monkeypatch.setattr(tap_study, "plan_taps", lambda *_: (None, None))
    tap_study.choose_taps(None, folder)


def studies_corruptions(folder, monkeypatch):
    evaluation = SimpleNamespace(stage="a", task=SimpleNamespace(files=None), workdir=folder)
    monkeypatch.setattr(corruption_study, "best_stage", lambda *_: "a")
    monkeypatch.setattr(corruption_study, "evaluations_of_run", lambda *_: [evaluation])
    config = ConfigDict({"evaluate": {}, "seed": 0})
    corruption_study.measure_corruptions(config, folder)


def trains(folder, monkeypatch):
    monkeypatch.setattr(stages, "checked_plan", lambda *_: (None, []))
    stages.train(None, folder)


def evaluates(folder, monkeypatch):
    (folder / "config.json").touch()
    for name in ("check_config", "require_same_training", "require_measurable"):
        monkeypatch.setattr(stages, name, lambda *_: None)
    for name in ("labelled_stages", "plan_evaluations"):
        monkeypatch.setattr(stages, name, lambda *_: [None])
    monkeypatch.setattr(stages, "stage_directory", lambda *_: folder)
    monkeypatch.setattr(stages, "first_has_checkpoint", lambda _: True)
    stages.evaluate_only(None, folder)


def draws(folder, monkeypatch):
    done = called(sample.main, ["--checkpoint=a", f"--output={folder}", "--compilation_cache="])
    raise UserError(done.err)


WRITERS = {
    "train": trains, "eval": evaluates, "prepare": prepares, "steps": studies_steps,
    "taps": studies_taps, "corruptions": studies_corruptions, "predict": predicts,
    "features": writes_features, "sample": draws,
}  # fmt: skip
CHECKED = (batch, feature_files, prepare_data, stages, steps_study, tap_study)


@pytest.mark.parametrize("task", WRITERS)
def test_every_command_takes_the_lock_of_what_it_writes(tmp_path, monkeypatch, task):
    for module in CHECKED:  # a look at the lock before the work does not replace it
        monkeypatch.setattr(module, "require_free", lambda *_: None, raising=False)
    flag = "--output" if task in ("predict", "features", "sample") else "--workdir"
    refused = pytest.raises(UserError, match=rf"is in use: .*\({task}, .*give another {flag}")
    with locked(tmp_path, task, "--a"), refused:
        WRITERS[task](tmp_path, monkeypatch)


LOOKS = {  # task -> a command that says that its folder is in use, before it does anything
    "train": lambda folder: stages.train(None, folder),
    "eval": lambda folder: stages.evaluate_only(None, folder),
    "prepare": lambda folder: prepare_data.prepare(None, folder),
    "steps": lambda folder: steps_study.choose_steps(None, folder),
    "taps": lambda folder: tap_study.choose_taps(None, folder),
    "corruptions": lambda folder: corruption_study.measure_corruptions({}, folder),
    "predict": lambda folder: refused_by(predict, folder),
    "features": lambda folder: refused_by(features, folder),
}


def refused_by(command, folder):
    flags = ["--checkpoint=none", "--images=none", "--compilation_cache="]
    raise UserError(called(command.main, [*flags, f"--output={folder}"]).err)


@pytest.mark.parametrize("task", LOOKS)
def test_commands_look_at_the_lock_before_they_work(tmp_path, task):
    (tmp_path / "config.json").touch()
    with locked(tmp_path, task, "--a"), pytest.raises(UserError, match="is in use: process"):
        LOOKS[task](tmp_path)


def test_a_file_in_place_of_a_folder_is_not_waited_for(tmp_path):
    (tmp_path / "file").touch()
    require_free(tmp_path / "file", "predict", "--output")
