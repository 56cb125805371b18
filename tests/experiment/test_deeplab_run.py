"""A whole run of DeepLabV3, on validation images of another data set, and files of torchvision."""

import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import diffseg_jax
from configs import tiny_deeplab
from deeplab_file import torch_arrays
from diffseg_jax import convert, main
from diffseg_jax.data.scenes import NAMES
from diffseg_jax.errors import UserError
from diffseg_jax.experiment.label_target import LABEL_TARGET
from diffseg_jax.experiment.labelled_images import OpenedData
from diffseg_jax.experiment.plan import make_plan
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.storage.networks import open_network

pytestmark = pytest.mark.slow  # whole runs, minutes together


def config_of(**changes):
    config = tiny_deeplab.get_config()
    config.update_from_flattened_dict(changes)
    return config


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five images with labels of the classes of scenes, as a folder set without a split val."""
    folder, draw = tmp_path_factory.mktemp("made"), np.random.default_rng(0)
    for part, shape, most in (("images", (32, 48, 3), 256), ("masks", (32, 48), len(NAMES))):
        (folder / part / "train").mkdir(parents=True)
        for i in range(5):
            array = draw.integers(0, most, shape, np.uint8)
            Image.fromarray(array).save(folder / part / "train" / f"{i:06d}.png")
    (folder / "classes.json").write_text(json.dumps({"names": NAMES}))
    return folder


MADE = {  # training images from a folder, validation images from scenes
    "data.source": "folder", "data.count": 0, "data.options": {},
    "data.validation.source": "scenes",
    "data.validation.options": {"images": 4, "size": (32, 48), "seed": 1},
}  # fmt: skip
FOLDED = {
    "stages.train.steps": 4, "stages.train.every.evaluate": 2, "evaluate.images": 3,
    "evaluate.step_folds": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    """The workdir of a run that no test may change."""
    workdir = tmp_path_factory.mktemp("deeplab") / "run"
    main.MODES["train"](config_of(**MADE, **FOLDED, **{"data.path": str(folder)}), workdir)
    return workdir


def test_a_run_learns_from_one_data_set_and_is_measured_on_another(run):
    found = json.loads((run / "results.json").read_text())["train"]
    assert found["images"] == 3 and found["labelled_images"] == 5
    assert 0 <= found["ddpm_seg"]["mIoU"] <= 1 and "AUROC" in found
    assert (run / "pictures" / "train_result.png").exists()


def test_parts_of_the_validation_images_choose_among_the_evaluated_steps(run):
    found = json.loads((run / "results.json").read_text())["train"]["step_folds"]
    assert found["convention"] == "ddpm_seg" and found["steps_measured"] == 2
    assert len(found["steps"]) == 3 and set(found["steps"]) <= {2, 4}
    np.testing.assert_allclose(np.mean(found["scores"]), found["mIoU"])


def test_a_part_may_choose_a_later_step_than_that_of_the_best_checkpoint(
    run, folder, tmp_path, monkeypatch
):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    monkeypatch.setattr(StageCheckpoints, "chosen", lambda self, best: 2)
    config = config_of(**MADE, **FOLDED, **{"data.path": str(folder)})
    main.MODES["train"](config, tmp_path / "run")
    found = json.loads((tmp_path / "run" / "results.json").read_text())["train"]
    assert found["step"] == 2 and found["step_folds"]["steps_measured"] == 2


def test_its_checkpoint_predicts_images_of_any_size(run):
    segmenter = diffseg_jax.load(run)
    assert segmenter.names == tuple(NAMES) and {"layer4", "pyramid"} <= set(segmenter.taps)
    image = np.random.default_rng(0).integers(0, 256, (37, 50, 3), np.uint8)
    prediction = segmenter.predict(image)
    assert prediction.labels.shape == (1, 37, 50)
    np.testing.assert_allclose(prediction.probs.sum(-1), 1, atol=1e-5)
    features = segmenter.features(image, ["layer4"])["layer4"]
    assert features.shape == (1, 5, 7, 4 * 32)


def test_a_finished_run_is_measured_on_another_split(run, folder):
    before = json.loads((run / "results.json").read_text())["train"]
    same = {
        "stages.train.steps": 4, "stages.train.every.evaluate": 2, "evaluate.quick_images": 2,
        "data.path": str(folder),
    }  # fmt: skip
    main.MODES["eval"](config_of(**MADE, **same, **{"data.val": "train"}), run)
    found = json.loads((run / "results_eval.json").read_text())["train"]
    assert found["step"] == before["step"] == 4 and found["IoU"] != before["IoU"]
    assert before["measured_on"] == {"source": "scenes", "split": "val", "held_out": True}
    assert found["measured_on"] == {"source": "scenes", "split": "train", "held_out": True}
    with pytest.raises(UserError, match="data.fraction: 1.0 -> 0.5"):
        main.MODES["eval"](config_of(**MADE, **same, **{"data.fraction": 0.5}), run)


def test_a_new_head_starts_from_its_checkpoint(run, folder, tmp_path):
    start = str(run / "checkpoints" / "train")
    changes = {"new_head": True, "stages.train.start": start, "data.path": str(folder)}
    (stage,) = make_plan(config_of(**MADE, **changes), tmp_path).stages
    taken, (network, _) = stage.loaded(), open_network(run / "checkpoints" / "train")
    np.testing.assert_array_equal(
        taken["params"]["backbone"]["stem"]["kernel"],
        network["params"]["backbone"]["stem"]["kernel"],
    )
    assert "logits" not in taken["params"] and "conv" in taken["params"]["auxiliary"]


def test_a_file_of_torchvision_is_converted(run, tmp_path, capsys):
    """The arrays of a run, saved under torchvision's names, come back."""
    network, _ = open_network(run / "checkpoints" / "train")
    file, output = tmp_path / "deeplab.npz", tmp_path / "converted"
    np.savez(file, **torch_arrays(network))
    convert.main(["--source=deeplab", f"--input={file}", f"--output={output}", "--short=32"])
    assert "an auxiliary classifier; not in the file, taken as published" in capsys.readouterr().out
    found, meta = open_network(output)
    jax.tree.map(np.testing.assert_array_equal, found, network)
    segmenter = diffseg_jax.load(output)
    assert segmenter.protocol.short == 32 and len(segmenter.names) == len(NAMES)


