"""Suggestions of images to label next: what is left to choose from, and what is written."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from diffseg_jax import suggest
from diffseg_jax.data.fingerprint import _digest_of_file
from diffseg_jax.data.labels import Labels
from diffseg_jax.errors import UserError
from diffseg_jax.figures.layout import save_png
from diffseg_jax.inference import image_descriptors, suggestions
from diffseg_jax.inference.prediction import Prediction
from diffseg_jax.inference.suggestions import suggest_images
from diffseg_jax.inference.views import Maps

SIZE = 40, 48
LABELS = Labels(("a", "b"), ((0, 0, 0), (255, 255, 255)))


class Network:
    """A stand-in for a segmenter: bright pixels are uncertain, mean colours describe an image."""

    def __init__(self, directory):
        self.directory, self.step, self.fingerprint = directory, 3, "f00"
        self.calibrator, self.known, self.seen = None, None, []
        self.config = {}

    def predict_named(self, named, options):
        return (self.predicted(name, image) for name, image in named)

    def predicted(self, name, image):
        self.seen.append(name)
        chance = image.mean(-1).astype(np.float32) / 255
        descriptor = image.mean((0, 1))
        maps = Maps(0 * chance.astype(int), None, chance, {}, descriptor=descriptor)
        return Prediction([name], [image], [maps], LABELS)


@pytest.fixture
def network(tmp_path):
    return Network(tmp_path / "run" / "checkpoints" / "fit")


@pytest.fixture
def photos(tmp_path):
    """Eight images of two colours, all different."""
    for number in range(8):
        image = np.zeros((*SIZE, 3), np.uint8)
        image[..., number % 2] = 100 + number
        image[4:12, 8 * (number % 4) :, :] = 90
        save_png(tmp_path / "photos" / f"{number}.png", image)
    return tmp_path / "photos"


def names(found):
    return [each["path"].rpartition("/")[2] for each in found["suggestions"]]


def test_a_stopped_command_resumes_and_another_count_measures_nothing(
    network, photos, tmp_path, monkeypatch, capsys
):  # fmt: skip
    def stops(*arguments):
        if len(network.seen) == 4:
            raise KeyboardInterrupt
        return whole(*arguments)

    whole = suggestions.of_uncertainty
    monkeypatch.setattr(suggestions, "of_uncertainty", stops)
    with pytest.raises(KeyboardInterrupt):
        suggest_images([photos], tmp_path / "out", 2, network)
    monkeypatch.setattr(suggestions, "of_uncertainty", whole)
    found = suggest_images([photos], tmp_path / "out", 2, network)
    assert "3 of 8 images are measured already" in capsys.readouterr().out
    assert network.seen == [*"0123", *"34567"]
    more = suggest_images([photos], tmp_path / "out", 5, network)
    assert len(network.seen) == 9 and names(more)[:2] == names(found)
    assert json.loads((tmp_path / "out" / "suggestions.json").read_text()) == more
    listed = (tmp_path / "out" / "suggestions.txt").read_text().splitlines()
    assert listed == [each["path"] for each in more["suggestions"]]
    assert [each["order"] for each in more["suggestions"]] == [1, 2, 3, 4, 5]
    (box, *_) = more["suggestions"][0]["boxes"]
    assert box["box"][2:] == [32, 32] and box["uncertainty"] > 0
    with Image.open(tmp_path / "out" / "sheet.png") as sheet:
        assert sheet.width > 2 * SIZE[1]


def test_labelled_images_are_not_suggested(network, photos, tmp_path):
    for name in ("images/train/x3", "images/val/5", "masks/train/x3", "masks/val/5"):
        source, grey = photos / f"{name[-1]}.png", np.arange(2).repeat(960).reshape(SIZE)
        image = grey.astype(np.uint8) if "masks" in name else np.asarray(Image.open(source))
        save_png(tmp_path / "mine" / f"{name}.png", image)
    save_png(tmp_path / "mine" / "images" / "val" / "5.png", np.full((*SIZE, 3), 7, np.uint8))
    first, second = (_digest_of_file(photos / f"{number}.png", True) for number in (0, 1))
    trained = {"fit": {"0": first + "f" * 16}, "pretrain": {"1": second}}  # of images alone
    trained = {stage: {"whole": True, "files": files} for stage, files in trained.items()}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "trained_on.json").write_text(json.dumps(trained))
    mine = [str(tmp_path / "mine")]
    found = suggest_images([photos], tmp_path / "out", 5, network, mine)
    # 3 by its content, 5 by its name, 0 as one of which the network has learned
    assert sorted(names(found)) == [f"{number}.png" for number in (1, 2, 4, 6, 7)]
    assert found["labelled_images"] == 5 and found["suggestions"][0]["distance"] > 0
    with pytest.raises(UserError, match="6, but 5 images without labels .* Give --count=5"):
        suggest_images([photos], tmp_path / "out", 6, network, mine)
    with pytest.raises(UserError, match="all images have labels already"):
        suggest_images([photos], tmp_path / "other", 1, None, [str(photos)], "colour")


@pytest.mark.parametrize("content", [b"", b"[]", b'{"fit": 3}', b'{"fit": {"whole": true}}'])
def test_a_damaged_list_of_training_images_excludes_none(network, content):
    network.directory.mkdir(parents=True)
    (network.directory.parents[1] / "trained_on.json").write_bytes(content)
    assert suggestions.learned_from(network) == set()


@pytest.mark.parametrize(
    "parts",
    [
        {"fit": {"whole": False, "ids": ["c"], "files": {"0": 2 * "0123456789abcdef"}}},
        {"fit": {"whole": True, "ids": ["c"], "files": {"t.array_record": "0123456789abcdef"}}},
    ],
    ids=["large", "tfds"],
)
def test_training_images_that_are_not_recognised_are_said(network, photos, tmp_path, capsys, parts):
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / "trained_on.json"
    file.write_text(json.dumps(parts))
    note = "note: the run lists its training images by parts"
    suggest_images([photos], tmp_path / "out", 1, network)
    assert note in capsys.readouterr().out
    suggest_images([photos], tmp_path / "out", 1, network, [str(photos / "0.png")])
    assert note not in capsys.readouterr().out
    known = {"fit": {"whole": True, "ids": ["c"], "files": {"0": 2 * "0123456789abcdef"}}}
    unlabelled = {"whole": False, "ids": [], "files": {"0": "0123456789abcdef"}}
    file.write_text(json.dumps({**known, "pretrain": unlabelled}))
    suggest_images([photos], tmp_path / "out", 1, network)
    assert note not in capsys.readouterr().out


def test_names_of_files_do_not_change_the_choice(network, photos, tmp_path):
    (tmp_path / "renamed").mkdir()
    for number in range(8):
        content = (photos / f"{number}.png").read_bytes()
        (tmp_path / "renamed" / f"{7 - number}.png").write_bytes(content)
    one = suggest_images([photos], tmp_path / "a", 4, network)
    other = suggest_images([tmp_path / "renamed"], tmp_path / "b", 4, network)
    assert [7 - int(name[0]) for name in names(other)] == [int(name[0]) for name in names(one)]


def test_known_images_stand_in_for_labelled_ones(network, photos, tmp_path):
    reddish = np.array([[100.0, 5, 5], [105, 6, 6]], np.float16)
    network.known = SimpleNamespace(descriptors=reddish)
    (found,) = suggest_images([photos], tmp_path / "out", 1, network)["suggestions"]
    assert int(found["path"][-5]) % 2 == 1 and found["distance"] > 0


def test_copies_replace_no_file(photos, tmp_path):
    (tmp_path / "out" / "images").mkdir(parents=True)
    (tmp_path / "out" / "images" / "3.png").write_text("mine")
    for _ in range(2):
        suggest_images([photos], tmp_path / "out", 8, features="colour", copy=True)
    copies = {file.name: file.read_bytes() for file in (tmp_path / "out" / "images").iterdir()}
    assert copies.pop("3.png") == b"mine"
    assert copies.pop("3_2.png") == (photos / "3.png").read_bytes()
    assert copies == {f"{n}.png": (photos / f"{n}.png").read_bytes() for n in (0, 1, 2, 4, 5, 6, 7)}


def test_frames_are_suggested_one_by_one_and_copied_as_png(tmp_path):
    pages = [Image.fromarray(np.full((*SIZE, 3), 40 * number, np.uint8)) for number in range(4)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    stack = [tmp_path / "stack.tif"]
    found = suggest_images(stack, tmp_path / "out", 2, features="colour", copy=True)
    assert all(name.startswith("stack.tif#") for name in names(found)) and found["images"] == 4
    for each in found["suggestions"]:
        number = int(each["path"][-1])
        with Image.open(tmp_path / "out" / "images" / f"stack_00000{number}.png") as copy:
            np.testing.assert_array_equal(np.asarray(copy), pages[number])
    assert suggest_images(stack, tmp_path / "two", 1, features="colour", every=2)["images"] == 2


def test_without_a_network_images_of_both_colours_are_suggested(
    photos, tmp_path, monkeypatch, capsys
):  # fmt: skip
    def missing():
        raise UserError("it is not installed. Type: pip install x")

    monkeypatch.setattr(image_descriptors, "pretrained_describer", missing)
    (photos / "broken.png").write_bytes(b"no image")
    found = suggest_images([photos], tmp_path / "out", 2)
    assert {int(name[0]) % 2 for name in names(found)} == {0, 1}
    assert "mean colours" in (out := capsys.readouterr().out) and "pip install x" in out
    assert found["compared_by"] == "colour" and len(found["unreadable"]) == 1
    assert "boxes" not in found["suggestions"][0]
    with pytest.raises(UserError, match="pip install x"):
        suggest_images([photos], tmp_path / "out", 2, features="efficientnet_lite0")


def test_mistakes_end_with_one_sentence(photos, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no image")
    given = {"images": photos, "output": tmp_path / "out", "features": "colour"}
    for changed, sentence in (
        ({"images": tmp_path / "missing"}, "there is no image or folder .*missing"),
        ({"images": tmp_path / "empty"}, "empty holds no file that ends with"),
        ({"images": tmp_path / "broken", "count": 1}, "none of the images can be read.*a.png"),
        ({"labelled": tmp_path / "missing"}, "there is no image or folder .*missing"),
        ({"labelled": tmp_path / "empty"}, "empty holds no file that ends with"),
        ({"output": photos / "out"}, "out lies in --images="),
        ({"count": 0}, "--count is 0, but it must be a whole number from 1 up"),
        ({"count": 9}, "count is 9, but --images holds 8 images. Give a smaller"),
        ({"checkpoint": tmp_path / "none"}, "none does not exist"),
        ({"stage": "fit"}, "--stage=fit is an option of a network.* leave --stage out"),
        ({"features": "dino"}, "features.*dino"),
    ):
        flags = [f"--{name}={value}" for name, value in (given | changed).items()]
        with pytest.raises(SystemExit) as end:
            suggest.main([*flags, "--compilation_cache="])
        error = capsys.readouterr().err
        assert end.value.code == 2 and re.search(sentence, error), error
        assert error.count("\n") == 1


def test_the_command_suggests_by_a_trained_network(tiny_run, photos, tmp_path, capsys):
    flags = [f"--checkpoint={tiny_run.workdir}", f"--images={photos}", "--compilation_cache="]
    suggest.main([*flags, "--count=3", f"--output={tmp_path / 'out'}", "--copy"])
    out = capsys.readouterr().out
    assert "compares images by features of the network" in out and "expected share of wrong" in out
    found = json.loads((tmp_path / "out" / "suggestions.json").read_text())
    assert len(set(names(found))) == 3 and len(list((tmp_path / "out" / "images").iterdir())) == 3
    with pytest.raises(SystemExit):
        suggest.main([*flags, "--stage=pretrain", f"--output={tmp_path / 'other'}"])
    assert "stage pretrain" in (error := capsys.readouterr().err) and "cannot segment" in error
