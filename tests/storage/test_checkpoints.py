"""Checkpoints restore what was saved: averages at several rates, short dtypes, single branches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict as flatten

from diffseg_jax.devices.mesh import make_mesh
from diffseg_jax.errors import UserError
from diffseg_jax.storage import checkpoints
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.storage.networks import open_network
from diffseg_jax.training import loop
from diffseg_jax.training.state import network_of
from line_run import RATES, line_stage, trained

pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(final state, stage directory) of a run with two averages; no test may change them."""
    workdir = tmp_path_factory.mktemp("averages")
    return trained(workdir), workdir / "line"


def assert_same(one, other):
    """Equal trees: paths, types and bits."""
    one, other = flatten(jax.device_get(one)), flatten(jax.device_get(other))
    assert one.keys() == other.keys()
    for path, leaf in one.items():
        assert leaf.dtype == other[path].dtype, path
        np.testing.assert_array_equal(leaf, other[path], err_msg=str(path))


def test_a_state_with_two_averages_is_restored_bit_for_bit(run):
    state, directory = run
    assert set(state["ema"]) == {"0.9999", "0.5"}
    with StageCheckpoints(directory, read_only=True) as saved:
        restored = saved.restore(6, loop.abstract_state(line_stage()), make_mesh())
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for part in ("params", "frozen", "stats", "ema"):
        assert_same(restored[part], state[part])
    assert restored["stats"]["low"].dtype == jnp.bfloat16
    assert restored["stats"]["seen"].tolist() == [24, 24]


@pytest.mark.parametrize(
    "ema, rates",
    [(None, RATES), (0.9999, RATES), (0.5, (0.5,)), ("0.5", (0.5,)), ("off", ())],
    ids=str,
)
def test_readers_get_the_average_they_name_and_the_first_otherwise(run, ema, rates):
    state, directory = run
    network, meta = open_network(directory, ema=ema)
    assert_same(network, network_of(state, rates))
    assert meta["ema"] == [0.9999, 0.5]


def test_both_averages_and_the_parameters_differ(run):
    found = [open_network(run[1], ema=ema)[0]["params"]["head"]["w"] for ema in (*RATES, "off")]
    assert len({w.tobytes() for w in found}) == 3


def test_the_error_for_an_unknown_average_lists_the_known_ones(run):
    with pytest.raises(UserError, match=r"line \"0.99\". Known: 0.5, 0.9999, off. Did you mean"):
        open_network(run[1], ema=0.99)


def test_without_averages_the_parameters_are_read(tmp_path):
    state = trained(tmp_path, steps=3, ema=())
    for ema in (None, "off"):
        assert_same(open_network(tmp_path / "line", ema=ema)[0], network_of(state, ()))
    with pytest.raises(UserError, match='"0.5". Known: off.'):
        open_network(tmp_path / "line", ema=0.5)


@pytest.mark.parametrize("ema, branch", [(0.5, ("ema", "0.5")), ("off", ("params",))])
def test_only_the_requested_branch_is_read(run, monkeypatch, ema, branch):
    read, restore = [], checkpoints.ocp.Checkpointer.restore

    def watched(*args, **kwargs):
        read.append(restore(*args, **kwargs))
        return read[-1]

    monkeypatch.setattr(checkpoints.ocp.Checkpointer, "restore", watched)
    open_network(run[1], ema=ema)
    rest = {("frozen", "base", "b"), ("stats", "seen"), ("stats", "low")}
    assert set(flatten(read[-1])) == rest | {(*branch, "head", "w")}


def test_a_resumed_run_keeps_every_average(run, tmp_path):
    trained(tmp_path, steps=3)
    resumed = trained(tmp_path)
    for part in ("params", "stats", "ema"):
        assert_same(resumed[part], run[0][part])


def test_a_checkpoint_of_other_rates_is_refused(run):
    with StageCheckpoints(run[1], read_only=True) as saved:
        abstract = loop.abstract_state(line_stage(ema=(0.5,)))
        with pytest.raises(UserError, match=r"ema\.0\.9999\.head\.w is in the checkpoint only"):
            saved.restore(6, abstract, make_mesh())
