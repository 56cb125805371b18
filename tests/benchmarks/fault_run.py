"""Interrupts runs of all three systems at random moments, and compares the results bit by bit.

python tests/benchmarks/fault_run.py --kills=20 --stops=4 [--config=tests/configs/tiny_ddp.py]

For each config: an uninterrupted run; a run that gets --kills times SIGKILL (every third waits for
a save in progress, the others come at any time, even while the program starts) and --stops times
SIGTERM; and a run whose disk becomes full during a save (a small tmpfs, which only root can mount)
and is freed afterwards. Final parameters, statistics and optimizer state, and all logged numbers
except times, must equal those of the uninterrupted run.
"""

import argparse
import contextlib
import json
import os
import random
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

from diffseg_jax.storage.checkpoints import StageCheckpoints, steps_in
from diffseg_jax.training.state import flatten, unflatten

ROOT = Path(__file__).parents[2]
CONFIGS = [ROOT / "tests/configs" / f"tiny_{name}.py" for name in ("ddep", "ddp", "ddpm_seg")]
TIMES = ("time", "images_per_second", "steps_per_second")  # what a repeated run need not reproduce
LIMIT = 300  # seconds for one start; a run that hangs fails
STOPPED = 75  # exit code after SIGTERM


def run_with_kills(start, workdir, kills, seed, total, stops=0, last=None):
    """Starts and stops `kills` + `stops` times, then lets it end; returns what each stop met.

    start  () -> Popen of the training command for `workdir`, with pipes
    stops  how many of them are SIGTERM, which saves; the others are SIGKILL
    total  records that an unbroken run logs; a start is left to log up to twice its share of them
    last   () -> .code and .err of the start that ends; None: as the others
    """
    rng, met = random.Random(seed), []
    ways = [signal.SIGKILL] * kills + [signal.SIGTERM] * stops
    rng.shuffle(ways)
    share = total // (len(ways) + 1)
    for way in ways:
        records = min(count_records(workdir) + rng.randint(0, 2 * share), total - 4)
        remains = half_written(workdir)
        process = start()
        saving = lambda old=remains: bool(half_written(workdir) - old)
        chosen = saving if way == signal.SIGKILL and len(met) % 3 == 1 else None
        _wait(process, workdir, rng, records, chosen)
        if process.poll() is not None:
            err = process.communicate()[1]
            raise RuntimeError(f"ended before stop {len(met) + 1}: {err[-800:]}")
        process.send_signal(way)
        err = process.communicate(timeout=LIMIT)[1]
        if way == signal.SIGTERM:
            met.append(_after_stop(process.returncode, err, workdir))
        else:
            met.append(f"{'in a save after' if saving() else 'after'} {last_record(workdir)}")
    _end(start, last)
    return met


def _end(start, last):
    """The start that nothing stops, by `last` if it is given; RuntimeError if it fails."""
    if last:
        code, err = (done := last()).code, done.err
    else:
        err = (process := start()).communicate(timeout=LIMIT)[1]
        code = process.returncode
    if code:
        raise RuntimeError(f"the last start failed: {err[-800:]}")


def _after_stop(code, err, workdir):
    """Where SIGTERM stopped the run; RuntimeError unless the reported step is saved."""
    if code == -signal.SIGTERM:  # before the first step or after the last: nothing to save
        return f"stopped outside the steps, {last_record(workdir)}"
    found = re.search(r"after step (\d+) of stage (\w+), which is saved", err)
    if code != STOPPED or not found:
        raise RuntimeError(f"SIGTERM ended with {code}: {err[-800:]}")
    step, stage = int(found[1]), found[2]
    if step not in steps_in(Path(workdir) / "checkpoints" / stage):
        raise RuntimeError(f"step {step} of {stage} is not saved")
    return f"stopped and saved {stage} {step}"


def _wait(process, workdir, rng, records, saving):
    """Returns at the moment of the stop: a random one, or one while `saving()` is true."""
    early = not saving and rng.random() < 0.3  # perhaps before the first step
    end = time.monotonic() + (rng.uniform(0, 8) if early else LIMIT)

    def is_running():
        return process.poll() is None and time.monotonic() < end

    while is_running() and count_records(workdir) < records:
        time.sleep(0.005)
    while saving and is_running() and not saving():
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.01 if saving else 0.1))


def count_records(workdir):
    """Lines logged so far."""
    file = Path(workdir) / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def half_written(workdir):
    """The directories of unfinished saves, in progress or interrupted by a kill."""
    return set(Path(workdir).glob("checkpoints/*/*orbax-checkpoint-tmp*"))


def last_record(workdir):
    """The last logged stage and step."""
    file = Path(workdir) / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # the kill truncated the line
            continue
        return f"{record['stage']} {record['step']}"
    return "the start"


def numbers(workdir):
    """All logged records without the times."""
    lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records]


