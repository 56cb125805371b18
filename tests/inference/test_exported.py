"""An exported model predicts as the segmenter does, without this package."""

import dataclasses
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from flatbuffers.builder import BuilderSizeError

from diffseg_jax.errors import UserError
from diffseg_jax.inference import exported as module
from diffseg_jax.inference.exported import export, usable_calibrator, usual_size
from diffseg_jax.inference.exported_images import check_protocol
from diffseg_jax.inference.segmenter import Segmenter
from diffseg_jax.inference.views import Protocol, View
from diffseg_jax.metrics.calibrator import fit_calibrator

SIZE = (33, 47)
NAMES = tuple(f"class {number}" for number in range(5))
PROGRAM = """
import sys
sys.modules["diffseg_jax"] = None
import json, os, pathlib
import numpy as np
for folder in map(pathlib.Path, sys.argv[1:]):
    os.chdir(folder)
    *load, call = json.loads((folder / "model.json").read_text())["load"]
    names = {}
    exec("\\n".join(load), names)
    images = np.load(folder.with_suffix(".npy"))
    for count in (1, 3) if folder.name == "ddp" else (3,):  # each is compiled
        exec(call, names, found := {"images": images[:count]})
        np.savez(folder.with_suffix(f".{count}.npz"), **found["outputs"])
"""


@pytest.fixture(scope="module")
def segmenter_of(tiny_network):
    """segmenter_of(system) -> a Segmenter with random parameters; that of DDeP is calibrated."""
    rng = np.random.default_rng(0)
    calibrator = fit_calibrator(
        {"entropy": rng.random(500)}, rng.integers(0, 5, 500), rng.random(500) < 0.4, 5, {}
    )

    def make(system):
        network, meta = tiny_network(system)
        return Segmenter(
            Path("runs/a/checkpoints/x"), network, meta,
            calibrator=calibrator if system == "ddep" else None,
        )  # fmt: skip

    return make


OPTIONS = {  # for all platforms only ddp, whose attention differs between them: each takes time
    "ddp": {"steps": 2, "samples": 2, "seed": 5},
    "ddep": {"platforms": ("cpu",)},
    "ddpm_seg": {"platforms": ("cpu",)},
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory, segmenter_of):
    """System -> (segmenter, images, folder); a process without the package wrote predictions."""
    root = tmp_path_factory.mktemp("exported")
    made = {}
    images = np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3), np.uint8)
    for system in OPTIONS:
        segmenter = segmenter_of(system)
        export(segmenter, root / system, size=SIZE, **OPTIONS[system])
        np.save(root / f"{system}.npy", images)
        made[system] = segmenter, images, root / system
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *(str(folder) for _, _, folder in made.values())],
        cwd=root, env={**environment, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
        timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return made


@pytest.mark.parametrize("system", OPTIONS)
def test_an_exported_model_predicts_as_the_segmenter(exported, system):
    segmenter, images, folder = exported[system]
    options = {name: value for name, value in OPTIONS[system].items() if name != "platforms"}
    expected = segmenter.predict(images, **options)
    for count in (1, 3) if system == "ddp" else (3,):
        found = np.load(folder.with_suffix(f".{count}.npz"))
        assert set(found) == {"labels", "probs", "uncertainty"}
        probs = expected.probs[:count]
        np.testing.assert_allclose(found["probs"], probs, atol=1e-5)
        best = np.sort(probs, -1)
        clear = best[..., -1] - best[..., -2] > 1e-4
        if system == "ddpm_seg":  # members vote, so the best probability need not win
            clear = np.ones_like(clear)
        assert found["labels"].dtype == np.int32
        np.testing.assert_array_equal(found["labels"][clear], expected.labels[:count][clear])
        chance = expected.uncertainty[:count][clear]
        np.testing.assert_allclose(found["uncertainty"][clear], chance, atol=1e-4)
        assert expected.calibrated == (system == "ddep")


def test_model_json_says_whether_the_uncertainty_is_calibrated(exported, segmenter_of):
    for system, (_, _, folder) in exported.items():
        content = json.loads((folder / "model.json").read_text())
        meaning = content["outputs"]["uncertainty"]["meaning"]
        assert ("uncalibrated" in meaning) == (system != "ddep")
    segmenter = segmenter_of("ddp")
    segmenter.calibrator = fit_calibrator({"changes": np.zeros(4)}, [0] * 4, [False] * 4, 5, {})
    several, one = segmenter.task_for(2), segmenter.task_for(1)  # one step has no changes
    assert usable_calibrator(segmenter, several, SIZE) is segmenter.calibrator
    assert usable_calibrator(segmenter, one, SIZE) is None


def test_model_json_describes_the_model(exported):
    _, _, folder = exported["ddp"]
    content = json.loads((folder / "model.json").read_text())
    assert content["classes"] == list(NAMES) and len(content["palette"]) == len(NAMES)
    assert content["input"]["shape"] == ["b", *SIZE, 3]
    assert content["outputs"]["probs"] == {
        "dtype": "float32", "shape": ["b", *SIZE, len(NAMES)],
        "meaning": content["outputs"]["probs"]["meaning"],
    }  # fmt: skip
    assert content["options"] == {"steps": 2, "samples": 2, "seed": 5}
    assert content["platforms"] == ["cpu", "cuda", "tpu"] and content["step"] == 7
    alone = json.loads((exported["ddep"][2] / "model.json").read_text())
    assert alone["platforms"] == ["cpu"]
    assert sorted(file.name for file in folder.iterdir()) == ["model.json", "model.stablehlo"]


@pytest.fixture(scope="module")
def small(segmenter_of):
    return segmenter_of("ddep")


def test_a_failure_leaves_nothing_behind(small, tmp_path, monkeypatch):
    def full(path, content):
        if path.name == module.DESCRIPTION:
            raise OSError(28, "No space left on device")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)

    monkeypatch.setattr(module, "write_atomically", full)
    with pytest.raises(OSError, match="No space"):
        module.write_folder(tmp_path / "out", {module.MODEL: b"1", module.DESCRIPTION: b"2"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"size": (0, 8)}, "size is 0,8, but it is a height and a width.*--size=96,128"),
        ({"size": (8,)}, "size is 8, but"),
        ({"platforms": ("gpu",)}, "unknown platform.*cuda"),
        ({"platforms": ()}, "no platform is given"),
        ({"output": "."}, "exists already"),
        ({"output": "gs://bucket/a"}, "is an address"),
        ({"steps": 3}, "steps is 3, but the predictions of this ddep network have no"),
    ],
)
def test_wrong_options_end_with_a_sentence(small, tmp_path, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=sentence):
        export(small, **{"output": "out", "size": SIZE, **options})
    assert not list(tmp_path.iterdir())


