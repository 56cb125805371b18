"""Shared settings and fixtures: compiled programs, recorded outputs, and the command line."""

import contextlib
import fcntl
import functools
import gc
import io
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from configs import tiny_ddep, tiny_ddp, tiny_ddpm_seg, tiny_deeplab
from diffseg_jax import main
from diffseg_jax.display import console
from diffseg_jax.storage.workdir import as_json
from diffseg_jax.systems.methods import SYSTEMS

GOLDEN = Path(os.environ.get("DIFFSEG_GOLDEN", Path(__file__).parent / "recorded"))
ROOT = Path(__file__).parents[1]
TINY = Path(tiny_ddep.__file__)
XLA_FLAGS = " ".join([
    "--xla_backend_optimization_level=0", "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_disable_hlo_passes=reshape-mover,while-loop-invariant-code-motion,"
    "while-loop-constant-sinking,simplify-conditional,hlo-verifier",
])  # fmt: skip


def pytest_cmdline_main(config):
    """Names files that do not exist: with -n, pytest would end without a reason."""
    for argument in config.args:
        file = argument.partition("::")[0]
        if not (config.invocation_params.dir / file).exists():
            raise pytest.UsageError(f"file or directory not found: {file}")


def pytest_terminal_summary(terminalreporter, exitstatus, config):
    """With -n, pytest does not say either that a name of a test is wrong."""
    if exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and config.getoption("numprocesses", 0):
        terminalreporter.write_line("no such test; without -n pytest says which name is wrong")


def pytest_configure(config):
    """Sets how this process and those that tests start compile, before the first program.

    Unoptimised code of networks this small runs as fast, and compiles in half the time; without
    MLIR for each fused loop it takes half of that again, and in one module, not one for each of up
    to 32 threads, a quarter less. Of the passes, one undoes what another did, 25 times over: a
    train step takes a seventh less without it, three passes for loops and branches, and XLA's check
    of itself. Compiled programs are shared through a folder of the session, or
    JAX_COMPILATION_CACHE_DIR if it is set.
    """
    os.environ.setdefault("XLA_FLAGS", XLA_FLAGS)
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # else of the session that started this one
        folder = tempfile.TemporaryDirectory(prefix="diffseg_jax_compiled_")
        config.add_cleanup(folder.cleanup)
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder.name
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
    seconds = float(os.environ.get("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", 0))
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)


gc.disable()  # imports and the collection of tests leave little: the search took a quarter


def pytest_collection_finish():
    """Searches for garbage more rarely, and not in what was imported, which stays.

    Traces are made of so many objects that the search took a tenth of the CPU time.
    """
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 20, 20)


def pytest_sessionfinish():
    """Python and pytest search for garbage several times before they end: there is none to find."""
    gc.freeze()


@pytest.fixture(autouse=True)
def no_lines_of_progress(request, monkeypatch):
    """On a busy machine commands say how far they are; only the tests of that expect it."""
    if request.path.parent.name != "display":
        for name in ("FIRST_AFTER", "NOTE_AFTER"):
            monkeypatch.setattr(console, name, 1e9)
        monkeypatch.setattr(console, "SILENCES", (1e9,) * len(console.SILENCES))


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
def shared(tmp_path_factory):
    """A folder of the whole session, also where several processes share the tests."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


@pytest.fixture(scope="session")
def command():
    """The command `main`, as the user sees it.

    command(workdir, *flags, config=TINY) -> code, out, err. It runs in this process, which saves
    the seconds of imports that a process of its own costs.
    command.process(..., seconds=240, devices=1) runs in a process of its own; one that is not done
    in time is killed and fails the test.
    command.start(..., devices=1) does not wait: it returns the Popen, whose output goes to pipes.
    command.script(file, *arguments, seconds, devices) runs another program in its own process.
    """

    def popen(arguments, devices):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        if devices > 1:  # other flags are other programs, also where they are the default
            environment["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
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

    def all_flags(workdir, flags, config):
        given = ["--compilation_cache="]
        given += [f"--config={config}"] if config else []
        given += [f"--workdir={workdir}"] if workdir else []
        return [*given, *flags]

    def run(workdir, *flags, config=TINY):
        return called(main.main, all_flags(workdir, flags, config))

    def start(workdir, *flags, config=TINY, devices=1):
        return popen(["-m", "diffseg_jax.main", *all_flags(workdir, flags, config)], devices)

    def process(workdir, *flags, config=TINY, seconds=240, devices=1):
        return finish(start(workdir, *flags, config=config, devices=devices), seconds)

    def script(file, *arguments, seconds=240, devices=1):
        return finish(popen([file, *arguments], devices), seconds)

    run.start, run.process, run.script, run.finish = start, process, script, finish
    return run


def called(main_function, arguments):
    """The exit code and the output of a command that runs in this process, at the root."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.chdir(ROOT),
        warnings.catch_warnings(),
    ):  # fmt: skip
        for hidden in (DeprecationWarning, PendingDeprecationWarning, ResourceWarning):
            warnings.simplefilter("ignore", hidden)  # as Python starts, unlike pytest
        try:
            main_function(arguments)
        except SystemExit as end:
            code = end.code or 0
    return SimpleNamespace(code=code, out=out.getvalue(), err=err.getvalue())


