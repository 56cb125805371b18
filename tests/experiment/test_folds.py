"""Classifiers of all folds but one measure that one; a kill loses one fold at most."""

import collections
import dataclasses
import json
import re
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs.tiny_ddpm_seg import get_config
from diffseg_jax.data.sources import open_source
from diffseg_jax.errors import UserError
from diffseg_jax.experiment import ensemble_stage, labelled_pixels, more_labels, stages
from diffseg_jax.experiment.fit_images import examples
from diffseg_jax.experiment.fold_files import (
    describe_scores,
    folds_in_turn,
    lacking_folds,
    network_of_fold,
    scores_line,
)
from diffseg_jax.experiment.plan import make_plan
from diffseg_jax.metrics.image_counts import mean_iou, read_image_counts
from diffseg_jax.models.taps import PixelFeatures
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.storage.networks import open_network
from diffseg_jax.storage.workdir import as_json
from diffseg_jax.training import fit_loop


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of 4 labelled scenes, which no test may change."""
    return save_scenes(tmp_path_factory.mktemp("data"), range(4))


def save_scenes(folder, numbers, *more_classes):
    """Saves scenes and their masks in images/ and masks/, and the names of the classes."""
    source = open_source("scenes", "train", images=max(numbers) + 1, size=(16, 24))
    for number in numbers:
        for part, key in (("images", "image"), ("masks", "mask")):
            (folder / part).mkdir(exist_ok=True)
            pixels = Image.fromarray(source[number][key].astype(np.uint8))
            pixels.save(folder / part / f"{number}.png")
    names = [*source.labels.names, *more_classes]
    (folder / "classes.json").write_text(json.dumps({"names": names}))
    return folder


def config_of(folder, **options):
    """Linear classifiers of colours, fitted to the scenes of a folder in 3 folds."""
    config = get_config()
    config.stages.fit.augment.crop = (16, 24)
    config.run, config.features.sources, config.stages.fit.start = ("fit",), ("colour",), "random"
    config.ensemble.update(recipe="linear", members=2, widths=())
    with config.unlocked():
        config.data.options = {}
        given = {"source": "folder", "path": str(folder), "count": 0, "folds": 3, **options}
        config.data.update(**given)
    return config


@pytest.fixture(scope="module")
def crossed(folder, tmp_path_factory):
    """The workdir of a run whose folds were held out in turn, which no test may change."""
    workdir = tmp_path_factory.mktemp("crossed")
    with pytest.MonkeyPatch.context() as patch:
        for name in TRACED:
            patch.setattr(fit_loop, name, counting(name, getattr(fit_loop, name)))
        stages.train(config_of(folder), workdir)
    return workdir


TRACED = collections.Counter({"initial_state": 0, "steps_of": 0})  # how often they were


def counting(name, function):
    def traced(*inputs):
        TRACED[name] += 1
        return function(*inputs)

    return traced


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
    kept = read_image_counts(crossed / "image_counts_fit.npz")
    assert mean_iou(kept.counts.sum(0), kept.absent, kept.unscored) == result["mIoU"]


def test_folds_compile_nothing_that_the_fit_to_all_has_not(crossed):
    assert TRACED == {"initial_state": 2, "steps_of": 1}  # once for its shapes alone


def test_folds_of_other_lengths_share_the_program_of_an_optimizer(folder, tmp_path):
    features = PixelFeatures((jnp.zeros((4, 4, 6, 3)),), (16, 24))
    found = {}
    for recipe in ("paper", "fast"):
        config = config_of(folder)
        config.ensemble.update(recipe=recipe, widths=(8, 4))
        plan, pixels = make_plan(config, tmp_path).stages[0], np.arange(1536, dtype=np.int32)
        fits = labelled_pixels.LabelledPixels(plan, None, features, pixels, pixels % 3)
        fit = plan.task.fit
        several = [fits.make(fit, steps=steps) for steps in (40, 500, 500)]
        found[recipe] = [fits.compiled(single, fit) for single in several]
    first, second, third = found["paper"]
    assert first is second is third
    first, second, third = found["fast"]  # its learning rates follow the number of steps
    assert first is not second and second is third


def test_a_fold_in_turn_is_what_holding_it_out_alone_gives(folder, crossed, tmp_path):
    stages.train(config_of(folder, fold=1), tmp_path)
    alone, in_turn = result_in(tmp_path), result_in(crossed)
    assert alone["mIoU"] == in_turn["folds"]["mIoU"][1] and alone["images"] == 1
    assert alone["labelled_images"] == 3 and "folds" not in alone
    listed = json.loads((tmp_path / "labelled.json").read_text())
    assert not set(listed["names"]) & set(listed["folds"]["held_out"])


def test_a_killed_run_keeps_its_folds(folder, crossed, tmp_path, capsys):
    workdir = shutil.copytree(crossed, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints")
    (workdir / "results.json").unlink()
    for fold, content in ((1, b"half a file"), (2, None)):
        file = workdir / f"folds/fit/{fold}.npz"
        file.write_bytes(content) if content else file.unlink()
    stages.train(config_of(folder), workdir)
    said = capsys.readouterr().out
    assert "fold 0 of 3 is fitted" in said and "fold 1 of 3: 1 image held out, 3 to learn" in said
    assert (workdir / "results.json").read_bytes() == (crossed / "results.json").read_bytes()
    files = [run / "folds/fit/2.npz" for run in (workdir, crossed)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_eval_measures_by_folds_and_a_run_that_lost_one_is_not_finished(folder, crossed, tmp_path):
    workdir, config = shutil.copytree(crossed, tmp_path / "run"), config_of(folder)
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


def test_folds_without_a_measured_image_are_fitted_so_that_eval_can_measure_all(folder, crossed):
    config = config_of(folder)
    config.evaluate.images = 1
    evaluation = make_plan(config, crossed).stages[0].evaluation
    assert len(evaluation.indices) == 1 and folds_in_turn(evaluation) == [0, 1, 2]
    assert lacking_folds(evaluation, {"config": {"data": {}}}) == [0, 1, 2]


def test_a_workdir_may_be_called_as_that_of_a_continued_run(folder, crossed, tmp_path):
    workdir = shutil.copytree(crossed, tmp_path / "continued")
    of = make_plan(config_of(folder), crossed).stages[0].subset["folds"]["of"]
    listed = json.loads((workdir / "labelled.json").read_text())
    listed["folds"]["of"] = {name: (fold + 1) % 3 for name, fold in of.items()}
    (workdir / "labelled.json").write_text(json.dumps(listed))
    kept = make_plan(config_of(folder), workdir).stages[0].subset["folds"]["of"]
    assert kept == listed["folds"]["of"] != of


def test_copies_of_images_stay_as_they_were_when_others_are_labelled(folder, crossed, tmp_path):
    workdir, more = (shutil.copytree(each, tmp_path / each.name) for each in (crossed, folder))

    def copies(path, workdir):
        config = config_of(path)
        with config.unlocked():
            config.stages.fit.augment.update(variants=1, scale=(0.5, 1.5), photometric=True)
        plan = make_plan(config, workdir).stages[0]
        shown = examples(plan, [(index, 1) for index in plan.indices])
        return {each["name"]: each["image"].tobytes() for each in shown}, plan

    before, plan = copies(folder, tmp_path / "first")
    assert plan.numbers == {} and len(plan.subset["numbers"]) == len(plan.indices)
    (workdir / "labelled.json").write_text(json.dumps(plan.subset))
    for part in ("images", "masks"):  # sorts behind 0
        shutil.copy(more / part / "3.png", more / part / "00.png")
    after = copies(more, workdir)[0]
    assert before.items() <= after.items() and after["00"] != after["3"]
    assert len(before.items() & copies(more, tmp_path / "other")[0].items()) == 1


def test_classifiers_never_measure_an_image_that_they_learned_from(folder, crossed):
    evaluation = make_plan(config_of(folder), crossed).stages[0].evaluation
    network, meta = open_network(crossed / "checkpoints" / "fit")
    network_of_fold(evaluation, 0, network, meta)
    turned = {index: (fold + 1) % 3 for index, fold in evaluation.folds.items()}
    with pytest.raises(UserError, match="are others than those of stage fit"):
        network_of_fold(dataclasses.replace(evaluation, folds=turned), 0, network, meta)
    with pytest.raises(UserError, match="are others than those of stage fit"):
        network_of_fold(evaluation, 0, network, {**meta, "classes": ["a"]})


def test_a_fold_that_leaves_no_labels_to_learn_from_is_refused(folder, tmp_path):
    plan = make_plan(config_of(folder, count=3), tmp_path).stages[0]
    fits = labelled_pixels.LabelledPixels(plan, None, None, np.arange(9), np.zeros(9, np.uint8))
    with pytest.raises(UserError, match="held out as fold 0, no labelled pixel .*data.val=train"):
        ensemble_stage.fit_folds(fits, np.zeros(9, int), plan.meta)


def test_scores_of_folds_may_be_unknown():
    found = describe_scores([0.5, None, 0.7])
    assert np.allclose([found["mean"], found["deviation"]], [0.6, 0.1 * 2**0.5])
    assert scores_line(found).endswith(
        "50.0 - 70.0; mean 60.0, standard deviation 14.1 "
        "(the result counts the pixels of all folds together)"
    )
    assert describe_scores([None])["deviation"] is None


def test_more_labels_and_a_new_class_are_learned_in_place_of_the_old_run(
    folder, crossed, tmp_path, capsys
):  # fmt: skip
    more = save_scenes(shutil.copytree(folder, tmp_path / "more"), (4, 5), "boat")
    config, workdir = config_of(more), shutil.copytree(crossed, tmp_path / "run")
    (workdir / "config.json").write_text(json.dumps(as_json(config.to_dict())))
    more_labels.continue_run(config, workdir)
    said = capsys.readouterr().out
    assert "2 files added: 4, 5" in said and "sky, person, car, boat" in said
    assert "fit: fits its classifiers again, on 6 labelled images" in said
    assert re.search(r"fit: mIoU .* -> .* \(of other classes, so that", said)
    assert result_in(workdir)["images"] == 6
    assert result_in(workdir / "before_1") == result_in(crossed)
    before, now = (json.loads((d / "labelled.json").read_text()) for d in (crossed, workdir))
    assert before["folds"]["of"].items() < now["folds"]["of"].items()
    assert open_network(workdir / "checkpoints" / "fit")[1]["classes"][-1] == "boat"
    assert not (workdir / "continued").exists()
    more_labels.continue_run(config, workdir)
    said = capsys.readouterr().out
    assert "are those that the run has learned from" in said and "fit: is finished" in said
