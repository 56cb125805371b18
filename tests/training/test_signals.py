"""Signals that ask a run to stop: it saves after the step, and resumes with the same bits."""

import contextlib
import itertools
import json
import os
import signal
import threading
import time

import jax
import numpy as np
import optax
import pytest

from diffseg_jax.devices.mesh import make_mesh
from diffseg_jax.storage.checkpoints import StageCheckpoints, flatten
from diffseg_jax.training import lifecycle, loop, signals
from diffseg_jax.training.log import Log
from diffseg_jax.training.signals import Stopped, watched

STEPS = 9


def start(key):
    return {"params": {"w": jax.random.normal(key, (3,))}, "stats": {}}


def loss(params, stats, batch, key):
    error = batch["x"] @ params["w"] - batch["y"]
    return (error**2).sum(), (np.float32(4), stats, {})


def stage(at, number, evaluate=None, every=4):
    """A stage whose data sends this process a signal while step `at` runs."""

    def batches(first):
        for step in range(first, STEPS):
            if step == at:
                os.kill(os.getpid(), number)
            rng = np.random.default_rng(step)
            yield {"x": rng.standard_normal((4, 3), np.float32), "y": np.ones(4, np.float32)}

    return loop.Stage(
        name="line", steps=STEPS, batch_size=4, batches=batches, init=start, loss=loss,
        trainable=lambda path: True, optimizer=optax.adam(0.1), schedule=lambda step: 0.1,
        every=dict(log=4, checkpoint=every, evaluate=every), meta={}, evaluate=evaluate,
    )  # fmt: skip


def trained(workdir, at=-1, number=signal.SIGTERM, **options):
    with StageCheckpoints(workdir / "line") as saved:
        given = stage(at, number, **options)
        return loop.train_network(given, saved, make_mesh(), Log(workdir))


def records(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    times = ("time", "images_per_second")
    return [{k: v for k, v in json.loads(line).items() if k not in times} for line in lines]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_run_that_is_asked_to_stop_saves_and_goes_on_with_the_same_bits(tmp_path, number, capfd):
    whole = trained(tmp_path / "whole")
    with pytest.raises(Stopped, match="after step 6 of stage line, which is saved") as caught:
        trained(tmp_path / "parted", at=6, number=number)
    assert caught.value.number == number
    assert ("Ctrl-C again" in capfd.readouterr().err) == (number == signal.SIGINT)
    with StageCheckpoints(tmp_path / "parted" / "line", read_only=True) as saved:
        assert saved.latest() == 6
    parted = trained(tmp_path / "parted")
    for path, leaf in flatten(whole["params"]).items():
        np.testing.assert_array_equal(leaf, flatten(parted["params"])[path])
    # the mean of steps 5 to 8 was begun before the stop and ended after it
    assert records(tmp_path / "parted") == records(tmp_path / "whole")


@pytest.mark.parametrize(("at", "before"), [(3, True), (6, True), (6, False), (9, True)])
def test_an_evaluation_that_a_stop_prevented_is_made_up_for(tmp_path, monkeypatch, at, before):
    """Its step may be the best one, or the last.

    before  whether the signal comes before the step is handed over, or while the step runs
    """
    scores = {3: 0.9, 6: 0.95 if at == 6 else 0.2, 9: 0.1}
    seen = []
    watch = lambda state, step: seen.append(step) or {"mIoU": scores[step]}
    trained(tmp_path / "whole", evaluate=watch, every=3)
    seen.clear()
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        polls = itertools.count()  # one after each step, two more at each evaluation
        number = at if before else at + 1
        asked = lambda: signal.SIGTERM if next(polls) == number + 2 * (at // 3 - 1) - 1 else 0
        patch.setattr(lifecycle, "watched", lambda: contextlib.nullcontext(asked))
        trained(tmp_path / "parted", evaluate=watch, every=3)
    assert at not in seen
    trained(tmp_path / "parted", evaluate=watch, every=3)
    assert seen == [3, 6, 9]
    assert records(tmp_path / "parted") == records(tmp_path / "whole")
    for workdir in ("whole", "parted"):
        with StageCheckpoints(tmp_path / workdir / "line", read_only=True) as saved:
            assert saved.best() == max(scores, key=scores.get) and saved.meta(9)["evaluated"]


@pytest.mark.parametrize("evaluated", [3, 9], ids=["in_between", "at_the_end"])
def test_a_signal_in_an_evaluation_stops_after_it(tmp_path, evaluated):
    def watch(state, step):
        if step == evaluated:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    with pytest.raises(Stopped, match=f"after step {evaluated}"):
        trained(tmp_path, evaluate=watch, every=evaluated)
    with StageCheckpoints(tmp_path / "line", read_only=True) as saved:
        assert saved.meta(evaluated)["evaluated"]


def test_signals_are_the_callers_own_again_afterwards():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with watched() as asked:
        assert asked() == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked() == signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_the_second_ctrl_c_stops_at_once_but_not_one_that_a_key_repeats(monkeypatch):
    with watched() as asked:
        assert asked() == 0
        os.kill(os.getpid(), signal.SIGINT)
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            pytest.fail("counts as the second")
        assert asked() == signal.SIGINT
        later = time.monotonic() + signals.AGAIN_AFTER
        monkeypatch.setattr(time, "monotonic", lambda: later)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            pytest.fail("continues")


def test_before_the_first_step_is_made_ctrl_c_stops_at_once():
    """It may compile for a minute, and there is nothing to save."""
    with pytest.raises(KeyboardInterrupt), watched():
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("continues")


def test_outside_the_main_thread_nothing_is_watched():
    results = []

    def work():
        with watched() as asked:
            results.append(asked())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [0]
