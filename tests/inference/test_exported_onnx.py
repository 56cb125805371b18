"""A model in ONNX predicts as the segmenter does, without this package and without jax."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import onnx
import onnxruntime
import pytest

import diffseg_jax
from configs import tiny_ddp_depth
from conftest import filled
from diffseg_jax.data.transforms import resize_image
from diffseg_jax.errors import UserError
from diffseg_jax.inference import exported as module
from diffseg_jax.inference.bands import resize_columns
from diffseg_jax.inference.exported import export
from diffseg_jax.inference.segmenter import Segmenter
from diffseg_jax.metrics.calibrator import fit_calibrator
from diffseg_jax.onnx_writer import convert
from diffseg_jax.onnx_writer.graph import UnsupportedError
from diffseg_jax.storage.workdir import as_json
from diffseg_jax.systems.methods import SYSTEMS

SIZE = (33, 47)
PROGRAM = """
import sys
for name in ("diffseg_jax", "jax", "flax", "onnx"):
    sys.modules[name] = None
import json, os, pathlib
import numpy as np
for folder in map(pathlib.Path, sys.argv[1:]):
    os.chdir(folder)
    load = json.loads(pathlib.Path("model.json").read_text())["load"]
    names = {}
    exec("\\n".join(load[:-1]), names)
    given = np.load(folder.with_suffix(".npz"))
    found = {}
    for name in given.files:
        exec(load[-1], names, outputs := {"images": given[name]})
        found |= {f"{name} {key}": outputs[key] for key in ("labels", "probs", "uncertainty")}
    np.savez(folder / "found.npz", **found)
