"""Fitting many classifiers together: which pixels they read, when they stop, and resuming."""

import contextlib
import dataclasses
import functools
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffseg_jax.devices.mesh import make_mesh
from diffseg_jax.errors import UserError
from diffseg_jax.models.taps import PixelFeatures
from diffseg_jax.storage.checkpoints import FORMAT, StageCheckpoints
from diffseg_jax.systems.pixel_ensemble import make_member
from diffseg_jax.systems.pixel_fit import PixelFit
from diffseg_jax.systems.recipes import RECIPES
from diffseg_jax.training import fit_loop, lifecycle
from diffseg_jax.training.fit_loop import Fit, Orders, initial_state, steps_of, stop_rule
from diffseg_jax.training.log import Log
from diffseg_jax.training.signals import Stopped

# Compiling takes far longer than running networks this small.
quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
SIZE, WIDTH, CLASSES, MEMBERS, BATCH = (6, 5), 5, 3, 3, 8
FROZEN = {
    "params": {"unet": {"kernel": np.arange(3, dtype=np.float32)}},
    "stats": {"noise": np.ones(2, np.float32)},
}


@functools.cache
def data(images=3):
    """(features, pixels, labels): a class is where a feature is largest, one pixel in four has
    none."""
    draw = np.random.default_rng(0)
    shapes = (images, 3, 3, 4), (images, 6, 5, 1)
    maps = tuple(draw.standard_normal(shape).astype(np.float32) for shape in shapes)
    features = PixelFeatures(maps, SIZE)
    labels = np.asarray(features.dense())[..., :CLASSES].argmax(-1).reshape(-1)
    pixels = np.flatnonzero(draw.random(labels.shape) < 0.75).astype(np.int32)
    return features, pixels, labels[pixels].astype(np.uint8)


def begin_linear(key):
    kernel = jax.random.normal(key, (WIDTH, CLASSES))
    return {"params": {"kernel": kernel}, "stats": {"mean": jnp.zeros(WIDTH)}}


def linear_loss(params, stats, x, y, step):
    """A linear layer with statistics that move, which compiles quickly."""
    losses = optax.softmax_cross_entropy_with_integer_labels(x @ params["kernel"], y)
    return losses.mean(), {"mean": 0.9 * stats["mean"] + 0.1 * x.mean(0)}


def fit_of(host=False, **changes):
    """A fit of linear classifiers; on devices unless `host`."""
    features, pixels, labels = data()
    if not host:
        features = jax.tree.map(jnp.asarray, features)
    fit = Fit(
        name="fit", features=features, pixels=pixels, labels=labels, init=begin_linear,
        loss=linear_loss, members=MEMBERS, steps=21, batch_size=BATCH, stops=False, own_order=True,
        optimizer=optax.adam(0.05), frozen=FROZEN, every=dict(log=4, checkpoint=8),
        meta={"kind": "fit"}, seed=0, advice="float32",
    )  # fmt: skip
    return dataclasses.replace(fit, **changes)


def perceptrons(**changes):
    """A fit of tiny pixel classifiers."""
    member = make_member(WIDTH, CLASSES, (7, 4))
    task = PixelFit(None, member, MEMBERS, RECIPES["paper"], small_objects=0, on_host=False)
    return fit_of(init=member.init, loss=task.loss, optimizer=optax.adam(1e-2), **changes)


def line_fit(slopes, **changes):
    """(fit, start) of members of one number each, which the loss follows; pixels say nothing.

    A slope of 0 never gets better, a slope of 1 always does. Statistics count the steps.
    """

    def loss(params, stats, x, y, step):
        stats = stats | {"steps": stats["steps"] + 1}
        return 10 + stats["slope"] * params["value"] + 0 * x.sum(), stats

    def init(key):
        return {"params": {"value": jnp.zeros(())}, "stats": {"slope": 0.0, "steps": 0}}

    fit = fit_of(
        init=init, loss=loss, members=len(slopes), optimizer=optax.sgd(0.01), stops=True, **changes
    )
    learned = begin(fit)
    learned["stats"]["ensemble"]["slope"] = jnp.asarray(slopes, jnp.float32)
    return fit, learned


def begin(fit):
    return quick(functools.partial(initial_state, fit))()


