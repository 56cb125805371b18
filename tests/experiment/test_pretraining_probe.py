"""A stage without labels that is scored by a linear probe of them, and ends when that is enough."""

import functools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs.tiny_ddpm_seg import get_config
from diffseg_jax.config.files import read_config
from diffseg_jax.devices.mesh import make_mesh
from diffseg_jax.errors import UserError
from diffseg_jax.experiment import pretraining_probe
from diffseg_jax.experiment.gradient_stage import planned_steps, train_stage
from diffseg_jax.experiment.plan import check_config, make_plan
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.storage.workdir import check_same, claim_workdir
from diffseg_jax.training import loop
from diffseg_jax.training.log import Log

SCORES = {2: 0.30, 4: 0.40, 6: 0.402, 8: 0.41, 10: 0.40, 12: 0.40, 14: 0.40, 16: 0.5}


# ---- what the scores say -------------------------------------------------------------------------


@pytest.mark.quick
def test_a_gain_is_counted_over_the_last_one_that_counted():
    waits = pretraining_probe.waits(list(SCORES.items()), gain=0.005)
    assert waits == [0, 0, 1, 0, 1, 2, 3, 0]
    rising = [(step, 0.4 + 0.003 * step) for step in range(5)]
    assert pretraining_probe.waits(rising, gain=0.005) == [0, 1, 0, 1, 0]
    assert pretraining_probe.waits([(1, 0.4), (2, 0.4)], gain=0.0) == [0, 1]


# ---- a stage with a toy loss ---------------------------------------------------------------------


def line_batches(first, last):
    for step in range(first, last):
        yield {"x": np.random.default_rng(step).standard_normal((4, 3), np.float32)}
    raise RuntimeError("the machine was switched off")


def line_loss(params, stats, batch, key):
    error = batch["x"] @ params["slope"] - jax.random.normal(key, (4,))
    return jnp.sum(error**2), (jnp.float32(4), stats, {})


def run(workdir, monkeypatch, last=100, **options):
    """The last state of 18 steps that are probed as `options` say, and its metadata."""
    log = Log(workdir)
    plan = SimpleNamespace(
        name="line", options=SimpleNamespace(steps=18, get=lambda *_: options), log=log
    )
    scorer = lambda state: SCORES.get(int(state["step"]), 0.5)
    monkeypatch.setattr(pretraining_probe, "make_scorer", lambda plan: (scorer, "is probed"))
    seen = []
    with StageCheckpoints(workdir / "line") as saved:
        stage = loop.Stage(
            name="line", steps=planned_steps(plan, saved), batch_size=4,
            batches=functools.partial(line_batches, last=last), loss=line_loss,
            init=lambda key: {"params": {"slope": jnp.ones(3)}, "stats": {}},
            trainable=lambda path: True, optimizer=optax.adam(0.1), schedule=lambda step: 0.1,
            every=dict(log=5, checkpoint=3, evaluate=99), meta={},
            evaluate=lambda state, step: seen.append(step) or {},
        )  # fmt: skip
        stage = pretraining_probe.probed(stage, plan, saved)
        state = loop.train_network(stage, saved, make_mesh(), log)
        return state, saved.meta(saved.latest()), seen


def test_a_stage_ends_when_it_does_not_gain_any_more(tmp_path, monkeypatch, capsys):
    state, meta, seen = run(tmp_path, monkeypatch, every=2, patience=2, gain=0.005)
    assert int(state["step"]) == meta["step"] == meta["steps"] == 12 and seen == [12]
    assert meta["evaluated"] and meta["probes"] == [[s, SCORES[s]] for s in range(2, 14, 2)]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"]: line["probe_mIoU"] for line in lines if "probe_mIoU" in line} == {
        step: SCORES[step] for step in range(2, 14, 2)
    }
    out = capsys.readouterr().out
    assert "line: ends after step 12; linear probe 40.0 % (best 41.0 % at step 8)" in out
    again, *_ = run(tmp_path, monkeypatch, every=2, patience=0)
    assert int(again["step"]) == 12


