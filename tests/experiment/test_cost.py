"""What --mode=cost prints is that of the real state and step, without data and weights."""

import json
import re

import jax
import pytest
from jax.sharding import AbstractMesh
from ml_collections import ConfigDict

from configs import tiny_ddep, tiny_ddp, tiny_ddpm_seg, tiny_deeplab
from diffseg_jax.data.sources import known_classes
from diffseg_jax.devices.mesh import AXES, SMALLEST_SPLIT, make_mesh
from diffseg_jax.errors import UserError, scaled
from diffseg_jax.experiment import unread
from diffseg_jax.experiment.cost import show_cost
from diffseg_jax.experiment.gradient_stage import unread_stage
from diffseg_jax.experiment.stage_cost import stage_cost_of
from diffseg_jax.training import loop, resources
from diffseg_jax.training.state import split_params


def parameters(config, name):
    """Sizes of the float32 arrays that a stage trains, as it makes them."""
    task = unread.unread_task(config, name)
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
    cost = stage_cost_of(config, name, spread, compiled=False)
    sizes = parameters(config, name)
    assert cost.state["params"][1] == 4 * sum(sizes)
    assert cost.state["opt"][1] >= 2 * cost.state["params"][1]  # two moments, and a count
    split = sum(size for size in sizes if size >= SMALLEST_SPLIT)
    assert cost.state["params"][2] == 4 * (sum(sizes) - split) + split
    assert cost.gradient == cost.state["params"][2]
    assert cost.products.total > 0 and cost.kept > 0
    assert cost.checkpoint == sum(total for _, total, _ in cost.state.values())


def test_the_operations_are_those_that_training_logs(tiny_run):
    config, mesh = tiny_ddep.get_config(), make_mesh()
    stage = unread_stage(
        "finetune", config.stages.finetune, unread.unread_task(config, "finetune"), config.seed
    )
    row = unread.blank_row(config, "finetune")
    lowered = loop.jitted_step(stage, mesh).lower(*unread.inputs_of(stage, row, mesh))
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
    assert "fit: steps of 64 pixels; 1 device" in done.out and "not measured" in done.out
    found = json.loads((tmp_path / "run/cost.json").read_text())["stages"]["fit"]
    assert found["accelerators"].keys() == {"h100", "tpu_v4"} and found["feature_operations"] > 0
    assert not found["collectives"] and found["compiled"]["memory"] > found["compiled"]["between"]
    seconds = found["accelerators"]["h100"]["of"]
    assert found["accelerators"]["h100"]["seconds"] == max(seconds.values()) > 0


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--accelerators=h10"], 'unknown accelerator "h10". Known: a100,'),
        (["--config.stages.finetune.accumulate=3"], "1 device must share it evenly in 3 parts"),
        (["--config.stages.finetune.steps=0"], "learns anything: they are skipped or have no"),
        (["--config.data.source=folder"], "Try --config.data.options.num_classes="),
        (["--mode=eval", "--devices=8"], "--devices is for --mode=cost, but the mode is eval"),
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