def final_state(directory):
    """{path: array} of the last state of a stage: parameters, statistics, optimizer, step."""
    with StageCheckpoints(Path(directory), read_only=True) as checkpoints:
        step = checkpoints.latest()
        arrays = checkpoints.meta(step)["arrays"]
        target = {tuple(name.split("/")): np.zeros(()) for name in arrays}
        restore_args = {path: ocp.RestoreArgs(np.ndarray) for path in target}
        arguments = ocp.args.PyTreeRestore(unflatten(target), restore_args=unflatten(restore_args))
        arguments = ocp.args.Composite(state=arguments)
        return flatten(checkpoints.manager.restore(step, args=arguments)["state"])


def differences(workdir, other):
    """Sentences on what differs between two finished runs; none for equal ones."""
    found = []
    for directory in sorted((Path(workdir) / "checkpoints").iterdir()):
        ours = final_state(directory)
        theirs = final_state(Path(other) / "checkpoints" / directory.name)
        if ours.keys() != theirs.keys():
            found.append(f"{directory.name}: other arrays")
            continue
        changed = [".".join(path) for path in ours if not np.array_equal(ours[path], theirs[path])]
        if changed:
            count = f"{len(changed)} of {len(ours)} arrays"
            found.append(f"{directory.name}: {count}, first {changed[0]}")
    if numbers(workdir) != numbers(other):
        found.append("metrics.jsonl")
    return found


# ---- a full disk ---------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder, size):
    """A tmpfs of `size` bytes at a folder; PermissionError if the user may not mount one."""
    Path(folder).mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        raise PermissionError("only root can mount a tmpfs, which the full disk needs")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(disk, leaving):
    """Writes the file `filler`, so that so many bytes are free."""
    free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
    (Path(disk) / "filler").write_bytes(bytes(free - leaving))


def fill_the_disk(start, disk, seed, times=3):
    """Runs `times` times on a nearly full disk, then with free space; returns the error messages.

    start  () -> Popen of a run whose workdir is on the disk
    """
    rng, met = random.Random(seed), []
    for _ in range(times):
        fill(disk, rng.randrange(0, 3_000_000))  # leaves space for at most one checkpoint
        process = start()
        err = process.communicate(timeout=LIMIT)[1]
        (Path(disk) / "filler").unlink()
        lines = err.strip().splitlines()
        if process.returncode != 2 or len(lines) != 1 or not lines[0].startswith("error: "):
            raise RuntimeError(f"a full disk ended with {process.returncode}: {err[-1500:]}")
        met.append(lines[0])
    process = start()
    err = process.communicate(timeout=LIMIT)[1]
    if process.returncode:
        raise RuntimeError(f"the start with free space failed: {err[-800:]}")
    return met


# ---- the command line ----------------------------------------------------------------------------


def faults_of(config, options, folder):
    """Prints where each fault occurred; prints and returns the final differences."""
    stages = runpy.run_path(str(config))["get_config"]().stages
    names = [name for name in ("pretrain", "finetune", "train", "align", "fit") if name in stages]
    command = [
        sys.executable, "-m", "diffseg_jax.main", f"--config={config}",
        f"--compilation_cache={folder}/compiled", f"--config.run={tuple(names)}",
        *(f"--config.stages.{n}.steps={options.steps}" for n in names if "steps" in stages[n]),
    ]  # fmt: skip

    def start(workdir):
        return subprocess.Popen(
            [*command, f"--workdir={workdir}"], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    unbroken = start(folder / "unbroken")
    _, err = unbroken.communicate(timeout=LIMIT)
    if unbroken.returncode:
        sys.exit(err)
    total = count_records(folder / "unbroken")
    killed = folder / "killed"
    met = run_with_kills(
        lambda: start(killed), killed, options.kills, options.seed, total, options.stops
    )
    found = differences(killed, folder / "unbroken")
    for number, moment in enumerate(met, 1):
        print(f"  {number}: {moment}")
    saves = sum(moment.startswith("in a save") for moment in met)
    stops = sum(moment.startswith("stopped and saved") for moment in met)
    print(f"{config.name}: {options.kills} kills, {saves} of them in a save; {stops} stops saved")
    try:
        with small_disk(folder / "disk", options.disk):
            run = folder / "disk" / "run"
            for sentence in fill_the_disk(lambda: start(run), folder / "disk", options.seed):
                print(f"  full disk: {sentence}")
            found += differences(run, folder / "unbroken")
    except PermissionError as error:
        print(f"  skipped: {error}")
    verdict = f"DIFFERENT: {found}" if found else "every bit equal to the unbroken run"
    print(f"{config.name}: {verdict}", flush=True)
    return found


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="per config")
    parser.add_argument("--stops", type=int, default=4, help="SIGTERM, per config")
    parser.add_argument("--steps", type=int, default=40, help="of each stage but fits")
    parser.add_argument("--disk", type=int, default=60_000_000, help="bytes of the small disk")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", type=Path, action="append", help="all three tiny ones")
    options = parser.parse_args()
    found = []
    for config in options.config or CONFIGS:
        with tempfile.TemporaryDirectory() as folder:
            found += faults_of(config.absolute(), options, Path(folder))
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
