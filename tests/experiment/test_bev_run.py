"""A run of maps seen from above on a small folder of nuScenes: trained, measured, predicted."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import diffseg_jax
from conftest import called
from diffseg_jax import predict
from diffseg_jax.config.files import read_config
from diffseg_jax.data.nuscenes_maps import MAP_LAYERS
from diffseg_jax.data.rig_files import write_rig
from diffseg_jax.data.sources import open_source
from diffseg_jax.errors import UserError
from diffseg_jax.experiment.plan import check_config
from diffseg_jax.inference.batch import predict_files
from diffseg_jax.inference.bev_output import predict_rigs
from diffseg_jax.inference.feature_files import source_of
from diffseg_jax.inference.options import PredictOptions
from diffseg_jax.inference.saved import SaveOptions
from nuscenes_tree import make_tree

pytestmark = pytest.mark.slow  # whole runs, minutes together

CONFIG = "configs/ddp_nuscenes.py:tiny"


@pytest.fixture(scope="module")
def run(command, tmp_path_factory):
    """The tiny preset on a folder of nuScenes: two steps, an evaluation, and what it wrote."""
    folder = tmp_path_factory.mktemp("bev")
    tree = make_tree(folder / "nuscenes")
    done = command(folder / "run", f"--config.data.path={tree}", config=CONFIG)
    assert done.code == 0, done.err
    results = json.loads((folder / "run/results.json").read_text())
    return SimpleNamespace(folder=folder, tree=tree, workdir=folder / "run", results=results)


@pytest.fixture(scope="module")
def segmenter(run):
    return diffseg_jax.load(run.workdir)


def test_a_run_trains_measures_and_draws(run):
    result = run.results["stages"]["train"] if "stages" in run.results else run.results["train"]
    assert result["step"] == 2 and result["images"] == 2
    assert set(result["IoU"]) == set(MAP_LAYERS) and 0 <= result["mIoU"] <= 1
    assert 0 < result["constant"] < 0.5 and result["constant IoU"]["drivable_area"] > 0
    assert set(result["threshold"].values()) <= {0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65}
    sheet = np.asarray(Image.open(run.workdir / "pictures/train_result.png"))
    assert sheet.shape[0] > 200 and sheet.std() > 10


def test_predictions_are_files_and_arrays(run, segmenter):
    """Other JSON in a folder is skipped, bad rigs are listed, and finished ones stay."""
    source = open_source("nuscenes", "val", path=run.tree, output=(-50.0, 50.0, 5.0))
    rigs = [source[0], source[1]]
    for rig in rigs:
        write_rig(rig, run.folder / "rigs")
    (run.folder / "rigs/coco.json").write_text('{"annotations": []}')
    (run.folder / "rigs/bad.json").write_text('{"cameras": [{"image": "none.png"}]}')
    arguments = [
        f"--checkpoint={run.workdir}", f"--images={run.folder / 'rig*'}",
        f"--output={run.folder / 'maps'}", "--compilation_cache=", "--palette=readable",
    ]  # fmt: skip
    done = called(predict.main, arguments)
    assert done.code == 0, done.err
    assert "1 JSON file without cameras skipped" in done.out and "not read: " in done.out
    before = (run.folder / "maps" / f"{rigs[0]['name']}_probs.npy").stat().st_mtime_ns
    (run.folder / "maps" / f"{rigs[1]['name']}_map.png").unlink()
    again = called(predict.main, arguments)
    assert "1 of 3 rigs are done already" in again.out, again
    assert (run.folder / "maps" / f"{rigs[0]['name']}_probs.npy").stat().st_mtime_ns == before
    other = called(predict.main, [*arguments, "--steps=1"])
    assert other.code and "of another command" in other.err
    prediction = predict_rigs(segmenter, rigs, batch_size=1)
    assert prediction.probs.shape == (2, 6, 20, 20) and prediction.classes == tuple(MAP_LAYERS)
    assert (prediction.uncertainty >= 0).all() and (prediction.uncertainty <= 1).all()
    for row, rig in enumerate(rigs):
        saved = np.load(run.folder / "maps" / f"{rig['name']}_probs.npy")
        np.testing.assert_allclose(saved, prediction.probs[row], atol=1e-5)
        drawn = Image.open(run.folder / "maps" / f"{rig['name']}_map.png")
        assert drawn.size == (20, 20)
    summary = json.loads((run.folder / "maps/summary.json").read_text())
    assert set(summary["pictures"]) == {rig["name"] for rig in rigs}
    assert [Path(file).name for file in summary["unreadable"]] == ["bad.json"]


def with_cameras(rig, number):
    """A rig of the first cameras of another one."""
    return {key: rig[key][:number] for key in ("images", "intrinsics", "camera_to_world")} | {
        "name": f"of{number}"
    }


def test_one_program_serves_all_rigs_with_as_many_cameras(run, segmenter):
    """And maps come in the order of the rigs, whatever the batches."""
    source = open_source("nuscenes", "val", path=run.tree, output=(-50.0, 50.0, 5.0))
    whole = [source[0], source[1], source[0] | {"name": "again"}]
    rigs = [whole[0], with_cameras(whole[0], 2), *whole[1:], with_cameras(whole[1], 2)]
    together = predict_rigs(segmenter, rigs, batch_size=2)
    assert together.names[0] == whole[0]["name"] and together.names[1] == "of2"
    np.testing.assert_array_equal(together.probs[0], together.probs[3])
    program, _ = segmenter.compiled()
    count = program._cache_size()
    for each in (whole, whole[:2]):
        alone = predict_rigs(segmenter, each, batch_size=2)
        np.testing.assert_allclose(alone.probs[1], together.probs[2], atol=1e-5)
    assert program._cache_size() == count


@pytest.mark.parametrize(("rigs", "options", "sentence"), [
    ([], {}, "no rig was given"),
    ([{"name": "empty"}], {}, "rig empty has no images"),
    ([{"images": np.zeros((1, 8, 8, 3), np.uint8)}], dict(batch_size=0), "batch_size is 0"),
    ([{"images": np.zeros((1, 8, 8, 3), np.uint8), "lidar_bev": np.zeros((1, 1, 1))}], {},
     "reads cameras alone"),
])  # fmt: skip
def test_rigs_and_options_that_cannot_be_predicted_are_named(segmenter, rigs, options, sentence):
    with pytest.raises(UserError, match=sentence):
        predict_rigs(segmenter, rigs, **options)


@pytest.mark.parametrize("option", [
    "--save=probs", "--contours=coco", "--review=0.2", "--reject=0.1", "--overlay=contours",
    "--video=True", "--every=2", "--keep_masks=True", "--tile=64", "--flip=True", "--round_to=8",
])  # fmt: skip
def test_options_of_images_are_refused_for_rigs(segmenter, option, tmp_path):
    name, value = option.removeprefix("--").split("=")
    as_values = {"keep_masks": True, "video": True, "every": 2}
    of_files = {"save": dict(extra="probs"), "contours": dict(contours="coco")}
    saved = of_files.get(name, {name: 0.2 if name in ("review", "reject") else value})
    keywords = {}
    options = PredictOptions()
    if name in as_values:
        keywords[name] = as_values[name]
    elif name in PredictOptions.__annotations__:
        options = PredictOptions(**{name: value})
    else:
        keywords["saved"] = SaveOptions(**saved)
    with pytest.raises(UserError, match=f"^{name} is .*maps seen from above"):
        predict_files(segmenter, [str(tmp_path)], str(tmp_path / "out"), options, **keywords)


def test_photographs_without_calibration_are_refused(run, segmenter, tmp_path):
    photo = tmp_path / "photo.png"
    Image.fromarray(np.zeros((32, 48, 3), np.uint8)).save(photo)
    arguments = [f"--checkpoint={run.workdir}", f"--images={photo}", f"--output={tmp_path / 'out'}"]
    done = called(predict.main, arguments)
    assert done.code and "predicts maps seen from above" in done.err and "NAME.json" in done.err
    with pytest.raises(UserError, match="from the images of several cameras"):
        segmenter.predict(np.zeros((32, 48, 3), np.uint8))
    rig = {"images": np.zeros((2, 80, 120, 3), np.uint8), "name": "bare"}
    with pytest.raises(UserError, match="bare comes without intrinsics"):
        predict_rigs(segmenter, [rig])


def test_a_map_of_another_size_is_named_before_anything_is_written(command, run, tmp_path):
    flags = [f"--config.data.path={run.tree}", "--config.data.options.output=(-50.0, 50.0, 2.5)"]
    done = command(tmp_path / "run", *flags, config=CONFIG)
    assert done.code and "config.bev.output makes (6, 20, 20)" in done.err
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_network_of_rigs_has_no_features_of_images(segmenter):
    with pytest.raises(UserError, match="reads several images at once"):
        segmenter.taps  # noqa: B018
    with pytest.raises(UserError, match="has no features of single ones"):
        source_of(segmenter)


@pytest.mark.parametrize(("config", "flags", "sentence"), [
    (CONFIG, ["--mode=prepare"], "--mode=prepare needs single images"),
    (CONFIG, ["--config.stages.train.augment.crop=(16, 16)"], "both sides must be 32 or more"),
    (CONFIG, ["--config.stages.train.augment.resize=(2.0, 0.5)"], "augment.resize is (2.0, 0.5)"),
    ("configs/ddep_scenes.py", ["--config.unlabelled.source=bev_scenes"],
     "unlabelled needs single images"),
])  # fmt: skip
def test_what_cannot_be_is_said_in_a_sentence(command, tmp_path, config, flags, sentence):
    if config == CONFIG:
        flags = [f"--config.data.path={make_tree(tmp_path / 'set', counts=(1, 1))}", *flags]
    done = command(tmp_path / "run", *flags, config=config)
    assert done.code and sentence in done.err, done.err


def test_check_counts_the_cells_of_every_class(command, run, tmp_path):
    flags = ["--mode=check", f"--config.data.path={run.tree}"]
    done = command(tmp_path / "check", *flags, config=CONFIG)
    assert done.code == 0, done.err
    assert "drivable_area" in done.out and "training can start" in done.out
    assert (tmp_path / "check/check_train_changed.png").exists()


def test_a_set_without_maps_is_named(command, tmp_path):
    flags = ["--config.data.source=scenes", '--config.data.options.size=(32, 48)']
    done = command(tmp_path / "run", *flags, "--config.data.options.images=4", config=CONFIG)
    assert done.code and "scenes" in done.err


@pytest.mark.parametrize("name", [
    "ddp_bev_scenes.py", "ddp_nuscenes.py:camera", "ddp_nuscenes.py:fusion",
])  # fmt: skip
def test_the_configs_can_be_run(name):
    check_config(read_config(f"configs/{name}", []))
