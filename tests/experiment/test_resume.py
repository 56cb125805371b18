"""A run that is killed and started again is the run that was never killed."""

import functools
import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import flags

import line_run
from diffseg_jax.data.pipeline import training_batches
from diffseg_jax.devices.mesh import make_mesh
from diffseg_jax.diffusion import timesteps
from diffseg_jax.diffusion.process import make_process
from diffseg_jax.errors import UserError
from diffseg_jax.experiment import gradient_stage, stages
from diffseg_jax.storage.checkpoints import StageCheckpoints, flatten, with_string_keys
from diffseg_jax.systems.ddpm_seg import diffusion_loss
from diffseg_jax.training import loop
from diffseg_jax.training.log import Log

TINY = Path(__file__).parents[1] / "configs" / "tiny_ddep.py"
SPEC = importlib.util.spec_from_file_location(
    "fault_run", Path(__file__).parents[1] / "benchmarks" / "fault_run.py"
)
fault_run = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fault_run)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("made", "planned", "budget", "steps"),
    [
        (40, 90, None, 1200), (40, 90, "minutes", 90), (90, 90, None, 90), (40, 1200, None, 1200),
        (40, 2000, None, 1200), (1200, 2000, None, 2000),
    ],
)  # fmt: skip
def test_a_stage_that_stopped_in_a_given_time_goes_on_by_its_recipe_without_one(
    monkeypatch, made, planned, budget, steps
):  # fmt: skip
    trained, said = [], []
    checkpoints = SimpleNamespace(latest=lambda: made, meta=lambda step: {"steps": planned})
    log = SimpleNamespace(say=said.append)
    plan = SimpleNamespace(
        name="train", options=SimpleNamespace(steps=1200), evaluation=None, mesh=None, log=log
    )
    for name, stub in {
        "make_stage": lambda plan, steps: SimpleNamespace(steps=steps),
        "probed": lambda stage, *_: stage, "_paced": lambda stage, *_: stage,
        "announce": lambda *_: None,
    }.items():  # fmt: skip
        monkeypatch.setattr(gradient_stage, name, stub)
    monkeypatch.setattr(loop, "train_network", lambda stage, *_: trained.append(stage.steps))
    gradient_stage.train_stage(plan, checkpoints, budget)
    assert trained == [steps]
    changed = [f"train: with --minutes it was to end after {planned} steps, of which {made} are "
               "made; without, it makes all 1,200 of its recipe"]  # fmt: skip
    assert [line.replace("2,000", "2000") for line in said] == (changed * (steps != planned))


@pytest.mark.slow  # the fit below is killed and stopped instead
@pytest.mark.timeout(600)
def test_three_kills_change_no_bit(command, tiny_run, tmp_path):
    workdir = tmp_path / "killed"
    total = fault_run.count_records(tiny_run.workdir)
    met = fault_run.run_with_kills(lambda: command.start(workdir), workdir, 3, 0, total)
    assert any(moment.startswith("in a save") for moment in met), met
    assert fault_run.differences(workdir, tiny_run.workdir) == []
    for file in ("results.json", "labelled.json", "config.json"):
        assert (workdir / file).read_bytes() == (tiny_run.workdir / file).read_bytes()
    assert not fault_run.half_written(workdir)


@pytest.mark.timeout(600)
def test_a_fit_that_is_killed_and_stopped_ends_with_the_same_bits(command, fitted_run, tmp_path):
    killed, whole = tmp_path / "killed", fitted_run.workdir
    start = lambda: command.start(killed, *fitted_run.flags, config=fitted_run.config)
    last = lambda: command(killed, *fitted_run.flags, config=fitted_run.config)
    total = fault_run.count_records(whole)
    met = fault_run.run_with_kills(start, killed, 1, 3, total, stops=1, last=last)
    assert any(moment.startswith("stopped and saved") for moment in met), met
    assert fault_run.differences(killed, whole) == []
    assert (killed / "results.json").read_bytes() == (whole / "results.json").read_bytes()
    assert not fault_run.half_written(killed)


@pytest.mark.timeout(600)
def test_a_finished_stage_that_was_damaged_is_trained_again(command, fitted_run, tmp_path):
    run, whole = tmp_path / "run", fitted_run.workdir
    shutil.copytree(whole, run)
    for file in (run / "checkpoints/pretrain/4/state").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    done = command(run, *fitted_run.flags, config=fitted_run.config)
    assert done.code == 0, done.err
    assert "pretrain/4 is damaged" in done.out
    assert "it was renamed to damaged_4; continuing from step 2" in done.out
    assert "pretrain: continues after step 2" in done.out and "fit: is finished" in done.out
    shutil.rmtree(run / "checkpoints/pretrain/damaged_4")
    assert fault_run.differences(run, whole) in ([], ["metrics.jsonl"])  # in another order
    assert (run / "results.json").read_bytes() == (whole / "results.json").read_bytes()


