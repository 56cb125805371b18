"""Trackers get what metrics.jsonl gets, resume their run, and cannot stop a training."""

import importlib.machinery
import json
import sys
import types

import numpy as np
import pytest
from ml_collections import ConfigDict

from diffseg_jax import main
from diffseg_jax.errors import UserError
from diffseg_jax.training import trackers
from diffseg_jax.training.log import Log
from diffseg_jax.training.trackers import tracking

pytestmark = pytest.mark.quick


class Recorded:
    """A tracker that keeps what it gets, or raises once it has got `limit` numbers."""

    def __init__(self, module, title, config, folder, identifier):
        self.identifier, self.got, self.limit = identifier or "new", module.got, module.limit
        module.opened.append((title, identifier))

    def numbers(self, stage, step, numbers):
        if len(self.got) == self.limit:
            raise ConnectionError("no route\nto host")
        self.got.append((stage, step, numbers))

    def image(self, step, name, image):
        self.got.append((name, step, image.shape))

    def end(self, failed):
        self.got.append("failed" if failed else "end")


@pytest.fixture
def service(monkeypatch):
    """A package of a tracker: `got` and `opened` are recorded, after `limit` numbers it fails."""
    module = types.ModuleType("recorded")
    module.got, module.opened, module.limit = [], [], -1
    module.__spec__ = importlib.machinery.ModuleSpec("recorded", None)
    monkeypatch.setitem(sys.modules, "recorded", module)
    monkeypatch.setitem(trackers.TRACKERS, "recorded", Recorded)
    return module


def run(workdir, steps):
    log = Log(workdir)
    with tracking(log, ["recorded"], ConfigDict({"seed": 0}), workdir):
        for stage in ("first", "second"):
            log.rewind(stage, 0)
            for step in steps:
                log.write(stage, step, {"loss": step / 2})
        log.image(steps[-1], "sheet", np.zeros((2, 3, 3), np.uint8))
    log.close()


def test_a_tracker_gets_the_numbers_of_all_stages_and_resumes_its_run(service, tmp_path):
    run(tmp_path, [1, 2])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = [(line["stage"], line["step"], {"loss": line["loss"]}) for line in lines]
    assert service.got == [*logged, ("sheet", 2, (2, 3, 3)), "end"] and len(logged) == 4
    run(tmp_path, [3])
    assert service.opened == [(tmp_path.name, None), (tmp_path.name, "new")]


def test_a_tracker_is_told_that_a_run_failed(service, tmp_path):
    log = Log(tmp_path)
    with pytest.raises(ZeroDivisionError), tracking(log, ["recorded"], ConfigDict(), tmp_path):
        raise ZeroDivisionError
    assert service.got == ["failed"] and log.trackers is None


def test_a_tracker_that_fails_is_named_once_and_the_run_goes_on(service, tmp_path, capsys):
    service.limit = 1
    run(tmp_path, [1, 2, 3])
    assert len(service.got) == 1 and len((tmp_path / "metrics.jsonl").read_text().split("\n")) == 7
    said = capsys.readouterr().out
    assert said.count("warning: recorded failed (ConnectionError: no route). The run goes on") == 1


def test_a_tracker_that_cannot_begin_stops_nothing(service, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(trackers.TRACKERS, "recorded", lambda *_: sys.exit("log in first"))
    run(tmp_path, [1])
    assert "SystemExit: log in first" in capsys.readouterr().out
    assert not (tmp_path / "tracked.json").exists()


def test_unknown_trackers_and_missing_packages_are_named_before_anything_runs(monkeypatch):
    with pytest.raises(UserError, match='unknown tracker "wandbb".*"wandb"'):
        main.run(["--track=wandbb", "--config=a.py", "--workdir=a"])
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "diffseg_jax\[mlflow\]"'):
        main.run(["--track=mlflow", "--config=a.py", "--workdir=a"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wandb", "mlflow", "trackio"])
def test_packages_of_trackers_take_a_run(name, tmp_path, monkeypatch, capsys):
    """Without a network: what the packages write stays in tmp_path."""
    pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    for _ in range(2):  # the second resumes
        log = Log(tmp_path)
        config = ConfigDict({"seed": 0, "stages": {"fit": {"steps": 3}}})
        with tracking(log, [name], config, tmp_path):
            log.rewind("fit", 0)
            log.write("fit", 1, {"loss": 0.5})
            log.image(1, "sheet", np.zeros((8, 8, 3), np.uint8))
        log.close()
    assert "warning" not in capsys.readouterr().out
    assert json.loads((tmp_path / "tracked.json").read_text()).keys() == {name}