@pytest.fixture(scope="session")
def whole_run(command, shared):
    """whole_run(name, *flags, config, process=False) -> the workdir of a run, and what it said.

    No test may change the workdir. The first process that asks for a name makes the run, the others
    wait.
    """

    def run(name, *flags, config, process=False):
        folder = shared / "whole_runs"
        folder.mkdir(exist_ok=True)
        workdir, said = folder / name, folder / f"{name}.json"
        with open(folder / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not said.exists():
                make = command.process if process else command
                done = make(workdir, *flags, config=config)
                assert done.code == 0, done.err
                said.write_text(json.dumps({"out": done.out, "err": done.err}))
        return SimpleNamespace(workdir=workdir, **json.loads(said.read_text()))

    return run


@pytest.fixture(scope="session")
def tiny_run(whole_run):
    """The whole run of the tiny config of DDeP."""
    return whole_run("tiny_ddep", config=TINY, process=True)


@pytest.fixture(scope="session")
def diffusion_run(whole_run):
    """The whole run of the tiny config that trains a diffusion model alone."""
    return whole_run("tiny_ddpm", config=TINY.with_name("tiny_ddpm.py"))


FITTED_FLAGS = (  # of `fitted_run`, which two processes (devices/test_two_processes.py) make too
    "--config.run=('pretrain', 'fit')", "--config.evaluate.images=5",
    "--config.stages.pretrain.optim.epsilon=1e-3", "--config.stages.pretrain.every.log=1",
    "--config.model.channel_mult=(1,)", "--config.features.blocks=(0, 1)",
)  # fmt: skip


@pytest.fixture(scope="session")
def fitted_run(whole_run):
    """The whole run of the tiny config that fits an ensemble, with a smaller network.

    .flags and .config are those of its command.
    """
    config = TINY.with_name("tiny_ddpm_seg.py")
    run = whole_run("tiny_ddpm_seg_alone", *FITTED_FLAGS, config=config)
    run.flags, run.config = FITTED_FLAGS, config
    return run


@pytest.fixture
def tiny_config():
    """A fresh copy of the tiny config."""
    return tiny_ddep.get_config()


SEGMENTING = {  # system -> its tiny config, and a stage that can segment
    "ddp": (tiny_ddp, "train"),
    "ddep": (tiny_ddep, "finetune"),
    "ddpm_seg": (tiny_ddpm_seg, "fit"),
    "deeplab": (tiny_deeplab, "train"),
}


@pytest.fixture(scope="session")
def tiny_network():
    """tiny_network(system, **changes) -> (network, meta), as read from a checkpoint; random."""

    @functools.cache
    def make(system, **changes):
        tiny, stage = SEGMENTING[system]
        config = tiny.get_config()
        config.update(changes)
        crop = tuple(config.stages[stage].augment.crop)
        names = tuple(f"class {number}" for number in range(5))
        task = SYSTEMS[system].make_task(config, config.stages[stage].kind, crop, len(names))
        key = jax.random.key(0)
        network = filled(jax.eval_shape(task.init, key))
        if task.fit:
            keys = jax.random.split(key, task.fit.members)
            members = filled(jax.eval_shape(jax.vmap(task.fit.member.init), keys))
            network = {part: {**network[part], "ensemble": members[part]} for part in network}
        meta = {
            "version": "0.1.0", "config": as_json(config.to_dict()), "task": as_json(task.meta),
            "stage": stage, "step": 7, "start": "random", "ema": [], "classes": list(names),
        }  # fmt: skip
        return network, meta

    return make


def filled(abstract):
    """Arrays of those shapes, drawn without compiling: kernels by their width, the rest near 1."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        if path[-1].key in ("kernel", "noise", "bias"):
            scale = max(np.prod(leaf.shape[-4:-1]), 1) ** -0.5
            return (scale * rng.standard_normal(leaf.shape)).astype(leaf.dtype)
        return rng.uniform(0.8, 1.2, leaf.shape).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract)
