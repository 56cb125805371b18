"""Masks are read as the ids that they store, or refused where two readings are possible."""

import io
import json
import re
import struct

import numpy as np
import pytest
from PIL import Image

from diffseg_jax.data.sources import open_source
from diffseg_jax.errors import UserError
from image_files import grey_png, grey_tiff, random_image, save_image

pytestmark = pytest.mark.quick

IDS = (np.arange(8 * 16) // 8 % 4).astype(np.uint8).reshape(8, 16)  # 0..3
FULL = (np.arange(8 * 16) // 8).astype(np.uint8).reshape(8, 16)  # 0..15


def image_bytes(array, form, mode=None, **options):
    """The array as an image file; `mode` "P" takes it for indices of a palette of colours."""
    image = Image.fromarray(array, mode if mode == "LA" else None)
    if mode == "P":
        image = Image.frombytes("P", array.shape[::-1], array.tobytes())
        image.putpalette([value * 7 % 256 for value in range(768)])
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def array_bytes(array, save=np.save):
    stream = io.BytesIO()
    save(stream, array)
    return stream.getvalue()


def folder_of(path, name, content, entries=4, image=None):
    """A folder whose masks are one file, with its classes: a number, or a classes.json."""
    save_image(path / "images/train/a.png", random_image(8, 16) if image is None else image)
    (path / "masks/train").mkdir(parents=True, exist_ok=True)
    (path / "masks/train" / name).write_bytes(content)
    entries = {"names": [f"c{k}" for k in range(entries)]} if type(entries) is int else entries
    (path / "classes.json").write_text(json.dumps(entries))
    return path


def classes_in(path):
    return open_source("folder", "train", path=str(path))[0]["mask"]


STORED = {  # what stores 0..3
    "a.png": {
        "8 bits": image_bytes(IDS, "PNG"),
        "2 bits": grey_png(IDS, 2),
        "4 bits": grey_png(IDS, 4),
        "16 bits": image_bytes(IDS.astype(np.uint16), "PNG"),
        "palette of 2 bits": image_bytes(IDS, "PNG", "P", bits=2),
        "palette, transparent": image_bytes(IDS, "PNG", "P", transparency=1),
        "grey, a transparent value": image_bytes(IDS, "PNG", transparency=1),
        "grey and opaque": image_bytes(np.dstack([IDS, np.full_like(IDS, 255)]), "PNG", "LA"),
        "RGB of equal channels": image_bytes(np.dstack([IDS] * 3), "PNG"),
        "RGBA": image_bytes(np.dstack([IDS] * 3 + [np.full_like(IDS, 255)]), "PNG"),
    },
    "a.tif": {
        "2 bits": grey_tiff(IDS, 2),
        "4 bits": grey_tiff(IDS, 4),
        "8 bits": grey_tiff(IDS, 8),
        "16 bits": image_bytes(IDS.astype(np.uint16), "TIFF"),
        "32 bits": image_bytes(IDS.astype(np.int32), "TIFF", compression="tiff_lzw"),
        "floats": image_bytes(IDS.astype(np.float32), "TIFF"),
        "palette": image_bytes(IDS, "TIFF", "P"),
    },
    "a.bmp": {"grey": image_bytes(IDS, "BMP"), "palette": image_bytes(IDS, "BMP", "P")},
    "a.gif": {"grey": image_bytes(IDS, "GIF")},
    "a.pgm": {
        "8 bits": image_bytes(IDS, "PPM"),
        "as text": b"P2 # ids\n16 8\n3\n" + b" ".join(b"%d" % i for i in IDS.ravel()),
        "as few as needed": b"P5\n# ids\n16 8 3\n" + IDS.tobytes(),
        "a long comment": b"P5\n#" + b"x" * 5000 + b"\n16 8 255\n" + IDS.tobytes(),
        "colours that are grey": b"P6 16 8 255\n" + IDS.repeat(3).tobytes(),
        "floats": b"Pf\n16 8\n-1.0\n" + IDS[::-1].astype("<f4").tobytes(),
    },
    "a.tga": {"grey": image_bytes(IDS, "TGA")},
    "a.webp": {"lossless": image_bytes(IDS, "WEBP", lossless=True, exif=b"Exif\0\0")},
    "a.npy": {
        name: array_bytes(array)
        for name, array in {
            "uint8": IDS,
            "int64": IDS.astype(np.int64),
            "big-endian": IDS.astype(">u2"),
            "column-major": np.asfortranarray(IDS),
            "floats": IDS.astype(np.float64),
            "half": IDS.astype(np.float16),
            "[H,W,1]": IDS[..., None],
            "[1,H,W]": IDS[None],
        }.items()
    },
    "a.npz": {"one array": array_bytes(IDS, np.savez_compressed)},
}
CASES = [(file, form) for file, forms in STORED.items() for form in forms]


@pytest.mark.parametrize("file, form", CASES)
def test_every_format_gives_the_stored_ids(tmp_path, file, form):
    np.testing.assert_array_equal(classes_in(folder_of(tmp_path, file, STORED[file][form])), IDS)


def test_small_depths_hold_ids_and_not_greys(tmp_path):
    path = folder_of(tmp_path, "a.png", grey_png(FULL, 4), 150)
    np.testing.assert_array_equal(classes_in(path), FULL)
    for ids, depth in ((IDS % 2, 1), (IDS % 2 * 3, 2), (FULL, 8)):
        folder_of(tmp_path, "a.png", grey_png(ids, depth), 16)
        np.testing.assert_array_equal(classes_in(path), ids)


@pytest.mark.parametrize("value", [-1, -100, 255])
def test_ignored_pixels_of_arrays(tmp_path, value):
    ids = np.where(IDS == 3, value, IDS.astype(np.int64))
    for array in (ids, ids.astype(np.float32)):
        mask = classes_in(folder_of(tmp_path, "a.npy", array_bytes(array), 3))
        np.testing.assert_array_equal(mask, np.where(IDS == 3, 255, IDS))


def test_published_sets_read_small_depths(tmp_path):
    save_image(tmp_path / "images/training/a.jpg", random_image(8, 16))
    (tmp_path / "annotations/training").mkdir(parents=True)
    (tmp_path / "annotations/training/a.png").write_bytes(grey_png(IDS + 4, 4))
    mask = open_source("ade20k", "train", path=str(tmp_path))[0]["mask"]
    np.testing.assert_array_equal(mask, IDS + 3)


def test_png_and_npy_come_before_other_formats(tmp_path):
    path = folder_of(tmp_path, "a.png", image_bytes(IDS, "PNG"))
    (path / "masks/train/a.gif").write_bytes(b"an overlay")
    np.testing.assert_array_equal(classes_in(path), IDS)


# ---- two readings --------------------------------------------------------------------------------

RGB = np.dstack([IDS * 80, 255 - IDS, IDS])
BMP = b"BM" + struct.pack("<IHHI", 54 + 256, 0, 0, 54)
BMP_16 = struct.pack("<IiiHHIIiiII", 40, 16, 8, 1, 16, 0, 256, 0, 0, 0, 0)  # 5 bits each
TGA_16 = struct.pack("<BBBHHBHHHHBB", 0, 0, 2, 0, 0, 0, 0, 0, 16, 8, 16, 32)
SGI = struct.pack(">hBBHHHH", 474, 0, 2, 2, 16, 8, 1).ljust(512, b"\0")  # grey, 2 bytes each
PAGES = dict(save_all=True, append_images=[Image.fromarray(IDS[::-1].copy())])
REFUSED = [
    ("a.png", image_bytes(IDS, "JPEG"), "changes ids. Export"),
    ("a.webp", image_bytes(IDS, "WEBP", quality=90), "changes ids. Export"),
    ("a.tif", image_bytes(np.dstack([IDS] * 3), "TIFF", compression="jpeg"), "changes ids. Export"),
    ("a.tif", grey_tiff(IDS, 2, 0), "0 is white"),
    ("a.tif", grey_tiff(IDS, 8, 0), "0 is white"),
    ("a.pbm", b"P4\n16 8\n" + bytes(16), "0 is white"),
    ("a.pgm", b"P5 16 8 1000\n" + bytes(256), "samples that are scaled"),
    ("a.ppm", b"P6 16 8 3\n" + IDS.repeat(3).tobytes(), "samples that are scaled"),
    ("a.ppm", b"P6 16 8 65535\n" + IDS.repeat(3).astype(">u2").tobytes(), "that are scaled"),
    ("a.bmp", BMP + BMP_16 + IDS.astype("<u2").tobytes(), "colours of 16 bits per pixel"),
    ("a.dib", BMP_16 + IDS.astype("<u2").tobytes(), "colours of 16 bits per pixel"),
    ("a.tga", TGA_16 + IDS.astype("<u2").tobytes(), "colours of 16 bits per pixel"),
    ("a.sgi", SGI + IDS.astype(">u2").tobytes(), "samples of 16 bits"),
    ("a.tif", image_bytes(IDS, "TIFF", **PAGES), "holds 2 images"),
    ("a.png", image_bytes(IDS, "PNG", **PAGES), "holds 2 images"),
    ("a.gif", image_bytes(IDS, "GIF", "P"), "indices programs renumber"),
    ("a.gif", image_bytes(IDS * 2, "GIF"), "index 1 .* id 2, so two readings"),
    ("a.png", image_bytes(np.dstack([IDS, IDS * 80]), "PNG", "LA"), "transparent pixels"),
    ("a.png", image_bytes(np.dstack([RGB, IDS]), "PNG"), "transparent pixels"),
    ("a.png", image_bytes(random_image(8, 16), "PNG"), "holds colours"),
    ("a.npy", array_bytes(np.eye(4, dtype=np.uint8)[IDS]), r"argmax\(mask, axis=-1\)"),
    ("a.npy", array_bytes(np.moveaxis(np.eye(4)[IDS], -1, 0)), r"argmax\(mask, axis=0\)"),
    ("a.npy", array_bytes(np.full((8, 16), 0.5)), "holds 0.5, .* an integer"),
    ("a.npy", array_bytes(np.full((8, 16), np.nan)), "holds nan, .* an integer"),
    ("a.npy", array_bytes(np.zeros((2, 8, 16), np.complex64)), "integer array"),
    ("a.npy", b"\x93NUMPY", "cannot read mask"),
    ("a.npz", array_bytes([IDS, IDS], lambda f, pair: np.savez(f, *pair)), "arr_0.npy, arr_1.npy"),
]


@pytest.mark.parametrize("file, content, sentence", REFUSED)
def test_a_mask_with_two_readings_is_refused(tmp_path, file, content, sentence):
    with pytest.raises(UserError, match=sentence):
        classes_in(folder_of(tmp_path, file, content, 8))


def test_smaller_versions_in_a_tiff_are_not_other_masks(tmp_path):
    stream = io.BytesIO()
    small = Image.fromarray(IDS[::2, ::2].copy())
    small.encoderinfo = {"tiffinfo": {254: 1}}
    Image.fromarray(IDS).save(stream, "TIFF", save_all=True, append_images=[small])
    np.testing.assert_array_equal(classes_in(folder_of(tmp_path, "a.tif", stream.getvalue())), IDS)


def test_jpeg_masks_are_named(tmp_path):
    path = folder_of(tmp_path, "a.jpg", image_bytes(IDS, "JPEG"))
    with pytest.raises(UserError, match="no mask but 1 file such as a.jpg, and lossy"):
        classes_in(path)
    save_image(path / "images/train/b.png", random_image(8, 16))
    (path / "masks/train/b.png").write_bytes(grey_png(IDS, 8))
    with pytest.raises(UserError, match="1 of 2 images .* There is a.jpg, but lossy"):
        classes_in(path)
    (path / "masks/train/a.jpg").rename(path / "masks/train/a_mask.png")
    with pytest.raises(UserError, match="1 of 2 images .* There is a_mask.png: its name"):
        classes_in(path)


# ---- colours -------------------------------------------------------------------------------------

COLOURS = [[70, 130, 180], [128, 64, 128], [0, 0, 0], [0, 0, 142]]
SHOWN = np.array(COLOURS, np.uint8)[IDS]


def follow(path, error):
    """Makes the change to classes.json that an error asks for."""
    text = re.search(rf"set (.*?) in {re.escape(str(path))}/classes.json", str(error)).group(1)
    entries = json.loads((path / "classes.json").read_text())
    (path / "classes.json").write_text(json.dumps(entries | json.loads(f"{{{text}}}")))


def test_masks_in_the_colours_of_the_classes(tmp_path):
    names = ["sky", "road", "other", "car"]
    path = folder_of(tmp_path, "a.png", image_bytes(SHOWN, "PNG"), {"names": names})
    with pytest.raises(UserError, match=r"holds colours. .* a class and \[.* is \"sky\"") as error:
        classes_in(path)
    follow(path, error.value)  # the mapping that it names is the user's to confirm
    assert set(np.unique(classes_in(path))) == {0, 1, 2, 3}
    entries = {"names": names, "palette": COLOURS}
    for more, ids in (
        ({}, IDS),
        ({"zero_is_ignored": True}, IDS),
        ({"ids": [9, 8, 7, 6]}, IDS),
        ({"ignore": [[0, 0, 0]]}, np.where(IDS == 2, 255, IDS)),
    ):
        folder_of(tmp_path, "a.png", image_bytes(SHOWN, "PNG"), entries | more)
        np.testing.assert_array_equal(classes_in(path), ids)
    entries = {"names": names[:3], "palette": COLOURS[:3]}
    folder_of(tmp_path, "a.png", image_bytes(SHOWN, "PNG"), entries)
    with pytest.raises(UserError, match=r"no class, or to several.* \[0, 0, 142\] of") as error:
        classes_in(path)
    follow(path, error.value)
    np.testing.assert_array_equal(classes_in(path), IDS)


def test_a_palette_that_contradicts_its_indices_is_a_question(tmp_path):
    """As after a program dropped unused colours: the colours are right, the indices are not."""
    stream = io.BytesIO()
    image = Image.frombytes("P", IDS.shape[::-1], (3 - IDS).tobytes())
    image.putpalette(np.array(COLOURS[::-1], np.uint8).tobytes())
    image.save(stream, "PNG")
    entries = {"names": ["sky", "road", "other", "car"], "palette": COLOURS}
    path = folder_of(tmp_path, "a.png", stream.getvalue(), entries)
    with pytest.raises(UserError, match='two readings.*"masks": "ids" or "masks": "colours"'):
        classes_in(path)
    for reading, ids in (("ids", 3 - IDS), ("colours", IDS)):
        folder_of(tmp_path, "a.png", stream.getvalue(), entries | {"masks": reading})
        np.testing.assert_array_equal(classes_in(path), ids)


@pytest.mark.parametrize(
    "greys, asks", [([0, 4, 9, 17], True), ([0, 5, 9, 255], True), ([0, 255] * 2, False)]
)
def test_a_palette_of_greys_may_show_ids(tmp_path, greys, asks):
    """As after a program renumbered the values of a grey mask; black and white are no ids."""
    save_image(tmp_path / "images/training/a.jpg", random_image(8, 16))
    image = Image.frombytes("P", IDS.shape[::-1], (IDS % 2 if not asks else IDS).tobytes())
    image.putpalette(np.repeat(np.array(greys, np.uint8)[:, None], 3, 1).tobytes())
    (tmp_path / "annotations/training").mkdir(parents=True)
    path = tmp_path / "annotations/training/a.png"
    image.save(path)
    source = open_source("ade20k", "train", path=str(tmp_path))
    if not asks:
        np.testing.assert_array_equal(source[0]["mask"], np.where(IDS % 2, 0, 255))
        return
    with pytest.raises(UserError, match="two readings") as error:
        source[0]
    code = re.search(r"in Python: (.*?); else", str(error.value)).group(1)
    exec(code, {"Image": Image, "path": path})
    known = np.where(np.array(greys) % 255 > 0, np.array(greys) - 1, 255)
    np.testing.assert_array_equal(source[0]["mask"], known[IDS])


def test_many_colours_are_no_classes(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (8, 64, 3), np.uint8)
    path = folder_of(tmp_path, "a.png", image_bytes(noise, "PNG"), image=noise)
    with pytest.raises(UserError, match="holds 512 colours, as photographs"):
        classes_in(path)


# ---- ids -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "values, names, classes",
    [
        ((0, 128, 128, 255), 2, (0, 255, 255, 1)),
        ((0, 85, 170, 255), 4, (0, 1, 2, 3)),
        ((1, 2, 3, 4), 4, (0, 1, 2, 3)),
        ((0, 1, 2, 3), 3, (255, 0, 1, 2)),
        ((0, 1, 2, 9), 3, (0, 1, 2, 255)),
        ((0, 1, 2, 65535), 4, (0, 1, 2, 255)),
        ((0, 7, 9, 255), 3, (0, 1, 2, 255)),
    ],
)
def test_the_advice_about_unknown_ids_works(tmp_path, values, names, classes):
    mask = np.array(values)[IDS].astype(np.uint16)
    path = folder_of(tmp_path, "a.png", image_bytes(mask, "PNG"), names)
    with pytest.raises(UserError, match="has class id") as error:
        classes_in(path)
    follow(path, error.value)
    np.testing.assert_array_equal(classes_in(path), np.array(classes)[IDS])
    (path / "classes.json").unlink()
    with pytest.raises(UserError, match="has class id") as error:
        open_source("folder", "train", path=str(path), num_classes=names)[0]
    text = re.search(r"write (\{.*?\}) into", str(error.value)).group(1)
    (path / "classes.json").write_text(text)
    source = open_source("folder", "train", path=str(path), num_classes=names)
    np.testing.assert_array_equal(source[0]["mask"], np.array(classes)[IDS])


def test_the_advice_looks_at_other_masks(tmp_path):
    for name, values in zip("ab", ((0, 40), (0, 80))):
        save_image(tmp_path / f"images/train/{name}.png", random_image(8, 16))
        save_image(tmp_path / f"masks/train/{name}.png", np.array(values, np.uint8)[IDS % 2])
    (tmp_path / "classes.json").write_text('{"names": ["a", "b", "c"]}')
    source = open_source("folder", "train", path=str(tmp_path))
    with pytest.raises(UserError, match="class id 40, .* the ids 0, 40, 80") as error:
        source[0]
    follow(tmp_path, error.value)
    source = open_source("folder", "train", path=str(tmp_path))
    np.testing.assert_array_equal(source[1]["mask"], IDS % 2 * 2)


def test_the_advice_about_other_ids(tmp_path):
    for array, sentence in (
        (np.where(IDS == 3, -7, IDS.astype(int)), r"Replace -7 by 255: numpy\.where\(mask == -7,"),
        (np.where(IDS == 3, 2**32 - 1, IDS.astype(int)), "Replace 4294967295 by 255"),
        (np.arange(128).reshape(8, 16), "128 different values, as after smooth resizing"),
        (IDS + 1, r"If ids count from 1, .* if 3..4 are more classes, set .*; to ignore 3..4, set"),
        (IDS * 60 % 200, r"has class id 60, .* set .*, \"ids\": \[0, 60, 120, 180\] in"),
    ):
        path = folder_of(tmp_path, "a.npy", array_bytes(array), 3)
        with pytest.raises(UserError, match=sentence):
            classes_in(path)