def test_a_stage_on_a_full_disk_is_refused_and_goes_on_once_there_is_space(tmp_path):
    whole = line_run.trained(tmp_path / "whole")
    try:
        with fault_run.small_disk(disk := tmp_path / "disk", 4_000_000):
            line_run.trained(disk / "run", steps=3)
            fault_run.fill(disk, leaving=20_000)
            with pytest.raises(UserError, match="No space left on device.* free some space"):
                line_run.trained(disk / "run")
            (disk / "filler").unlink()
            parted = line_run.trained(disk / "run")
    except PermissionError as error:
        pytest.skip(str(error))
    for part in ("params", "ema", "stats"):
        for path, leaf in flatten(whole[part]).items():
            np.testing.assert_array_equal(leaf, flatten(parted[part])[path])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_full_disk_is_one_sentence_and_costs_no_bit(command, fitted_run, tmp_path):
    """Quick: test_a_stage_on_a_full_disk_is_refused_and_goes_on_once_there_is_space."""
    run = tmp_path / "disk" / "run"
    try:
        with fault_run.small_disk(tmp_path / "disk", 60_000_000):
            start = lambda: command.start(run, *fitted_run.flags, config=fitted_run.config)
            met = fault_run.fill_the_disk(start, tmp_path / "disk", 0, times=1)
            assert "No space left on device" in met[0]
            assert fault_run.differences(run, fitted_run.workdir) == []
    except PermissionError as error:
        pytest.skip(str(error))


# ---- results ------------------------------------------------------------------------------------


@pytest.fixture
def measured(tmp_path):
    """A plan of a stage "a" whose evaluation is killed; it and "b" have results."""

    def kill(*_):
        raise KeyboardInterrupt

    (tmp_path / "results.json").write_text('{"a": {"mIoU": 0.9}, "b": {"mIoU": 0.1}}')
    evaluation = SimpleNamespace(target=SimpleNamespace(result_of=kill))
    stage = SimpleNamespace(
        name="a", workdir=tmp_path, directory=tmp_path / "checkpoints/a", evaluation=evaluation,
        subset=None, task=SimpleNamespace(fit=None), log=Log(tmp_path),
    )  # fmt: skip
    return SimpleNamespace(
        stages=[stage], order=("a",), skipped=(), workdir=tmp_path, log=stage.log
    )


def results_after_a_kill(plan):
    with pytest.raises(KeyboardInterrupt):
        stages.run_stages(plan, go_on=False)
    return json.loads((plan.workdir / "results.json").read_text())


def test_a_stage_that_is_trained_again_has_no_results_of_its_old_network(measured, monkeypatch):
    monkeypatch.setattr(stages, "is_finished", lambda *_: False)
    monkeypatch.setattr(stages, "with_data", lambda stage, *_: stage)
    monkeypatch.setattr(stages, "with_class_weights", lambda stage, *_: stage)
    monkeypatch.setattr(stages, "train_stage", lambda *_: None)
    monkeypatch.setattr(stages, "read_chosen", lambda *_: ({}, {}))
    assert results_after_a_kill(measured) == {"b": {"mIoU": 0.1}}


def test_results_of_a_damaged_checkpoint_are_not_those_of_another(measured, monkeypatch):
    networks = iter([None, ({}, {})])  # the best checkpoint is damaged, and the last one whole
    monkeypatch.setattr(stages, "run_stage", lambda *_: False)
    monkeypatch.setattr(stages, "read_chosen", lambda *_: next(networks))
    assert results_after_a_kill(measured) == {"b": {"mIoU": 0.1}}


# ---- the order of the data -----------------------------------------------------------------------


class Numbers:
    """A source whose images hold their own number, and are of class number + 100 if asked."""

    def __init__(self, count, classes=False):
        self.count, self.classes = count, classes

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        example = {"image": np.full((2, 2, 3), index, np.uint8)}
        return example | {"class": np.int32(index + 100)} if self.classes else example


def augment(image, mask, rng):
    return {"image": image, "draw": rng.integers(0, 2**31, 2)}