# ---- validation images of another data set -----------------------------------------------------


def test_validation_images_of_another_data_set_need_the_same_classes(folder, tmp_path):
    same_split = {"data.path": str(folder), "data.val": "train"}  # of the other set
    data = OpenedData(config_of(**MADE, **same_split), {}, LABEL_TARGET)
    assert data.learned(False)[1]["n"] == 5
    assert data.validation(False).held_out and data.validation(False).note == ""
    shutil.copytree(folder, tmp_path / "other")
    classes = (tmp_path / "other" / "classes.json").read_text().replace(NAMES[2], "plane")
    (tmp_path / "other" / "classes.json").write_text(classes)
    data = OpenedData(config_of(**MADE, **{"data.path": str(tmp_path / "other")}), {}, LABEL_TARGET)
    with pytest.raises(UserError, match=f"class 2 is plane in the one and {NAMES[2]} in the other"):
        data.learned(False)


def test_validation_images_of_another_data_set_need_a_split(folder):
    changes = {**MADE, "data.path": str(folder), "data.val": ""}
    with pytest.raises(UserError, match="data.validation names a data set, but data.val is empty"):
        _ = OpenedData(config_of(**changes), {}, LABEL_TARGET).validation(False)
    changes = {**MADE, "data.path": str(folder), "data.validation.source": "scnes"}
    with pytest.raises(UserError, match="--config.data.validation: unknown data set"):
        _ = OpenedData(config_of(**changes), {}, LABEL_TARGET).val
