"""Advice on the classes of masks works when it is followed to the letter."""

import json
import re

import numpy as np
import pytest

from diffseg_jax.data.label_checks import read_labels, require_sensible
from diffseg_jax.data.sources import open_source
from diffseg_jax.errors import UserError
from image_files import labelled_folder, random_image, save_image

pytestmark = pytest.mark.quick

K, R, G, B = [0, 0, 0], [200, 0, 0], [0, 200, 0], [0, 0, 200]


def folder_with(path, masks, ending=".png"):
    """A folder with these masks, by their values or colours, in train and in val."""
    for split in ("train", "val"):
        for number, row in enumerate(masks):
            mask = np.repeat(np.repeat(np.array(row)[None], 4, 0), 4, 1)
            save_image(path / f"images/{split}/{number}.png", random_image(*mask.shape[:2]))
            dtype = np.uint8 if ending == ".png" and mask.max() < 256 else np.int32
            dtype = np.uint16 if ending == ".png" and dtype is np.int32 else dtype
            save_image(path / f"masks/{split}/{number}{ending}", mask.astype(dtype))


def readings(sentence, file):
    """(keys of classes.json, num_classes or 0) for every reading that an error allows."""
    line = (
        rf'(?:write (\{{[^}}]*\}}) into|set (".*?) in) {re.escape(str(file))}'
        r"(?: and give --config\.data\.options\.num_classes=(\d+))?"
        r"|give --config\.data\.options\.num_classes=(\d+)"
    )
    for written, changed, count, alone in re.findall(line, sentence):
        entries = json.loads(written or f"{{{changed}}}")
        yield entries, int(count or alone or 0)


def classes_after(path, **options):
    """The classes in the first mask; UserError where training would not start."""
    seen = []
    for split in ("train", "val"):
        source = open_source("folder", split, path=str(path), **options)
        seen.append(read_labels(split, source, range(len(source)), range(len(source))))
    require_sensible(*seen)
    return seen[0].source[0]["mask"][0, ::4].tolist()


