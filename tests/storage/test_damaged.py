"""Checkpoints with missing, cut or changed files are reported, and the previous one is used.

`pytest -m slow tests/storage/test_damaged.py` damages a thousand files.
"""

import importlib.util
import json
import shutil
import warnings
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffseg_jax.devices import processes
from diffseg_jax.devices.mesh import make_mesh
from diffseg_jax.errors import UserError
from diffseg_jax.storage import checkpoints, integrity
from diffseg_jax.storage.checkpoints import StageCheckpoints, steps_in
from diffseg_jax.storage.integrity import Damaged, fingerprints
from diffseg_jax.storage.networks import open_meta, open_network
from diffseg_jax.storage.quiet import quiet_orbax

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


@pytest.fixture(autouse=True, scope="module")
def quiet():
    """Suppresses the tracebacks of orbax, which takes time, once for this module."""
    with quiet_orbax():
        yield


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """A stage directory with the checkpoints of two steps; no test may change it."""
    directory = tmp_path_factory.mktemp("intact") / "stage"
    with StageCheckpoints(directory) as stored:
        for step in STEPS:
            stored.save(step, state_at(step), {"step": step, "ema": [0.9]})
            stored.wait()
    return directory


@pytest.fixture
def stage(intact, tmp_path):
    """A copy of the intact directory."""
    shutil.copytree(intact, tmp_path / "stage")
    return tmp_path / "stage"


def resumed(directory):
    """(state, step, messages) of a run that resumes there."""
    messages = []
    abstract = jax.eval_shape(lambda: state_at(0))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with StageCheckpoints(directory) as stored:
            state, step = stored.newest(abstract, make_mesh(), messages.append)
    return state, step, messages + [str(warning.message) for warning in warned]


