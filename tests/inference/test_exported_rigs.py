"""Exported models of rigs predict as `predict_rigs` does."""

import os
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest

from bev_case import bev_segmenter, rig, street
from diffseg_jax.data.bev_transforms import RigView, affine_maps, network_input
from diffseg_jax.errors import UserError
from diffseg_jax.inference.bev_output import predict_rigs
from diffseg_jax.inference.exported import export, usual_size
from diffseg_jax.inference.exported_rigs import cameras_of_views, intrinsics_of_views
from diffseg_jax.metrics.calibrator import fit_calibrator
from diffseg_jax.onnx_writer.graph import Graph, symbolic_input
from diffseg_jax.onnx_writer.model_files import model_files
from diffseg_jax.onnx_writer.resizing import views_of_photographs

RNG = np.random.default_rng(0)
INPUTS = ("images", "intrinsics", "camera_to_world")
PROGRAM = """
import sys
for name in sys.argv[1].split(","): sys.modules[name] = None
import json
import numpy as np
*load, call = json.load(open("model.json"))["load"]
names = dict(np.load("rigs.npz"))
exec("\\n".join(load), names)
exec(call, names)
outputs = names.get("outputs", names)
np.savez("found.npz", probs=outputs["probs"], uncertainty=outputs["uncertainty"])
"""


@pytest.fixture(scope="module")
def segmenter():
    return bev_segmenter("tiny")


def stacked(rigs):
    """The inputs of a file."""
    arrays = {name: np.stack([each[name] for each in rigs]) for name in INPUTS}
    return {name: a if name == "images" else a.astype(np.float32) for name, a in arrays.items()}


def test_a_model_in_onnx_predicts_rigs_of_any_car(segmenter, tmp_path):
    content = export(segmenter, tmp_path / "out", size=(32, 48), format="onnx")
    assert content["input"]["shape"] == ["batch", "cameras", "height", "width", 3]
    assert content["calibration"]["intrinsics"]["shape"] == ["batch", "cameras", 3, 3]
    assert content["outputs"]["probs"]["shape"] == ["batch", 6, 20, 20]
    assert content["ground"]["metres"] == [-50.0, 50.0] and content["ground"]["cell"] == 5.0
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    six, other = street("a", 6, (96, 144)), street("b", 6, (96, 144))
    of_two = {name: each[:2] for name, each in street("c", 6, (81, 130)).items() if name != "name"}
    expected = predict_rigs(segmenter, [six, other, of_two])
    found = [session.run(None, stacked(each)) for each in ([six, other], [of_two])]
    probs, uncertainty = (np.concatenate(arrays) for arrays in zip(*found))
    assert expected.probs.std() > 0.1
    np.testing.assert_allclose(probs, expected.probs, atol=1e-4)
    np.testing.assert_allclose(uncertainty, expected.uncertainty, atol=1e-4)
    clear = np.abs(expected.probs - 0.5) > 1e-3
    np.testing.assert_array_equal((probs > 0.5)[clear], expected.layers[clear])


@pytest.mark.slow
@pytest.mark.parametrize(("format", "banned"), [("stablehlo", "onnx"), ("onnx", "jax,flax")])
def test_the_lines_in_the_description_run_without_the_package(segmenter, tmp_path, format, banned):
    """A program of jax takes the part that the network sees, and its intrinsics."""
    export(segmenter, tmp_path / "out", size=(32, 48), format=format)
    rigs = [street("a", 6, (96, 144)), street("b", 6, (96, 144))]
    given = stacked(rigs)
    if format == "stablehlo":
        view = RigView((32, 48), segmenter.meta["task"]["resize"])
        matrix = view.matrix(96, 144)
        scaled = matrix[:3, :3] + matrix[:3, 3:] @ [[0, 0, 1]] * (np.arange(3) < 2)[:, None]
        given["images"] = np.stack([network_input(each, view)["images"] for each in rigs])
        given["intrinsics"] = (scaled @ given["intrinsics"]).astype(np.float32)
    np.savez(tmp_path / "out/rigs.npz", **given)
    environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, f"diffseg_jax,{banned}"], cwd=tmp_path / "out",
        env=environment, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found, expected = np.load(tmp_path / "out/found.npz"), predict_rigs(segmenter, rigs)
    np.testing.assert_allclose(found["probs"], expected.probs, atol=1e-4)
    np.testing.assert_allclose(found["uncertainty"], expected.uncertainty, atol=1e-4)


