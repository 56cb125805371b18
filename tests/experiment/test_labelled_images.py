"""Which labelled images are learned from, and which are held out where there is no split for it."""

import json

import numpy as np
import pytest
from PIL import Image

from configs.tiny_ddep import get_config
from diffseg_jax.errors import UserError
from diffseg_jax.experiment.label_target import LABEL_TARGET
from diffseg_jax.experiment.labelled_images import (
    OpenedData,
    check_folds,
    kept_folds,
    kept_numbers,
    validation_split,
)

pytestmark = pytest.mark.quick


def add(root, *names, split=""):
    """Saves images of those names and their masks below root."""
    for part in ("images", "masks"):
        (root / part / split).mkdir(parents=True, exist_ok=True)
        for name in names:
            Image.new("L" if part == "masks" else "RGB", (4, 4)).save(
                root / part / split / f"{name}.png"
            )


@pytest.fixture
def folder(tmp_path):
    """20 labelled images that lie directly in images/ and masks/."""
    root = tmp_path / "mine"
    add(root, *(f"{i:02}" for i in range(20)))
    return root


def opened(folder, kept=(), **options):
    """The data of a config of that folder, with options of config.data."""
    config = get_config()
    with config.unlocked():
        config.data.options = {"num_classes": 2}
        config.data.update(source="folder", path=str(folder), count=0, **options)
    check_folds(config)
    return OpenedData(config, dict(kept), LABEL_TARGET)


def sides(data, in_turn=False):
    """Names that are learned from, and that are measured."""
    validation = data.validation(in_turn)
    learned = {data.train.names[i] for i in data.learned(in_turn)[0]}
    return learned, {validation.source.names[i] for i in validation.indices}


def test_without_validation_images_a_fifth_is_held_out_and_recorded(folder):
    data = opened(folder)
    learned, held = sides(data)
    assert (len(learned), len(held)) == (16, 4) and not learned & held
    validation, record = data.validation(False), data.learned(False)[1]
    assert validation.held_out and validation.source is data.train
    assert validation.origin == {"source": "folder", "split": "train", "held_out": True}
    sentence = "no validation images: 4 of 20 labelled images are held out, to measure on (fold 0"
    assert validation.note.startswith(sentence)
    typed = "--config.data.val=train with --continue, or in another --workdir, learns from all"
    assert f"; at last, {typed} of them" in validation.note
    assert "at last" not in opened(folder, fold=1).validation(False).note  # refuses data.val=train
    everything = opened(folder, val="train")
    assert sides(everything)[0] == learned | held and not everything.validation(False).held_out
    assert set(record["names"]) == learned and set(record["folds"]["held_out"]) == held
    assert record["n"] == 16 and record["folds"]["count"] == 5


def test_each_fold_can_be_held_out_and_together_they_are_all_images(folder):
    parts = [sides(opened(folder, folds=3, fold=fold)) for fold in range(3)]
    held = [names for _, names in parts]
    assert sorted(map(len, held)) == [6, 7, 7] and len(set.union(*held)) == 20
    assert all(len(learned | names) == 20 for learned, names in parts)


def test_folds_in_turn_learn_from_and_measure_all(folder):
    data = opened(folder)
    learned, measured = sides(data, in_turn=True)
    assert len(learned) == 20 and learned == measured
    validation = data.validation(in_turn=True)
    assert sorted(np.bincount(list(validation.folds.values()))) == [4] * 5
    assert "20 labelled images are cut into 5 folds, each held out in turn" in validation.note
    assert opened(folder, fold=2).validation(in_turn=True).folds is None


def test_a_split_of_validation_images_is_taken_unless_folds_are_given(folder):
    add(folder, "a", "b", split="val")
    add(folder, *(f"{i:02}" for i in range(20)), split="train")
    validation = opened(folder).validation(False)
    assert (len(validation.indices), validation.held_out, validation.note) == (2, True, "")
    assert validation.origin == {"source": "folder", "split": "val", "held_out": True}
    assert "folds" not in opened(folder).learned(False)[1]
    assert len(sides(opened(folder, folds=5))[1]) == 4
    same = opened(folder, val="train").validation(False)
    assert not same.held_out and "measured on the images that it learns from" in same.note


