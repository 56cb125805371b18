"""Features without noise: what the student learns, what a fit takes over, and what is refused."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import tiny_ddpm_seg
from diffseg_jax import load
from diffseg_jax.diffusion.process import Process
from diffseg_jax.errors import UserError
from diffseg_jax.experiment import fit_network
from diffseg_jax.experiment.plan import check_config, make_plan
from diffseg_jax.figures.layout import save_png
from diffseg_jax.inference.converted import save_converted
from diffseg_jax.inference.feature_files import source_of, write_features
from diffseg_jax.storage.workdir import as_json
from diffseg_jax.systems.clean import disagreement
from diffseg_jax.systems.ddpm_seg_config import adopt, make_task
from diffseg_jax.training.state import split_params

KEY, T = jax.random.key(0), 6
NOISY, NOISELESS = (Process(np.full(T, beta), tuple(range(T))) for beta in (0.1, 1e-12))


def make_config(**changes):
    """The tiny config with a stage that learns to do without noise."""
    config = tiny_ddpm_seg.get_config()
    with config.unlocked():
        config.model.update(channel_mult=(1,))
        config.features.update(sources=("clean",), blocks=(0,))
        config.clean = dict(blocks=(), steps=(0, 19))
        config.stages.clean = config.stages.pretrain.copy_and_resolve_references()
        config.stages.clean.update(kind="clean", start="pretrain")
        config.stages.fit.start, config.run = "clean", ("pretrain", "clean", "fit")
        config.update_from_flattened_dict(changes)
    return config


def batch_of(rows):
    image = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 3)).astype(np.uint8)
    rows = jnp.asarray(rows)
    return {"image": jnp.asarray(image)[rows], "valid": jnp.full((len(rows), 2), 5), "row": rows}


def loss_of(teacher=lambda x, t: x, heads=lambda x, level: x, process=NOISY, rows=range(4)):
    """The loss of functions in place of networks, the student being the identity."""
    named = lambda maps: {"output_0": maps}
    functions = {
        "teacher": lambda x, t, until: (None, named(teacher(x, t))),
        "student": lambda x, taps: named(x),
        "heads": lambda maps, level: named(heads(maps["output_0"], level)),
    }
    networks = {
        name: SimpleNamespace(bind=lambda params, stats, call=call: call)
        for name, call in functions.items()
    }
    params = dict.fromkeys(networks)
    batch = batch_of(list(rows))
    loss, (weight, _, metrics) = disagreement(
        networks, process, (1, 3), ["output_0"], params, {}, batch, KEY
    )
    assert weight == len(batch["row"])
    np.testing.assert_allclose(metrics["agreement_output_0"], weight - loss, atol=1e-5)
    return float(loss)


# ---- the loss ----------------------------------------------------------------------------------


def test_equal_features_cost_nothing_and_opposite_ones_most():
    assert abs(loss_of(process=NOISELESS)) < 1e-4
    assert abs(loss_of(process=NOISELESS, teacher=lambda x, t: 3 * x)) < 1e-4  # of other length
    assert abs(loss_of(process=NOISELESS, heads=lambda x, level: -x) - 2 * 4) < 1e-4
    assert 0.1 < loss_of() < 4  # noise changes what the teacher sees


def test_heads_know_the_noise_level_which_is_drawn_in_its_range():
    seen = []
    loss_of(lambda x, t: seen.append(t) or x, lambda x, level: seen.append(level * T) or x)
    np.testing.assert_allclose(seen[0], seen[1])
    assert set(np.asarray(seen[0]).tolist()) <= {1, 2, 3} and np.std(seen[0]) > 0


def test_any_split_of_a_batch_has_the_same_loss():
    whole, parts = loss_of(), [loss_of(rows=rows) for rows in ([3, 0], [2, 1])]
    np.testing.assert_allclose(whole, sum(parts), rtol=1e-5)


# ---- the networks ------------------------------------------------------------------------------


quick = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def task_of(kind="clean", **changes):
    return make_task(make_config(**changes), kind, (16, 16), 0 if kind != "fit" else 9)


def filled(abstract):
    """Small random values of these shapes."""
    draw = np.random.default_rng(0)
    make = lambda leaf: (0.1 * draw.standard_normal(leaf.shape)).astype(np.float32)
    return jax.tree.map(make, abstract)


@functools.cache
def pretrained():
    """Parameters of a diffusion model."""
    return filled(jax.eval_shape(task_of("pretrain").init, KEY)["params"])


@functools.cache
def learning():
    """The network of a stage that starts from it."""
    task = task_of()
    abstract = jax.eval_shape(task.init, KEY)
    taken = adopt(abstract, task, {"params": pretrained()}, task_of("pretrain").meta)["params"]
    return {"params": {"heads": filled(abstract["params"]["heads"]), **taken}, "stats": {}}


def test_the_student_and_its_heads_learn_and_the_teacher_stays():
    task, network = task_of(), learning()
    trained, frozen = split_params(network["params"], task.trainable)
    assert set(trained) == {"student", "heads"} and set(frozen) == {"teacher"}
    draw = np.random.default_rng(0)
    batch = {
        "image": jnp.asarray(draw.integers(0, 256, (2, 4, 4, 3)), jnp.uint8),
        "valid": jnp.full((2, 2), 4), "row": jnp.arange(2),
    }  # fmt: skip

    @quick
    @functools.partial(jax.value_and_grad, has_aux=True)
    def step(trained, frozen):
        return task.loss({**trained, **frozen}, {}, batch, KEY)

    (loss, (weight, _, metrics)), grads = step(trained, frozen)
    assert 0 < loss < 2 * weight and set(metrics) == {"agreement_output_0"}
    size = lambda tree: sum(float(jnp.sum(jnp.abs(leaf))) for leaf in jax.tree.leaves(tree))
    for part in ("input_0", "time2", "middle", "output_0"):
        assert size(grads["student"][part]) > 0, part
    assert size(grads["heads"]["output_0_2"]["fc2"]) > 0
    assert size(grads["student"]["output_1"]) == 0  # above the last tap


def test_student_and_teacher_start_as_the_pretrained_network():
    taken = learning()["params"]
    for name in ("student", "teacher"):
        jax.tree.map(np.testing.assert_array_equal, taken[name], pretrained())
    shared = jax.tree.map(np.shares_memory, taken["student"], taken["teacher"])
    assert not any(jax.tree.leaves(shared))  # the student changes


# ---- a fit -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sources", "parts"), [
    (("clean",), {"clean": "student"}),
    (("adm",), {"unet": "teacher"}),
    (("clean", "adm"), {"clean": "student", "unet": "teacher"}),
])  # fmt: skip
def test_a_fit_takes_the_networks_that_its_sources_read(sources, parts):
    task, network = task_of("fit", **{"features.sources": sources}), learning()
    abstract = jax.eval_shape(task.init, KEY)
    taken = adopt(abstract, task, network, task_of().meta)
    assert taken["params"].keys() == parts.keys()
    for name, part in parts.items():
        assert taken["params"][name] is network["params"][part]


def test_stages_that_lack_the_network_are_refused():
    fit = task_of("fit")
    abstract = jax.eval_shape(fit.init, KEY)
    with pytest.raises(UserError, match="of kind pretrain, whose network needs noise"):
        adopt(abstract, fit, {"params": pretrained()}, task_of("pretrain").meta)
    noisy = task_of("fit", **{"features.sources": ("adm",)})
    with pytest.raises(UserError, match="only a network for images without noise"):
        taken = {"params": {"clean": {}, "ensemble": {}}}
        adopt(jax.eval_shape(noisy.init, KEY), noisy, taken, fit.meta)
    more = task_of("fit", **{"features.blocks": (0, 1)})
    with pytest.raises(UserError, match=r'holds 1, but .* learned at the blocks 0\. .*"\(0,\)"'):
        adopt(jax.eval_shape(more.init, KEY), more, learning(), task_of().meta)
    other = task_of(**{"diffusion.rescale_timesteps": True})
    with pytest.raises(UserError, match="rescale_timesteps is True, but .* trained with False"):
        adopt(jax.eval_shape(other.init, KEY), other, {"params": {}}, task_of("pretrain").meta)


def saved(folder, kind, network):
    config = make_config(**{"stages.fit.start": str(folder), "run": ("fit",)})
    save_converted(folder, network, "", as_json(config.to_dict()), as_json(task_of(kind).meta))
    return config


def test_a_fit_reads_the_student(tmp_path):
    config = saved(tmp_path / "clean", "clean", learning())
    (plan,) = make_plan(config, tmp_path / "run").stages
    found = fit_network.open_backbone(plan)
    assert set(found["params"]) == {"clean"} and found["stats"] == {}
    student = learning()["params"]["student"]
    jax.tree.map(np.testing.assert_array_equal, found["params"]["clean"], student)
    image, valid = jnp.zeros((1, 12, 17, 3), jnp.uint8), jnp.array([[12, 17]])
    shapes = jax.eval_shape(plan.task.fit.extract, found, image, valid)
    assert [maps.shape for maps in shapes.maps] == [(1, 16, 23, 32)]  # the short side is 16


@pytest.mark.parametrize(("kind", "taps"), [
    ("clean", ("output_0",)), ("pretrain", ("output_1@5", "middle@3", "output_0@3")),
])  # fmt: skip
def test_features_of_a_stage_are_written_to_files(kind, taps, tmp_path):
    network = learning() if kind == "clean" else {"params": pretrained(), "stats": {}}
    saved(tmp_path / "stage", kind, network)
    segmenter = load(tmp_path / "stage")
    assert (taps[0] in segmenter.taps) == (kind == "clean")  # any step may be asked for
    image = np.random.default_rng(0).integers(0, 256, (12, 17, 3)).astype(np.uint8)
    save_png(tmp_path / "photos/a.png", image)
    write_features(segmenter, (str(tmp_path / "photos"),), tmp_path / "out", taps)
    with np.load(tmp_path / "out/a.npz") as found:
        named = segmenter.features(image, taps)
        expected = np.concatenate([named[tap][0] for tap in taps], -1)
        np.testing.assert_allclose(found["map_00"], expected, rtol=1e-3, atol=1e-3)
    for unknown in ("outptu_0", "output_0@30"):
        with pytest.raises(UserError, match="unknown feature|noise level"):
            source_of(segmenter, (unknown,))


# ---- what is refused before anything runs ------------------------------------------------------


@pytest.mark.parametrize(("change", "sentence", "advice"), [
    ({"stages.clean.start": "random"}, "kind pretrain", {"stages.clean.start": "pretrain"}),
    ({"stages.clean.start": "fit"}, "kind pretrain", {"stages.clean.start": "pretrain"}),
    ({"stages.fit.start": "pretrain"}, "kind clean", {"stages.fit.start": "clean"}),
    ({"stages.fit.start": "random"}, "kind clean", {"stages.fit.start": "clean"}),
    ({"stages.fit.start": "weights"}, "need noise", {"stages.fit.start": "clean"}),
    ({"clean.steps": (5, 20)}, "highest noise level", {"clean.steps": (0, 19)}),
    ({"clean.steps": (5, 4)}, "highest noise level", {"clean.steps": (0, 19)}),
    ({"clean.blocks": (1,)}, "learned at the blocks 1", {"features.blocks": (1,)}),
    ({"features.taps": ("output_1",)}, "holds output_1, but", {"features.taps": ("output_0",)}),
    ({"features.taps": ("middle",)}, "taps holds middle, but", {"features.taps": ("output_0",)}),
    ({"clean.blocks": (0, 2)}, "clean.blocks holds 2, but", {"clean.blocks": (0, 1)}),
    ({"clean.blocks": (0, 0)}, "clean.blocks holds 0 twice", {"clean.blocks": (0,)}),
    ({"features.blocks": (2,)}, "blocks 0 to 1", {"features.blocks": (1,)}),
    ({"features.sources": ("clean=a.pth",)}, "Leave the file", {"features.sources": ("clean",)}),
], ids=str)  # fmt: skip
def test_options_that_do_not_go_together_are_refused(change, sentence, advice):
    with pytest.raises(UserError, match=sentence):
        check_config(make_config(**change))
    check_config(make_config(**{**change, **advice}))
