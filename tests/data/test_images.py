"""Image and mask files are read as stored, and damage is refused."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from diffseg_jax.data import images, masks
from diffseg_jax.data.images import require_same_size
from diffseg_jax.data.sources import open_source
from diffseg_jax.data.transforms import resize_mask
from diffseg_jax.errors import UserError
from image_files import png_bytes, png_chunk, random_ids, random_image, save_image

pytestmark = pytest.mark.quick


def test_a_mask_of_another_size_names_both_files(tmp_path):
    save_image(tmp_path / "images/train/a.png", random_image(4, 6))
    save_image(tmp_path / "masks/train/a.png", random_ids(3, 4, 5))
    source = open_source("folder", "train", path=str(tmp_path), num_classes=3)
    with pytest.raises(UserError, match=r"masks/train/a\.png is 5x4.*images/train/a\.png is 6x4"):
        source[0]


@pytest.mark.parametrize("size, advice", [
    ((3, 5), "Resize"), ((8, 12), "Resize"), ((6, 4), "Turn"), ((9, 4), "Turn.* and resize"),
])  # fmt: skip
def test_a_mask_that_lies_is_not_resized_to_an_upright_image(size, advice):
    """Following the advice, the mask fits."""
    image, ids = random_image(4, 6), random_ids(3, *size)
    with pytest.raises(UserError, match=rf"\. {advice}") as error:
        require_same_size(image, ids, "a", "b")
    turned = np.rot90(ids) if "np.rot90" in str(error.value) else ids
    if "nearest neighbour" in str(error.value):
        turned = resize_mask(turned, (4, 6))
    require_same_size(image, turned, "a", "b")
    assert (turned.shape[0] < turned.shape[1]) == (image.shape[0] < image.shape[1])


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1"])
def test_any_8_bit_image_becomes_rgb(tmp_path, mode):
    image = Image.fromarray(random_image()).convert(mode)
    image.save(tmp_path / ("a.jpg" if mode == "CMYK" else "a.png"))
    item = open_source("unlabelled", "train", path=str(tmp_path))[0]
    assert item["image"].shape == (4, 6, 3) and item["image"].dtype == np.uint8
    assert "mask" not in item


@pytest.mark.parametrize("ending", [".png", ".jpg"])
def test_truncated_images_are_named(tmp_path, ending):
    save_image(tmp_path / f"a{ending}", random_image(64, 64))
    whole = (tmp_path / f"a{ending}").read_bytes()
    for length in (0, 20, len(whole) // 2):
        (tmp_path / f"a{ending}").write_bytes(whole[:length])
        with pytest.raises(UserError, match=rf"cannot read .*a\{ending}"):
            open_source("unlabelled", "train", path=str(tmp_path))[0]


def interlaced_png(size):
    """A black grey 8x8 PNG with the first `size` bytes of its interlaced rows."""
    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 1)
    rows = [bytes(1 + width) for width in (1, 1, 2, 2, 2, 4, 4, 4, 4, 4, 4, 8, 8, 8, 8)]
    data = zlib.compress(b"".join(rows)[:size])
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_a_flipped_bit_in_a_png_never_changes_pixels_unseen():
    grey = random_image(24, 20)
    content = png_bytes(np.dstack([grey[..., 0], grey[..., 1]]))
    expected = images.read_image("a.png", content)
    refused = 0
    for index in range(8 * len(content)):
        damaged = bytearray(content)
        damaged[index // 8] ^= 1 << index % 8
        try:
            np.testing.assert_array_equal(images.read_image("a.png", bytes(damaged)), expected)
        except UserError:
            refused += 1
    assert refused > 7 * len(content)


def test_an_interlaced_png_without_its_last_passes_is_refused():
    complete = interlaced_png(79)
    np.testing.assert_array_equal(masks.read_ids("a.png", complete), np.zeros((8, 8)))
    with pytest.raises(UserError, match="fewer rows"):
        masks.read_ids("a.png", interlaced_png(43))


@pytest.mark.parametrize("ending", ["ppm", "png", "sgi"])
def test_16_bit_colours_are_read_as_viewers_show_them(ending):
    colours = np.random.default_rng(0).integers(0, 65536, (4, 6, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in colours)
    header = struct.pack(">IIBBBBB", 6, 4, 16, 2, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(rows))
    sgi = struct.pack(">hBBHHHH", 474, 0, 2, 3, 6, 4, 3).ljust(512, b"\0")
    contents = {
        "ppm": b"P6 6 4 65535\n" + colours.tobytes(),
        "png": b"\x89PNG\r\n\x1a\n" + chunks + png_chunk(b"IEND", b""),
        "sgi": sgi + np.moveaxis(colours[::-1], -1, 0).tobytes(),
    }
    shown = images.read_image(f"a.{ending}", contents[ending])
    assert np.abs(shown - colours / 257).max() < 1


def test_16_bit_and_enormous_images_are_refused(tmp_path, monkeypatch):
    save_image(tmp_path / "a.png", np.zeros((4, 6), np.uint16))
    with pytest.raises(UserError, match="8-bit"):
        open_source("unlabelled", "train", path=str(tmp_path))[0]
    save_image(tmp_path / "a.png", random_image())
    monkeypatch.setattr(images, "MAX_PIXELS", 23)
    with pytest.raises(UserError, match="6x4"):
        open_source("unlabelled", "train", path=str(tmp_path))[0]