"""
OPTIONS = {"ddp": {"steps": 2, "samples": 2, "seed": 5}, "ddep": {}, "ddpm_seg": {}, "deeplab": {}}


@pytest.fixture(scope="module")
def segmenter_of(tiny_network):
    """segmenter_of(system) -> a Segmenter with random parameters; that of DDeP is calibrated."""
    rng = np.random.default_rng(0)
    calibrator = fit_calibrator(
        {"entropy": rng.random(500)}, rng.integers(0, 5, 500), rng.random(500) < 0.4, 5, {}
    )

    def make(system, **changes):
        network, meta = tiny_network(system, **changes)
        return Segmenter(
            Path("runs/a/checkpoints/x"), network, meta,
            calibrator=calibrator if system == "ddep" else None,
        )  # fmt: skip

    return make


@pytest.fixture(scope="module")
def outputs(tmp_path_factory, segmenter_of):
    """System -> (segmenter, images, folder, outputs of a process that has only onnxruntime)."""
    root = tmp_path_factory.mktemp("onnx")
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.integers(0, 256, shape, np.uint8)
    images = {"three": draw(3, *SIZE, 3), "large": draw(1, 50, 60, 3), "small": draw(1, 20, 9, 3)}
    made = {system: segmenter_of(system) for system in OPTIONS}
    for name, segmenter in made.items():
        export(segmenter, root / name, size=SIZE, format="onnx", **OPTIONS[name])
        np.savez(root / f"{name}.npz", **images)
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *(str(root / name) for name in made)], cwd=root,
        env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {
        name: (segmenter, images, root / name, dict(np.load(root / name / "found.npz")))
        for name, segmenter in made.items()
    }


def assert_equal_predictions(found, expected, votes=False):
    """Probabilities within 1e-4, and equal labels where the best two differ by more."""
    labels, probs, uncertainty = found
    np.testing.assert_allclose(probs, expected.probs, atol=1e-4)
    best = np.sort(expected.probs, -1)
    clear = best[..., -1] - best[..., -2] > 1e-3
    if votes:  # members vote, so the best probability need not win
        clear = np.ones_like(clear)
    assert labels.dtype == np.int32 and clear.mean() > 0.8
    np.testing.assert_array_equal(labels[clear], expected.labels[clear])
    np.testing.assert_allclose(uncertainty[clear], expected.uncertainty[clear], atol=1e-4)


@pytest.mark.parametrize("system", OPTIONS)
def test_a_model_in_onnx_predicts_as_the_segmenter(outputs, system):
    segmenter, images, _, found = outputs[system]
    expected = segmenter.predict(images["three"], **OPTIONS[system])
    values = [found[f"three {key}"] for key in ("labels", "probs", "uncertainty")]
    assert_equal_predictions(values, expected, votes=system == "ddpm_seg")


def test_nothing_is_rounded_to_float16(outputs):
    """Errors of the last digit would become steps of float16, which steep classifiers enlarge."""

    def types(graph):
        for node in graph.node:
            for attribute in node.attribute:
                yield attribute.i if (node.op_type, attribute.name) == ("Cast", "to") else None
                yield from types(attribute.g)

    for *_, folder, _ in outputs.values():
        assert onnx.TensorProto.FLOAT16 not in set(types(onnx.load(folder / "model.onnx").graph))


def test_a_depth_network_predicts_the_same_in_onnx(tmp_path):
    config = tiny_ddp_depth.get_config()
    config.evaluate.flip = False
    stage = config.run[0]
    options = config.stages[stage]
    task = SYSTEMS["ddp"].make_task(config, options.kind, tuple(options.augment.crop), 0)
    network = filled(jax.eval_shape(task.init, jax.random.key(0)))
    meta = {
        "version": "0.1.0", "config": as_json(config.to_dict()), "task": as_json(task.meta),
        "stage": stage, "step": 7, "start": "random", "ema": [],
    }  # fmt: skip
    segmenter = Segmenter(Path("runs/a/checkpoints/x"), network, meta)
    content = export(segmenter, tmp_path / "out", size=(32, 48), format="onnx")
    assert list(content["outputs"]) == ["depth", "uncertainty"]
    assert content["load"][-1].startswith("depth, uncertainty = model.run(")
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 48, 3), np.uint8)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    depth, uncertainty = session.run(None, {"images": images})
    for row, expected in enumerate(segmenter.predict(images)):
        (maps,) = expected._maps
        np.testing.assert_allclose(depth[row], maps.depth, rtol=1e-4)
        np.testing.assert_allclose(uncertainty[row], maps.uncertainty, atol=1e-4)


@pytest.mark.parametrize("name", ["large", "small"])
def test_images_of_other_sizes_are_resized_and_maps_resized_back(outputs, name):
    segmenter, images, _, found = outputs["ddep"]
    (image,) = images[name]
    height, width = image.shape[:2]
    probs = resize_columns(segmenter.predict(resize_image(image, SIZE)).probs, width)
    probs = resize_columns(probs.transpose(0, 2, 1, 3), height).transpose(0, 2, 1, 3)
    np.testing.assert_allclose(found[f"{name} probs"], probs, atol=1e-4)
    np.testing.assert_array_equal(found[f"{name} labels"], found[f"{name} probs"].argmax(-1))


def test_the_file_describes_itself(outputs):
    segmenter, _, folder, _ = outputs["ddp"]
    content = json.loads((folder / "model.json").read_text())
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    held = session.get_modelmeta().custom_metadata_map
    parsed = {name: text if isinstance(content[name], str) else json.loads(text)
              for name, text in held.items()}  # fmt: skip
    assert parsed == content
    assert content["classes"] == list(segmenter.names)
    assert content["library"] == f"diffseg_jax {diffseg_jax.__version__}"
    assert "(v - mean) / std" in content["normalisation"] and "123.675" in content["normalisation"]
    assert content["options"] == {"steps": 2, "samples": 2, "seed": 5}
    assert content["input"]["size"] == list(SIZE)
    (given,) = session.get_inputs()
    assert given.shape == content["input"]["shape"] == ["batch", "height", "width", 3]
    for output in session.get_outputs():
        assert output.shape == content["outputs"][output.name]["shape"]
    assert sorted(file.name for file in folder.iterdir() if file.suffix != ".npz") == [
        "model.json", "model.onnx",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"format": "onxn"}, 'unknown format "onxn". Known: onnx, stablehlo.*"onnx"'),
        ({"size": (0, 8)}, "size is 0,8, but it is a height and a width.*--size=96,128"),
        ({"platforms": ("cpu",)}, "platforms is cpu, but a file of the format onnx runs wherever"),
        ({"output": "."}, "exists already"),
    ],
)
def test_wrong_options_end_with_a_sentence(segmenter_of, tmp_path, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    given = {"output": "out", "size": SIZE, "format": "onnx", **options}
    with pytest.raises(UserError, match=sentence):
        export(segmenter_of("ddep"), **given)
    assert not list(tmp_path.iterdir())


def test_without_the_package_onnx_the_error_names_the_extra(segmenter_of, tmp_path, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'model.onnx is written with onnx.*"diffseg_jax\[onnx\]"'):
        export(segmenter_of("ddep"), tmp_path / "out", size=SIZE, format="onnx")


def test_a_network_in_bfloat16_is_refused_with_what_to_type(segmenter_of, tmp_path):
    segmenter = segmenter_of("ddep")
    segmenter.config.dtype = "bfloat16"
    with pytest.raises(UserError, match="computes in bfloat16.*--dtype=float32"):
        export(segmenter, tmp_path / "out", size=SIZE, format="onnx")


def test_an_operation_that_is_not_known_is_a_sentence(segmenter_of, tmp_path, monkeypatch):
    def unknown(*arguments):
        raise UnsupportedError("the operation sort of jax")

    monkeypatch.setattr(convert, "add_function", unknown)
    with pytest.raises(UserError, match="the operation sort of jax.*--format=stablehlo"):
        export(segmenter_of("ddep"), tmp_path / "out", size=SIZE, format="onnx")
    assert not list(tmp_path.iterdir())
