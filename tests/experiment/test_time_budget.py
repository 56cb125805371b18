"""How minutes are divided, and the steps of stages on machines that a clock imitates."""

import contextlib
import dataclasses
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from diffseg_jax import main
from diffseg_jax.display.progress import duration
from diffseg_jax.errors import UserError
from diffseg_jax.experiment import stages, time_budget
from diffseg_jax.experiment.gradient_stage import planned_steps
from diffseg_jax.experiment.time_budget import (
    CLOSING,
    FEWEST,
    FIRST_STEPS,
    MOST_STEPS,
    Budget,
    Share,
    divide,
    images_within,
    intervals,
    read_budget,
    require_unfinished,
    slowness_of_machine,
    steps_within,
)
from diffseg_jax.inference.views import Protocol

pytestmark = pytest.mark.quick


# ---- the division --------------------------------------------------------------------------------


def test_steps_share_what_the_rest_leaves_in_the_ratio_of_their_costs():
    shares = [Share("a", 1.0, 10.0, 0.0), Share("b", 3.0, 20.0, 30.0), Share("fit", 0, 40.0, 0.0)]
    assert divide(200.0, shares) == {"a": 25.0, "b": 75.0}
    assert divide(200.0, [shares[2]]) == {}


def test_some_of_the_time_trains_however_long_the_rest_takes():
    seconds = divide(100.0, [Share("a", 1.0, 500.0, 0.0)])
    assert 0 < seconds["a"] < 100
    assert divide(-5.0, [Share("a", 1.0, 500.0, 0.0)]) == {"a": 0.0}


def test_a_stage_ends_when_its_time_does_and_keeps_its_steps_over_small_changes():
    assert steps_within(5, 100, 20.0, 0.5) == 45
    assert steps_within(5, 100, -3.0, 0.5) == 5
    assert steps_within(50, 100, 49.5, 1.0) == 100


@pytest.mark.parametrize("seconds", [0.01, 0.4, 3.0, 70.0])
@pytest.mark.parametrize("evaluation", [0.0, 2.0, 500.0])
def test_intervals_suit_the_time_and_the_best_checkpoint(seconds, evaluation):
    every = intervals(seconds, 400.0, 600.0, evaluation)
    assert every["evaluate"] % every["checkpoint"] == 0
    assert every["log"] == 1 or 3 <= every["log"] * seconds <= 10
    assert every["checkpoint"] == 1 or every["checkpoint"] * seconds <= 60
    if evaluation == 2.0:
        assert 400 / (every["evaluate"] * seconds) * evaluation <= 0.3 * 400


def test_images_of_an_evaluation_leave_time_for_those_that_are_known():
    assert images_within(100.0, 1.0, 30) == 70
    assert images_within(40.0, 1.0, 30) == 20
    assert images_within(-1.0, 1.0, 30) <= 0


# ---- a run by a clock of the test ----------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@dataclasses.dataclass(frozen=True)
class Paced:
    steps: int
    every: dict
    schedule: object = None


def planned(name, steps=600, fit=None, images=0):
    optim = SimpleNamespace(
        schedule="cosine", peak_lr=1e-3, warmup_steps=50, warmup_ratio=0.0
    )  # fmt: skip
    augment = SimpleNamespace(crop=(96, 128))
    options = SimpleNamespace(steps=steps, batch_size=8, augment=augment, optim=optim)
    task, evaluation = SimpleNamespace(fit=fit, sample=None), None
    if images:
        evaluation = Evaluated(name, np.arange(images), Protocol(), Protocol())
    return SimpleNamespace(name=name, options=options, task=task, evaluation=evaluation)


@dataclasses.dataclass(frozen=True)
class Evaluated:
    stage: str
    indices: np.ndarray
    protocol: Protocol
    quick_protocol: Protocol
    held_out: bool = False
    learned: tuple | None = None
    batch_size: int = 8
    timed: dict = dataclasses.field(default_factory=dict)


