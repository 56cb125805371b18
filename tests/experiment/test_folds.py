"""Classifiers of all folds but one measure that one; a kill loses one fold at most."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from configs.tiny_ddpm_seg import get_config
from diffseg_jax.errors import UserError
from diffseg_jax.experiment import ensemble_stage, stages
from diffseg_jax.experiment.fold_files import describe_scores, network_of_fold, scores_line
from diffseg_jax.experiment.plan import make_plan
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.storage.networks import open_network


def config_of(**options):
    """Linear classifiers of colours, fitted to 4 scenes in 3 folds."""
    config = get_config()
    config.data.options.size = config.stages.fit.augment.crop = (16, 24)
    config.run, config.features.sources, config.stages.fit.start = ("fit",), ("colour",), "random"
    config.ensemble.update(recipe="linear", members=2, widths=())
    with config.unlocked():
        config.data.update(**{"count": 4, "folds": 3, **options})
    return config


@pytest.fixture(scope="module")
def crossed(tmp_path_factory):
    """The workdir of a run whose folds were held out in turn, which no test may change."""
    workdir = tmp_path_factory.mktemp("crossed")
    stages.train(config_of(), workdir)
    return workdir


def result_in(workdir, file="results.json"):
    return json.loads((workdir / file).read_text())["fit"]


def test_all_labelled_images_are_measured_by_folds_and_learned_from_at_last(crossed):
    result, listed = result_in(crossed), json.loads((crossed / "labelled.json").read_text())
    assert result["images"] == result["labelled_images"] == listed["n"] == 4
    assert listed["folds"]["held_out"] == [] and sorted(listed["folds"]["of"].values()) == [
        0, 0, 1, 2
    ]  # fmt: skip
    folds = result["folds"]
    assert folds["count"] == 3 and np.isclose(np.std(folds["mIoU"], ddof=1), folds["deviation"])
    assert result["calibrated"]["images"] == 4
    meta = open_network(crossed / "checkpoints" / "fit")[1]
    assert meta["labelled"]["folds"] == {"count": 3, "held_out": 0}


def test_a_fold_in_turn_is_what_holding_it_out_alone_gives(crossed, tmp_path):
    stages.train(config_of(fold=1), tmp_path)
    alone, in_turn = result_in(tmp_path), result_in(crossed)
    assert alone["mIoU"] == in_turn["folds"]["mIoU"][1] and alone["images"] == 1
    assert alone["labelled_images"] == 3 and "folds" not in alone
    listed = json.loads((tmp_path / "labelled.json").read_text())
    assert not set(listed["names"]) & set(listed["folds"]["held_out"])


def test_a_killed_run_keeps_its_folds_and_ends_in_the_same_numbers(crossed, tmp_path, capsys):
    workdir = shutil.copytree(crossed, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints")
    (workdir / "results.json").unlink()
    for fold, content in ((1, b"half a file"), (2, None)):
        file = workdir / f"folds/fit/{fold}.npz"
        file.write_bytes(content) if content else file.unlink()
    stages.train(config_of(), workdir)
    said = capsys.readouterr().out
    assert "fold 1 of 3 is fitted" in said and "fold 2 of 3: 1 image held out, 3 to learn" in said
    assert (workdir / "results.json").read_bytes() == (crossed / "results.json").read_bytes()
    files = [run / "folds/fit/2.npz" for run in (workdir, crossed)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_eval_measures_by_folds_and_a_run_that_lost_one_is_not_finished(crossed, tmp_path):
    workdir, config = shutil.copytree(crossed, tmp_path / "run"), config_of()
    stages.evaluate_only(config, workdir)
    assert result_in(workdir, "results_eval.json") == result_in(crossed)
    stage = make_plan(config, workdir).stages[0]
    with StageCheckpoints(stage.directory, read_only=True) as checkpoints:
        assert stages.is_finished(stage, checkpoints)
        (workdir / "folds/fit/0.npz").unlink()
        assert not stages.is_finished(stage, checkpoints)
    network, meta = open_network(stage.directory)
    with pytest.raises(UserError, match="The command that trained fits them again"):
        network_of_fold(stage.evaluation, 0, network, meta)


def test_classifiers_never_measure_an_image_that_they_learned_from(crossed):
    evaluation = make_plan(config_of(), crossed).stages[0].evaluation
    network, meta = open_network(crossed / "checkpoints" / "fit")
    network_of_fold(evaluation, 0, network, meta)
    turned = {index: (fold + 1) % 3 for index, fold in evaluation.folds.items()}
    with pytest.raises(UserError, match="are others than those of stage fit"):
        network_of_fold(dataclasses.replace(evaluation, folds=turned), 0, network, meta)
    with pytest.raises(UserError, match="are others than those of stage fit"):
        network_of_fold(evaluation, 0, network, {**meta, "classes": ["a"]})


def test_a_fold_that_leaves_no_labels_to_learn_from_is_refused(tmp_path):
    plan = make_plan(config_of(count=3), tmp_path).stages[0]
    fits = ensemble_stage.LabelledPixels(plan, None, None, np.arange(9), np.zeros(9, np.uint8))
    with pytest.raises(UserError, match="held out as fold 0, no labelled pixel .*data.val=train"):
        ensemble_stage.fit_folds(fits, np.zeros(9, int), plan.meta)


def test_scores_of_folds_may_be_unknown():
    found = describe_scores([0.5, None, 0.7])
    assert np.allclose([found["mean"], found["deviation"]], [0.6, 0.1 * 2**0.5])
    assert scores_line(found).endswith("50.0 - 70.0; mean 60.0, standard deviation 14.1")
    assert describe_scores([None])["deviation"] is None
