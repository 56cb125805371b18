"""Images in files -> predictions in files: complete, resumed, and with unreadable images."""

import importlib
import json
import shutil
from fractions import Fraction

import numpy as np
import pytest
from etils import epath
from PIL import Image, ImageShow

import diffseg_jax
from diffseg_jax import UserError, features, predict
from diffseg_jax.inference import show
from diffseg_jax.inference.batch import clips_in
from diffseg_jax.inference.depth_output import depth_output
from diffseg_jax.inference.label_output import LABEL_OUTPUT
from diffseg_jax.inference.prediction import Prediction
from diffseg_jax.inference.show import show_predictions
from diffseg_jax.storage.checkpoints import StageCheckpoints
from diffseg_jax.storage.networks import open_network
from image_files import write_clip

RNG = np.random.default_rng(1)
NEW = ("calibrat", "expected", "by_need", "files")  # keys that older summaries lack
NAMES = ("a", "b", "sub/c")


@pytest.fixture
def photos(tmp_path):
    """A folder of three images of one padded size."""
    for number, name in enumerate(NAMES):
        file = tmp_path / "photos" / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (20 + number, 30, 3), np.uint8)).save(file)
    return tmp_path / "photos"


@pytest.fixture
def run(tiny_run, photos, tmp_path, capsys):
    """run(*flags) -> (exit code, out, err) of the command on the photos."""

    def call(*flags, images=photos, output=tmp_path / "out", checkpoint=None):
        images = images if isinstance(images, list) else [images]
        arguments = [f"--checkpoint={checkpoint or tiny_run.workdir}", f"--output={output}"]
        arguments += ["--compilation_cache=", "--images", *map(str, images), *flags]
        code = 0
        try:
            predict.main(arguments)
        except SystemExit as end:
            code = end.code
        return code, *capsys.readouterr()

    return call


def summary(tmp_path):
    return json.loads((tmp_path / "out" / "summary.json").read_text())


@pytest.mark.parametrize("command", [predict, features])
def test_an_output_among_the_images_is_refused_before_the_network_is_opened(
    command, photos, capsys
):  # fmt: skip
    flags = [f"--images={photos}", f"--output={photos}/out", "--checkpoint=missing"]
    with pytest.raises(SystemExit):
        command.main(flags)
    assert "out lies in --images=" in capsys.readouterr().err and not (photos / "out").exists()


def test_files_hold_the_predictions_of_the_segmenter(run, photos, tmp_path, tiny_run):
    code, out, _ = run()
    assert code == 0 and "3 images in" in out
    segmenter = diffseg_jax.load(tiny_run.workdir)
    wanted = segmenter.predict(str(photos))
    with Image.open(tmp_path / "out" / "legend.png") as legend:
        shown = {colour for _, colour in legend.getcolors(2**16)}
    assert set(segmenter.palette) <= shown
    content = summary(tmp_path)
    assert [entry["name"] for entry in content["classes"]] == list(segmenter.names)
    assert tuple(content["pictures"]) == wanted.names == NAMES and content["unreadable"] == {}
    for name, labels, uncertainty in zip(NAMES, wanted.labels, wanted.uncertainty, strict=True):
        with Image.open(tmp_path / "out" / f"{name}_labels.png") as saved:
            np.testing.assert_array_equal(np.asarray(saved), labels)
        entry = content["pictures"][name]
        assert entry["size"] == list(labels.shape)
        assert entry["uncertainty"] == pytest.approx(uncertainty.mean(), abs=1e-5)
        shares = {segmenter.names[k]: np.mean(labels == k) for k in np.unique(labels)}
        assert entry["shares"] == pytest.approx(shares, abs=1e-5)
    judged = [(entry["familiarity"], entry["foreign"]) for entry in content["pictures"].values()]
    np.testing.assert_allclose(judged, np.stack([wanted.familiarity, wanted.foreign], -1), 1e-5)
    foreign = [name for name, is_so in zip(NAMES, wanted.foreign, strict=True) if is_so]
    assert foreign and predict.warn_of_foreign(foreign, 3) in out


def test_a_sheet_of_the_first_predictions_is_shown_or_named(run, tmp_path, monkeypatch):
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    code, out, _ = run("--show=True")
    sheet = tmp_path / "out" / "sheet.png"
    assert code == 0 and f"no window can be opened here: look at {sheet}" in out
    shown = []
    monkeypatch.setattr(ImageShow, "show", lambda image: shown.append(np.asarray(image)) or True)
    monkeypatch.setenv("DISPLAY", ":0")
    assert show_predictions(tmp_path / "out", {"by_need": "ab"}, LABEL_OUTPUT) == f"opened {sheet}"
    np.testing.assert_array_equal(shown[0], np.asarray(Image.open(sheet)))


