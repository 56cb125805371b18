"""Two processes, started by launch/local.sh, are one run: the same losses, counts and final bits.

The processes connect through a port of this machine and reduce over gloo. Quickly tested is a stage
of milliseconds; whole runs of all methods, through the launcher, are slow tests.
"""

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import line_run
from conftest import FITTED_FLAGS
from diffseg_jax.storage.checkpoints import steps_in
from diffseg_jax.storage.networks import open_network
from diffseg_jax.training.state import flatten

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("fault_run", ROOT / "tests/benchmarks/fault_run.py")
fault_run = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fault_run)

# Adam amplifies rounding errors where gradients are exactly zero, unless its epsilon is large. Five
# images cannot be split evenly over two processes.
STABLE = ["--config.stages.{}.optim.epsilon=1e-3", "--config.stages.{}.every.log=1"]
SYSTEMS = {  # config -> stages of the training loop
    "tiny_ddpm_seg": ("pretrain",),
    "tiny_ddep": ("pretrain", "finetune"),
    "tiny_ddp": ("train", "align"),
}
# Quick: test_a_stage_and_counts_of_two_processes_are_those_of_one.
PARAMETERS = [pytest.param(name, marks=pytest.mark.slow) for name in SYSTEMS]
ENDS_WITHIN = 90  # seconds after the loss of a process


def flags_of(name):
    if name == "tiny_ddpm_seg":
        return FITTED_FLAGS
    stages = SYSTEMS[name]
    stable = [flag.format(stage) for stage in stages for flag in STABLE]
    return [f"--config.run={stages}", "--config.evaluate.images=5", *stable]


def start_two(cache, workdir, name):
    """The launcher with two processes, as Popen with one pipe for stdout and stderr."""
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    command = [
        "launch/local.sh", "--processes=2", "--gpus=0", "--lost-after=10", "--",
        f"--config=tests/configs/{name}.py", f"--workdir={workdir}",
        f"--compilation_cache={cache}", *flags_of(name),
    ]  # fmt: skip
    return subprocess.Popen(
        command, env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip


def ended(process, seconds=280):
    try:
        out, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
        pytest.fail(f"two processes were not done after {seconds} s: {process.communicate()[0]}")
    return SimpleNamespace(code=process.returncode, out=out)


def test_a_stage_and_counts_of_two_processes_are_those_of_one(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "tests/line_run.py", tmp_path / "two", address, str(number)], cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for number in (0, 1)
    ]  # fmt: skip
    first, second = map(ended, processes)
    assert (first.code, second.code) == (0, 0), first.out + second.out
    counts = line_run.main(tmp_path / "one")
    assert counts["images"] == 5
    assert counts == json.loads(first.out.splitlines()[-1])
    assert counts == json.loads(second.out.splitlines()[-1])
    ours, theirs = (losses(tmp_path / name, ("line",)) for name in ("two", "one"))
    assert ours.keys() == theirs.keys() == {("line", 3), ("line", 6)}
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=2e-5)
    ours, theirs = (flatten(open_network(tmp_path / name / "line")[0]) for name in ("two", "one"))
    assert ours.keys() == theirs.keys()
    for path, array in theirs.items():
        np.testing.assert_allclose(ours[path], array, rtol=1e-5, err_msg=str(path))
    assert "line 3/6" in first.out and "line 3/6" not in second.out
    assert len((tmp_path / "two/metrics.jsonl").read_text().splitlines()) == 2  # of one alone


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled_by_two")


@pytest.fixture(scope="module", params=PARAMETERS)
def pair(request, cache, tmp_path_factory):
    """The name of a config, and the workdir of its run by two processes."""
    workdir = tmp_path_factory.mktemp(request.param) / "two"
    done = ended(start_two(cache, workdir, request.param))
    assert done.code == 0, done.out
    return SimpleNamespace(name=request.param, workdir=workdir, out=done.out)


def losses(workdir, stages):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = [r for r in map(json.loads, lines) if r["stage"] in stages and "loss" in r]
    return {(r["stage"], r["step"]): r["loss"] for r in records}


def known_images(workdir):
    """The descriptors of known images, by file."""
    files = sorted(workdir.glob("checkpoints/*/*/known_images.npz"))
    return {str(file.relative_to(workdir)): np.load(file)["descriptors"] for file in files}


