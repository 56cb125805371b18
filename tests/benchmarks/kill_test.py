"""Kills a two-stage run at random moments, starts it again until it ends, and compares every bit.

python tests/benchmarks/kill_test.py --kills=10 --seed=0 [--config=tests/configs/tiny_ddpm_seg.py]

Every third kill waits for a save in progress (a *.orbax-checkpoint-tmp directory); the others fall
anywhere, the start of the program included. Final parameters, statistics and optimizer state, and
all logged numbers but the times, must equal those of a run that was never killed.
"""

import argparse
import json
import os
import random
import runpy
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp

from diffseg_jax.checkpoints import StageCheckpoints
from diffseg_jax.training.state import flatten, unflatten

ROOT = Path(__file__).parents[2]
TIMES = ("time", "images_per_second", "steps_per_second")  # what a repeated run need not reproduce
LIMIT = 300  # seconds for one start; a run that hangs fails


def run_with_kills(start, workdir, kills, seed, total):
    """Starts and kills `kills` times, then lets it end; returns what each kill met.

    start  () -> Popen of the training command for `workdir`, with pipes
    total  records that an unbroken run logs; a start is left to log up to twice its share of them
    """
    share = total // (kills + 1)
    rng = random.Random(seed)
    met = []
    while len(met) < kills:
        records = min(count_records(workdir) + rng.randint(0, 2 * share), total - 4)
        remains = half_written(workdir)
        process = start()
        saving = lambda old=remains: bool(half_written(workdir) - old)
        _wait(process, workdir, rng, records, saving if len(met) % 3 == 1 else None)
        if process.poll() is not None:
            err = process.communicate()[1]
            raise RuntimeError(f"ended before kill {len(met) + 1}: {err[-800:]}")
        process.kill()
        process.communicate()
        met.append(f"{'in a save after' if saving() else 'after'} {last_record(workdir)}")
    process = start()
    err = process.communicate(timeout=LIMIT)[1]
    if process.returncode:
        raise RuntimeError(f"the last start failed: {err[-800:]}")
    return met


def _wait(process, workdir, rng, records, saving):
    """Returns at the moment of the kill: a random one, or one while `saving()` is true."""
    early = not saving and rng.random() < 0.3  # perhaps before the first step
    end = time.monotonic() + (rng.uniform(0, 8) if early else LIMIT)

    def goes_on():
        return process.poll() is None and time.monotonic() < end

    while goes_on() and count_records(workdir) < records:
        time.sleep(0.005)
    while saving and goes_on() and not saving():
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.01 if saving else 0.1))


def count_records(workdir):
    """Lines logged so far."""
    file = Path(workdir) / "metrics.jsonl"
    return file.read_text().count("\n") if file.exists() else 0


def half_written(workdir):
    """The directories of checkpoints that are being saved, or were when the run was killed."""
    return set(Path(workdir).glob("checkpoints/*/*orbax-checkpoint-tmp*"))


def last_record(workdir):
    """The stage and step logged last."""
    file = Path(workdir) / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # the kill cut the line short
            continue
        return f"{record['stage']} {record['step']}"
    return "the start"


def numbers(workdir):
    """All logged records without the times."""
    lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [{k: v for k, v in record.items() if k not in TIMES} for record in records]


def final_state(directory):
    """{path: array} of the whole last state of a stage: parameters, statistics, optimizer, step."""
    with StageCheckpoints(directory, read_only=True) as checkpoints:
        step = checkpoints.latest()
        tree = dict(checkpoints.manager.item_metadata(step)["state"].tree)
        target = {path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in flatten(tree).items()}
        arguments = ocp.args.Composite(state=ocp.args.PyTreeRestore(unflatten(target)))
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


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--steps", type=int, default=40, help="of each stage but fits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--config", default=str(ROOT / "tests/configs/tiny_ddep.py"))
    options = parser.parse_args()
    stages = runpy.run_path(options.config)["get_config"]().stages
    names = [name for name in ("pretrain", "finetune", "fit") if name in stages]
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        command = [
            sys.executable, "-m", "diffseg_jax.main", f"--config={options.config}",
            f"--compilation_cache={folder}/compiled", f"--config.run={tuple(names)}",
            *(f"--config.stages.{n}.steps={options.steps}" for n in names if "steps" in stages[n]),
        ]  # fmt: skip

        def start(name):
            return subprocess.Popen(
                [*command, f"--workdir={folder}/{name}"], cwd=ROOT, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )  # fmt: skip

        whole = start("whole")
        _, err = whole.communicate(timeout=LIMIT)
        if whole.returncode:
            sys.exit(err)
        total = count_records(folder / "whole")
        met = run_with_kills(
            lambda: start("killed"), folder / "killed", options.kills, options.seed, total
        )
        for number, moment in enumerate(met, 1):
            print(f"kill {number}: {moment}")
        found = differences(folder / "killed", folder / "whole")
        saves = sum(moment.startswith("in a save") for moment in met)
        verdict = "every bit equal to the run never killed" if not found else f"DIFFERENT: {found}"
        print(f"{len(met)} kills, {saves} of them during a save: {verdict}")
        sys.exit(bool(found))


if __name__ == "__main__":
    main()
