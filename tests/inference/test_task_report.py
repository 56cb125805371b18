"""What is said of the networks of each task: values, and cards and descriptions made of them."""

import pytest
import yaml

from diffseg_jax.inference.description_text import sections
from diffseg_jax.inference.model_card import model_card
from diffseg_jax.inference.outputs import OUTPUTS, REPORTS, predicts
from diffseg_jax.systems.ddp_config import DDP, TASKS

pytestmark = pytest.mark.quick

NUMBERS = {
    "segmentation": {
        "mIoU": 0.5, "mAcc": 0.6, "aAcc": 0.7, "IoU": {"road": 0.5}, "Acc": {"road": 0.6},
    },
    "depth": {**dict.fromkeys(
        ("abs_rel", "sq_rel", "rmse", "rmse_log", "log_10", "silog", "a1", "a2", "a3"), 0.25
    )},
    "bev": {
        "mIoU": 0.5, "IoU": {"road": 0.5}, "constant IoU": {"road": 0.2}, "constant": 0.2,
    },
}  # fmt: skip
VIEW = {"view": "whole", "scales": [1.0], "flip": False, "limit": [0, 0], "short": 0}


def described(task, results=None, classes=None):
    """A description of a network of DDP, as of `describe_checkpoint`."""
    data = {"source": "set", "path": "", "options": {}, "split": "train"}
    names = ["road"] if REPORTS[task].classes else []
    return {
        "system": "ddp", "task": task, "directory": "runs/a/checkpoints/train", "bytes": 1,
        "version": "1", "stage": "train", "stages": [], "parameters": [], "averages": [],
        "classes": names if classes is None else classes, "palette": [], "taps": [],
        "normalisation": dict.fromkeys(("normalisation", "mean", "std")),
        "trained_on": {**data, "labelled": {"n": 3, "of": 4, "seed": 0, "sha256": ""}},
        "evaluation": {**VIEW, "split": "val"}, "results": results,
        "use": {"command": "predict", "python": ["import diffseg_jax", "load", "predict"]},
    }  # fmt: skip


def results_of(task):
    return {"step": 8, "images": 4, **NUMBERS[task]}


def test_every_task_has_all_its_values():
    assert OUTPUTS.keys() == REPORTS.keys() == TASKS.keys() == DDP.networks.keys()


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("segmentation", ("A decoder that denoises a label map", "tells 1 classes apart",
                          "| road | 50.0 | 60.0 |", "3 labelled images")),
        ("depth", ("A decoder that denoises a depth map", "abs_rel 0.2500", "whole images of split",
                   "3 images with measured depth")),
        ("bev", ("A decoder that denoises a map seen from above", "any number of its 1 classes",
                 "| road | 50.0 | 20.0 |", "4 rigs of cameras, split val", "3 rigs of cameras")),
    ],
)  # fmt: skip
def test_a_card_speaks_of_its_task(task, words):
    card = model_card(described(task, results_of(task)))
    assert not [each for each in words if each not in card]
    others = [each for each in TASKS if each != task]
    assert not [each for each in others if TASKS[each].described[2:] in card]


@pytest.mark.parametrize("task", sorted(TASKS))
def test_the_header_of_a_card_has_the_tag_and_metrics_of_the_task(task):
    header = yaml.safe_load(model_card(described(task, results_of(task))).split("---\n")[1])
    assert REPORTS[task].tag in header["tags"] and header["pipeline_tag"] == REPORTS[task].pipeline
    (entry,) = header["model-index"][0]["results"]
    assert {each["value"] for each in entry["metrics"]} <= {0.25, 0.5, 0.7}
    assert "model-index" not in yaml.safe_load(model_card(described(task)).split("---\n")[1])


@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_description_names_what_was_learned_from_and_measured(task):
    lines = dict(sections(described(task, results_of(task)), False))
    assert lines["Trained on"] == [f"set, split train: 3 of 4 {REPORTS[task].examples}"]
    assert any("on 4" in line for line in lines["Results"]) and lines["Evaluated on"]


@pytest.mark.parametrize("task", ["segmentation", "depth"])
def test_a_card_says_that_the_network_learned_from_the_measured_images(task):
    for held_out, count in ((True, 0), (False, 1)):
        results = {**results_of(task), "measured_on": {"held_out": held_out}}
        said = "easured on 4 images, from which it learned, whole images"
        assert model_card(described(task, results)).count(said) == count


def test_a_network_without_labels_predicts_nothing():
    """But depth is predicted without classes."""
    pretrained = described("segmentation", classes=[])
    assert not predicts(pretrained) and predicts(described("depth"))
    header = yaml.safe_load(model_card(pretrained).split("---\n")[1])
    assert header["pipeline_tag"] == "image-feature-extraction"
    assert "It describes images" in model_card(pretrained)
