"""Fixtures of the tests of studies."""

import pytest

from diffseg_jax import study
from diffseg_jax.experiment import child_run
from study_case import FIELDS, Runs


@pytest.fixture
def write(tmp_path):
    """A function that writes a study with changed fields: its path."""

    def write(**changed):
        file = tmp_path / "one.py"
        file.write_text(f"def get_study(preset=''):\n    return {dict(FIELDS, **changed)!r}\n")
        return str(file)

    return write


@pytest.fixture
def studied(write, tmp_path, monkeypatch, capsys):
    """A function that runs a study by stand-ins of runs: (lines, workdir, runs)."""

    def run(fails=(), stops_at=None, workdir="studied", runs=Runs, **changed):
        runs = runs(fails, stops_at)
        capsys.readouterr()
        monkeypatch.setattr(child_run, "run_watched", runs)
        stopped = None
        try:
            study.main([f"--config={write(**changed)}", f"--workdir={tmp_path / workdir}"])
        except SystemExit as error:
            stopped = error.code
        return "".join(capsys.readouterr()), tmp_path / workdir, runs.commands, stopped

    return run
