"""What --mode=cost prints is that of the real state and step, without data and weights."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from configs import tiny_ddep, tiny_ddp, tiny_ddpm_seg, tiny_deeplab
from diffseg_jax.data.sources import known_classes
from diffseg_jax.devices.accelerators import ACCELERATORS
from diffseg_jax.devices.collectives import Collective
from diffseg_jax.devices.mesh import AXES, SMALLEST_SPLIT, make_mesh
from diffseg_jax.errors import UserError, scaled
from diffseg_jax.experiment import blank, cost
from diffseg_jax.experiment.cost import short_time, show_cost, text_of, values_of
from diffseg_jax.experiment.gradient_stage import blank_stage
from diffseg_jax.experiment.stage_cost import FitSize, Program, StageCost, stage_cost_of
from diffseg_jax.training import loop, resources
from diffseg_jax.training.operations import Products
from diffseg_jax.training.state import split_params


def parameters(config, name):
    """Sizes of the float32 arrays that a stage trains, as it makes them."""
    task = blank.blank_task(config, name)
    network = jax.eval_shape(task.init, jax.random.key(0))
    trained, _ = split_params(network["params"], task.trainable)
    return [leaf.size for leaf in jax.tree.leaves(trained)]


@pytest.mark.parametrize(
    ("tiny", "name"),
    [(tiny_ddep, "pretrain"), (tiny_ddp, "plain"), (tiny_deeplab, "train"),
     (tiny_ddpm_seg, "pretrain"), pytest.param(tiny_ddp, "train", marks=pytest.mark.slow)],
    ids=["ddep", "ddp_plain", "deeplab", "ddpm_seg", "ddp"],
)  # fmt: skip
def test_a_stage_takes_its_parameters_and_a_device_its_share(tiny, name):
    config = tiny.get_config()
    spread = AbstractMesh((1, 4), AXES)
    found = stage_cost_of(config, name, spread, compiled=False)
    sizes = parameters(config, name)
    assert found.state["params"][1] == 4 * sum(sizes)
    assert found.state["opt"][1] >= 2 * found.state["params"][1]  # two moments, and a count
    split = sum(size for size in sizes if size >= SMALLEST_SPLIT)
    assert found.state["params"][2] == 4 * (sum(sizes) - split) + split
    assert found.gradient == found.state["params"][2]
    assert found.products.total > 0 and found.activations > 0
    shown = values_of(found, ["a100"])
    assert shown["collectives"] is None and shown["accelerators"]["a100"]["parts"]["links"] is None
    assert re.search(r"a100, .* unknown +\d+%", text_of(found, ["a100"]))


TOY = StageCost(  # on an A100: 2 s of products, 0.5 s of memory, 1 s of links, 4 s of all accesses
    name="toy", mesh=AbstractMesh((4, 1), AXES), count=16,
    state={"params": (100, 400, 100), "opt": (200, 800, 200)}, stepped=300, gradient=100,
    activations=40, products=Products({"float32": 156e12, "bfloat16": 312e12}),
    moved=0.5 * 2039e9,
    program=Program(
        [Collective("all-reduce", 4, 3, 200e9)], accessed=4 * 2039e9, memory=500, between=300,
        platform_flop=1.0, seconds=2.0,
    ),
)  # fmt: skip


def test_a_step_takes_the_longest_of_its_parts():
    found = TOY.on("a100")
    assert found["parts"] == pytest.approx({"products": 2.0, "memory": 0.5, "links": 1.0})
    assert (found["seconds"], found["limited_by"], found["utilisation"]) == (2.0, "products", 1.0)
    assert found["images_per_second"] == 8.0 and TOY.checkpoint == 1200
    assert found["seconds_with_all_accesses"] == pytest.approx(4.0)
    assert found["utilisation_with_all_accesses"] == pytest.approx(0.5)
    slower = dataclasses.replace(TOY, moved=3 * 2039e9).on("a100")
    assert slower["limited_by"] == "memory" and slower["utilisation"] == pytest.approx(2 / 3)
    text = text_of(TOY, ["a100"])
    assert re.search(r"a100, 80 GB +2 s +4 s +100% +products +8  not excluded", text)
    assert "all-reduce among 4 devices: 200 GB in a step, 3 times" in text


@pytest.mark.parametrize(
    ("activations", "memory", "said"),
    [
        (10e9, 20e9, "not excluded"),
        (10e9, 90e9, "doubtful"),
        (81e9, 20e9, "too little"),
    ],
)
def test_memory_is_too_little_or_not_excluded(activations, memory, said):
    program = dataclasses.replace(TOY.program, memory=memory)
    stage = dataclasses.replace(TOY, activations=activations, program=program)
    assert stage.needed == activations + 300 + 100
    assert stage.on("a100")["memory"] == said
    assert text_of(stage, ["a100"]).endswith(f"8  {said}")


def test_published_classifiers_learn_nothing():
    config = tiny_ddpm_seg.get_config()
    config.ensemble.classifiers = "published"
    assert stage_cost_of(config, "fit", AbstractMesh((1, 1), AXES), compiled=False) is None


def test_a_fit_takes_its_classifiers_and_features_but_not_the_frozen_network():
    config = tiny_ddpm_seg.get_config()
    mesh = AbstractMesh((1, 1), AXES)
    found = stage_cost_of(config, "fit", mesh, compiled=False)
    fit, network, image = blank.fit_of(config, "fit", blank.blank_task(config, "fit"))
    member = jax.eval_shape(fit.init, jax.random.key(0))
    kernels = [leaf.shape for leaf in jax.tree.leaves(member["params"]) if leaf.ndim == 2]
    first, *others = sorted((a * b for a, b in kernels), reverse=True)
    assert kernels and found.fit.members == fit.members == 3
    trained = 3 * sum(leaf.nbytes for leaf in map(zeros, jax.tree.leaves(member["params"])))
    statistics = 3 * sum(leaf.nbytes for leaf in map(zeros, jax.tree.leaves(member["stats"])))
    assert found.state["params"][1] == found.gradient == trained
    assert found.stepped == trained + found.state["opt"][1] + statistics
    assert found.needed == found.stepped + found.gradient + found.fit.feature_bytes
    frozen = sum(leaf.nbytes for leaf in map(zeros, jax.tree.leaves(network["params"])))
    assert found.checkpoint >= found.stepped + frozen and found.fit.images == 3
    products = 2 * fit.batch_size * (2 * first + 3 * sum(others))  # none back to the features
    assert found.products.total == 3 * products
    assert "images_per_second" not in found.on("a100")


def zeros(shape):
    return np.zeros(shape.shape, shape.dtype)


@pytest.mark.parametrize(
    ("own_order", "variants", "assumed", "said"),
    [
        (True, 1, True, "16 pixels for each of 3 classifiers; 40 images, assumed: try --"),
        (False, 4, False, "shared by all of 3 classifiers; 40 images in 4 variants; 4 devices"),
    ],
)
def test_a_fit_says_what_it_learns_from(own_order, variants, assumed, said):
    fit = FitSize(3, own_order, 40, variants, assumed, feature_bytes=5000, feature_operations=2e9)
    text = text_of(dataclasses.replace(TOY, fit=fit), ["a100"])
    assert said in text and "2 GFLOP for each image" in text and "images/s" not in text


def test_times_have_their_unit():
    seconds = 2e-9, 3.11e-7, 0.00141, 0.0214, 0.9997, 2.5, 59.98, 200, 9000, 108_000
    short = "2 ns", "311 ns", "1.41 ms", "21.4 ms", "1 s", "2.5 s"
    long = "1 min", "3.33 min", "2.5 h", "1.25 d"
    assert (*map(short_time, seconds),) == (*short, *long)


@pytest.mark.parametrize("memory", [20e9, 200e9])
@pytest.mark.parametrize("seconds", [3.11e-7, 0.457, 92.3])
def test_a_row_of_the_table_has_80_columns_and_gaps_between_its_texts(seconds, memory):
    moved, accessed = seconds * 1e12, 99.9 * 60 * 4800e9
    program = dataclasses.replace(TOY.program, memory=memory, accessed=accessed)
    products = Products({"bfloat16": seconds * 989e12})
    stage = dataclasses.replace(TOY, products=products, moved=moved, program=program, count=256)
    table = text_of(stage, [*ACCELERATORS]).split("\n")[-len(ACCELERATORS) - 1 :]
    assert max(map(len, table)) <= 80
    number, time = r"[\d.,]+( M)?", r"[\d.]+ (µs|ms|s|min|h)"
    row = rf"  \w+, \d+ GB +{time} +{time} +\d+% +\w+ +{number}  (not excluded|doubtful)"
    assert all(re.fullmatch(row, line) for line in table[1:]), table


def test_the_workdir_is_made_before_minutes_of_compiling(tmp_path, monkeypatch):
    def compiles(*_):
        raise UserError("compiles")

    monkeypatch.setattr(cost, "stage_cost_of", compiles)
    with pytest.raises(UserError, match="compiles"):
        show_cost(tiny_ddep.get_config(), tmp_path / "run")
    assert (tmp_path / "run").is_dir()


def test_the_operations_are_those_that_training_logs(tiny_run):
    config, mesh = tiny_ddep.get_config(), make_mesh()
    stage = blank_stage(
        "finetune", config.stages.finetune, blank.blank_task(config, "finetune"), config.seed
    )
    row = blank.blank_row(config, "finetune")
    lowered = loop.jitted_step(stage, mesh).lower(*blank.inputs_of(stage, row, mesh))
    logged = scaled(resources.operations_of(lowered, mesh.size), "FLOP")
    assert re.search(rf"finetune: compiled .*; {logged} per device and step", tiny_run.out)


@pytest.fixture(scope="module")
def on_four(command):
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("XLA_FLAGS")  # its collectives are counted as users compile
        done = command.script("tests/cost_on_four.py")
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_devices_with_the_same_parameters_sum_their_gradients(on_four):
    group, sent = on_four["data"]["collectives"]["all-reduce"]
    gradients = 2 * 256 * 256 * 4
    assert group == 4 and gradients <= sent <= gradients + 64  # and some numbers to log
    assert on_four["data"]["collectives"].keys() == {"all-reduce"}


def test_the_positions_of_a_decoder_are_summed_over_devices_for_each_cell(on_four):
    """Beside its gradients: they are contracted with the positions only afterwards."""
    found = on_four["decoder"]
    _, sent = found["collectives"]["all-reduce"]
    expected = found["gradients"] + found["constants"]
    assert expected <= sent <= expected + 64 and found["constants"] > 1000


def test_devices_that_share_parameters_gather_them(on_four):
    collectives, gradients = on_four["fsdp"]["collectives"], 2 * 256 * 256 * 4
    assert collectives["all-gather"][1] >= gradients
    assert on_four["fsdp"]["between"] < on_four["data"]["between"] / 3
    assert on_four["rows"] == 2


def test_a_batch_that_devices_cannot_share_is_refused(on_four):
    assert on_four["uneven"].startswith(
        "stages.train.batch_size is 6, but 4 devices must share it evenly. Try"
    )
    assert on_four["mesh"].startswith("mesh.data x mesh.fsdp is 3 x 1, but it must be the number")


def test_the_command_needs_no_data_and_no_workdir_but_writes_into_one(command, tmp_path):
    flags = ["--mode=cost", "--accelerators=h100,tpu_v4", "--config.run=('fit',)"]
    flags += ["--config.data.source=camvid", "--config.data.path=nowhere"]
    done = command(tmp_path / "run", *flags, config="tests/configs/tiny_ddpm_seg.py")
    assert done.code == 0, done.err
    said = "fit: steps of 64 pixels for each of 3 classifiers; 3 images; 1 device"
    assert said in done.out and "not measured" in done.out and "input pipeline" not in done.out
    found = json.loads((tmp_path / "run/cost.json").read_text())["stages"]["fit"]
    assert found["accelerators"].keys() == {"h100", "tpu_v4"} and found["fit"]["images"] == 3
    assert not found["collectives"] and found["compiled"]["memory"] > found["compiled"]["between"]
    seconds = found["accelerators"]["h100"]["parts"]
    assert found["accelerators"]["h100"]["seconds"] == max(seconds.values()) > 0


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--accelerators=h10"], 'unknown accelerator "h10". Known: a100,'),
        (["--config.stages.finetune.accumulate=3"], "1 device must share it evenly in 3 parts"),
        (["--config.stages.finetune.steps=0"], "learns anything: they are skipped or have no"),
        (["--config.data.source=folder"], "Try --config.data.options.num_classes="),
        (["--mode=eval", "--devices=8"], "--devices is for --mode=cost, but the mode is eval"),
        (["--mode=eval", "--traced"], "--traced is for --mode=cost, but the mode is eval"),
        (["--memory_fraction=0"], "--memory_fraction does nothing with --mode=cost"),
        (["--coordinator=none"], "--coordinator does nothing with --mode=cost"),
        (["--processes=2"], "--processes does nothing with --mode=cost"),
        (["--track=tensorboard"], "--track does nothing with --mode=cost"),
    ],
)  # fmt: skip
def test_mistakes_are_explained(command, flags, sentence):
    done = command(None, "--mode=cost", "--config.run=('finetune',)", *flags)
    assert done.code == 2 and sentence in done.err


def test_generated_sets_have_the_classes_of_the_published_one():
    assert known_classes("generated", {"classes": "ffhq_34"}) == 34
    assert known_classes("generated", {"classes": "", "num_classes": 5}) == 5


def test_devices_cannot_change_once_jax_is_used():
    with pytest.raises(UserError, match="Give the command in a process of its own"):
        show_cost(ConfigDict(), devices=jax.device_count() + 1)