def test_a_sheet_of_depth_shows_photograph_depth_and_uncertainty(tmp_path, monkeypatch):
    monkeypatch.setattr(show, "_has_display", lambda: False)
    greys = {"photo": 40, "a_color": 90, "a_uncertainty": 150, "legend": 200}
    for name, grey in greys.items():
        Image.fromarray(np.full((160, 160, 3), grey, np.uint8)).save(tmp_path / f"{name}.png")
    summary = {"by_need": ["a"], "pictures": {"a": {"file": str(tmp_path / "photo.png")}}}
    show.show_predictions(tmp_path, summary, depth_output(0.1, 10.0))
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))[..., 0]
    places = [np.argwhere(sheet == grey).mean(0) for grey in greys.values()]
    assert places[0][1] < places[1][1] < places[2][1]
    assert abs(places[0][0] - places[2][0]) < 5
    assert places[3][0] > places[0][0]
    summary["pictures"]["a"]["file"] = "clip.mp4#3"  # the photograph alone is left out
    show.show_predictions(tmp_path, summary, depth_output(0.1, 10.0))
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))[..., 0]
    assert (sheet == 90).sum() >= 160**2 > (sheet == 40).sum()


def test_foreign_images_are_named_at_the_end():
    assert "1 of 1 image looks unlike" in predict.warn_of_foreign(["a"], 1)
    line = predict.warn_of_foreign(list("abcde"), 7)
    assert line.startswith("warning: 5 of 7 images look") and "there: a, b, c and 2 more" in line


def test_finished_images_are_not_predicted_again(run, tmp_path):
    run()
    files = sorted((tmp_path / "out").rglob("*_*.png"))
    before = {file: file.stat().st_mtime_ns for file in files}
    (tmp_path / "out" / "b_overlay.png").unlink()
    code, out, _ = run()
    assert code == 0 and "2 of 3 images are done already" in out
    changed = {file.name for file in files if file.stat().st_mtime_ns != before[file]}
    assert changed == {"b_color.png", "b_overlay.png", "b_labels.png", "b_uncertainty.png"}
    assert tuple(summary(tmp_path)["pictures"]) == NAMES


def test_more_files_by_option_are_resumed(run, tmp_path):
    flags = ["--save=uncertainty,probs", "--contours=coco", "--review=0.2", "--reject=0.6"]
    code, out, _ = run(*flags)
    content = summary(tmp_path)
    assert code == 0 and content["options"]["save"] == ["probs", "uncertainty"]
    need = content["by_need"]
    order = [(not content["pictures"][name]["foreign"], -content["pictures"][name]["uncertainty"])
             for name in need]  # fmt: skip
    assert sorted(need) == list(NAMES) and order == sorted(order)
    (line,) = [line for line in out.splitlines() if line.startswith("look first")]
    assert all(f"{name} (" in line for name in need)
    images = json.loads((tmp_path / "out" / "coco.json").read_text())["images"]
    assert [image["file_name"] for image in images] == [
        content["pictures"][name]["file"] for name in NAMES
    ]
    before = {file: file.read_bytes() for file in (tmp_path / "out").glob("b_*")}
    for ending in ("probs.npz", "uncertainty16.png", "contours.json", "review.png"):
        (tmp_path / "out" / f"b_{ending}").unlink()
    code, out, _ = run(*reversed(flags))
    assert code == 0 and "2 of 3 images are done already" in out
    assert {file: file.read_bytes() for file in before} == before
    code, _, err = run(*flags[:3])
    assert code == 2 and "options.reject: 0.6 -> (absent)" in err


def test_a_folder_of_an_earlier_version_is_completed(run, tmp_path):
    run()
    file, content = tmp_path / "out" / "summary.json", summary(tmp_path)
    known = ("file", "stamp", "size", "shares", "uncertainty", "image_uncertainty")
    old = {key: content[key] for key in content if not key.startswith(NEW)}
    old["pictures"] = {
        name: {key: entry[key] for key in known} for name, entry in content["pictures"].items()
    }
    file.write_text(json.dumps(old))
    code, out, _ = run()
    assert code == 0 and "done already" not in out and summary(tmp_path) == content