class Machine:
    """Runs stages as the loop does, in seconds that only the clock knows."""

    def __init__(self, folder, minutes, plans, optional=()):
        self.clock, self.lines, self.watched = Clock(), [], []
        log = SimpleNamespace(say=self.lines.append)
        self.budget = Budget(minutes, plans, folder, log, 0.0, self.clock, optional)

    def train(self, plan, seconds, compiles=20.0, each=0.05, start=0, stops=MOST_STEPS):
        """Steps made; `seconds` of a step at a time, and `each` of an evaluated image."""

        def evaluate(state, step):
            self.watched.append(step)
            self.clock.now += 24 * each if plan.evaluation else 1.0
            if plan.evaluation:
                plan.evaluation.timed[Protocol()] = each
            return {}

        watched = self.budget.watch(plan, evaluate)
        pace = self.budget.paced(plan, start)
        self.clock.now += compiles
        never = {"checkpoint": MOST_STEPS, "evaluate": MOST_STEPS}
        stage, step, since = Paced(600, {"log": 1, **never}), start, []
        while step < min(stage.steps, stops):
            step += 1
            since.append(seconds(self.clock.now))
            self.clock.now += since[-1]
            if step < stage.steps and step % stage.every["log"] == 0:
                stage, since = pace(stage, step, float(np.mean(since))), []
            if step == stage.steps or step % stage.every["evaluate"] == 0:
                watched(None, step)
        self.planned = stage.steps
        if step == stage.steps:
            self.budget.end(plan)
        return step

    def close(self, plan, each=0.05):
        """Images of the final evaluation."""
        found = self.budget.shortened(plan.evaluation, network={})
        self.clock.now += CLOSING + each * len(found.indices)
        return len(found.indices)


