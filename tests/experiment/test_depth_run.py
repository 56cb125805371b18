"""A run of DDP for depth: results, predictions, saved files, steps, and what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image

import diffseg_jax
from configs import tiny_ddp_depth
from diffseg_jax import info, main
from diffseg_jax.config.files import run_config
from diffseg_jax.errors import UserError
from diffseg_jax.experiment.depth_target import (
    DEPTH_TARGET,
    depth_steps_at,
    require_measured_pixels,
)
from diffseg_jax.experiment.evaluate import share_sums
from diffseg_jax.experiment.plan import check_config, make_plan
from diffseg_jax.inference.contours import CONTOURS
from diffseg_jax.inference.exported_images import prediction_function
from diffseg_jax.inference.output import Exportable
from diffseg_jax.inference.outputs import require_segmentation
from diffseg_jax.metrics.depth import DEPTH_METRICS, NO_DEPTH
from diffseg_jax.storage.networks import open_meta

SHORT = {"run": ("train",), "stages.train.steps": 2, "sweep.draws": (2,), "sweep.steps": (2,)}
SHORT |= {"stages.train.every.evaluate": 2, "sampling.steps": 2}


def configured(**changes):
    config = tiny_ddp_depth.get_config()
    config.update_from_flattened_dict({**SHORT, **changes})
    return config


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The workdir of a short run, which no test may change but by `--mode=steps`."""
    workdir = tmp_path_factory.mktemp("depth") / "run"
    main.MODES["train"](configured(), workdir)
    return workdir


@pytest.fixture(scope="module")
def segmenter(run):
    return diffseg_jax.load(run)


def test_a_run_leaves_errors_in_metres(run):
    result = json.loads((run / "results.json").read_text())["train"]
    assert all(np.isfinite(result[name]) for name in DEPTH_METRICS)
    assert result["AUSE"]["abs_rel"] is not None and result["images"] == 4
    assert 0 <= result["a1"] <= result["a2"] <= result["a3"] <= 1
    assert (run / "pictures/train_result.png").exists()
    meta = open_meta(run / "checkpoints/train")
    assert meta["task"]["task"] == "depth" and "classes" not in meta
    assert meta["config"]["task"] == "depth"


def test_predictions_are_depths(segmenter):
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    found = segmenter.predict(image)
    assert found.depth.shape == found.uncertainty.shape == (1, 32, 48)
    assert np.all((found.depth >= 0.001) & (found.depth <= 80))
    assert set(found.signals) == {"changes"}
    assert found.color().shape == found.overlay().shape == (1, 32, 48, 3)
    assert " m; mean uncertainty" in repr(found) and "depth" in repr(segmenter)
    assert found.sheet().ndim == 3
    with pytest.raises(UserError, match="no labels in a prediction of depth. It has depth, unc"):
        assert found.labels
    with pytest.raises(UserError, match="no labels in a prediction"):
        found.review()


