"""What a network learned about a class stays with its name when the list of classes changes."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict as flatten

from configs import tiny_ddep, tiny_ddp
from diffseg_jax.data.scenes import NAMES
from diffseg_jax.experiment.more_labels import continued_config
from diffseg_jax.experiment.plan import make_plan
from diffseg_jax.experiment.start_step import describe_classes
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.systems.methods import SYSTEMS
from diffseg_jax.systems.system import with_classes

pytestmark = pytest.mark.quick

HEAD, OTHER = ("params", "head"), ("params", "other")


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ("abc", [0, 1, 2]), ("cab", [2, 0, 1]), ("abcd", [0, 1, 2, 103]), ("dabc", [100, 0, 1, 2]),
        ("ca", [2, 0]), ("xb", [100, 1]), ("xy", [100, 101]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_rows_follow_the_names_of_classes(after, expected, axis):
    shape = np.roll((-1, 1), axis)
    old = {HEAD: np.arange(3).reshape(shape), OTHER: np.arange(5)}
    fresh = {HEAD: np.arange(100, 100 + len(after)).reshape(shape)}
    found = with_classes(old, fresh, {HEAD: (axis, "abc")}, {HEAD: (axis, after)})
    np.testing.assert_array_equal(found[HEAD], np.reshape(expected, shape))
    assert found[OTHER] is old[OTHER] and found.keys() == old.keys()


@pytest.mark.parametrize(
    ("tiny", "kind", "code"),
    [
        (tiny_ddep, "finetune", ""), (tiny_ddp, "plain", "embedding"),
        (tiny_ddp, "train", "embedding"), (tiny_ddp, "align", "one_hot"),
        (tiny_ddp, "train", "bits"),
    ],
)  # fmt: skip
def test_a_system_names_all_arrays_that_depend_on_the_classes(tiny, kind, code):
    config = tiny.get_config()
    if code:
        config.diffusion.code = code
    system, shapes = SYSTEMS[config.system], []
    for count in (5, 9):  # 3 and 4 bits
        task = system.make_task(config, kind, (32, 48), count)
        shapes.append(flatten(jax.eval_shape(task.init, jax.random.key(0))))
        rows = system.class_rows(task.meta, "abcdefghi"[:count])
        for path, (axis, names) in rows.items():
            assert shapes[-1][path].shape[axis] == len(names) == len(set(names)), path
    differing = {path for path in shapes[0] if shapes[0][path].shape != shapes[1][path].shape}
    assert rows.keys() == differing


OLD = [NAMES[2], "tram", NAMES[4], NAMES[1], NAMES[3]]


@pytest.mark.parametrize(("tiny", "name"), [(tiny_ddp, "train"), (tiny_ddep, "finetune")])
def test_a_continued_network_keeps_its_classes_by_name(tmp_path, tiny_network, tiny, name, capsys):
    config = tiny.get_config()
    network, meta = tiny_network(config.system)
    with StageCheckpoints(tmp_path / "checkpoints" / name) as checkpoints:
        checkpoints.save(7, {**network, "frozen": {}}, {**meta, "classes": OLD}, {"mIoU": 0.5})
    (tmp_path / "config.json").write_text("{}")  # as every run has
    further = continued_config(config, tmp_path, [name])
    stage = make_plan(further, tmp_path / "continued").stages[0]
    loaded, old = flatten(stage.loaded()), flatten(network)
    said = capsys.readouterr().out
    added = ", ".join([NAMES[0], *NAMES[5:]])
    assert f"{name}: classes: adds {added}; drops tram; keeps 4 in another order" in said
    rows = stage.system.class_rows(stage.task.meta, NAMES)
    assert loaded.keys() == old.keys()
    for path in loaded.keys() - rows.keys():
        np.testing.assert_array_equal(loaded[path], old[path])
    x = np.random.default_rng(0).standard_normal((3, old["params", "head", "kernel"].shape[-2]))
    logits = [
        x @ arrays["params", "head", "kernel"] + arrays["params", "head", "bias"]
        for arrays in (loaded, old)
    ]
    for known in NAMES[1:5]:
        ours, theirs = logits[0][..., NAMES.index(known)], logits[1][..., OLD.index(known)]
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    assert not np.any(np.isclose(logits[0][..., [0]], logits[1]))
    if table := [path for path in rows if path[-1] == "table"]:
        ours, theirs = loaded[table[0]], old[table[0]]
        np.testing.assert_array_equal(ours[1], theirs[OLD.index(NAMES[1])])
        np.testing.assert_array_equal(ours[-1], theirs[-1])  # of the ignore label


def test_the_log_says_which_classes_are_new():
    assert describe_classes("abc", "abcd") == "classes: adds d; keeps 3"
    assert describe_classes("abc", "ca") == "classes: drops b; keeps 2 in another order"
    assert describe_classes("abc", "bca") == "classes: keeps 3 in another order"