ADVICE = {  # masks; classes.json or None, num_classes; the first mask after each reading
    "black and white": ([[0, 255], [0]], None, 0, [[0, 1]]),
    "black and white, two classes": ([[0, 255]], None, 2, [[0, 1]]),
    "black and white, one class": ([[0, 255]], None, 1, [[0, 1]]),
    "black and white, three names": ([[0, 255]], ["a", "b", "c"], 0, [[0, 1]]),
    "a border": ([[0, 128, 255]], None, 0, [[0, 255, 1], [0, 1, 2], [0, 1, 255]]),
    "from 1": ([[1, 2, 3, 255], [1, 2]], None, 0, [[0, 1, 2, 255], [1, 2, 3, 255]]),
    "from 1, three classes": ([[1, 2, 3]], None, 3, [[0, 1, 2], [1, 2, 3]]),
    "from 1, three names": ([[1, 2, 3]], ["a", "b", "c"], 0, [[0, 1, 2], [1, 2, 3]]),
    "from 1, more": (
        [[1, 2, 3, 4, 5]], ["a", "b", "c"], 0,
        [[0, 1, 2, 3, 4], [1, 2, 3, 4, 5], [1, 2, 255, 255, 255]],
    ),
    "from 0": ([[0, 1, 2], [3]], None, 0, [[0, 1, 2], [255, 0, 1]]),
    "from 0, three of four": ([[0, 1, 2], [3]], ["a", "b", "c"], 3, [[255, 0, 1], [0, 1, 2]]),
    "two": ([[0, 1]], None, 0, [[0, 1]]),
    "apart": ([[0, 40], [0, 80]], None, 0, [[0, 1]]),
    "apart, more than names": ([[0, 40, 80, 90]], ["a", "b", "c"], 3, [[0, 1, 2, 3]]),
    "16 bits": ([[0, 1, 65535]], None, 0, [[0, 1, 255], [0, 1, 2]]),
    "colours": ([[K, R], [K, G, B], [K]], None, 0, [[255, 2], [0, 3]]),
    "colours, fewer names": ([[K, R], [K, G, B], [K]], ["a", "b"], 2, [[255, 2], [0, 3]]),
    "colours, as many names": ([[K, R], [K, G, B], [K]], list("abcd"), 0, [[0, 3], [255, 2]]),
    "colours, more names": ([[K, R], [K, G, B], [K]], list("abcde"), 0, [[255, 2], [0, 3]]),
    "colours without black": ([[R, G], [R, B]], None, 0, [[2, 1]]),
    "black and white in colour": ([[K, 3 * [255]]], None, 0, [[0, 1]]),
    "white among colours": ([[K, 3 * [255]], [K, R, G]], None, 0, [[255, 2], [0, 3]]),
    "colours beside a palette": (
        [[R, G, B, K]], {"names": ["a", "b"], "palette": [R, G]}, 0,
        [[0, 1, 2, 255], [0, 1, 3, 2], [0, 1, 255, 255]],
    ),
    "colours, read as ids": (
        [[K, R, G]], {"names": ["a", "b"], "masks": "ids"}, 0, [[255, 1, 0], [0, 2, 1]]
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", ADVICE)
def test_every_reading_works_in_one_round(tmp_path, case):
    masks, entries, num_classes, wanted = ADVICE[case]
    folder_with(tmp_path, masks)
    file = tmp_path / "classes.json"
    entries = {"names": entries} if isinstance(entries, list) else entries or {}
    if entries:
        file.write_text(json.dumps(entries))
    with pytest.raises(UserError) as error:
        classes_after(tmp_path, num_classes=num_classes)
    found = []
    for changed, count in readings(str(error.value), file):
        file.unlink(missing_ok=True)
        if entries or changed:
            file.write_text(json.dumps(entries | changed))
        found.append(classes_after(tmp_path, num_classes=count or num_classes))
    assert found == wanted, str(error.value)


@pytest.mark.parametrize(
    "masks, ending, options, sentence",
    [
        ([[0, 1, -7]], ".npy", {}, "Replace -7 by 255"),
        ([[-1, -1]], ".npy", {}, "the ids of ignored pixels. Masks must show two classes"),
        ([[255]], ".png", {}, "the ids 255. Masks must show two classes"),
        ([[0] * 300 + [255] * 300 + list(range(256))], ".png", {}, "Export them again as PNG"),
        ([list(range(300))], ".png", {}, "There can be at most 255 classes"),
        ([[[i, j, 9] for i in range(20) for j in range(20)]], ".png", {}, "hold 400 colours, as"),
        ([[0.5, 1]], ".npy", {}, "holds 0.5, but a mask holds one class id"),
        ([[0, 255]], ".png", {"ignore": (0,)}, "take 0 out of --config.data.options.ignore"),
        ([[0, 0, 1]], ".png", {"num_classes": 1}, 'If 1 is "class_0", write {"names": ["backg'),
    ],
)
def test_what_no_line_can_mend_is_said(tmp_path, masks, ending, options, sentence):
    folder_with(tmp_path, masks, ending)
    if isinstance(masks[0][0], float):
        np.save(tmp_path / "masks/train/0.npy", np.full((4, 8), masks[0][0]))
        np.save(tmp_path / "masks/val/0.npy", np.full((4, 8), masks[0][0]))
    with pytest.raises(UserError) as error:
        classes_after(tmp_path, **options)
    assert sentence in str(error.value)


def test_shares_of_pixels_tell_one_more_class_from_an_unlabelled_one(tmp_path):
    labelled_folder(tmp_path, {"a": np.array([[0, 0, 0, 0, 1, 1, 2, 3]], np.uint8)})
    (tmp_path / "classes.json").write_text('{"names": ["a", "b", "c"]}')
    sentence = "Id 0 has 50.0% of the pixels, id 3 has 12.5%. If 0 is unlabelled, set"
    with pytest.raises(UserError, match=sentence):
        open_source("folder", "train", path=str(tmp_path))[0]
