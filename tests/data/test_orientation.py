"""Images and masks are read upright, whatever their EXIF orientation says."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from diffseg_jax.data.formats import image_formats
from diffseg_jax.data.images import read_image
from diffseg_jax.data.orientation import stored_orientation
from diffseg_jax.data.sources import open_source
from diffseg_jax.experiment import check_data
from diffseg_jax.experiment.data_notes import notes_of, turned_both_ways
from diffseg_jax.experiment.label_target import LABEL_TARGET
from diffseg_jax.experiment.prepare_data import encode
from diffseg_jax.figures import sheets
from image_files import random_ids, random_image

pytestmark = pytest.mark.quick

ORIENTATIONS = range(1, 9)
TAGGED = [name for name in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF") if name in image_formats()]


def tagged(array, orientation, name):
    """The bytes of an image file with that EXIF orientation."""
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(array).save(stream, name, exif=exif)
    return stream.getvalue()


def upright(array, orientation):
    """An array as Pillow turns it."""
    image = Image.fromarray(array)
    image.getexif()[0x0112] = orientation
    return np.asarray(ImageOps.exif_transpose(image))


def data_set(path, image, orientation, mask, mask_orientation=1, name="a"):
    """A folder data set with a tagged image and its mask, opened; others there stay."""
    for part, array, tag in (("images", image, orientation), ("masks", mask, mask_orientation)):
        (path / part / "train").mkdir(parents=True, exist_ok=True)
        (path / part / "train" / f"{name}.png").write_bytes(tagged(array, tag, "PNG"))
    return open_source("folder", "train", path=str(path), num_classes=3)


@pytest.mark.parametrize("name", TAGGED)
def test_every_orientation_is_applied_as_pillow_does(name):
    for orientation in ORIENTATIONS:
        content = tagged(random_image(5, 8), orientation, name)
        with Image.open(io.BytesIO(content)) as image:
            expected = np.asarray(ImageOps.exif_transpose(image))
        np.testing.assert_array_equal(read_image("a", content), expected)
        assert stored_orientation(content) == orientation


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_mask_may_be_drawn_on_the_upright_or_the_stored_image(tmp_path, orientation):
    image, stored = random_image(5, 8), random_ids(3, 5, 8)
    mask = upright(stored, orientation)
    cases = [(mask, 1), (stored, orientation)]
    if orientation >= 5:  # the sizes tell
        cases += [(stored, 1), (mask, 6)]
    for drawn, tag in cases:
        item = data_set(tmp_path, image, orientation, drawn, tag)[0]
        np.testing.assert_array_equal(item["image"], upright(image, orientation))
        if (tag, orientation) != (6, 6) or drawn is stored:
            np.testing.assert_array_equal(item["mask"], mask)


def test_masks_that_fit_both_ways_are_taken_as_upright_and_counted(tmp_path):
    mask = random_ids(3, 6, 6)
    source = data_set(tmp_path, random_image(6, 6), 6, mask)
    np.testing.assert_array_equal(source[0]["mask"], mask)
    assert "1 of 1 images is turned" in notes_of(source)[0] and "first is a." in notes_of(source)[0]
    assert turned_both_ways(data_set(tmp_path, random_image(5, 8), 3, random_ids(3, 5, 8))) == [0]
    for size, orientation, tag in (((5, 8), 6, 1), ((6, 6), 1, 1), ((6, 6), 6, 6)):
        source = data_set(tmp_path, random_image(*size), orientation, random_ids(3, *size), tag)
        assert not notes_of(source)


def test_the_sheet_shows_an_image_whose_mask_fits_both_ways(tmp_path, monkeypatch):
    """Where it is not one of the images that are spread over the data set."""
    for name, orientation in (("a", 1), ("b", 1), ("c", 6)):
        source = data_set(tmp_path, random_image(6, 6), orientation, random_ids(3, 6, 6), name=name)
    monkeypatch.setattr(check_data, "SHEET_IMAGES", 1)
    monkeypatch.setattr(sheets, "contact_sheet", lambda images, masks, labels, titles: titles)
    assert check_data.source_sheet(source, LABEL_TARGET) == ["a", "c"]


def test_prepared_images_are_upright(tmp_path):
    image = random_image(5, 8)
    for orientation in (1, 6):
        source = data_set(tmp_path, image, orientation, random_ids(3, 5, 8))
        stored = encode(source, 0)
        as_read = read_image("a", stored["image"], as_stored=True)
        np.testing.assert_array_equal(as_read, upright(image, orientation))
        original = (tmp_path / "images/train/a.png").read_bytes()
        assert (stored["image"] == original) == (orientation == 1)


def test_damaged_metadata_turn_nothing():
    image = random_image(5, 8)
    for tag in (0, 9, 65535):
        np.testing.assert_array_equal(read_image("a", tagged(image, tag, "PNG")), image)
    broken = tagged(image, 6, "JPEG").replace(b"Exif\0\0", b"Exif\0\0XX")
    assert read_image("a", broken).shape == (5, 8, 3)