BUSY = {
    "quiet": lambda now: 0.25,
    "busy": lambda now: 1.5,
    "becomes busy": lambda now: 0.2 if now < 70 else 1.0,
    "becomes quiet": lambda now: 1.0 if now < 70 else 0.2,
    "alternates": lambda now: 0.1 + 0.5 * (now // 15 % 2),
}


@pytest.mark.parametrize("minutes", [3, 30])
@pytest.mark.parametrize("seconds", BUSY.values(), ids=BUSY)
def test_two_stages_end_in_the_time_that_was_given(tmp_path, seconds, minutes):
    plans = [planned("pretrain"), planned("finetune", images=101)]
    machine = Machine(tmp_path, minutes, plans)
    made = [machine.train(plan, seconds) for plan in plans]
    assert machine.close(plans[1]) > 50  # of 101: the last evaluation makes up for a late slowdown
    assert min(made) >= FIRST_STEPS
    assert 54 * minutes <= machine.clock.now <= 66 * minutes


@pytest.mark.parametrize(("seconds", "after"), [(0.25, FIRST_STEPS), (40.0, 1)])
def test_slow_steps_are_paced_from_the_first_one_on(tmp_path, seconds, after):
    machine = Machine(tmp_path, 3, [plan := planned("pretrain")])
    steps = machine.train(plan, lambda now: seconds)
    assert machine.clock.now <= 180 + 20
    assert machine.lines[0].startswith(f"{duration(160 - after * seconds)} left: ")
    assert steps >= after


def test_process_0_decides_whether_the_first_step_is_slow(tmp_path, monkeypatch):
    machine = Machine(tmp_path, 3, [plan := planned("pretrain")])
    of_first = iter([0])  # there it is slow
    broadcast = lambda mine: next(of_first, mine)
    monkeypatch.setattr(time_budget.processes, "broadcast_from_first", broadcast)
    machine.clock.now = 20.0
    stage = Paced(600, {"log": 1, "checkpoint": MOST_STEPS, "evaluate": MOST_STEPS})
    assert machine.budget.paced(plan, 0)(stage, 1, 1.0).steps < 200


@pytest.mark.parametrize(("seconds", "drawn"), [(0.25, True), (0.95, False)])
def test_samples_that_would_take_a_large_part_of_the_time_are_not_drawn(tmp_path, seconds, drawn):
    plan = planned("pretrain")
    plan.task.sample, plan.task.passes = True, 1600  # as long as 67 steps of 8 images
    machine = Machine(tmp_path, 10, [plan])
    machine.train(plan, lambda now: seconds)
    assert bool(machine.watched) == drawn


@pytest.mark.parametrize("each", [0.01, 0.5, 5.0])
def test_the_last_evaluation_takes_as_many_images_as_the_time_allows(tmp_path, each):
    plan = planned("train", images=400)
    machine = Machine(tmp_path, 10, [plan])
    machine.train(plan, BUSY["quiet"], each=each)
    images = machine.close(plan, each)
    assert abs(machine.clock.now - 600) <= 60
    assert FEWEST <= images <= 400 and (images == 400) == (each < 0.1)
    assert any("of 400 images" in line for line in machine.lines) == (images < 400)


def test_one_minute_is_no_plural(tmp_path):
    machine = Machine(tmp_path, 1, [planned("train", images=101)])
    machine.budget.announce()
    assert machine.lines[0].startswith("1 minute: train about ")


def test_the_log_says_what_to_expect_and_how_much_of_the_recipe_that_is(tmp_path):
    plans = [planned("pretrain"), planned("finetune", images=101)]
    machine = Machine(tmp_path, 3, plans)
    machine.budget.announce()
    assert machine.lines[0].startswith("3 minutes: pretrain about 1 min")
    assert ", finetune about" in machine.lines[0] and ", evaluation about" in machine.lines[0]
    steps = machine.train(plans[0], BUSY["busy"])
    assert f"({steps} steps, " in machine.lines[1] and "% of the recipe)" in machine.lines[1]


@pytest.mark.parametrize(("compiles", "begun"), [(20.0, True), (100.0, False)])
def test_a_stage_after_the_first_model_is_begun_only_if_it_can_end(tmp_path, compiles, begun):
    plans = [planned("train", 1200, images=101), planned("align", 200, images=101)]
    machine = Machine(tmp_path, 3, plans, optional=("align",))
    machine.train(plans[0], BUSY["quiet"], compiles)
    machine.close(plans[0])
    assert machine.budget.begins(plans[0]) and machine.budget.begins(plans[1]) == begun
    if begun:
        machine.train(plans[1], BUSY["quiet"], compiles)
        machine.close(plans[1])
    assert 162 <= machine.clock.now <= 198
    expected = "align is not begun, as the time is too short"
    assert any(expected in line for line in machine.lines) == (not begun)


def test_a_fit_takes_what_its_recipe_needs_and_less_only_where_the_time_is_short(tmp_path):
    plan = planned("fit", fit=object(), images=101)
    machine = Machine(tmp_path, 3, [plan])
    machine.budget.announce()
    assert machine.lines[0].startswith("3 minutes: fit at most 2 min ")
    assert machine.budget.copies(plan, images=20, copies=3, each=0.2) == 3
    assert machine.budget.fit_steps(plan, 500, each=0.02) == 500
    assert machine.lines[1:] == ["fit: the recipe needs 10 s for at most 500 steps"]
    assert machine.budget.copies(plan, images=20, copies=3, each=1.5) == 1
    assert "need 2 min 00 s; to end in time, there are 1 instead of 3" in machine.lines[-1]
    assert 150 < machine.budget.fit_steps(plan, 500, each=0.6) < 300
    assert "to end in time, there are at most " in machine.lines[-1]
    machine.clock.now = 500.0
    assert machine.budget.copies(plan, images=20, copies=3, each=0.2) == 0
    assert machine.budget.fit_steps(plan, 500, each=0.02) == 150  # fewer are worth nothing


@pytest.mark.parametrize(("load", "slowness"), [(0.5, 1), (3.0, 3), (20.0, 4)])
def test_a_busy_machine_keeps_more_time_for_what_is_not_measured(
    tmp_path, monkeypatch, load, slowness
):
    monkeypatch.setattr("os.getloadavg", lambda: (load * os.cpu_count(), 0.0, 0.0))
    assert slowness_of_machine() == slowness
    plan = planned("train", images=101)
    log = SimpleNamespace(say=print)
    budget = Budget(3, [plan], tmp_path, log, 0.0, Clock(), slowness=slowness)
    assert budget.closing(plan.evaluation) == slowness * CLOSING + 27


def test_a_fast_machine_makes_more_steps_than_the_recipe(tmp_path):
    machine = Machine(tmp_path, 10, [plan := planned("pretrain")])
    assert machine.train(plan, BUSY["quiet"]) > 1500


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, None])
def test_the_time_of_a_stopped_evaluation_counts(tmp_path, error):
    machine = Machine(tmp_path, 10, [planned("fit", fit=True, images=101)])
    with pytest.raises(error) if error else contextlib.nullcontext(), machine.budget.kept():
        machine.clock.now += 200
        if error:
            raise error
    assert read_budget(tmp_path)["used"] == 200
    machine.budget.file = tmp_path / "time_budget.json" / "no_folder"  # as if the disk were full
    with pytest.raises(ValueError, match="the first"), machine.budget.kept():
        raise ValueError("the first")


