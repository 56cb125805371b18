"""Images as Python objects, patterns and folders are judged as the files would be."""

import io
import re

import numpy as np
import pytest
from PIL import Image, ImageFile

from diffseg_jax.data import images
from diffseg_jax.data.formats import FORMATS, image_formats
from diffseg_jax.data.images import read_image
from diffseg_jax.errors import UserError
from diffseg_jax.inference.images import find_images, matching, named_images

pytestmark = pytest.mark.quick

IMAGE = np.random.default_rng(0).integers(0, 256, (10, 14, 3), np.uint8)
GREY = IMAGE[..., 0]


def encoded(image=IMAGE, name="PNG", **options):
    stream = io.BytesIO()
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(
        stream, name, **options
    )
    return stream.getvalue()


def read_to_the_middle():
    stream = io.BytesIO(encoded())
    stream.read(100)
    return stream


class Tensor:
    """An array of another library, which becomes one of numpy."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        if self.array is None:
            raise RuntimeError("requires grad")
        return self.array


class OnlyReads:
    """A stream that cannot go back, such as a download."""

    def read(self):
        return encoded()


SAME = {  # all are IMAGE
    "bytes": encoded,
    "bytearray": lambda: bytearray(encoded()),
    "memoryview of a file": lambda: memoryview(encoded()),
    "memoryview of pixels": lambda: memoryview(IMAGE),
    "array of the bytes of a file": lambda: np.frombuffer(encoded(), np.uint8),
    "file object at another position": read_to_the_middle,
    "stream without seek": OnlyReads,
    "tensor": lambda: Tensor(IMAGE),
    "CMYK image": lambda: Image.fromarray(IMAGE).convert("CMYK"),
    "view": lambda: IMAGE[::-1, ::-1][::-1, ::-1],
    "Fortran order": lambda: np.asfortranarray(IMAGE),
    "array of objects": lambda: np.array([IMAGE, IMAGE[:4]], object)[:1],
    "nested lists": lambda: [[io.BytesIO(encoded())]],
    "set": lambda: {encoded()},
}


@pytest.mark.parametrize("kind", SAME)
def test_every_kind_of_object_is_the_same_image(kind):
    ((name, image),) = named_images(SAME[kind]())
    assert name == "000000"
    np.testing.assert_array_equal(image, IMAGE)


def test_lists_mix_kinds_and_sizes(tmp_path):
    Image.fromarray(IMAGE[:5]).save(tmp_path / "a.png")
    mixed = [tmp_path / "a.png", encoded(), Image.fromarray(IMAGE), np.stack([IMAGE, IMAGE])]
    found = list(named_images(mixed))
    assert [name for name, _ in found] == ["a", "000001", "000002", "000003", "000004"]
    assert [image.shape[0] for _, image in found] == [5, 10, 10, 10, 10]


FLOATS = IMAGE.astype(np.float32) / 255
ADVISED = {  # array -> what the advised expression makes of it
    "channels first": (np.moveaxis(IMAGE, -1, 0), IMAGE),
    "batch with channels first": (np.moveaxis(IMAGE, -1, 0)[None], IMAGE),
    "floats with channels first": (np.moveaxis(FLOATS, -1, 0), IMAGE),
    "grey": (GREY, np.repeat(GREY[..., None], 3, -1)),
    "grey with channel": (GREY[..., None], np.repeat(GREY[..., None], 3, -1)),
    "alpha": (np.dstack([IMAGE, GREY]), IMAGE),
    "floats to 1": (FLOATS, IMAGE),
    "floats to 255": (IMAGE.astype(np.float64), IMAGE),
    "floats from -1": (2 * FLOATS - 1, IMAGE),
    "not a number": (np.where(IMAGE == 255, np.nan, FLOATS), np.where(IMAGE == 255, 0, IMAGE)),
    "16 bits": (IMAGE.astype(np.uint16) * 257, IMAGE),
    "64 bits": (IMAGE.astype(np.int64), IMAGE),
    "truth": (IMAGE > 100, 255 * (IMAGE > 100)),
    "tensor": (Tensor(np.moveaxis(IMAGE, -1, 0)), IMAGE),
}


@pytest.mark.parametrize("kind", ADVISED)
def test_the_advice_for_another_array_makes_the_image(kind):
    image, expected = ADVISED[kind]
    with pytest.raises(UserError) as error:
        list(named_images(image))
    advised = eval(re.search(r"Try (.*)\.$", str(error.value))[1], {"np": np, "image": image})
    ((_, found),) = named_images(advised)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_images_are_refused_as_their_files_are(mode):
    deep = Image.fromarray(GREY.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    for given in (deep, encoded(deep, "TIFF")):
        with pytest.raises(UserError, match="more than 8 bits") as error:
            list(named_images(given))
    advised = eval(
        re.search(r"values, as (.*) does", str(error.value))[1],
        {"np": np, "Image": Image, "image": deep},
    )
    assert next(named_images(advised))[1].shape == IMAGE.shape


def test_enormous_images_are_refused_as_their_files_are(monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", IMAGE[..., 0].size - 1)
    for given in (encoded(), Image.fromarray(IMAGE)):
        with pytest.raises(UserError, match="14x10"):
            list(named_images(given))


def test_what_is_no_image_is_a_sentence(tmp_path):
    (tmp_path / "a.txt").write_text("x")
    closed, cut = Image.open(io.BytesIO(encoded())), encoded(name="JPEG")[:-20]
    closed.close()
    for given in (closed, Image.open(io.BytesIO(cut)), cut, b"", io.StringIO("x"), {"a": IMAGE},
                  (tmp_path / "a.txt").open("w"), None, [None], np.array([None]), np.array(None),
                  Tensor(None), np.array(5), IMAGE * 1j, np.array(["a"])[:0]):  # fmt: skip
        with pytest.raises(UserError):
            list(named_images(given))


def test_cut_files_are_refused_where_the_program_tells_pillow_to_fill_them(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    cut = encoded(name="JPEG")[:-20]
    for given in (cut, Image.open(io.BytesIO(cut))):
        with pytest.raises(UserError, match="truncated"):
            list(named_images(given))
    assert ImageFile.LOAD_TRUNCATED_IMAGES


def test_all_formats_of_pillow_are_found_and_the_other_files_counted(tmp_path):
    saved = []
    for name in set(image_formats()) - {"HEIF"}:
        for ending in FORMATS[name]:
            (tmp_path / f"{len(saved)}{ending.upper()}").write_bytes(encoded(name=name))
            saved.append(f"{len(saved)}")
    for file in ("x.heic", "y.HEIC", "notes.txt", "Thumbs.db", "._1.jpg", ".DS_Store"):
        (tmp_path / file).write_bytes(b"")
    (tmp_path / "space.png ").write_bytes(encoded())
    found, (note,) = find_images(tmp_path)
    assert {name for name, _ in found} == {*saved, "space"}
    assert all(read_image(path).shape == IMAGE.shape for _, path in found)
    assert note.startswith("3 files in ") and "2 .heic, 1 .txt; the first is notes.txt" in note


def test_masks_in_folders_are_no_images_unless_they_are_named(tmp_path):
    files = {}
    for part, pixels in (("images", IMAGE), ("masks", IMAGE[..., 0] // 128)):
        files[part] = tmp_path / part / "train" / "a.png"
        files[part].parent.mkdir(parents=True)
        Image.fromarray(pixels).save(files[part])
    (tmp_path / "classes.json").write_text("{}")
    found, (skipped, masks) = find_images(tmp_path)
    assert [name for name, _ in found] == ["images/train/a"]
    assert skipped.endswith("1 .json; the first is classes.json.")  # which no one saves as JPEG
    assert masks.startswith(f"1 of 2 images in {tmp_path} are left out, since they look like masks")
    assert "--keep_masks=True; in Python, give a list of their paths." in masks
    assert len(find_images(tmp_path, keep_masks=True)[0]) == 2
    (tmp_path / "classes.json").unlink()
    with pytest.warns(UserWarning, match="look like masks"):
        assert len(list(named_images(tmp_path))) == 1
    assert len(list(named_images([files["images"], files["masks"]]))) == 2


def test_patterns_are_expanded(tmp_path, monkeypatch):
    for file in ("a/1.png", "a/2.jpg", "a/notes.txt", "b/1.png", "[1].png", ".hidden.png"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_bytes(encoded())
    monkeypatch.chdir(tmp_path)
    for pattern, files in {
        "a/*": ["a/1.png", "a/2.jpg"],
        "a/*.png": ["a/1.png"],
        "**/1.png": ["a/1.png", "b/1.png"],
        f"{tmp_path}/?/1.*": [f"{tmp_path}/a/1.png", f"{tmp_path}/b/1.png"],
        "[1].png": ["[1].png"],
        "*.png": ["[1].png"],
        "a/*.txt": ["a/notes.txt"],
        "[ab]": ["a", "b"],
    }.items():
        assert matching(pattern) == files
    assert [name for name, _ in find_images("?")[0]] == ["1_png", "2", "1_png_2"]
    assert matching("**/1.png", output="b") == matching("**/1.png", output="b/") == ["a/1.png"]
    assert matching("[ab]", output=f"{tmp_path}/b") == ["a"] and matching("b", output="b") == ["b"]
    assert matching("b/*", output="b") == matching("b/*", output=".") == ["b/1.png"]
    with pytest.raises(UserError, match="no file or folder like b"):
        matching("b*", output="b")
    with pytest.raises(UserError, match="no file or folder like c/"):
        find_images("c/*.png")