@pytest.mark.slow
def test_features_of_a_lidar_are_an_input(tmp_path):
    segmenter = bev_segmenter("tiny", lidar=5)
    content = export(segmenter, tmp_path / "out", size=(32, 48), format="onnx")
    assert content["calibration"]["lidar_bev"]["shape"] == ["batch", 8, 8, 5]
    given = street("a", 6, (96, 144))
    given["lidar_bev"] = RNG.standard_normal((8, 8, 5)).astype(np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    probs, _ = session.run(None, {**stacked([given]), "lidar_bev": given["lidar_bev"][None]})
    np.testing.assert_allclose(probs, predict_rigs(segmenter, [given]).probs, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "factor"), [((61, 77), 0.45), ((900, 1600), 0.48), ((20, 31), 1)]
)
def test_the_file_sees_the_part_of_photographs_that_the_network_sees(shape, factor):
    """Within 1 of 255, and where the calibration says."""
    view = RigView((20, 30) if shape[0] < 100 else (256, 704), factor)
    images = RNG.integers(0, 256, (2, *shape, 3), np.uint8)
    intrinsics, to_world, *_ = rig(2, shape)
    graph = Graph()
    given = symbolic_input(graph, "images", "uint8", ("batch", "cameras", "height", "width", 3))
    seen, corner = views_of_photographs(graph, given, view.size, factor)
    files = model_files(graph, [given], {"y": seen, "corner": corner}, {}, ("x", "0"), "a.onnx")
    session = onnxruntime.InferenceSession(files["a.onnx"])
    ((found,), corner) = session.run(None, {"images": images[None]})
    example = dict(images=images, intrinsics=intrinsics, camera_to_world=to_world)
    expected = network_input(example, view)
    difference = np.abs(found.astype(int) - expected["images"])
    assert difference.max() <= 1 and (difference > 0).mean() < (0.01 if factor != 1 else 1e-9)
    moved = intrinsics_of_views(intrinsics.astype(np.float32), corner, factor)
    (undo, place) = np.moveaxis(expected["cameras"].astype(np.float64), 1, 0)
    pixel = np.array([7.0, 11.0, 1.0])
    (same, to) = np.moveaxis(np.asarray(cameras_of_views(moved, to_world.astype(np.float32))), 1, 0)
    u, v, _ = (undo[0] @ [*pixel[:2], 1, 1])[:3]
    for depth in (1.0, 40.0):
        point = place[0] @ [u * depth, v * depth, depth, 1]
        np.testing.assert_allclose(same[0] @ [*pixel, 1], pixel)
        np.testing.assert_allclose(to[0] @ [*pixel * depth, 1], point, atol=1e-4)


def test_calibration_is_inverted_as_in_float64():
    """Also with skew, and without the last row of the usual form."""
    intrinsics, to_world, image, world = rig(4)
    intrinsics += RNG.uniform(-0.01, 0.01, intrinsics.shape)
    expected = affine_maps(intrinsics, to_world, image, world)
    found = cameras_of_views(np.float32(intrinsics), np.float32(to_world))
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_the_description_says_how_large_photographs_are_at_least(segmenter, tmp_path):
    """Those run and are predicted; a pixel less is refused by both, in Python with the size."""
    content = export(segmenter, tmp_path / "out", size=(32, 48), format="onnx")
    height, width = content["photographs"]["smallest"]
    assert (height, width) == (80, 120)  # 32 and 48 at 0.4
    words = "scaled by 0.4, then cropped to 32 x 48 (bottom, horizontally centred), by the file"
    assert content["input"]["meaning"].endswith(words)
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    least = street("a", 2, (height, width))
    (probs, _), expected = session.run(None, stacked([least])), predict_rigs(segmenter, [least])
    np.testing.assert_allclose(probs, expected.probs, atol=1e-4)
    for shape in ((height - 1, width), (height, width - 1)):
        small = street("a", 2, shape)
        with pytest.raises(UserError, match=f"takes {width}x{height} pixels or more"):
            predict_rigs(segmenter, [small])
        with pytest.raises(Exception, match="Reshape"):
            session.run(None, stacked([small]))


@pytest.mark.parametrize("resize", [0.29, 0.38, 0.44, 0.48, 0.55, 0.57, 1])
def test_the_smallest_photographs_fill_the_view_and_smaller_ones_do_not(resize):
    for side in (32, 29, 57, 256, 704):
        view = RigView((side, side + 1), resize)
        height, width = view.smallest
        view.require(height, width, "a")
        for shape in ((height - 1, width), (height, width - 1)):
            with pytest.raises(UserError, match=f"takes {width}x{height} pixels"):
                view.require(*shape, "a")


def test_a_calibrator_is_refused(segmenter, tmp_path, monkeypatch):
    calibrator = fit_calibrator({"entropy": np.zeros(4)}, [0] * 4, [False] * 4, 6, {})
    monkeypatch.setattr(segmenter, "calibrator", calibrator)
    with pytest.raises(UserError, match="a file for rigs holds none.*Remove calibrator.json"):
        export(segmenter, tmp_path / "out", size=(32, 48), format="onnx")
    assert not list(tmp_path.iterdir())


def test_another_size_is_refused_with_what_to_type(segmenter, tmp_path):
    assert usual_size(segmenter) == (32, 48)
    with pytest.raises(UserError, match="sees 32 x 48 of every photograph.*Try --size=32,48"):
        export(segmenter, tmp_path / "out", size=(96, 144), format="onnx")
    assert not list(tmp_path.iterdir())