def test_a_stop_in_the_middle_loses_nothing(run, tmp_path, monkeypatch):
    write, written = Prediction.write, []

    def stop_at_the_second(prediction, *arguments):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(prediction.names)
        return write(prediction, *arguments)

    monkeypatch.setattr(Prediction, "write", stop_at_the_second)
    code, _, err = run()
    assert code == 130 and "the same command resumes" in err
    monkeypatch.undo()
    code, out, _ = run()
    assert code == 0 and "1 of 3 images are done already" in out
    assert tuple(summary(tmp_path)["pictures"]) == NAMES


def test_an_unreadable_image_is_listed_and_stops_nothing(run, photos, tmp_path):
    (photos / "bad.jpg").write_bytes(b"not an image")
    code, out, _ = run()
    assert code == 0 and "1 file could not be read" in out and "cannot read" in out
    content = summary(tmp_path)
    assert tuple(content["pictures"]) == NAMES
    assert list(content["unreadable"]) == [f"{photos}/bad.jpg"]
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(photos / "bad.jpg")
    assert run()[0] == 0
    assert "bad" in summary(tmp_path)["pictures"] and summary(tmp_path)["unreadable"] == {}


def test_changed_images_are_predicted_again(run, photos, tmp_path):
    run()
    Image.fromarray(RNG.integers(0, 256, (31, 29, 3), np.uint8)).save(photos / "b.png")
    code, out, _ = run()
    assert code == 0 and "2 of 3 images are done already" in out
    assert summary(tmp_path)["pictures"]["b"]["size"] == [31, 29]
    other = tmp_path / "others" / "a.png"
    other.parent.mkdir()
    Image.fromarray(RNG.integers(0, 256, (21, 30, 3), np.uint8)).save(other)
    code, _, err = run(images=other.parent)
    assert code == 2 and f"of {photos}/a.png as a, which those of {other} would replace" in err
    (photos / "a.png").unlink()
    run(images=other.parent)
    assert summary(tmp_path)["pictures"]["a"]["file"] == str(other)
    assert summary(tmp_path)["pictures"]["a"]["size"] == [21, 30]


def test_a_video_is_resumed_by_frame_and_shown_as_a_video(run, photos, tmp_path):
    clip, out = write_clip(tmp_path / "a.mp4", size=(20, 30), count=7), tmp_path / "out"
    few = ["--every=3", "--video=True"]
    code, said, _ = run(*few, images=clip)
    assert code == 0 and "a.mp4 holds several images, 3 frames taken, one in 3" in said
    pictures = summary(tmp_path)["pictures"]
    assert {name: entry["file"] for name, entry in pictures.items()} == {
        f"a_{number:06d}": f"{clip}#{number}" for number in (0, 3, 6)
    }
    av = importlib.import_module("av")
    with av.open(str(out / "a_overlay.mp4")) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == Fraction(25, 3)
    overlay = np.asarray(Image.open(out / "a_000000_overlay.png"), int)
    assert np.shape(shown) == (3, 20, 30, 3) and np.abs(overlay - shown[0]).mean() < 20
    (out / "a_000003_overlay.png").unlink()
    written = (out / "a_overlay.mp4").stat().st_mtime_ns
    assert "2 of 3 images are done already" in run(*few, images=clip)[1]
    assert (out / "a_overlay.mp4").stat().st_mtime_ns > written
    assert "3 of 7 images are done already" in run(images=clip)[1]
    written = f"writes {out / 'a_overlay.mp4'}"
    assert written in run("--video=True", images=clip)[1]  # of all frames now
    assert written not in run("--video=True", images=clip)[1]
    assert written in run(*few, images=clip)[1]  # nothing was predicted, but the frames differ
    write_clip(clip, size=(20, 30), count=8)
    assert "done already" not in run(images=clip)[1] and len(summary(tmp_path)["pictures"]) == 8
    code, _, err = run("--video=True", images=photos, output=tmp_path / "new")
    assert code == 2 and "there is no video among the images" in err
    with pytest.raises(UserError, match="--output is gs://a/b"):
        clips_in([], epath.Path("gs://a/b"))