def read(directory):
    """(parameters, step, messages) of a reader."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        network, meta = open_network(directory)
    return network["params"], meta["step"], [str(warning.message) for warning in warned]


def files_of(directory, step=6):
    return sorted(file for file in (directory / str(step)).rglob("*") if file.is_file())


def check_both(directory, damage):
    """A run and a reader each get the saved arrays, or those of the previous step and a message."""
    copy = directory.with_name("copy")
    shutil.copytree(directory, copy)
    state, step, messages = resumed(directory)
    chex.assert_trees_all_equal(jax.device_get(state), jax.device_get(state_at(step)), strict=True)
    assert step == 6 or any("6 is damaged" in line for line in messages), (damage, messages)
    params, step, messages = read(copy)
    expected = state_at(step)
    expected = jax.device_get({**expected["ema"]["0.9"], **expected["frozen"]})
    chex.assert_trees_all_equal(params, expected, strict=True)
    assert step == 6 or any("takes step 3" in line for line in messages), (damage, messages)
    shutil.rmtree(copy)
    return step


def test_an_intact_stage_gives_its_last_step(stage):
    assert check_both(stage, "nothing") == 6
    assert sorted(steps_in(stage)) == [*STEPS]


@pytest.mark.parametrize("damage", ["missing", "empty", "cut"])
def test_every_missing_empty_or_cut_file_is_noticed_or_harmless(stage, intact, damage):
    steps = []
    for file in files_of(intact):
        shutil.rmtree(stage)
        shutil.copytree(intact, stage)
        damaged = stage / file.relative_to(intact)
        content = damaged.read_bytes()
        if damage == "missing":
            damaged.unlink()
        else:
            damaged.write_bytes(content[: len(content) // 2 if damage == "cut" else 0])
        steps.append(check_both(stage, f"{damage} {damaged.relative_to(stage)}"))
    assert 3 in steps


def damage_one_by_one(intact, stage, seed, count):
    """The steps that were read after each of `count` changes to one file."""
    rng, steps = np.random.default_rng(seed), []
    files = files_of(intact)
    for number in range(count):
        file = files[rng.integers(len(files))]
        content = file.read_bytes()
        shutil.rmtree(stage)
        shutil.copytree(intact, stage)
        damaged = stage / file.relative_to(intact)
        damaged.write_bytes(next(mutate.damaged(content, seed + number, 1)))
        steps.append(check_both(stage, f"case {number}, {file.relative_to(intact)}"))
    return steps


@pytest.mark.timeout(600)
def test_changed_bits_are_noticed(intact, stage, capfd):
    steps = damage_one_by_one(intact, stage, seed=0, count=60)
    assert 3 in steps and 6 in steps
    shown = capfd.readouterr()
    assert "Traceback" not in shown.err + shown.out


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_changed_bits_are_noticed_a_thousand_times(intact, stage):
    assert 3 in damage_one_by_one(intact, stage, seed=1000, count=1000)


def empty_arrays(directory, step):
    """Empties the files of the arrays of a step."""
    for file in files_of(directory / str(step), "state"):
        file.write_bytes(b"")


def test_a_damaged_checkpoint_is_set_aside_and_its_step_saved_again(stage):
    empty_arrays(stage, 6)
    with StageCheckpoints(stage) as stored:
        state, step = stored.newest(state_at(0), make_mesh(), lambda text: None)
        assert step == 3 and stored.latest() == 3
        assert (stage / "damaged_6").is_dir()
        stored.save(6, state_at(6), {"step": 6, "ema": [0.9]})
    assert check_both(stage, "nothing") == 6


def test_a_stage_with_only_damaged_checkpoints_is_refused_and_kept(stage):
    for step in STEPS:
        empty_arrays(stage, step)
    with pytest.raises(Damaged, match="3 is damaged"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        open_network(stage)
    with pytest.raises(UserError, match="no other one. All were renamed to .*/damaged_"):
        resumed(stage)
    assert sorted(path.name for path in stage.iterdir()) == ["damaged_3", "damaged_6"]


def test_files_of_an_interrupted_removal_are_removed(stage):
    shutil.rmtree(stage / "3" / "meta")
    state, step, messages = resumed(stage)
    chex.assert_trees_all_equal(jax.device_get(state), jax.device_get(state_at(6)), strict=True)
    assert step == 6 and messages == []
    assert [path.name for path in stage.iterdir()] == ["6"]


def test_an_older_checkpoint_with_changed_json_is_kept_and_reported(stage):
    """It may be the best one, of which a user wants to know."""
    (stage / "3" / "meta" / "metadata").write_text("{")
    state, step, messages = resumed(stage)
    assert step == 6 and len(messages) == 1 and "renamed to damaged_3" in messages[0]
    assert sorted(path.name for path in stage.iterdir()) == ["6", "damaged_3"]


def test_an_evaluation_is_added_to_a_saved_step(stage):
    arrays = {file: file.read_bytes() for file in files_of(stage / "6", "state")}
    with StageCheckpoints(stage, keep=1) as stored:
        stored.add_evaluation(6, {**stored.meta(6), "evaluated": True}, {"mIoU": 0.5})
        assert stored.best_evaluated() == 6 and stored.meta(6)["evaluated"]
    assert steps_in(stage) == [6]  # as after a save
    assert arrays == {file: file.read_bytes() for file in files_of(stage / "6", "state")}
    assert check_both(stage, "nothing") == 6
    with StageCheckpoints(stage, read_only=True) as stored:
        assert stored.best_evaluated() == 6


@pytest.mark.parametrize("fails", ["metrics", "metadata"])
def test_an_evaluation_that_cannot_be_added_costs_no_step(stage, monkeypatch, fails):
    def write(path, content, real=checkpoints.write_json):
        if path.name == fails:
            raise OSError(28, "No space left on device")
        real(path, content)

    monkeypatch.setattr(checkpoints, "write_json", write)
    with StageCheckpoints(stage) as stored, pytest.raises(UserError, match="step 6 is kept"):
        stored.add_evaluation(6, {**stored.meta(6), "evaluated": True}, {"mIoU": 0.5})
    assert check_both(stage, "nothing") == 6
    assert "evaluated" not in open_meta(stage)


FAILURES = {  # errors that do not depend on the files: name -> (function that raises it, error)
    "a disk that is temporarily unreadable": ("digest", OSError(5, "Input/output error")),
    "an expired token": ("digest", ValueError("UNAUTHENTICATED: no token")),
    "too little memory": ("orbax", jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 3 GB")),
    "a lost process": ("orbax", ValueError("UNKNOWN: Gloo: Connection closed by peer")),
}


@pytest.mark.parametrize("name", FAILURES)
def test_an_error_that_only_prevents_reading_is_not_damage(stage, monkeypatch, name):
    raised_by, error = FAILURES[name]

    def fail(*_, **__):
        raise error

    if raised_by == "digest":
        monkeypatch.setattr(integrity, "digest", fail)
    else:
        monkeypatch.setattr(checkpoints._Manager, "restore", fail)
        monkeypatch.setattr(checkpoints.ocp.Checkpointer, "restore", fail)
    for ask in (resumed, read):
        with pytest.raises(type(error)) as caught:
            ask(stage)
        assert caught.value is error
    assert sorted(path.name for path in stage.iterdir()) == ["3", "6"]


@pytest.mark.parametrize("theirs, kind", [(1, Damaged), (2, processes.ProcessesLost)])
def test_a_problem_of_another_process_is_raised_in_this_one(stage, monkeypatch, theirs, kind):
    """Damage is raised as damage; an error that only prevents reading changes no files."""
    monkeypatch.setattr(processes, "maximum_over", lambda mine: max(mine, theirs))
    with StageCheckpoints(stage) as stored, pytest.raises(kind):
        stored.restore(6, state_at(0), make_mesh())
    if theirs == 2:
        with pytest.raises(kind):
            resumed(stage)
        assert sorted(path.name for path in stage.iterdir()) == ["3", "6"]


def test_an_older_format_is_refused_and_kept_by_a_writer_too(stage):
    for step in STEPS:
        (stage / str(step) / "meta" / "metadata").write_text('{"step": 6}')
    with pytest.raises(UserError, match="written by an older version"):
        resumed(stage)
    assert sorted(path.name for path in stage.iterdir()) == ["3", "6"]


def test_forged_metadata_is_damage(stage):
    file = stage / "6" / "meta" / "metadata"
    meta = json.loads(file.read_text())
    del meta["sha256"]
    for arrays in ({"x": {"shape": ["a"], "dtype": "float32"}}, {"x": {}}, [], {"x": 3}):
        file.write_text(json.dumps(integrity.with_digest({**meta, "arrays": arrays})))
        with pytest.raises(Damaged):
            open_network(stage, step=6)


def test_a_save_does_not_ask_for_a_preemption_signal(stage):
    """The manager of orbax would, with a step count that differs from the loop's."""
    with StageCheckpoints(stage) as saved:
        assert saved.manager.reached_preemption(7) is False