def test_without_flatbuffers_the_error_names_the_extra(small, tmp_path, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "diffseg_jax\[export\]"'):
        export(small, tmp_path / "out", size=SIZE)


def test_too_large_a_network_is_a_sentence():
    class Large:
        def serialize(self):
            raise BuilderSizeError("flatbuffers: cannot grow buffer beyond 2 gigabytes")

    with pytest.raises(UserError, match="larger than 2 GB"):
        module.serialized(Large())


def test_a_stage_without_classes_has_nothing_to_export(tmp_path, segmenter_of):
    segmenter = segmenter_of("ddep")
    segmenter.task = dataclasses.replace(segmenter.task, predict=None)
    with pytest.raises(UserError, match="knows no classes"):
        export(segmenter, tmp_path / "out", size=SIZE)


def test_without_a_size_it_is_that_of_the_images_as_the_evaluation_saw_them(segmenter_of):
    segmenter = segmenter_of("ddpm_seg")
    segmenter.protocol = Protocol(limit=(480, 360), scales=(0.5, 1.0))
    segmenter.meta = {**segmenter.meta, "image_size": [720, 960]}
    assert usual_size(segmenter) == (360, 480)
    segmenter.protocol = Protocol(View.SLIDE, (32, 32), (16, 16))
    assert usual_size(segmenter) == (720, 960)


def test_without_a_size_older_checkpoints_take_that_of_the_training(segmenter_of):
    segmenter = segmenter_of("ddp")
    assert usual_size(segmenter) == segmenter.crop
    segmenter.protocol = Protocol(View.SLIDE, (32, 40), (16, 16))
    assert usual_size(segmenter) == (32, 40)
    segmenter.protocol = Protocol(limit=(17, 16))  # squares would be resized
    with pytest.raises(UserError, match="does not say of which size.*such as --size=360,480"):
        usual_size(segmenter)


def test_evaluation_that_would_resize_images_is_refused_with_the_size():
    for protocol in (Protocol(short=16), Protocol(limit=(24, 16), scales=(0.5, 1.0))):
        with pytest.raises(UserError, match="to 16 x 23.*--size=16,23"):
            check_protocol(protocol, SIZE)
        with warnings.catch_warnings(action="ignore"):
            check_protocol(protocol, (16, 23))


@pytest.mark.parametrize(
    "protocol, views",
    [
        (Protocol(View.SLIDE, (32, 32), (20, 20), flip=True), "windows of 32 x 32 and the mirror"),
        (Protocol(View.HALVES), "a left and a right half"),
        (Protocol(scales=(0.5, 1.0)), "the scales 0.5, 1.0"),
    ],
)
def test_evaluation_that_averages_over_views_is_a_warning(protocol, views):
    with pytest.warns(UserWarning, match=views):
        check_protocol(protocol, SIZE)


def test_a_window_of_the_size_is_the_whole_image():
    with warnings.catch_warnings(action="error"):
        check_protocol(Protocol(View.SLIDE, SIZE, (20, 20)), SIZE)
        check_protocol(Protocol(), SIZE)