@pytest.mark.timeout(900)
def test_losses_are_those_of_one_process(pair, whole_run):
    loops = SYSTEMS[pair.name]
    config = ROOT / "tests" / "configs" / f"{pair.name}.py"
    alone = whole_run(f"{pair.name}_alone", *flags_of(pair.name), config=config).workdir
    ours, theirs = losses(pair.workdir, loops), losses(alone, loops)
    assert ours.keys() == theirs.keys() != set()
    np.testing.assert_allclose(list(ours.values()), list(theirs.values()), rtol=2e-5)
    ours, theirs = known_images(pair.workdir), known_images(alone)
    assert ours.keys() == theirs.keys()
    for file, descriptors in ours.items():
        np.testing.assert_allclose(descriptors, theirs[file], rtol=0.01, atol=0.01, err_msg=file)
    if pair.name == "tiny_ddpm_seg":
        ours, theirs = losses(pair.workdir, ("fit",)), losses(alone, ("fit",))
        first = min(theirs)
        assert min(ours) == first
        np.testing.assert_allclose(ours[first], theirs[first], rtol=1e-3)


@pytest.mark.timeout(600)
def test_counts_are_those_of_one_process(pair, command):
    config = ROOT / "tests" / "configs" / f"{pair.name}.py"
    done = command(pair.workdir, *flags_of(pair.name), "--mode=eval", config=config)
    assert done.code == 0, done.err
    alone = json.loads((pair.workdir / "results_eval.json").read_text())
    assert alone == json.loads((pair.workdir / "results.json").read_text())
    assert all(result["images"] == 5 for result in alone.values())


def test_only_the_first_process_writes_metrics_and_logs(pair):
    lines = (pair.workdir / "metrics.jsonl").read_text().splitlines()
    records = [(r["stage"], r["step"], "loss" in r) for r in map(json.loads, lines)]
    assert len(records) == len(set(records))
    assert "2 devices (data 2 x fsdp 1) of 2 processes" in pair.out
    quiet = (pair.workdir / "logs" / "process_1.log").read_text()
    assert "images/s" not in quiet and "finished" not in quiet


def process_of(workdir, number):
    """The pid of one process of a run, found by its command line."""
    arguments = {f"--process={number}", f"--workdir={workdir}"}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            given = (folder / "cmdline").read_bytes().decode().split("\0")
        except OSError:
            continue
        if arguments <= set(given) and "diffseg_jax.main" in given:
            return int(folder.name)
    raise AssertionError(f"process {number} of {workdir} does not run")


@pytest.mark.slow  # test_launch kills processes of the launcher, test_resume one that trains alone
@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [0, 1])
def test_a_run_resumes_bit_exactly_after_a_lost_process(pair, cache, tmp_path, number):
    process = start_two(cache, tmp_path, pair.name)
    half = fault_run.count_records(pair.workdir) // 2
    end = time.monotonic() + 280
    while fault_run.count_records(tmp_path) < half and time.monotonic() < end:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    os.kill(process_of(tmp_path, number), signal.SIGKILL)
    lost = time.monotonic()
    done = ended(process, ENDS_WITHIN)
    assert time.monotonic() - lost < ENDS_WITHIN
    assert done.code not in (0, 2, 75)
    assert f"process {number} was killed (signal 9)" in done.out, done.out
    assert f"the same command resumes from the last checkpoint in {tmp_path}" in done.out, done.out

    again = ended(start_two(cache, tmp_path, pair.name))
    assert again.code == 0, again.out
    assert fault_run.differences(tmp_path, pair.workdir) == []
    assert (tmp_path / "results.json").read_bytes() == (pair.workdir / "results.json").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sigterm_to_the_launcher_saves_a_checkpoint_in_both(pair, cache, tmp_path):
    process = start_two(cache, tmp_path, pair.name)
    half = fault_run.count_records(pair.workdir) // 2
    end = time.monotonic() + 280
    while fault_run.count_records(tmp_path) < half and time.monotonic() < end:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    process.terminate()
    done = ended(process, ENDS_WITHIN)
    assert done.code == 75, done.out
    message = r"stopped by SIGTERM after step (\d+) of stage (\w+), which is saved"
    found = re.search(message, done.out)
    assert found, done.out
    assert int(found[1]) in steps_in(tmp_path / "checkpoints" / found[2])
