"""Meshes of 8 fake devices against one device: the same losses, the same statistics."""

import json

import numpy as np
import pytest

from diffseg_jax.checkpoints import open_network
from diffseg_jax.training.state import flatten

STAGES = ("pretrain", "finetune")
MESHES = [
    pytest.param((2, 4), id="data2-fsdp4"),
    pytest.param((8, 1), id="data8", marks=pytest.mark.slow),
    pytest.param((1, 8), id="fsdp8", marks=pytest.mark.slow),
]


def losses(workdir):
    """[(stage, step, loss)] of a run."""
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(record["stage"], record["step"], record["loss"]) for record in records]


def sharded_run(command, workdir, mesh, *other):
    done = command.script(
        "tests/sharded_run.py", workdir, *mesh, *other, devices=mesh[0] * mesh[1], seconds=280
    )
    assert done.code == 0, done.err[-3000:]
    return json.loads(done.out.splitlines()[-1])


@pytest.fixture(scope="module")
def single(command, tmp_path_factory):
    """The workdir of the run on one device."""
    workdir = tmp_path_factory.mktemp("single")
    sharded_run(command, workdir, (1, 1))
    return workdir


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mesh", MESHES)
def test_a_mesh_changes_nothing_but_the_place(command, single, tmp_path, mesh):
    facts = sharded_run(command, tmp_path, mesh, single)
    assert facts["devices"] == 8

    # ---- losses of 20 steps of denoising and of 20 of segmentation
    ours, theirs = losses(tmp_path), losses(single)
    assert [entry[:2] for entry in ours] == [entry[:2] for entry in theirs]
    assert len(ours) == 40
    np.testing.assert_allclose([x[2] for x in ours], [x[2] for x in theirs], rtol=1e-5)

    for stage in STAGES:
        # ---- batch statistics are global: a mean over all devices' rows; 8 devices wrote, 1 reads
        network, _ = open_network(tmp_path / "checkpoints" / stage)
        wanted, _ = open_network(single / "checkpoints" / stage)
        stats, wanted_stats = flatten(network["stats"]), flatten(wanted["stats"])
        assert stats.keys() == wanted_stats.keys() != set()
        for path, array in stats.items():
            np.testing.assert_allclose(array, wanted_stats[path], rtol=1e-3, atol=1e-4)

        # ---- fsdp splits parameters and both moments; 1 device wrote, 8 read
        assert (facts[stage]["params"] > 0) == (mesh[1] > 1)
        assert facts[stage]["opt"] == 2 * facts[stage]["params"]
        assert facts[stage]["restored"]