def take_steps(fit, steps, learned=None, rows=None, armed=False, first=0):
    """(what has learned, losses) after some steps at once, without `run`."""
    numbers = np.arange(first, first + steps)
    rows = Orders(fit).rows(numbers) if rows is None else rows
    armed, live = np.broadcast_to(armed, steps), np.ones(steps, bool)
    given = fit.features, fit.pixels, fit.labels
    call = quick(functools.partial(steps_of, fit))
    return call(begin(fit) if learned is None else learned, given, rows, numbers + 1, armed, live)


def run(fit, workdir, monkeypatch, per_call=4):
    """Runs a fit in a directory; its last state as it is stored, and the meta beside it."""
    monkeypatch.setattr(fit_loop, "STEPS_PER_CALL", per_call)
    monkeypatch.setattr(fit_loop, "STEPS_PER_HOST_CALL", per_call)
    monkeypatch.setattr(jax, "jit", quick)
    mesh, log = make_mesh(), Log(workdir)
    with StageCheckpoints(workdir / "checkpoints") as checkpoints:
        try:
            fit_loop.train_members(fit, checkpoints, mesh, log)
        finally:
            log.close()
        step = checkpoints.latest()
        shapes = jax.eval_shape(lambda: fit_loop.saved(initial_state(fit), fit.frozen, 0))
        return checkpoints.restore(step, shapes, mesh), checkpoints.meta(step)


def records(workdir):
    """What stands in the log, without times."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k in ("step", "loss", "running")} for line in lines]


def member_of(tree, index):
    return jax.tree.map(lambda leaf: leaf[index : index + 1], tree)


def assert_same(one, other, **tolerance):
    """Bit for bit, or nearly."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    check = np.testing.assert_allclose if tolerance else np.testing.assert_array_equal
    jax.tree.map(functools.partial(check, **tolerance), one, other)


def test_a_fit_whose_members_never_stop_takes_all_of_its_steps(tmp_path, monkeypatch, capsys):
    for stops in (False, True):
        run(fit_of(stops=stops), tmp_path / f"{stops}", monkeypatch)
        assert ("at most" in capsys.readouterr().out) == stops


# --- when a member stops --------------------------------------------------------------------------


def scan_rule(losses, armed):
    """The step at which the rule ends a member that has these losses, 0 for never."""

    def one(stop, inputs):
        number, loss, armed = inputs
        new = stop_rule(stop, loss, armed, number)
        new = jax.tree.map(lambda a, b: jnp.where(stop["at"] == 0, a, b), new, stop)
        return new, new["at"][0]

    numbers = jnp.arange(1, len(losses) + 1)
    inputs = numbers, jnp.asarray(losses, jnp.float32), jnp.asarray(armed)
    return int(jax.lax.scan(one, initial_state(fit_of(members=1))["stop"], inputs)[1][-1])


@pytest.mark.golden
def test_recorded_stops(golden):
    for path in golden("adm/early_stop*.npz"):
        recorded = np.load(path)
        cases = [key.removesuffix("__losses") for key in recorded if key.endswith("__losses")]
        assert cases
        for case in cases:
            losses, length = recorded[f"{case}__losses"], int(recorded[f"{case}__iters_per_epoch"])
            epochs = np.arange(len(losses)) // length
            stop = scan_rule(losses, epochs >= fit_loop.FREE_EPOCHS)
            assert stop == recorded[f"{case}__stop_iteration"] == len(losses)
            assert epochs[stop - 1] == recorded[f"{case}__stop_epoch"]
            assert scan_rule(losses[:-1], epochs[:-1] >= fit_loop.FREE_EPOCHS) == 0
            assert scan_rule(losses, np.full(len(losses), False)) == 0
            # In ascending order no loss is lower than the first one after the free epochs.
            stop = scan_rule(np.sort(losses), epochs >= fit_loop.FREE_EPOCHS)
            assert stop == fit_loop.FREE_EPOCHS * length + fit_loop.PATIENCE + 2


def test_an_equal_loss_is_no_better_and_a_lower_one_starts_the_count_again():
    flat = np.ones(200)
    assert scan_rule(flat, flat > 0) == 52  # the first is the best so far, 51 are too many
    dented = flat.copy()
    dented[30] = 0.5
    assert scan_rule(dented, flat > 0) == 31 + 51
    assert scan_rule(-np.arange(200.0), flat > 0) == 0