def test_a_georeferenced_image_is_complete_with_its_files_on_the_map(run, photos, tmp_path):
    (photos / "a.pgw").write_text("0.5 0 0 -0.5 100 200")
    code, _, _ = run("--contours=geojson")
    assert code == 0 and "labels.tif" in summary(tmp_path)["files"]
    found = sorted(path.name for path in (tmp_path / "out").rglob("*.tif"))
    assert found == ["a_labels.tif", "a_uncertainty.tif"]
    (tmp_path / "out" / "a_labels.tif").unlink()
    assert "2 of 3 images are done already" in run("--contours=geojson")[1]
    assert (tmp_path / "out" / "a_labels.tif").exists()
    shape = json.loads((tmp_path / "out" / "a_contours.geojson").read_text())
    assert shape["units"] == "map coordinates of the image"


def test_several_files_and_folders_are_not_mixed_up(run, photos, tmp_path):
    code, out, _ = run(images=[photos / "a.png", photos, photos / "sub"])
    assert code == 0 and "5 images in" in out
    files = [entry["file"] for entry in summary(tmp_path)["pictures"].values()]
    assert sorted(files) == sorted(
        [*2 * [f"{photos}/a.png"], f"{photos}/b.png", *2 * [f"{photos}/sub/c.png"]]
    )


def test_predictions_of_other_parameters_are_not_mixed(run, tmp_path, tiny_run):
    network, meta = open_network(tiny_run.workdir / "checkpoints" / "finetune")
    meta = {key: value for key, value in meta.items() if key not in ("arrays", "format")}
    for factor in (1, 2):
        network["params"]["head"] = {k: factor * v for k, v in network["params"]["head"].items()}
        with StageCheckpoints(tmp_path / "model") as checkpoints:
            checkpoints.save(meta["step"], network, meta)
        code, _, err = run(checkpoint=tmp_path / "model")
        if factor == 1:
            assert code == 0
            shutil.rmtree(tmp_path / "model")
    assert code == 2 and "holds predictions of other weights" in err and "_2." in err


def test_damaged_exif_stops_nothing(run, photos, tmp_path):
    image = Image.fromarray(RNG.integers(0, 256, (20, 30, 3), np.uint8))
    image.save(photos / "b.png", exif=b"Exif\0\0garbage")
    assert run()[0] == 0
    assert tuple(summary(tmp_path)["pictures"]) == NAMES


def test_readable_colours_change_no_label(run, tmp_path):
    run(output=tmp_path / "own")
    run("--palette=readable", output=tmp_path / "out")
    read = lambda folder, kind: np.asarray(Image.open(tmp_path / folder / f"a_{kind}.png"))
    np.testing.assert_array_equal(read("own", "labels"), read("out", "labels"))
    used = {tuple(colour) for colour in read("out", "color").reshape(-1, 3)}
    assert used <= {tuple(entry["color"]) for entry in summary(tmp_path)["classes"]}
    assert (read("own", "color") != read("out", "color")).any()


def test_mistakes_end_with_a_sentence(run, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.png").write_bytes(b"")
    (tmp_path / "strange").mkdir()
    (tmp_path / "strange" / "summary.json").write_text("[]")
    run()
    cases = {
        "options.flip: None -> True": dict(flags=["--flip=True"]),
        "holds no file that ends with": dict(images=tmp_path / "empty"),
        "there is no image or folder": dict(images=tmp_path / "nothing"),
        "none of 1 images can be read": dict(images=tmp_path / "broken", output=tmp_path / "o2"),
        "so the next command would take predictions for images": dict(output=photos / "out"),
        "was not written by this command": dict(output=tmp_path / "strange"),
        "have no reverse steps": dict(flags=["--steps=3"], output=tmp_path / "o3"),
        "smaller than the stride": dict(flags=["--tile=32", "--stride=64"], output=tmp_path / "o4"),
        'unknown map to save "prob"': dict(flags=["--save=prob"], output=tmp_path / "o6"),
        "this network has no map changes": dict(
            flags=["--save=probs,changes"], output=tmp_path / "o7"
        ),
        "review is 1.0, but must lie": dict(flags=["--review=1"], output=tmp_path / "o6"),
        "reject is 5.0, but must lie": dict(flags=["--reject=5"], output=tmp_path / "o6"),
        "--contours is geo, but known are": dict(flags=["--contours=geo"], output=tmp_path / "o6"),
        "no device of the kind": dict(flags=["--device=cuda"]),
        "knows no classes": dict(flags=["--stage=pretrain"], output=tmp_path / "o5"),
    }
    for sentence, case in cases.items():
        code, _, err = run(*case.pop("flags", ()), **case)
        assert code == 2 and err.startswith("error: ") and sentence in err, (sentence, err)
    assert not any((tmp_path / f"o{number}").exists() for number in (4, 5, 6))
    assert not (tmp_path / "o7").exists()
