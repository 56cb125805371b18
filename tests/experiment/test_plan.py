"""A config becomes a plan once: what is in it, what it refuses, and what it writes."""

import ast
import dataclasses
import functools
import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from configs import tiny_ddep, tiny_ddp, tiny_ddpm_seg
from configs.tiny_ddep import get_config
from diffseg_jax.errors import UserError
from diffseg_jax.experiment import stages
from diffseg_jax.experiment.crops import check_crops
from diffseg_jax.experiment.gradient_stage import evaluations_of
from diffseg_jax.experiment.plan import (
    augmentation,
    check_config,
    labelled_stages,
    make_plan,
    plan_evaluations,
)
from diffseg_jax.storage.workdir import claim_workdir
from diffseg_jax.systems.methods import SYSTEMS

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.quick


@pytest.fixture
def config():
    return get_config()


def test_a_plan_writes_nothing(config, tmp_path):
    make_plan(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_stages_follow_the_run_and_cannot_be_changed(config, tmp_path):
    plan = make_plan(config, tmp_path)
    assert tuple(stage.name for stage in plan.stages) == plan.order == tuple(config.run)
    for stage in plan.stages:
        labelled = stage.name in labelled_stages(config)
        assert (stage.evaluation is not None) == labelled
        assert ("image_size" in stage.meta) == labelled
        with pytest.raises(dataclasses.FrozenInstanceError):
            stage.start = "random"
        with pytest.raises(AttributeError):
            stage.options.steps = 0
    assert stage.meta["image_size"] == list(stage.source[0]["image"].shape[:2])


@pytest.mark.parametrize(("method", "name"), [(tiny_ddep, "finetune"), (tiny_ddpm_seg, "fit")])
def test_a_stage_may_turn_its_images_and_take_their_colours(method, name):
    config = method.get_config()
    image, mask = np.full((32, 48, 3), (9, 90, 200), np.uint8), np.zeros((32, 48), np.int32)
    rng = np.random.default_rng
    with config.unlocked():
        augment = config.stages[name].augment
        augment.update(limit=(0, 0), short=0, scale=(1.0, 1.0), crop=(32, 48), photometric=False)
        before = augmentation(augment, labelled=True)(image, mask, rng(0))
        augment.update(rotate=30.0, flip_vertical=True, grey=1.0, blur=1.0)
    check_config(config)
    after = augmentation(augment, labelled=True)(image, mask, rng(0))
    assert not (before["mask"] == 255).any() and (after["mask"] == 255).any()
    assert np.ptp(before["image"], -1).all() and not np.ptp(after["image"], -1).any()
    augment.rotate = 181.0
    with pytest.raises(UserError, match=f"{name}.augment.rotate is 181.0, but it must be a number"):
        check_config(config)


def test_stages_without_steps_are_skipped(config, tmp_path):
    config.stages.scratch.steps = 0
    plan = make_plan(config, tmp_path)
    assert plan.skipped == ("scratch",) and "scratch" in plan.order
    assert "scratch" not in [stage.name for stage in plan.stages]


def test_a_system_is_asked_once_per_stage(config, tmp_path, monkeypatch):
    asked = []
    system = SYSTEMS["ddep"]

    def start_of(config, kind, start):
        asked.append(kind)
        return system.start_of(config, kind, start)

    monkeypatch.setitem(SYSTEMS, "ddep", dataclasses.replace(system, start_of=start_of))
    make_plan(config, tmp_path)
    assert asked == [config.stages[name].kind for name in config.run]


def test_foreign_arrays_are_read_once_and_freed_by_the_stage_that_takes_them(
    config, tmp_path, monkeypatch
):
    read = []

    def load_weights(config, abstract, task):
        read.append(task)
        return {"params": {"encoder": np.zeros(1)}}

    system = dataclasses.replace(
        SYSTEMS["ddep"], load_weights=load_weights, start_of=lambda *_: "weights"
    )
    monkeypatch.setitem(SYSTEMS, "ddep", system)
    config.run = ("pretrain",)
    (stage,) = make_plan(config, tmp_path).stages
    assert len(read) == 1
    stage.loaded()
    assert len(read) == 1
    stage.loaded()  # of a stage whose checkpoints turned out to be damaged
    assert len(read) == 2


def test_a_start_that_is_neither_run_before_nor_saved_is_refused(config, tmp_path):
    config.run = ("finetune",)
    with pytest.raises(UserError, match="start is pretrain, which is not run before it") as error:
        make_plan(config, tmp_path)
    assert "--config.run=\"('pretrain', 'finetune')\", or" in str(error.value)


def test_evaluating_another_config_shows_the_differing_lines_before_data_are_opened(
    config, tmp_path
):
    claim_workdir(config, tmp_path)
    (tmp_path / "checkpoints/finetune/8").mkdir(parents=True)
    config.seed += 1
    config.data.path, config.data.source = "nowhere", "folder"
    with pytest.raises(UserError, match="seed: "):
        stages.evaluate_only(config, tmp_path)


def test_the_log_names_both_evaluations_and_the_one_by_which_the_best_is_chosen(config, tmp_path):
    config.evaluate.update(checkpoint="best", scales=(0.5, 1.0), flip=True, images=8)
    stage = make_plan(config, tmp_path).stages[1]
    every, quick = stage.options.every.evaluate, len(stage.evaluation.quick_indices)
    assert evaluations_of(stage) == (
        f"evaluated quickly every {every} steps on {quick} images whole; finally the best "
        "checkpoint by these on 8 images whole at scales 0.5, 1 and mirrored"
    )


def test_the_log_names_no_interval_that_is_longer_than_the_training(config, tmp_path):
    stage = make_plan(config, tmp_path).stages[1]
    config.stages[stage.name].every.evaluate = stage.options.steps + 1
    said = evaluations_of(make_plan(config, tmp_path).stages[1])
    assert said.startswith("evaluated quickly at the end on ")


def followed(config, advice):
    """The config with the flags that a sentence names, as the command line reads them."""
    for option, value in re.findall(r"--config\.([\w.]+)=(\"[^\"]*\"|\w+)", advice):
        path, _, key = option.rpartition(".")
        functools.reduce(lambda part, name: part[name], path.split("."), config)[key] = (
            ast.literal_eval(value.strip('"'))
        )
    return config


LIMITS = (0, 0), (64, 32)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (3, 4000), (4000, 3), (35, 4000), (100, 100)])
@pytest.mark.parametrize("method, names, crop", [
    (tiny_ddp, ("train", "align"), (512, 1024)), (tiny_ddp, ("plain",), (32, 48)),
    (tiny_ddp, ("train",), (5, 7)), (tiny_ddep, ("finetune", "scratch"), (96, 128)),
    (tiny_ddpm_seg, ("pretrain",), (48, 48)), (tiny_ddpm_seg, ("pretrain",), (255, 255)),
])  # fmt: skip
def test_advice_about_crops_and_small_images_works(method, names, crop, size, limit):
    """Whatever is refused, each way out that the sentence names ends in a crop that is taken."""

    def refusal(config):
        try:
            SYSTEMS[config.system].check(config)
            check_crops(size, {each: config.stages[each] for each in names}, padding=1)
            check_crops(size, {names[-1]: config.stages[names[-1]]}, padding=1)
            if size == (5, 7):  # the others would take seconds
                change = augmentation(config.stages[names[0]].augment, labelled=False)
                change(np.zeros((*size, 3), np.uint8), None, np.random.default_rng(0))
        except UserError as error:
            return str(error)

    def config_with(advice=""):
        config = method.get_config()
        for name in names:
            config.stages[name].augment.update(crop=crop, limit=limit)
        if method is tiny_ddpm_seg:
            config.unlabelled.options.square = 0
        return followed(config, advice)

    if sentence := refusal(config_with()):
        for advice in sentence.partition("Try ")[2].split(", or "):
            assert not refusal(config_with(advice)), advice


def test_evaluations_are_those_of_the_stages_that_are_named(config, tmp_path):
    (evaluation,) = plan_evaluations(config, tmp_path, ["scratch"])
    assert evaluation.stage == "scratch"
    assert len(evaluation.quick_indices) <= len(evaluation.indices)
    assert not evaluation.quick_protocol.flip and len(evaluation.quick_protocol.scales) == 1


def test_folds_that_choose_a_step_are_checked_only_where_steps_are_trained(config, tmp_path):
    config.evaluate.step_folds = 1
    assert plan_evaluations(config, tmp_path, ["scratch"])
    with pytest.raises(UserError, match="evaluate.step_folds is 1"):
        make_plan(config, tmp_path)


def test_code_for_all_methods_reads_no_option_of_one():
    own = [
        {*system.options, *itertools.chain(*system.stage_options.values())}
        for system in SYSTEMS.values()
    ]
    names = "|".join(set.union(*own) - set.intersection(*own))
    for room in ("experiment", "inference", "training", "storage"):
        for file in (ROOT / "diffseg_jax" / room).glob("*.py"):
            found = re.findall(rf"(?<!-)config\.({names})\b", file.read_text())
            assert not found, f"{file} reads {found}"
