"""A stage whose number of steps changes while it runs, with a toy loss."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffseg_jax.devices.mesh import make_mesh
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.training import loop
from diffseg_jax.training.log import Log
from diffseg_jax.training.optimizer import make_optimizer, make_schedule
from diffseg_jax.training.state import new_state
from diffseg_jax.training.step import train_step

pytestmark = pytest.mark.quick


def schedule_of(steps):
    return make_schedule("cosine", 0.1, steps, 0, 0.0)


def optimizer_of(steps):
    return make_optimizer(
        "adamw", schedule_of(steps), b1=0.9, b2=0.999, epsilon=1e-8, weight_decay=0.1,
        no_decay=(), clip_norm=0.0,
    )  # fmt: skip


def init(key):
    return {"params": {"slope": jnp.ones(3)}, "stats": {}}


def line_loss(params, stats, batch, key):
    error = batch["x"] @ params["slope"] - 1
    return jnp.sum(error**2), (jnp.float32(4), stats, {})


def batches(first, last):
    for step in range(first, last):
        yield {"x": np.random.default_rng(step).standard_normal((4, 3), np.float32)}
    raise RuntimeError("the machine was switched off")


def run(workdir, steps, pace=None, last=100):
    """The final state of a stage, and what its last checkpoint says."""
    stage = loop.Stage(
        name="line", steps=steps, batch_size=4, batches=functools.partial(batches, last=last),
        init=init, trainable=lambda path: True, loss=line_loss, optimizer=optimizer_of(steps),
        schedule=schedule_of(steps), every=dict(log=5, checkpoint=2, evaluate=4), meta={},
        pace=pace, evaluate=lambda state, step: {},
    )  # fmt: skip
    with StageCheckpoints(workdir / "line") as saved:
        state = loop.train_network(stage, saved, make_mesh(), Log(workdir))
        return state, saved.meta(saved.latest())


def at_step_5(steps):
    """A pace that sees the speed of the first five steps and changes their number once."""

    def pace(stage, step, seconds):
        assert seconds > 0
        if step != 5:
            return stage
        return dataclasses.replace(stage, steps=steps, schedule=schedule_of(steps))

    return pace


@pytest.mark.parametrize("steps", [5, 13])
def test_steps_that_change_in_flight_are_those_of_the_checkpoint_and_the_schedule(tmp_path, steps):
    state, meta = run(tmp_path, 9, at_step_5(steps))
    assert int(state["step"]) == meta["steps"] == meta["step"] == steps and meta["evaluated"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["learning_rate"] for line in lines if "learning_rate" in line}
    assert max(rates) == steps
    np.testing.assert_allclose(rates[steps], float(schedule_of(steps)(steps - 1)), rtol=1e-5)


def test_a_pace_that_changes_no_steps_compiles_no_other_rates(tmp_path, monkeypatch):
    traced, schedule = [], schedule_of(9)

    def counted(step):
        traced.extend([step] * isinstance(step, jax.core.Tracer))
        return schedule(step)

    monkeypatch.setitem(globals(), "schedule_of", lambda steps: counted)
    run(tmp_path, 9, lambda stage, step, seconds: dataclasses.replace(stage))
    assert len(traced) == 1


def test_only_what_is_not_loaded_is_drawn():
    drawn = []

    def leaf(name):
        draw = lambda: drawn.append(name) or np.ones(2, np.float32)
        return jax.pure_callback(draw, jax.ShapeDtypeStruct((2,), jnp.float32))

    def fresh(*names):
        stage = loop.Stage(
            name="line", steps=1, batch_size=1, batches=None, trainable=lambda path: True,
            init=lambda key: {"params": {n: leaf(n) for n in ("a", "b", "c")}, "stats": {}},
            loaded=lambda: {"params": {name: np.zeros(2) for name in names}}, loss=None,
            optimizer=optimizer_of(1), schedule=schedule_of(1), every={}, meta={},
        )  # fmt: skip
        state = loop.fresh(stage, make_mesh())["params"]
        jax.effects_barrier()
        return {name: int(values[0]) for name, values in state.items()}

    assert fresh("a", "c") == {"a": 0, "b": 1, "c": 0} and drawn == ["b"]
    assert fresh("a", "b", "c") == {"a": 0, "b": 0, "c": 0} and drawn == ["b"]


def test_a_stage_that_was_killed_resumes_to_the_changed_number_of_steps(tmp_path):
    whole, _ = run(tmp_path / "whole", 9, at_step_5(13))
    with pytest.raises(RuntimeError, match="switched off"):
        run(tmp_path / "killed", 9, at_step_5(13), last=10)
    with StageCheckpoints(tmp_path / "killed" / "line", read_only=True) as saved:
        assert saved.latest() >= 8
        planned = saved.meta(saved.latest())["steps"]
    resumed, meta = run(tmp_path / "killed", planned)
    assert meta["steps"] == int(resumed["step"]) == 13
    np.testing.assert_array_equal(resumed["params"]["slope"], whole["params"]["slope"])


def test_a_step_that_is_given_the_rate_does_not_depend_on_the_number_of_steps():
    def program(steps, *rate):
        state = new_state(init(None), lambda path: True, optimizer_of(steps), ())
        step = jax.jit(functools.partial(train_step, line_loss, optimizer_of(steps), 1, ()))
        return step.lower(state, {"x": jnp.ones((4, 3))}, jax.random.key(0), *rate).as_text()

    rate = jnp.float32(0.1)
    assert program(10, rate) == program(20, rate)
    assert program(10) != program(20)


def test_a_given_rate_updates_as_the_schedule_that_has_it():
    state = new_state(init(None), lambda path: True, optimizer_of(9), ())
    grads, own, given = {"slope": jnp.arange(3.0)}, state["opt"], state["opt"]
    for step in range(3):
        expected, own = optimizer_of(9).update(grads, own, state["params"])
        rate = schedule_of(9)(step)
        found, given = optimizer_of(9).update(grads, given, state["params"], rate=rate)
        np.testing.assert_allclose(found["slope"], expected["slope"], rtol=1e-6)
    assert jax.tree.structure(own) == jax.tree.structure(given)
