"""Where other labels lie in place of masks, errors say the command that converts them."""

import json
import shlex

import numpy as np
import pytest
from PIL import Image

from diffseg_jax.annotations.advice import advised, conversion_advice
from diffseg_jax.annotations.conversion import convert_labels
from diffseg_jax.annotations.label_formats import LABEL_FORMATS
from diffseg_jax.errors import UserError
from diffseg_jax.labels import main
from label_cases import write_maps, write_object, write_photo

pytestmark = pytest.mark.quick

IDS = np.array([[0, 1, 1], [2, 2, 0], [2, 2, 0]], np.uint8).repeat(6, axis=0).repeat(6, axis=1)
OTHERS = ("masks", "cityscapes")  # no other labels; no other classes
WRITTEN = [name for name, each in LABEL_FORMATS.items() if each.write and name not in OTHERS]


def command_in(sentence):
    """The arguments of the command in a sentence."""
    line = sentence.partition("python -m diffseg_jax.labels ")[2].partition("; then give")[0]
    return shlex.split(line)


def run(sentence):
    """Types the command, and gives the folder that it writes."""
    main(command_in(sentence))
    return sentence.partition("--config.data.path=")[2].removesuffix(".").strip("'")


@pytest.mark.parametrize("name", WRITTEN)
def test_the_command_converts_what_lies_in_the_folder(tmp_path, name, capsys):
    source = write_maps(tmp_path / "source", {"a.png": IDS, "b.png": IDS})
    folder = tmp_path / "my data"
    convert_labels(source, folder, target=name)
    sentence = conversion_advice(str(folder))
    assert f"holds labels of the format {name}. To make masks of them: " in sentence
    masks = run(sentence)
    assert masks == f"{folder}_masks"
    assert "2 images" in capsys.readouterr().out
    assert (tmp_path / "my data_masks" / "masks" / "a.png").exists()
    assert (tmp_path / "my data_masks" / "images" / "a.png").exists()


def test_labels_beside_images_are_found(tmp_path):
    """As labelme saves them, with the images in a folder of their own."""
    write_photo(tmp_path / "images" / "a.jpg", (4, 6))
    shape = {"label": "car", "points": [[0, 0], [6, 0], [6, 4]], "shape_type": "polygon"}
    content = {"imagePath": "a.jpg", "imageHeight": 4, "imageWidth": 6, "shapes": [shape]}
    write_object(tmp_path / "images" / "a.json", content)
    assert "--from=labelme" in conversion_advice(tmp_path)


@pytest.mark.parametrize("mask, name", [([0, 255], "binary"), ([(9, 0, 0), (0, 9, 0)], "colours")])
def test_masks_that_are_no_ids_are_found(tmp_path, mask, name):
    (tmp_path / "masks").mkdir()
    write_photo(tmp_path / "images" / "a.jpg", (9, 6))
    Image.fromarray(np.array([mask * 3] * 9, np.uint8)).save(tmp_path / "masks" / "a.png")
    sentence = conversion_advice(tmp_path)
    assert f"--from={name}" in sentence
    if name == "colours":
        assert f"into {tmp_path}/labelmap.txt. To make" in sentence
        (tmp_path / "labelmap.txt").write_text("a:9,0,0::\nb:0,9,0::\n")
    assert json.loads((tmp_path.parent / f"{run(sentence)}/classes.json").read_text())["names"]


def test_good_masks_and_other_files_need_no_advice(tmp_path):
    folder = write_maps(tmp_path / "a", {"a.png": IDS})
    write_object(folder / "notes.json", {"anything": 1})
    assert conversion_advice(folder) == ""
    (folder / "annotations.xml").write_text("<annotations></annotations>")
    assert conversion_advice(folder) == ""  # since there are masks
    assert conversion_advice(tmp_path / "missing") == conversion_advice("gs://a/b") == ""
    assert conversion_advice("") == ""


def test_black_and_white_that_classes_json_describes_needs_no_advice(tmp_path):
    folder = write_maps(tmp_path / "a", {"a.png": 255 * (IDS > 0).astype(np.uint8)})
    assert "--from=binary" in conversion_advice(folder)
    write_object(folder / "classes.json", {"names": ["a", "b"], "ids": [0, 255]})
    assert conversion_advice(folder) == ""


def test_an_error_has_the_advice_once(tmp_path):
    (tmp_path / "annotations.xml").write_text("<annotations></annotations>")
    with pytest.raises(UserError) as error, advised(tmp_path), advised(tmp_path):
        raise UserError("There are no masks.")
    assert str(error.value).startswith("There are no masks. ")
    assert str(error.value).count("python -m diffseg_jax.labels") == 1