def test_other_names_of_the_split_are_advised_and_not_ignored(folder):
    add(folder, "a", split="validation")
    add(folder, "b", split="train")
    with pytest.raises(UserError, match="data.val=train|data.val=validation"):
        opened(folder).validation(False)
    assert validation_split(opened(folder, val="validation").config) == "validation"


def test_one_image_is_learned_from_and_measured_and_that_is_said(tmp_path):
    add(tmp_path, "a")
    data = opened(tmp_path, val="")
    assert sides(data) == ({"a"}, {"a"}) == sides(data, in_turn=True)
    validation = data.validation(in_turn=True)
    assert not validation.held_out and validation.folds is None
    assert "is learned from and measured on" in validation.note
    add(tmp_path, "b")
    grown = opened(tmp_path, kept=data.learned(False)[1]["folds"]["of"])
    assert sides(grown) == ({"a"}, {"b"})


def test_images_keep_their_side_when_more_are_labelled(folder, tmp_path):
    before = opened(folder)
    learned, held = sides(before)
    (tmp_path / "labelled.json").write_text(json.dumps(before.learned(False)[1]))
    add(folder, *(f"more{i}" for i in range(12)))
    after = sides(opened(folder, kept=kept_folds(tmp_path)))
    assert learned < after[0] and held < after[1]
    assert sides(opened(folder))[1] & learned  # without the record they would change


def test_copies_of_images_keep_their_numbers_and_no_two_share_one(folder, tmp_path):
    before = opened(folder, list_path=str(tmp_path / "list"))
    (tmp_path / "list").write_text("05\n19\n")
    assert before.numbers() == {5: 5, 19: 19}
    (tmp_path / "labelled.json").write_text(json.dumps({"numbers": {"05": 5, "19": 19, "a": -1}}))
    add(folder, "00a", "03a")
    after = opened(folder)
    after.kept_numbers = kept_numbers(tmp_path)
    numbers = {after.train.names[index]: number for index, number in after.numbers().items()}
    assert (numbers["05"], numbers["19"], numbers["00"]) == (5, 19, 0)
    assert len(set(numbers.values())) == len(numbers) == 22
    (tmp_path / "labelled.json").write_text(json.dumps({"numbers": [5]}))
    assert kept_numbers(tmp_path) == {}


def test_images_of_a_run_with_a_split_are_not_held_out_later(folder, tmp_path):
    (tmp_path / "labelled.json").write_text(json.dumps({"names": ["00", "01", "02"]}))
    _, held = sides(opened(folder, kept=kept_folds(tmp_path)))
    assert not held & {"00", "01", "02"}
    (tmp_path / "labelled.json").write_text("[")
    assert kept_folds(tmp_path) == {}


@pytest.mark.parametrize(("options", "sentence"), [
    ({"folds": 1}, "Give 2 or more, or 0"),
    ({"folds": 3, "fold": 3}, "data.fold=0 to 2, or -1"),
    ({"folds": 21}, "more than the 20 labelled images. Try --config.data.folds=5"),
    ({"fold": 5}, "5 folds, counted from 0. Try --config.data.fold=4"),
])  # fmt: skip
def test_folds_that_there_are_not_are_refused(folder, options, sentence):
    with pytest.raises(UserError, match=sentence):
        sides(opened(folder, **options))


def test_a_fold_of_images_with_a_split_of_validation_images_is_refused():
    with pytest.raises(UserError, match="Give --config.data.folds=5 too"):
        scenes(fold=1).validation(False)


def scenes(**options):
    """The data of drawn scenes, which have a split val."""
    config = get_config()
    with config.unlocked():
        config.data.update(**options)
    return OpenedData(config, {}, LABEL_TARGET)


def test_any_source_holds_out_a_part_where_val_is_empty():
    learned, held = sides(scenes(val="", count=5))
    assert (len(learned), len(held)) == (4, 1)