def test_saved_depth_is_read_back_in_metres(segmenter, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    found = segmenter.predict(image)
    paths = found.save(tmp_path, extra=("depth", "changes"), format="npy")
    (name,) = found.names
    assert len(paths) == 5 and all(Path(path).exists() for path in paths)
    stored = np.asarray(Image.open(tmp_path / f"{name}_depth.png"))
    assert stored.dtype == np.uint16
    np.testing.assert_allclose(stored / 256, found.depth[0], atol=1 / 512 + 1e-6)
    np.testing.assert_array_equal(np.load(tmp_path / f"{name}_depth.npy"), found.depth[0])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["pictures"][name]["median_depth"] == pytest.approx(
        float(np.median(found.depth)), abs=1e-3
    )
    assert (tmp_path / "legend.png").exists()
    for options in (dict(contours=next(iter(CONTOURS))), dict(review=0.2), dict(reject=0.05)):
        with pytest.raises(UserError, match="is for networks that predict labels"):
            found.save(tmp_path / "others", **options)
    with pytest.raises(UserError, match="add --format=npy or npz"):
        found.save(tmp_path / "others", extra=("depth",))


def test_an_exported_model_returns_the_same_depth(segmenter):
    images = np.random.default_rng(1).integers(0, 256, (2, 32, 48, 3), np.uint8)
    seed = int(segmenter.seed_for())
    given = Exportable(segmenter.task, segmenter.output, segmenter.network, (32, 48), seed)
    found = jax.jit(prediction_function(given))(images)
    expected = segmenter.predict(images, flip=False)
    np.testing.assert_allclose(found["depth"], expected.depth, rtol=1e-4)
    assert found.keys() == {"depth", "uncertainty"}


def test_steps_are_compared_by_errors_and_time(run):
    main.MODES["steps"](configured(), run)
    (row,) = json.loads((run / "steps.json").read_text())
    assert row["draws"] == 2 and row["ms"] > 0 and np.isfinite(row["abs_rel"])
    assert (run / "pictures/steps.png").exists()
    assert DEPTH_TARGET.line(row).split()[:3] == ["train", "2", "2"]


def test_the_description_names_the_task(run, capsys):
    info.main([f"--checkpoint={run}"])
    text = capsys.readouterr().out
    assert "ddp for depth" in text and "abs_rel" in text and "diffseg_jax.predict" in text


def test_commands_about_classes_refuse_depth(segmenter):
    with pytest.raises(UserError, match="suggest is for segmentation, but .* network for depth"):
        require_segmentation(segmenter.config, "suggest", segmenter.directory)


def validated(source, other):
    """The config with training images of one source and validation images of another."""
    config = configured(**{"data.source": source})
    options = config.data.options.to_dict()
    config.data.validation = dict(source=other, path="", options=options)
    return config


def test_validation_images_may_be_of_another_set_of_depth(tmp_path):
    (stage,) = make_plan(validated("depth_scenes", "depth_scenes"), tmp_path).stages
    assert len(stage.evaluation.indices) == 4


@pytest.mark.parametrize("sources", [("scenes", "depth_scenes"), ("depth_scenes", "scenes")])
def test_training_and_validation_images_must_have_depth(sources, tmp_path):
    with pytest.raises(UserError, match="dataset scenes has labels, and no measured depth"):
        make_plan(validated(*sources), tmp_path)


def test_images_measured_late_in_a_set_are_found():
    """Of twenty images the last one alone has depth within the range."""
    depths = [np.zeros((4, 4))] * 19 + [np.full((4, 4), 2.0)]
    task = SimpleNamespace(meta={"model": {"low": 1.0, "high": 10.0}})
    source = [{"depth": depth} for depth in depths]
    evaluation = SimpleNamespace(task=task, crop="none", source=source, indices=np.arange(20))
    require_measured_pixels(evaluation)
    evaluation.indices = np.arange(19)
    with pytest.raises(UserError, match="no pixel of 8 validation images has a depth between 1"):
        require_measured_pixels(evaluation)


def test_depths_of_steps_are_enlarged_bilinearly():
    steps = np.arange(12.0).reshape(1, 3, 4)
    np.testing.assert_allclose(depth_steps_at(steps, (3, 4)), steps)
    np.testing.assert_allclose(depth_steps_at(steps, (6, 8))[0, 0, :3], [0, 0.25, 0.75])


def test_sums_of_one_process_are_themselves():
    counts = {"sums": NO_DEPTH["sums"] + 1.5, "images": NO_DEPTH["images"] + 3}
    for name, values in share_sums(counts).items():
        np.testing.assert_array_equal(values, counts[name])


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"task": "depths"}, 'unknown task "depths". Known: bev, depth, segmentation'),
        ({"depth.high": 0.0005}, "range from"),
        ({"evaluate.crop": "grag"}, "must be one of none, garg, eigen, nyu"),
    ],
)
def test_wrong_options_of_depth_are_refused(changes, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence):
        make_plan(configured(**changes), tmp_path)


def test_images_without_depth_are_refused():
    with pytest.raises(UserError, match="dataset camvid has no depth to learn. Try"):
        DEPTH_TARGET.require([{"image": np.zeros((4, 4, 3), np.uint8)}], "camvid")


def test_the_preset_of_the_scenes_is_valid():
    check_config(run_config("configs/ddp_scenes.py:depth"))
