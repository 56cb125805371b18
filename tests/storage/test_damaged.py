"""Checkpoints whose files are cut, gone or changed: the one before is taken, and that is said.

`pytest -m slow tests/storage/test_damaged.py` damages a thousand.
"""

import importlib.util
import json
import shutil
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict as flatten

from diffseg_jax.devices.mesh import make_mesh
from diffseg_jax.errors import UserError
from diffseg_jax.storage import checkpoints
from diffseg_jax.storage.checkpoints import (
    Damaged,
    StageCheckpoints,
    fingerprints,
    open_meta,
    open_network,
    steps_in,
    with_string_keys,
)

SPEC = importlib.util.spec_from_file_location("mutate", Path(__file__).parents[1] / "mutate.py")
mutate = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(mutate)

STEPS = (3, 6)


def state_at(step):
    """A state with arrays of several types and sizes, small ones and one of several chunks."""
    rng = np.random.default_rng(step)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    params = {"a": {"kernel": draw(64, 80)}, "b": {"bias": draw(7)}}
    return {
        "step": jnp.int32(step), "params": params, "ema": {"0.9": jax.tree.map(jnp.copy, params)},
        "frozen": {"c": {"kernel": draw(3, 3)}}, "stats": {"n": draw(5).astype(jnp.bfloat16)},
    }  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A stage directory with the checkpoints of two steps; no test may change it."""
    directory = tmp_path_factory.mktemp("whole") / "stage"
    with StageCheckpoints(directory) as stored:
        for step in STEPS:
            stored.save(step, state_at(step), {"step": step, "ema": [0.9]})
            stored.wait()
    return directory


@pytest.fixture
def stage(whole, tmp_path):
    """A copy of it."""
    shutil.copytree(whole, tmp_path / "stage")
    return tmp_path / "stage"


def same(state, step):
    ours, theirs = (flatten(with_string_keys(s)) for s in (jax.device_get(state), state_at(step)))
    return ours.keys() == theirs.keys() and all(
        np.array_equal(ours[path], theirs[path]) for path in ours
    )


def resumed(directory):
    """(state, step, what was said) of a run that goes on there."""
    said = []
    abstract = jax.eval_shape(lambda: state_at(0))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with StageCheckpoints(directory) as stored:
            state, step = stored.newest(abstract, make_mesh(), said.append)
    return state, step, said + [str(warning.message) for warning in warned]


def read(directory):
    """(parameters, step, what was said) of a reader."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        network, meta = open_network(directory)
    return network["params"], meta["step"], [str(warning.message) for warning in warned]


def files_of(directory, step=6):
    return sorted(file for file in (directory / str(step)).rglob("*") if file.is_file())


def check_both(directory, hurt):
    """A run and a reader each give a whole state, or the one before and a word about it."""
    copy = directory.with_name("copy")
    shutil.copytree(directory, copy)
    state, step, said = resumed(directory)
    assert same(state, step), f"{hurt}: step {step} has other values"
    assert (step == 6) or any("6 is damaged" in line for line in said), (hurt, said)
    params, step, said = read(copy)
    rest = state_at(step)
    wanted = flatten({**rest["ema"]["0.9"], **rest["frozen"]})
    assert flatten(params).keys() == wanted.keys()
    assert all(np.array_equal(params_leaf, wanted[p]) for p, params_leaf in flatten(params).items())
    assert (step == 6) or any("takes step 3" in line for line in said), (hurt, said)
    shutil.rmtree(copy)
    return step


def test_an_unhurt_stage_is_read_whole(stage):
    assert check_both(stage, "nothing") == 6
    assert sorted(steps_in(stage)) == [*STEPS]


