"""Meshes of 8 fake devices and one device give the same losses, statistics and saved bits."""

import json

import numpy as np
import pytest

from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.storage.networks import open_network
from diffseg_jax.training.state import flatten

MESHES = {"data2-fsdp4": (2, 4), "data8": (8, 1), "fsdp8": (1, 8)}
CASES = [
    pytest.param(system, mesh, id=f"{system}-{name}")
    for system in ("ddep", "ddp", "ddpm_seg")
    for name, mesh in MESHES.items()
]


def records(workdir, stages=("pretrain", "finetune", "train", "align")):
    """[(stage, step, loss)] of a run."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(r["stage"], r["step"], r["loss"]) for r in lines if r["stage"] in stages]


def sharded_run(command, system, workdir, mesh, *other):
    done = command.script(
        "tests/sharded_run.py", system, workdir, *mesh, *other, devices=mesh[0] * mesh[1],
        seconds=580,
    )  # fmt: skip
    assert done.code == 0, done.err[-3000:]
    return json.loads(done.out.splitlines()[-1])


@pytest.fixture(scope="module")
def single(command, tmp_path_factory):
    """A function from a system to the workdir of its run on one device, which runs once."""
    made = {}

    def workdir_of(system):
        if system not in made:
            made[system] = tmp_path_factory.mktemp(f"single_{system}")
            sharded_run(command, system, made[system], (1, 1))
        return made[system]

    return workdir_of


@pytest.mark.slow  # test_two_processes checks quickly that two devices change no loss
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("system, mesh", CASES)
def test_a_mesh_changes_only_the_sharding(command, single, tmp_path, system, mesh):
    alone = single(system)
    report = sharded_run(command, system, tmp_path, mesh, alone)
    assert report.pop("devices") == 8

    # ---- losses of 20 steps of each stage that the loop trains
    ours, theirs = records(tmp_path), records(alone)
    assert [entry[:2] for entry in ours] == [entry[:2] for entry in theirs]
    assert len(ours) == 20 * len(report)
    np.testing.assert_allclose([x[2] for x in ours], [x[2] for x in theirs], rtol=1e-5)

    for stage in report:
        # ---- batch statistics are means over the rows of all devices; 8 devices wrote, 1 reads
        network, _ = open_network(tmp_path / "checkpoints" / stage)
        expected, _ = open_network(alone / "checkpoints" / stage)
        stats, expected_stats = flatten(network["stats"]), flatten(expected["stats"])
        assert stats.keys() == expected_stats.keys()
        for path, array in stats.items():
            np.testing.assert_allclose(array, expected_stats[path], rtol=1e-3, atol=1e-4)

        # ---- fsdp splits parameters and both moments; 1 device wrote, 8 read
        assert (report[stage]["params"] > 0) == (mesh[1] > 1)
        assert report[stage]["opt"] == 2 * report[stage]["params"]
        assert report[stage]["restored"]

    if system == "ddpm_seg":  # ---- devices share the members of the ensemble and the images
        ours, theirs = records(tmp_path, ("fit",)), records(alone, ("fit",))
        assert [entry[:2] for entry in ours] == [entry[:2] for entry in theirs] != []
        np.testing.assert_allclose([x[2] for x in ours], [x[2] for x in theirs], rtol=0.02)


@pytest.mark.timeout(600)
def test_checkpoints_move_from_1_device_to_8_to_4_to_1(command, tiny_run, tmp_path):
    first = tiny_run.workdir / "checkpoints" / "pretrain"
    meshes = "1x8", "2x2", "1x1"
    done = command.script("tests/moved_run.py", first, tmp_path, *meshes, devices=8)
    assert done.code == 0, done.err[-2000:]
    reports = [json.loads(line) for line in done.out.splitlines()]
    assert [report["devices"] for report in reports] == [8, 4, 1]
    assert [report["split"] > 0 for report in reports] == [True, True, False]
    with StageCheckpoints(first, read_only=True) as checkpoints:
        saved = checkpoints.meta(checkpoints.latest())["arrays"]
    sums = {path: entry["sum"] for path, entry in saved.items()}
    assert all(report["sums"] == sums for report in reports)