def test_the_time_is_saved_while_a_stage_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(time_budget, "SAVED_EVERY", 0.01)
    machine = Machine(tmp_path, 10, [planned("fit", fit=True, images=101)])
    machine.clock.now = 100
    with machine.budget.kept():
        for _ in range(200):
            if read_budget(tmp_path):
                break
            time.sleep(0.01)
        assert read_budget(tmp_path)["used"] == 100  # what a process that is killed now has left


def test_training_saves_the_time_wherever_it_stops(tmp_path, monkeypatch):
    clock, log = Clock(), SimpleNamespace(say=print)
    plan = SimpleNamespace(workdir=tmp_path, log=log)

    def stops(*_):
        clock.now += 50
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "checked_plan", lambda *_: (plan, []))
    monkeypatch.setattr(stages, "open_budget", lambda *_: Budget(1, [], tmp_path, log, 0.0, clock))
    monkeypatch.setattr(stages, "tracking", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(stages, "run_stages", stops)
    for name in ("claim_workdir", "say_notes", "write_subset"):
        monkeypatch.setattr(stages, name, lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        stages.train(None, tmp_path, minutes=1)
    assert read_budget(tmp_path)["used"] == 50


def test_a_run_that_was_stopped_goes_on_with_the_time_that_is_left(tmp_path):
    plans = [planned("pretrain"), planned("finetune", images=101)]
    first = Machine(tmp_path, 10, plans)
    first.train(plans[0], BUSY["quiet"], stops=300)
    used = json.loads((tmp_path / "time_budget.json").read_text())["used"]
    assert first.clock.now - 15 < used <= first.clock.now
    second = Machine(tmp_path, 10, plans)
    assert second.train(plans[0], BUSY["quiet"], start=300) > 300
    assert abs(second.planned - first.planned) < 0.15 * first.planned
    second.train(plans[1], BUSY["quiet"])
    second.close(plans[1])
    assert abs(used + second.clock.now - 600) <= 60


# ---- what the workdir and the command say --------------------------------------------------------


def test_the_steps_of_a_checkpoint_count_and_those_of_the_recipe_before_it():
    class Saved:
        def __init__(self, **meta):
            self.kept = meta

        def latest(self):
            return 40 if self.kept else None

        def meta(self, step):
            return self.kept

    stage = planned("pretrain")
    assert planned_steps(stage, Saved()) == 600
    assert planned_steps(stage, Saved(evaluated=True)) == 600  # of an earlier version
    assert planned_steps(stage, Saved(evaluated=True, steps=40)) == 40
    assert stages.is_finished(stage, Saved(evaluated=True, steps=40))
    assert not stages.is_finished(stage, Saved(evaluated=True, steps=80))
    assert not stages.is_finished(stage, Saved(evaluated=True))


def test_other_minutes_do_not_continue_a_finished_run(tmp_path):
    (tmp_path / "time_budget.json").write_text('{"minutes": 3, "used": 170}')
    require_unfinished(tmp_path, 3)
    with pytest.raises(UserError, match="is finished with --minutes=3, and --minutes=10 does not"):
        require_unfinished(tmp_path, 10)
    with pytest.raises(UserError, match="is finished, and --minutes=3 does not continue it"):
        require_unfinished(tmp_path / "other", 3)


def test_a_damaged_file_of_the_time_is_as_none(tmp_path):
    (tmp_path / "time_budget.json").write_text("[1")
    assert read_budget(tmp_path) == {}


@pytest.mark.parametrize(("flags", "sentence"), [
    (["--mode=eval", "--minutes=3"], "--minutes is for --mode=train, but the mode is eval"),
    (["--minutes=0"], "--minutes is 0, but it must be a number from 0.1"),
    (["--minutes=soon"], "--minutes is soon, but it must be a number"),
])  # fmt: skip
def test_minutes_that_cannot_be_kept_are_refused(flags, sentence):
    tiny = Path(__file__).parents[1] / "configs" / "tiny_ddep.py"
    with pytest.raises(UserError, match=sentence):
        main.run([f"--config={tiny}", "--workdir=none", *flags])
