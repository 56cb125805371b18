"""A resumed stage learns from the data that it began with, or says how they have changed."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from configs.tiny_ddep import get_config
from diffseg_jax.data.sources import open_source
from diffseg_jax.errors import UserError
from diffseg_jax.experiment.changed_data import (
    require_same_classes,
    say_changed_since,
    with_data,
)
from diffseg_jax.experiment.plan import make_plan
from diffseg_jax.storage.checkpoints import StageCheckpoints

STATE = {"params": {"kernel": np.zeros(2, np.float32)}}


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """The plan of a labelled stage."""
    config = get_config()
    config.run = ("scratch",)
    return make_plan(config, tmp_path_factory.mktemp("plan")).stages[0]


@pytest.fixture
def begun(planned, tmp_path):
    """(stage, folder of its data): a stage with a checkpoint; open_again(stage) reads them anew."""
    folder = tmp_path / "set"
    for part, shape in (("images", (8, 8, 3)), ("masks", (8, 8))):
        (folder / part / "train").mkdir(parents=True)
        for i in range(3):
            pixels = np.full(shape, i % 2, np.uint8)
            Image.fromarray(pixels).save(folder / f"{part}/train/{i}.png")
    write_classes(folder, "ground", "sky")
    stage = open_again(dataclasses.replace(planned, workdir=tmp_path), folder)
    with StageCheckpoints(stage.directory) as checkpoints:
        stage = with_data(stage, checkpoints, go_on=False)
        checkpoints.save(1, STATE, stage.meta)
    return stage, folder


def write_classes(folder, *names):
    (folder / "classes.json").write_text(json.dumps({"names": names}))


def open_again(stage, folder):
    source = open_source("folder", "train", path=str(folder))
    meta = {**stage.meta, "classes": list(source.labels.names)}
    indices = np.arange(len(source))
    return dataclasses.replace(stage, source=source, indices=indices, meta=meta)


def resume(begun, go_on=False):
    stage, folder = begun
    with StageCheckpoints(stage.directory, read_only=True) as checkpoints:
        return with_data(open_again(stage, folder), checkpoints, go_on)


def recolour(folder):
    Image.new("RGB", (8, 8), "red").save(folder / "images/train/1.png")


def test_the_same_data_continue_without_a_word(begun, capsys):
    assert resume(begun).meta == begun[0].meta
    assert capsys.readouterr().out == ""


def test_a_replaced_image_is_named_and_the_flag_continues(begun, capsys):
    recolour(begun[1])
    with pytest.raises(UserError, match="(?s)since step 1.*--changed_data=continue.*changed: 1"):
        resume(begun)
    stage = resume(begun, go_on=True)
    assert "1 file changed: 1" in capsys.readouterr().out
    with StageCheckpoints(stage.directory) as checkpoints:
        checkpoints.save(2, STATE, stage.meta)
    resume(begun)  # the checkpoint is of the new data


def test_changed_validation_images_are_said_once(begun, capsys):
    stage, folder = begun
    evaluation = dataclasses.replace(stage.evaluation, source=stage.source, indices=stage.indices)
    begun = dataclasses.replace(stage, evaluation=evaluation), folder
    resume(begun)
    capsys.readouterr()
    shutil.copytree(folder, folder.with_name("val"))
    recolour(folder.with_name("val"))
    source = open_source("folder", "train", path=str(folder.with_name("val")))
    changed = dataclasses.replace(stage, evaluation=dataclasses.replace(evaluation, source=source))
    resume((changed, folder))
    said = capsys.readouterr().out
    assert "validation images of stage scratch have changed since step 1" in said
    assert said.endswith("1 file changed: 1\n")
    resume((changed, folder))
    assert capsys.readouterr().out == ""


def test_swapped_classes_are_shown_also_of_a_finished_stage(begun):
    write_classes(begun[1], "sky", "ground")
    with pytest.raises(UserError, match="(?s)--changed_data.*classes: ground, sky -> sky, ground"):
        resume(begun)
    with pytest.raises(UserError, match="trained with the classes ground, sky, but"):
        require_same_classes(open_again(*begun), begun[0].meta)


def test_another_number_of_classes_cannot_continue(begun):
    write_classes(begun[1], "ground", "sky", "tree")
    with pytest.raises(UserError, match="classes: ground, sky -> ground, sky, tree") as raised:
        resume(begun)
    assert "changed_data" not in str(raised.value)


def test_a_change_is_found_without_the_list_in_the_workdir(begun):
    recolour(begun[1])
    (begun[0].workdir / "trained_on.json").write_text("[")
    with pytest.raises(UserError, match="have changed since step 1"):
        resume(begun)


def test_a_checkpoint_of_an_earlier_version_continues_with_a_line(begun, capsys):
    stage, _ = begun
    meta = {key: value for key, value in stage.meta.items() if key != "trained_on"}
    with StageCheckpoints(stage.directory) as checkpoints:
        checkpoints.save(2, STATE, meta)
    recolour(begun[1])
    resume(begun)
    assert "did not record the data" in capsys.readouterr().out


def test_a_finished_stage_says_that_its_images_have_changed(begun, capsys):
    stage, folder = begun
    say_changed_since(open_again(stage, folder))
    assert capsys.readouterr().out == ""
    Image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(folder / "images/train/1.png")
    say_changed_since(open_again(stage, folder))
    said = capsys.readouterr().out
    assert "have changed since it finished" in said and f"{stage.workdir}_2" in said
    assert "1" in said.splitlines()[1]