def batches(count=7, size=4, start=0, steps=9, classes=False, **options):
    """All batches of a small stream, rows in order."""
    return list(
        training_batches(
            Numbers(count, classes), np.arange(count), augment, seed=3, batch_size=size,
            start=start, steps=steps - start, **options,
        )
    )  # fmt: skip


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("start", [1, 5])
def test_batches_from_a_step_on_are_the_tail_of_all(start, threads):
    assert_same(batches(start=start, threads=threads), batches(threads=2)[start:])


def test_two_processes_read_what_one_reads():
    parts = [batches(rows=np.arange(4)[part]) for part in (slice(2), slice(2, 4))]
    joined = [
        {name: np.concatenate([first[name], second[name]]) for name in first}
        for first, second in zip(*parts)
    ]
    assert_same(joined, batches())


@pytest.mark.slow  # starts an interpreter
def test_worker_processes_read_what_threads_read():
    flags.FLAGS.mark_as_parsed()  # grain reads its own, which the command line parses
    assert_same(batches(start=2, workers=1), batches(start=2))


def test_an_epoch_holds_every_example_once_and_epochs_differ():
    rows = np.concatenate([batch["image"][:, 0, 0, 0] for batch in batches(count=8, steps=8)])
    epochs = rows.reshape(4, 8)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(8), (4, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_small_set_fills_a_large_batch_with_different_draws():
    batch = batches(count=3, size=12, steps=1)[0]
    assert np.bincount(batch["image"][:, 0, 0, 0]).tolist() == [4, 4, 4]
    assert len(np.unique(batch["draw"], axis=0)) == 12


def test_a_batch_holds_the_class_of_every_image():
    for batch in batches(classes=True, steps=3):
        assert batch["class"].shape == (4,) and batch["class"].dtype == np.int32
        np.testing.assert_array_equal(batch["class"], batch["image"][:, 0, 0, 0] + 100)
    assert "class" not in batches(steps=1)[0]


# ---- what diffusion adds to the state ------------------------------------------------------------


def bind(params, stats):
    """A network of two numbers a channel."""

    def model(x, t, classes, key):
        return x * params["gain"] + params["time"][t][:, None, None, None], {}

    model.settings = SimpleNamespace(num_classes=0)
    return model


def diffusion_stage(steps, sampler, levels=2):
    """A stage of few timesteps, so that the sampler soon has its ten losses of each."""
    options = dict(target="noise", variance="fixed_large", loss="simple")
    process, network = make_process("cosine", levels), SimpleNamespace(bind=bind)
    shown = lambda image, mask, rng: {"image": image, "valid": np.array([2, 2], np.int32)}

    def stream(start):
        source = Numbers(7)
        return training_batches(
            source, np.arange(7), shown, seed=3, batch_size=8, start=start, steps=steps - start
        )

    params = {"gain": jnp.full(3, 0.1), "time": jnp.linspace(0.0, 1.0, levels)}
    return loop.Stage(
        name="pretrain", steps=steps, batch_size=8, batches=stream, trainable=lambda path: True,
        init=lambda key: {"params": params, "stats": timesteps.start(sampler, levels)},
        loss=functools.partial(diffusion_loss, network, process, options), meta={},
        optimizer=optax.adam(0.05), schedule=lambda step: 0.05, accumulate=2, ema=(0.5, 0.9),
        every=dict(log=1, checkpoint=1, evaluate=99),
    )  # fmt: skip


def trained(workdir, *stops, sampler):
    """The whole last state of a run that was stopped after these steps and started again."""
    directory = workdir / "checkpoints" / "pretrain"
    for steps in stops:
        with StageCheckpoints(directory) as checkpoints:
            stage = diffusion_stage(steps, sampler)
            state = loop.train_network(stage, checkpoints, make_mesh(), Log(workdir, primary=False))
    return flatten(with_string_keys(state))


@pytest.mark.parametrize("sampler", timesteps.TIMESTEP_SAMPLERS)
def test_a_stop_changes_no_bit_of_averages_or_of_the_history_of_losses(sampler, tmp_path):
    whole = trained(tmp_path / "whole", 9, sampler=sampler)
    parted = trained(tmp_path / "parted", 5, 6, 9, sampler=sampler)
    assert whole.keys() == parted.keys() >= {("ema", "0.5", "gain"), ("ema", "0.9", "gain")}
    for path, leaf in whole.items():
        np.testing.assert_array_equal(leaf, parted[path], err_msg=".".join(path))
    assert (("stats", "counts") in whole) == (sampler == "loss_second_moment")
    if sampler == "loss_second_moment":
        before = trained(tmp_path / "before", 5, sampler=sampler)["stats", "counts"]
        assert np.min(before) >= timesteps.HISTORY  # so that later draws followed the history