def test_a_killed_stage_ends_at_the_same_step_with_the_same_bits(tmp_path, monkeypatch):
    options = dict(every=2, patience=3, gain=0.005)
    whole, meta, _ = run(tmp_path / "whole", monkeypatch, **options)
    with pytest.raises(RuntimeError, match="switched off"):
        run(tmp_path / "killed", monkeypatch, last=11, **options)
    resumed, same, _ = run(tmp_path / "killed", monkeypatch, **options)
    assert same["probes"] == meta["probes"] and same["step"] == meta["step"] == 14
    np.testing.assert_array_equal(resumed["params"]["slope"], whole["params"]["slope"])


def test_the_advice_of_the_log_ends_the_stage_and_keeps_it_ended(tmp_path, monkeypatch, capsys):
    plain, *_ = run(tmp_path / "plain", monkeypatch)
    state, meta, _ = run(tmp_path / "probed", monkeypatch, every=2)
    np.testing.assert_array_equal(state["params"]["slope"], plain["params"]["slope"])
    out = capsys.readouterr().out
    assert meta["step"] == 18 and out.count("good enough") == 1
    assert (
        "line: linear probe 40.0 % (best 41.0 % at step 8) has not gained for 3 probes: good "
        "enough; to stop here and go on: Ctrl-C, then the same command with "
        "--config.stages.line.probe.patience=3\n"
    ) in out
    with pytest.raises(RuntimeError, match="switched off"):
        run(tmp_path / "stopped", monkeypatch, last=17, every=2)
    _, meta, seen = run(tmp_path / "stopped", monkeypatch, every=2, patience=3)
    assert meta["step"] == meta["steps"] == 15 and meta["evaluated"] and seen == [15]
    assert "line: ends after step 15; linear probe 40.0 %" in capsys.readouterr().out
    _, meta, seen = run(tmp_path / "stopped", monkeypatch, every=2)
    assert meta["step"] == 15 and seen == []


# ---- the network of a diffusion model ------------------------------------------------------------


@pytest.fixture
def seg_config():
    """A fresh copy of the tiny config of both stages, the first of which is probed."""
    config = get_config()
    config.stages.pretrain.probe = dict(every=2)
    return config


def test_a_stage_of_a_plan_is_trained_with_its_probe(seg_config, tmp_path, monkeypatch, capsys):
    trained = []
    monkeypatch.setattr(loop, "train_network", lambda stage, *_: trained.append(stage))
    plan = make_plan(seg_config, tmp_path).stages[0]
    with StageCheckpoints(plan.directory) as checkpoints:
        train_stage(plan, checkpoints)
    assert trained[0].probe and trained[0].every["probe"] == 2
    assert "pretrain: probed every 2 steps on 3 labelled images, as fit" in capsys.readouterr().out


def test_without_a_reader_or_a_second_label_there_is_no_probe(seg_config, tmp_path):
    seg_config.data.count = 1
    alone = make_plan(seg_config, tmp_path).stages[0]
    assert "needs two labelled images" in pretraining_probe.make_scorer(alone)[1]
    seg_config.run = ("pretrain",)
    alone = make_plan(seg_config, tmp_path).stages[0]
    assert "no stage of this run" in pretraining_probe.make_scorer(alone)[1]


# ---- options -------------------------------------------------------------------------------------


@pytest.mark.quick
def test_the_options_of_a_probe_may_change_while_a_stage_runs(seg_config, tmp_path):
    claim_workdir(get_config(), tmp_path)
    check_same(seg_config, tmp_path, may_differ=())
    seg_config.stages.pretrain.steps = 5
    with pytest.raises(UserError, match=r"\n  stages.pretrain.steps: 4 -> 5$"):
        check_same(seg_config, tmp_path, may_differ=())


@pytest.mark.quick
def test_a_config_without_a_probe_may_be_given_one():
    given = [("stages.pretrain.probe.every", "7"), ("stages.pretrain.probe.gain", "0.01")]
    config = read_config("configs/ddpm_seg_camvid.py", given)
    assert config.stages.pretrain.probe.to_dict() == {"every": 7, "gain": 0.01}
    check_config(config)


@pytest.mark.quick
def test_a_stage_that_learns_from_labels_is_not_probed():
    config = read_config("configs/ddp_scenes.py", [("stages.train.probe.every", "7")])
    with pytest.raises(UserError, match="probe.every is 7, but the stage learns from labels"):
        check_config(config)
    check_config(read_config("configs/ddp_scenes.py", [("stages.train.probe.every", "0")]))
