"""Whatever changes what is learned changes the fingerprint of the data, and nothing else does."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from depth_files import make_depth_folder
from diffseg_jax.data import fingerprint
from diffseg_jax.data.sources import open_source

pytestmark = pytest.mark.quick
NAMES = ("ground", "sky")


@pytest.fixture
def folder(tmp_path):
    """A labelled folder with four images, one of them with a .npy mask."""
    rng, root = np.random.default_rng(0), tmp_path / "set"
    for part in ("images", "masks"):
        (root / part / "train").mkdir(parents=True)
    for i in range(4):
        image = Image.fromarray(rng.integers(0, 256, (9, 12, 3), np.uint8))
        image.save(root / f"images/train/{i}.bmp")
        mask = rng.integers(0, 2, (9, 12)).astype(np.uint8)
        if i:
            Image.fromarray(mask).save(root / f"masks/train/{i}.png")
        else:
            np.save(root / "masks/train/0.npy", mask)
    write_classes(root, names=NAMES)
    return root


def write_classes(root, **content):
    (root / "classes.json").write_text(json.dumps(content))


def found(root, whole=None, **options):
    source = open_source("folder", "train", path=str(root), **options)
    return fingerprint.fingerprint(source, np.arange(len(source)), whole)


def replace(file):
    """Changes one byte in the middle; size and time stay."""
    content, times = bytearray(file.read_bytes()), os.stat(file)
    content[-20] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


CHANGES = {  # a change of the folder -> the line that describes it
    "1 file changed: 2": lambda root: replace(root / "images/train/2.bmp"),
    "1 file changed: 0": lambda root: replace(root / "masks/train/0.npy"),
    "1 file removed: 3": lambda root: (root / "images/train/3.bmp").unlink(),
    "1 file added: 4": lambda root: [
        shutil.copy(root / f"{part}/train/1.{end}", root / f"{part}/train/4.{end}")
        for part, end in (("images", "bmp"), ("masks", "png"))
    ],
    "classes: ground, sky -> sky, ground": lambda root: write_classes(root, names=NAMES[::-1]),
    "masks are read as other classes": lambda root: write_classes(
        root, names=NAMES, ignore=[1]
    ),
}


@pytest.mark.parametrize("line", CHANGES)
def test_a_change_of_the_data_is_described(folder, line):
    before = found(folder)
    CHANGES[line](folder)
    (described,) = fingerprint.changes_of_data(before, found(folder))
    assert described.startswith(line)


def test_a_copy_elsewhere_and_other_colours_are_the_same_data(folder, tmp_path):
    before = found(folder)
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    write_classes(tmp_path / "copy", names=NAMES, palette=[[1, 2, 3], [4, 5, 6]])
    assert found(tmp_path / "copy") == before


def test_swapped_colours_of_masks_in_colours_are_other_classes(folder):
    colours = np.array([[255, 0, 0], [0, 255, 0]], np.uint8)
    for file in (folder / "masks/train").iterdir():
        mask = np.load(file) if file.suffix == ".npy" else np.array(Image.open(file))
        file.unlink()
        Image.fromarray(colours[mask]).save(file.with_suffix(".png"))
    write_classes(folder, names=NAMES, palette=colours.tolist())
    before = found(folder)
    write_classes(folder, names=NAMES, palette=colours[::-1].tolist())
    (described,) = fingerprint.changes_of_data(before, found(folder))
    assert described.startswith("masks are read as other classes")


def test_of_large_sets_only_the_ends_of_files_are_read(tmp_path, monkeypatch):
    file = tmp_path / "large"
    file.write_bytes(bytes(100_000))
    before = [fingerprint._digest_of_file(file, whole) for whole in (True, False)]
    file.write_bytes(bytes(50_000) + b"1" + bytes(49_999))
    after = [fingerprint._digest_of_file(file, whole) for whole in (True, False)]
    assert before[0] != after[0] and before[1] == after[1]
    file.write_bytes(bytes(99_999) + b"1")
    assert fingerprint._digest_of_file(file, False) != after[1]


def test_how_files_were_read_at_first_does_not_change_with_their_number(folder, monkeypatch):
    before = found(folder)
    assert before["whole"]
    monkeypatch.setattr(fingerprint, "WHOLE", 1)
    assert not found(folder)["whole"]
    assert found(folder, whole=before["whole"]) == before


def test_scenes_and_names_alone_need_no_files():
    source = open_source("scenes", "train", images=3, size=(32, 48))
    chosen = fingerprint.fingerprint(source, np.array([0, 2]))
    assert chosen["files"] == {"train_000000": "", "train_000002": ""}


def found_depth(root):
    source = open_source("depth_folder", "train", path=str(root))
    return fingerprint.fingerprint(source, np.arange(len(source)))


def test_depth_files_and_their_unit_are_part_of_the_data(tmp_path):
    root = make_depth_folder(tmp_path / "set", count=2)
    before = found_depth(root)
    make_depth_folder(tmp_path / "moved", count=2)
    assert found_depth(tmp_path / "moved") == before
    (root / "depth.json").write_text('{"scale": 0.002}')
    line = "depth is read as other metres (depth.json)"
    assert fingerprint.changes_of_data(before, found_depth(root)) == [line]
    (root / "depth.json").write_text('{"scale": 0.001}')
    np.save(root / "depth/train/photo1.npy", np.full((24, 40), 5.0))
    (root / "depth/train/photo1.png").unlink()
    line = "1 file changed: photo1"
    assert fingerprint.changes_of_data(before, found_depth(root)) == [line]
