"""Synthetic data sets: recorded numbers, what an image depends on, resuming, and the filter."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from diffseg_jax import synthesise as command_line
from diffseg_jax.data.sources import open_source
from diffseg_jax.display.console import Display
from diffseg_jax.display.progress import Progress
from diffseg_jax.errors import UserError
from diffseg_jax.inference import synthesis
from diffseg_jax.inference.segmenter import Segmenter
from diffseg_jax.inference.synthesis import SampleOptions, synthesise
from diffseg_jax.metrics.uncertainty import image_uncertainty
from diffseg_jax.systems.ddpm_sampling import stored_bytes
from diffseg_jax.systems.pixel_ensemble import agree

QUICK = SampleOptions(steps="ddim2", sampler="ddim", size=(16, 24))


@pytest.mark.golden
def test_recorded_labels_uncertainties_and_bytes(golden):
    for path in golden("baselines/datasetddpm*.json"):
        case = json.loads(path.read_text())
        config, limits = case["config"], case["tolerance"]
        recorded = np.load(path.with_suffix(".npz"))
        found = agree(recorded["logits"])
        size = config["height"], config["width"]
        labels = np.argmax(found["votes"], -1).reshape(size)
        np.testing.assert_array_equal(labels, recorded["labels"])
        nats = np.asarray(found["divergence"]) * math.log(config["classes"])
        np.testing.assert_allclose(nats, recorded["js_per_pixel"], **limits["js"], rtol=0)
        uncertainty = image_uncertainty(nats)
        np.testing.assert_allclose(uncertainty, recorded["uncertainty"], **limits["uncertainty"])
        np.testing.assert_array_equal(stored_bytes(recorded["quant_in"]), recorded["quant_out"])


@pytest.fixture(scope="module", autouse=True)
def compiled_once():
    """Compiles the step of each sampler once; every call would compile it again."""
    steps, make = {}, synthesis.make_step

    def make_step(network, process, *options):
        kind = process.timesteps, *options[1:]
        if kind not in steps:
            steps[kind] = make(network, process, *options)
        return steps[kind]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthesis, "make_step", make_step)
        yield


@pytest.fixture(scope="module")
def segmenter(tiny_network):
    """Random classifiers of the features of a random diffusion model."""
    return Segmenter(Path("runs/a/checkpoints/fit"), *tiny_network("ddpm_seg"))


def made(segmenter, folder, count=6, **options):
    options = {"options": QUICK, "batch_size": 3, "portion": 0.5, "certain": 1} | options
    return synthesise(segmenter, folder, count=count, **options)


@pytest.fixture(scope="module")
def whole(segmenter, tmp_path_factory):
    """The folder of six images, of which three are kept, and its record."""
    folder = tmp_path_factory.mktemp("whole") / "set"
    return folder, made(segmenter, folder)


def pixels(folder):
    """{name: (image, mask)} of all images, kept or not."""
    return {
        file.stem: (np.asarray(Image.open(file)), np.asarray(Image.open(
            str(file).replace("/images/", "/masks/")
        )))
        for file in sorted(folder.rglob("images/**/*.png"))
    }  # fmt: skip


def same(one, other):
    left, right = pixels(one), pixels(other)
    assert left.keys() == right.keys()
    for name, arrays in left.items():
        for each in zip(arrays, right[name], strict=True):
            np.testing.assert_array_equal(*each, err_msg=name)


def test_the_output_is_a_folder_set_of_what_the_filter_keeps(segmenter, whole):
    folder, content = whole
    order = sorted(content["uncertainty"], key=content["uncertainty"].get)
    assert content["kept"] == sorted(order[1:4])  # the most and the two least certain are dropped
    source = open_source("folder", "train", path=folder)
    assert list(source.names) == content["kept"] and source.labels.names == segmenter.names
    assert len(pixels(folder)) == 6 and (folder / "sheet.png").exists()
    counts = sum(np.bincount(each["mask"].ravel(), minlength=5) for each in source)
    shares = counts / counts.sum()
    np.testing.assert_allclose(list(content["class_shares"].values()), shares, atol=1e-6)


def test_labels_and_scores_are_those_of_the_ensemble(segmenter, whole):
    """For stored images, which are rounded, so that a pixel on the edge may change its label."""
    folder, content = whole
    for name, (image, mask) in pixels(folder).items():
        prediction = segmenter.predict(image)
        assert np.mean(prediction.labels[0] == mask) > 0.95
        score = image_uncertainty(prediction.signals["divergence"][0]) * math.log(5)
        assert content["uncertainty"][name] == pytest.approx(score, rel=0.05)
    assert np.ptp(list(content["uncertainty"].values())) > 0


class Stop(Exception):
    """As if the command were killed."""


@pytest.mark.parametrize("last", ["000000", "000003"], ids=["first batch", "second batch"])
def test_a_stopped_command_goes_on_with_the_same_images(
    segmenter, whole, tmp_path, monkeypatch, last
):
    def stop(folder, name, *rest):
        write(folder, name, *rest)
        if name == last:  # no uncertainty of its batch is recorded yet
            raise Stop

    write = synthesis._write_pair
    monkeypatch.setattr(synthesis, "_write_pair", stop)
    with pytest.raises(Stop):
        made(segmenter, tmp_path)
    monkeypatch.setattr(synthesis, "_write_pair", write)
    assert not (tmp_path / "classes.json").exists() and not (tmp_path / "images").exists()
    (tmp_path / "pool/masks/000000.png").unlink()  # as if the disk had lost it
    with open(tmp_path / synthesis.SCORES_FILE, "a") as file:
        file.write('{"000003": 0.1')  # as if the command had been killed while it wrote
    again = made(segmenter, tmp_path)
    assert again == whole[1] == json.loads((tmp_path / "synthetic.json").read_text())
    assert not (tmp_path / synthesis.SCORES_FILE).exists()
    same(tmp_path, whole[0])


def test_the_record_is_not_written_again_after_each_batch(segmenter, tmp_path, monkeypatch):
    written, write = [], synthesis.write_json
    monkeypatch.setattr(synthesis, "labelled_images", lambda segmenter, draw, indices, size: (
        (index, np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.int32), index / 10)
        for index in indices
    ))  # fmt: skip
    monkeypatch.setattr(
        synthesis, "write_json", lambda file, *rest: written.append(file.name) or write(file, *rest)
    )
    content = made(segmenter, tmp_path, count=20, batch_size=1)
    assert written.count("synthetic.json") == 3  # before, and around the moving of images
    assert list(content["uncertainty"].values()) == [index / 10 for index in range(20)]


def test_a_set_is_refused_while_its_images_are_moved(segmenter, whole, tmp_path, monkeypatch):
    shutil.copytree(whole[0], tmp_path / "set")
    moved, move = [], synthesis._move

    def stop(*arguments):
        moved.append(arguments)
        if len(moved) == 4:
            raise Stop
        move(*arguments)

    monkeypatch.setattr(synthesis, "_move", stop)
    with pytest.raises(Stop):
        made(segmenter, tmp_path / "set", portion=0.0)
    with pytest.raises(UserError, match="only some of the images .* Start the same synthesise"):
        open_source("folder", "train", path=tmp_path / "set")
    monkeypatch.setattr(synthesis, "_move", move)
    again = made(segmenter, tmp_path / "set")
    assert again == whole[1]
    assert open_source("folder", "train", path=tmp_path / "set").names == tuple(again["kept"])


def test_another_filter_and_more_images_cost_only_what_is_new(segmenter, tmp_path, monkeypatch):
    first = made(segmenter, tmp_path, count=3, portion=0.0)
    assert len(first["kept"]) == 3
    before = pixels(tmp_path)
    drawn, draw = [], synthesis.sample_floats
    monkeypatch.setattr(
        synthesis, "sample_floats",
        lambda *args, indices, **rest: drawn.append(list(indices)) or draw(
            *args, indices=indices, **rest
        ),
    )  # fmt: skip
    more = made(segmenter, tmp_path, count=6, portion=0.5, certain=0)
    assert drawn == [[3, 4, 5]] and len(more["kept"]) == 3
    for name, arrays in before.items():
        np.testing.assert_array_equal(pixels(tmp_path)[name][0], arrays[0])
    kept = {file.stem for file in (tmp_path / "images/train").iterdir()}
    assert kept == set(more["kept"]) == {f.stem for f in (tmp_path / "masks/train").iterdir()}
    made(segmenter, tmp_path, count=6, portion=0.0)
    assert len(drawn) == 1 and not list((tmp_path / "pool/images").iterdir())


# ---- what is refused ---------------------------------------------------------------------------


def test_a_filter_that_leaves_nothing_is_refused_before_sampling(segmenter, tmp_path):
    with pytest.raises(UserError, match="the filter leaves nothing of 40 generated images"):
        made(segmenter, tmp_path / "set", count=40, portion=0.1, certain=30)
    assert not (tmp_path / "set").exists()


def test_other_options_in_the_same_folder_are_refused(segmenter, whole):
    other = SampleOptions(steps="ddim2", sampler="ddim", size=(16, 24), seed=1)
    with pytest.raises(UserError, match="was made with other options: sampling.seed: 0 -> 1"):
        made(segmenter, whole[0], options=other)


def test_a_folder_of_other_images_is_refused(segmenter, tmp_path):
    (tmp_path / "images/train").mkdir(parents=True)
    with pytest.raises(UserError, match="holds images, but no synthetic.json that can be read"):
        made(segmenter, tmp_path)


@pytest.mark.parametrize(("system", "changes", "options", "sentence"), [
    ("ddp", {}, {}, "holds no pixel classifiers, whose disagreement the filter reads"),
    ("ddpm_seg", {"features": {"sources": ("colour",)}}, {}, "read no diffusion model that could"),
    ("ddpm_seg", {}, {"ema": "off"}, "ema is given, but the diffusion model is that of"),
    ("ddpm_seg", {}, {"options": SampleOptions(size=(17, 24))}, "--size="),
    ("ddpm_seg", {}, {"options": SampleOptions(eta=0.5)}, "eta is 0.5, which only ddim reads"),
], ids=["no ensemble", "no diffusion", "ema", "size", "eta"])  # fmt: skip
def test_what_cannot_be_synthesised_is_refused(
    tiny_network, segmenter, system, changes, options, sentence, tmp_path
):
    if system != "ddpm_seg" or changes:
        segmenter = Segmenter(Path("runs/b"), *network_of(tiny_network, system, changes))
    with pytest.raises(UserError, match=sentence):
        made(segmenter, tmp_path / "set", **options)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("task", ["depth", "bev"])
def test_a_network_without_classes_is_refused_before_the_options(task, tmp_path):
    other = SimpleNamespace(config={"task": task}, directory="runs/a")
    sentence = f"synthesise is for segmentation, but runs/a is a network for {task}"
    with pytest.raises(UserError, match=sentence):
        synthesise(other, tmp_path / "set", count=4, options=QUICK, certain=30)


def network_of(tiny_network, system, changes):
    """A network, of classifiers of colours where `changes` says so."""
    network, meta = tiny_network(system)
    if changes:
        params = {"ensemble": network["params"]["ensemble"]}
        network = {**network, "params": params}
    return network, meta


def test_help_tells_the_default_size():
    text = " ".join(command_line.make_flags().format_help().split())
    assert "height and width; default: that of the labelled images" in text


def test_the_command_writes_the_set(segmenter, whole, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command_line, "load", lambda path, **options: segmenter)
    flags = ["--checkpoint=runs/a", f"--output={tmp_path / 'set'}", "--count=6", "--steps=ddim2"]
    flags += ["--sampler=ddim", "--size=16,24", "--batch_size=3", "--compilation_cache="]
    shown = []
    monkeypatch.setattr(Display, "_open", lambda self, each: shown.append(
        f"{each.what} {each.done}" if each.total else each.what
    ))  # fmt: skip
    monkeypatch.setattr(Display, "_close", lambda self, each: None)
    monkeypatch.setattr(Progress, "at", lambda self, done: shown.append(f"{self.what} {done}"))
    command_line.main([*flags, "--portion=0.5", "--certain=1"])
    assert "3 images of 6 kept (portion 0.5, 1 most certain)" in capsys.readouterr().out
    assert shown == ["opens the network", "images 0", "images 3", "images 6"]
    same(tmp_path / "set", whole[0])
    with pytest.raises(SystemExit):
        command_line.main([*flags, "--portion=0.1"])
    error = capsys.readouterr().err
    assert "Try --certain=0 to drop" in error and "--portion=0 to keep all" in error