@pytest.mark.parametrize("how", ["gone", "empty", "cut"])
def test_every_file_that_is_gone_empty_or_cut(stage, whole, how, tmp_path):
    taken = []
    for file in files_of(whole):
        shutil.rmtree(stage)
        shutil.copytree(whole, stage)
        hurt = stage / file.relative_to(whole)
        content = hurt.read_bytes()
        if how == "gone":
            hurt.unlink()
        else:
            hurt.write_bytes(content[: len(content) // 2 if how == "cut" else 0])
        taken.append(check_both(stage, f"{how} {hurt.relative_to(stage)}"))
    assert 3 in taken


def damage_one_by_one(whole, stage, seed, count):
    """Damages a file at a time; returns how often the one before had to be taken."""
    rng, taken = np.random.default_rng(seed), []
    files = files_of(whole)
    for number in range(count):
        file = files[rng.integers(len(files))]
        content = file.read_bytes()
        shutil.rmtree(stage)
        shutil.copytree(whole, stage)
        hurt = stage / file.relative_to(whole)
        hurt.write_bytes(next(mutate.damaged(content, seed + number, 1)))
        taken.append(check_both(stage, f"case {number}, {file.relative_to(whole)}"))
    return taken


@pytest.mark.timeout(600)
def test_bits_that_changed_are_noticed(whole, stage, capfd):
    taken = damage_one_by_one(whole, stage, seed=0, count=60)
    assert 3 in taken and 6 in taken
    shown = capfd.readouterr()
    assert "Traceback" not in shown.err + shown.out


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_bits_that_changed_are_noticed_a_thousand_times(whole, stage):
    assert 3 in damage_one_by_one(whole, stage, seed=1000, count=1000)


def ruin(directory, step):
    """Empties the files of the arrays of a step."""
    for file in files_of(directory / str(step), "state"):
        file.write_bytes(b"")


def test_what_is_damaged_is_put_aside_and_its_step_saved_again(stage):
    ruin(stage, 6)
    with StageCheckpoints(stage) as stored:
        state, step = stored.newest(state_at(0), make_mesh(), lambda text: None)
        assert step == 3 and stored.latest() == 3
        assert (stage / "damaged_6").is_dir()
        stored.save(6, state_at(6), {"step": 6, "ema": [0.9]})
    assert check_both(stage, "nothing") == 6


def test_a_stage_with_nothing_whole_is_refused_and_kept(stage):
    for step in STEPS:
        ruin(stage, step)
    with pytest.raises(Damaged, match="3 is damaged"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        open_network(stage)
    with pytest.raises(UserError, match="no whole one. They are kept as .*/damaged_"):
        resumed(stage)
    assert sorted(path.name for path in stage.iterdir()) == ["damaged_3", "damaged_6"]


def test_remains_of_a_removal_that_was_killed_are_removed(stage):
    shutil.rmtree(stage / "3" / "meta")
    state, step, said = resumed(stage)
    assert same(state, 6) and step == 6 and said == []
    assert [path.name for path in stage.iterdir()] == ["6"]


FAILURES = {  # what says nothing of the files: name -> (what is replaced, what it raises)
    "a disk that cannot be read now": ("_digest", OSError(5, "Input/output error")),
    "a token that ran out": ("_digest", ValueError("UNAUTHENTICATED: no token")),
    "too little memory": ("restore", jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 3 GB")),
    "a lost process": ("restore", ValueError("UNKNOWN: Gloo: Connection closed by peer")),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_only_keeps_from_reading_is_no_damage(stage, monkeypatch, name):
    function, error = FAILURES[name]

    def fail(*_, **__):
        raise error

    if function == "_digest":
        monkeypatch.setattr(checkpoints, "_digest", fail)
    else:  # orbax itself fails to read
        monkeypatch.setattr(checkpoints._Manager, "restore", fail)
        monkeypatch.setattr(checkpoints.ocp.Checkpointer, "restore", fail)
    for ask in (resumed, read):
        with pytest.raises(type(error)) as caught:
            ask(stage)
        assert caught.value is error
    assert sorted(path.name for path in stage.iterdir()) == ["3", "6"]


@pytest.mark.parametrize("theirs, kind", [(1, Damaged), (2, checkpoints.processes.ProcessesLost)])
def test_what_another_process_met_counts_here_too(stage, monkeypatch, theirs, kind):
    """But only damage there is damage here: what keeps it from reading leaves all in place."""
    monkeypatch.setattr(checkpoints.processes, "maximum_over", lambda mine: max(mine, theirs))
    with StageCheckpoints(stage) as stored, pytest.raises(kind):
        stored.restore(6, state_at(0), make_mesh())
    if theirs == 2:
        with pytest.raises(kind):
            resumed(stage)
        assert sorted(path.name for path in stage.iterdir()) == ["3", "6"]


def test_an_older_version_is_refused_and_kept_by_a_writer_too(stage):
    for step in STEPS:
        (stage / str(step) / "meta" / "metadata").write_text('{"step": 6}')
    with pytest.raises(UserError, match="written by an older version"):
        resumed(stage)
    assert sorted(path.name for path in stage.iterdir()) == ["3", "6"]


def test_a_made_up_meta_is_damaged(stage):
    file = stage / "6" / "meta" / "metadata"
    meta = json.loads(file.read_text())
    del meta["sha256"]
    for arrays in ({"x": {"shape": ["a"], "dtype": "float32"}}, {"x": {}}, [], {"x": 3}):
        file.write_text(json.dumps(checkpoints._sealed({**meta, "arrays": arrays})))
        with pytest.raises(Damaged):
            open_network(stage, step=6)


def test_a_save_does_not_ask_whether_a_signal_came(stage):
    """Orbax's manager would, and with another count of steps than the loop's."""
    with StageCheckpoints(stage) as saved:
        assert saved.manager.reached_preemption(7) is False


def test_a_step_that_is_asked_for_is_not_replaced_by_another(stage):
    ruin(stage, 6)
    with pytest.raises(Damaged):
        open_network(stage, step=6)
    assert open_network(stage, step=3)[1]["step"] == 3


def test_one_changed_number_in_the_meta_is_noticed(stage):
    file = stage / "6" / "meta" / "metadata"
    file.write_text(file.read_text().replace('"step": 6', '"step": 7'))
    with pytest.warns(UserWarning, match="its meta has changed.; takes step 3"):
        assert open_meta(stage)["step"] == 3


def test_a_checkpoint_without_sums_is_of_an_older_version(stage):
    (stage / "6" / "meta" / "metadata").write_text('{"step": 6}')
    with pytest.raises(UserError, match="written by an older version"):
        open_network(stage, step=6)


# ---- the sums ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (5,), (3, 0), (300, 7), (3, 4, 5, 6)], ids=str)
def test_hosts_and_devices_sum_alike(dtype, shape):
    values = np.random.default_rng(0).integers(0, 2**31 - 1, shape)
    array = jnp.asarray(values % 251).astype(dtype)
    on_device, on_host = fingerprints({"x": array}), fingerprints({"x": np.asarray(array)})
    assert on_device == on_host
    assert on_device["x"]["shape"] == list(shape) and on_device["x"]["dtype"] == dtype


def test_any_changed_word_changes_the_sum():
    array = np.random.default_rng(0).standard_normal(2**20 + 3).astype(np.float32)
    sums = {fingerprints({"x": array})["x"]["sum"]}
    for place in (0, 1, 2**20 - 1, 2**20, 2**20 + 2):
        changed = array.copy()
        changed.view(np.uint32)[place] ^= 1 << (place % 32)
        sums.add(fingerprints({"x": changed})["x"]["sum"])
    sums.add(fingerprints({"x": np.roll(array, 1)})["x"]["sum"])
    assert len(sums) == 7