def test_every_member_stops_by_itself_and_then_rests():
    """Two that do not get better, one of them sooner, and one that does."""
    fit, learned = line_fit([0.0, 1.0, 0.0])
    learned["stop"]["count"] = jnp.asarray([10, 0, 0], jnp.int32)
    learned["stop"]["best"] = jnp.asarray([1.0, 1e7, 1e7])
    after, losses = take_steps(fit, 70, learned, armed=True)
    np.testing.assert_array_equal(after["stop"]["at"], [41, 0, 52])
    np.testing.assert_array_equal((np.asarray(losses) > 0).sum(0), [41, 70, 52])
    np.testing.assert_array_equal(after["stats"]["ensemble"]["steps"], [41, 70, 52])
    more, losses = take_steps(fit, 9, after, armed=True, first=70)
    assert_same(member_of(more, 0), member_of(after, 0))
    assert_same(member_of(more, 2), member_of(after, 2))
    np.testing.assert_array_equal(np.asarray(losses) > 0, [[False, True, False]] * 9)
    np.testing.assert_allclose(more["params"]["ensemble"]["value"], [0, -0.79, 0], rtol=1e-5)


def test_the_rule_is_armed_after_four_passes(tmp_path, monkeypatch):
    """The run also ends when no member is left, in the middle of a call."""
    fit, _ = line_fit([0.0, 0.0], steps=900)
    assert fit.steps_of_pass == len(fit.pixels) // BATCH > 5
    state, meta = run(fit, tmp_path, monkeypatch, per_call=16)
    end = 4 * fit.steps_of_pass + 52
    np.testing.assert_array_equal(state["stop"]["at"], [end, end])
    assert meta["finished"] and end <= meta["step"] < end + 16
    assert records(tmp_path)[-1]["running"] == 0
    fit = dataclasses.replace(fit, stops=False, steps=end + 9)
    state, meta = run(fit, tmp_path / "on", monkeypatch, per_call=16)
    np.testing.assert_array_equal(state["stop"]["at"], 0)
    assert meta["finished"] and meta["step"] == end + 9


# --- which pixels a step reads --------------------------------------------------------------------


@pytest.mark.parametrize("own", [True, False])
def test_a_pass_reads_every_pixel_at_most_once_in_a_new_order(own):
    fit = fit_of(own_order=own, pixels=np.arange(35), batch_size=8)
    assert fit.steps_of_pass == 4
    rows = Orders(fit).rows(np.arange(3 * 4))
    assert rows.shape == ((12, MEMBERS, 8) if own else (12, 8))
    passes = rows.reshape(3, 4, -1, 8).swapaxes(1, 2).reshape(-1, 32)  # of members, one by one
    for one in passes:
        assert len(set(one)) == 32 and set(one) <= set(range(35))
    assert len({one.tobytes() for one in passes}) == len(passes)
    assert len({tuple(sorted(one)) for one in passes}) > 1  # other pixels are dropped


def test_orders_are_functions_of_seed_member_and_step():
    fit = fit_of(pixels=np.arange(35), batch_size=8)
    rows = Orders(fit).rows(np.arange(20))
    orders = Orders(fit)
    for first in (13, 4, 19, 0, 7):  # as after a restart, in any order
        np.testing.assert_array_equal(orders.rows(np.arange(first, 20)), rows[first:])
    assert np.any(Orders(dataclasses.replace(fit, seed=1)).rows(np.arange(4)) != rows[:4])
    fewer = Orders(dataclasses.replace(fit, members=2)).rows(np.arange(20))
    np.testing.assert_array_equal(fewer, rows[:, :2])


@pytest.mark.parametrize("own", [True, False])
def test_pixels_are_drawn_by_their_chances(own):
    among = np.array([0, 2, 5, 7])
    fit = fit_of(own_order=own, among=among, chances=np.array([0.5, 0.0, 0.3, 0.2]))
    rows = Orders(fit).rows(np.arange(500))
    assert rows.shape == ((500, MEMBERS, BATCH) if own else (500, BATCH))
    shares = [(rows == row).mean() for row in among]
    np.testing.assert_allclose(shares, fit.chances, atol=0.02)
    assert shares[1] == 0 and set(np.unique(rows)) <= set(among)
    np.testing.assert_array_equal(Orders(fit).rows(np.array([7, 3])), rows[[7, 3]])
    if own:
        assert np.any(rows[:, 0] != rows[:, 1])


def test_fewer_pixels_than_a_batch_are_all_read_by_every_member():
    fit = fit_of(pixels=np.arange(5), batch_size=8)
    assert fit.steps_of_pass == 1
    rows = Orders(fit).rows(np.arange(6))
    assert rows.shape == (6, MEMBERS, 8)
    assert all(set(batch) == set(range(5)) for batch in rows.reshape(-1, 8))
    alone = Orders(dataclasses.replace(fit, members=1)).rows(np.arange(6))
    np.testing.assert_array_equal(alone, rows[:, :1])