def test_a_requested_step_is_not_replaced_by_another(stage):
    empty_arrays(stage, 6)
    with pytest.raises(Damaged):
        open_network(stage, step=6)
    assert open_network(stage, step=3)[1]["step"] == 3


def test_one_changed_number_in_the_metadata_is_noticed(stage):
    file = stage / "6" / "meta" / "metadata"
    file.write_text(file.read_text().replace('"step": 6', '"step": 7'))
    with pytest.warns(UserWarning, match="its metadata has changed.; takes step 3"):
        assert open_meta(stage)["step"] == 3


def test_a_checkpoint_without_checksums_is_of_an_older_version(stage):
    (stage / "6" / "meta" / "metadata").write_text('{"step": 6}')
    with pytest.raises(UserError, match="written by an older version"):
        open_network(stage, step=6)


# ---- sums of the bits ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (5,), (3, 0), (300, 7), (3, 4, 5, 6)], ids=str)
def test_arrays_on_host_and_device_have_the_same_fingerprint(dtype, shape):
    values = np.random.default_rng(0).integers(0, 2**31 - 1, shape)
    array = jnp.asarray(values % 251).astype(dtype)
    on_device, on_host = fingerprints({"x": array}), fingerprints({"x": np.asarray(array)})
    assert on_device == on_host
    assert on_device["x"]["shape"] == list(shape) and on_device["x"]["dtype"] == dtype


def test_every_changed_element_changes_the_sum():
    array = np.random.default_rng(0).standard_normal(2**20 + 3).astype(np.float32)
    sums = {fingerprints({"x": array})["x"]["sum"]}
    for index in (0, 1, 2**20 - 1, 2**20, 2**20 + 2):
        changed = array.copy()
        changed.view(np.uint32)[index] ^= 1 << (index % 32)
        sums.add(fingerprints({"x": changed})["x"]["sum"])
    sums.add(fingerprints({"x": np.roll(array, 1)})["x"]["sum"])
    assert len(sums) == 7


def test_other_processes_fail_as_the_first_one_that_finds_all_checkpoints_damaged(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(processes, "is_first", lambda: False)
    monkeypatch.setattr(processes, "broadcast_from_first", lambda mine: 3)
    with pytest.raises(UserError, match="3 is damaged .*All were renamed to"):
        StageCheckpoints(tmp_path / "stage")
