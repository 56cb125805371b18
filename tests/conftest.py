"""Shared fixtures: where recorded outputs of the originals lie, and the command line."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

GOLDEN = Path(os.environ.get("DIFFSEG_GOLDEN", Path(__file__).parent / "recorded"))
ROOT = Path(__file__).parents[1]
TINY = Path(__file__).parent / "configs" / "tiny_ddep.py"


@pytest.fixture
def golden():
    """`golden("ddep/transunet_seg*.json")`: the recorded cases of that pattern, or a skip."""

    def find(pattern):
        assert GOLDEN.is_dir(), f"DIFFSEG_GOLDEN names {GOLDEN}, which is no folder"
        paths = sorted(GOLDEN.glob(pattern))
        if not paths:
            pytest.skip(f"no recorded case {pattern} in {GOLDEN}")
        return paths

    return find


@pytest.fixture(scope="session")
def command(tmp_path_factory):
    """The command line of a process of its own, as the user sees it.

    command(workdir, *flags, config=TINY, seconds=240, devices=1) -> code, out, err. A process that
    is not done in time is killed and fails the test.
    command.start(...) does not wait: it returns the Popen, whose output goes to pipes.
    command.script(file, *arguments, seconds, devices) runs another program in the same way.
    """
    cache = tmp_path_factory.mktemp("compiled")

    def popen(arguments, devices):
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": "--xla_backend_optimization_level=1 "  # compiles in half the time
            f"--xla_force_host_platform_device_count={devices}",
        }
        return subprocess.Popen(
            [sys.executable, *map(str, arguments)], env=environment, cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def finish(process, seconds):
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            pytest.fail(f"killed after {seconds} s:\n{out[-2000:]}\n{err[-2000:]}")
        return SimpleNamespace(code=process.returncode, out=out, err=err)

    def start(workdir, *flags, config=TINY, devices=1):
        arguments = ["-m", "diffseg_jax.main", f"--compilation_cache={cache}"]
        arguments += [f"--config={config}"] if config else []
        arguments += [f"--workdir={workdir}"] if workdir else []
        return popen([*arguments, *flags], devices)

    def run(workdir, *flags, config=TINY, seconds=240, devices=1):
        return finish(start(workdir, *flags, config=config, devices=devices), seconds)

    def script(file, *arguments, seconds=240, devices=1):
        return finish(popen([file, *arguments], devices), seconds)

    run.start, run.script, run.finish = start, script, finish
    return run


@pytest.fixture(scope="session")
def tiny_run(command, tmp_path_factory):
    """The workdir of a whole run of the tiny config, which no test may change, and what it said."""
    workdir = tmp_path_factory.mktemp("tiny") / "run"
    done = command(workdir)
    assert done.code == 0, done.err
    return SimpleNamespace(workdir=workdir, out=done.out, err=done.err)


@pytest.fixture
def tiny_config():
    """A fresh copy of the tiny config."""
    return runpy.run_path(str(TINY))["get_config"]()