def test_a_batch_holds_the_vectors_and_classes_of_its_pixels():
    features, pixels, labels = data()
    rows = np.random.default_rng(2).integers(0, len(pixels), (4, 2, 6))
    x, y = fit_loop._read(features, pixels, labels, rows)
    dense = np.asarray(features.dense()).reshape(-1, WIDTH)
    np.testing.assert_allclose(x, dense[pixels[rows]], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(y, dense[pixels[rows]][..., :CLASSES].argmax(-1))


# --- together and alone ---------------------------------------------------------------------------


def test_members_start_from_their_own_draws():
    kernels_of = lambda fit: np.asarray(begin(fit)["params"]["ensemble"]["kernel"])
    kernels, other = kernels_of(fit_of()), kernels_of(fit_of(seed=1))
    assert len({kernel.tobytes() for kernel in kernels}) == MEMBERS
    np.testing.assert_array_equal(kernels_of(fit_of(members=2)), kernels[:2])
    assert np.abs(other - kernels).max() > 0.01


@pytest.mark.parametrize("backend", ["cpu", "gpu"])  # by which the order of the work is chosen
def test_members_fitted_together_are_as_if_fitted_alone(backend, monkeypatch):
    """Also if one stops in between, here the second."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    steps = 14
    fit = perceptrons(stops=True)
    learned, rows = begin(fit), Orders(fit).rows(np.arange(steps))
    learned["stop"]["best"] = jnp.asarray([1e7, 0.0, 1e7])
    learned["stop"]["count"] = jnp.asarray([0, 44, 0], jnp.int32)
    together, losses = take_steps(fit, steps, learned, rows, armed=True)
    np.testing.assert_array_equal(together["stop"]["at"], [0, 7, 0])
    one = dataclasses.replace(fit, members=1)
    for index in range(MEMBERS):
        alone, loss = take_steps(
            one, steps, member_of(learned, index), rows[:, index : index + 1], armed=True
        )
        assert_same(alone, member_of(together, index), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(loss[:, 0], losses[:, index], rtol=1e-5)
    assert losses[-1, 0] < losses[0, 0]


def test_shared_batches_are_the_same_batch_for_all():
    steps = 6
    own, shared = fit_of(), fit_of(own_order=False)
    rows = Orders(shared).rows(np.arange(steps))
    assert rows.shape == (steps, BATCH)
    repeated = np.repeat(rows[:, None], MEMBERS, 1)
    one, other = take_steps(own, steps, rows=repeated), take_steps(shared, steps, rows=rows)
    assert_same(one, other, rtol=1e-5, atol=1e-6)
    kernels = other[0]["params"]["ensemble"]["kernel"]
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01  # but they start apart


@pytest.mark.parametrize("own", [True, False])
def test_features_in_the_hosts_memory_give_the_same_fit(own, tmp_path, monkeypatch):
    """In calls of other lengths, too."""
    steps, folders = 10, iter("ab")
    make = functools.partial(fit_of, own_order=own, steps=steps)
    host = make(host=True)
    assert host.on_host and not make().on_host
    states = [
        run(fit, tmp_path / next(folders), monkeypatch, per_call)[0]
        for fit, per_call in ((make(), 7), (host, 4))
    ]
    assert_same(*states, rtol=1e-5, atol=1e-6)


# --- whole runs -----------------------------------------------------------------------------------


class Pulled(Exception):
    """The plug."""


def pull_after(monkeypatch, saves):
    """Raises once so many checkpoints were saved."""
    real, count = StageCheckpoints.save, iter(range(saves, -1, -1))

    def save(self, *arguments):
        if not next(count):
            raise Pulled
        real(self, *arguments)

    monkeypatch.setattr(StageCheckpoints, "save", save)


@pytest.mark.parametrize("host", [False, True])
def test_an_interrupted_run_goes_on_bit_for_bit(host, tmp_path, monkeypatch):
    fit = fit_of(host, stops=True)
    whole, meta = run(fit, tmp_path / "whole", monkeypatch)
    assert meta.pop("arrays")["params/ensemble/kernel"]["shape"] == [MEMBERS, WIDTH, CLASSES]
    assert meta.pop("format") == FORMAT
    assert meta == {"kind": "fit", "stage": "fit", "step": 21, "ema": [], "finished": True}
    for saves in (1, 1):  # stops after step 8, and again after 16
        with monkeypatch.context() as patch:
            pull_after(patch, saves)
            with pytest.raises(Pulled):
                run(fit, tmp_path / "parts", monkeypatch)
    with StageCheckpoints(tmp_path / "parts" / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest() == 16 and not checkpoints.meta(16)["finished"]
    parts, meta = run(fit, tmp_path / "parts", monkeypatch)
    assert meta["finished"] and int(parts["step"]) == 21
    assert_same(parts, whole)
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    assert [record["step"] for record in records(tmp_path / "whole")] == [4, 8, 12, 16, 20, 21]


def test_a_run_that_is_asked_to_stop_saves_and_goes_on_bit_for_bit(tmp_path, monkeypatch):
    whole, _ = run(fit_of(), tmp_path / "whole", monkeypatch)
    with monkeypatch.context() as patch:
        asked = contextlib.nullcontext(iter([0, signal.SIGTERM]).__next__)
        patch.setattr(lifecycle, "watched", lambda: asked)
        with pytest.raises(Stopped, match="SIGTERM after step 8 of stage fit, which is saved"):
            run(fit_of(every=dict(log=4, checkpoint=100)), tmp_path / "parts", monkeypatch)
    parts, _ = run(fit_of(), tmp_path / "parts", monkeypatch)
    assert_same(parts, whole)
    assert records(tmp_path / "parts") == records(tmp_path / "whole")


def test_a_run_is_its_steps(tmp_path, monkeypatch):
    """In calls of four, the last of which is not full; and it learns."""
    fit = fit_of(steps=45)
    state, _ = run(fit, tmp_path, monkeypatch)
    learned, losses = take_steps(fit, 45)
    assert_same(state, fit_loop.saved(learned, FROZEN, 45), rtol=1e-4, atol=1e-5)
    assert np.all(losses[-5:].mean(0) < 0.9 * losses[:5].mean(0))
    assert_same(state["frozen"], FROZEN["params"])
    assert state["stats"].keys() == {"ensemble", "noise"}


@pytest.mark.parametrize("host", [False, True])
def test_a_fit_without_checkpoints_ends_in_the_same_state(host, tmp_path, monkeypatch):
    fit = fit_of(host)
    state, _ = run(fit, tmp_path, monkeypatch)
    learned = fit_loop.fit_without_checkpoints(fit, make_mesh())
    assert_same(fit_loop.saved(learned, FROZEN, fit.steps), state)


@pytest.mark.parametrize("step", [3, 14])
def test_features_that_are_not_finite_end_it(step, tmp_path, monkeypatch):
    """One bad number is met when a pixel of it is read; what was saved before stays."""
    fit = fit_of(members=1, batch_size=2)
    rows = Orders(fit).rows(np.arange(21))[:, 0]
    maps = np.asarray(fit.features.maps[1])
    for index in np.ndindex(maps.shape):  # the first that is read at about that step
        spoilt = maps.copy()
        spoilt[index] = np.nan
        features = PixelFeatures((fit.features.maps[0], jnp.asarray(spoilt)), SIZE)
        bad = np.isnan(features.dense()).any(-1).reshape(-1)[fit.pixels]
        if bad.any() and abs(bad[rows].any(1).argmax() - step) < 3:
            break
    fit = dataclasses.replace(fit, features=features)
    left = "The checkpoint of step 8 is kept" if step > 8 else "No checkpoint was made yet"
    with pytest.raises(UserError, match=f"stage fit: the loss .* not finite.*{left}.*float32"):
        run(fit, tmp_path, monkeypatch)
    with StageCheckpoints(tmp_path / "checkpoints", read_only=True) as checkpoints:
        assert checkpoints.latest() == (8 if step > 8 else None)


# ---- when the time is short ----------------------------------------------------------------------


def test_a_fit_that_would_not_end_in_time_begins_again_with_fewer_steps(tmp_path, monkeypatch):
    asked, shorter = [], fit_of(steps=12, every=dict(log=4, checkpoint=99), meta={"steps": 12})

    def shorten(seconds):
        asked.append(seconds)
        return shorter

    short, meta = run(fit_of(shorten=shorten), tmp_path / "short", monkeypatch)
    alone, _ = run(shorter, tmp_path / "alone", monkeypatch)
    assert len(asked) == 1 and asked[0] > 0
    assert int(short["step"]) == meta["step"] == meta["steps"] == 12 and meta["finished"]
    assert records(tmp_path / "short") == records(tmp_path / "alone")
    assert_same(short, alone)
