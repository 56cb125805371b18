"""Which calibrator is kept: one that helps on images that it was not fitted to."""

import numpy as np
import pytest

from diffseg_jax.experiment.calibrate import calibrate, describe_calibration
from diffseg_jax.experiment.evaluate import DrawnPixels, draw_none
from diffseg_jax.inference.views import Maps
from diffseg_jax.metrics.calibration import errors_found
from diffseg_jax.metrics.uncertainty import SIGNALS

pytestmark = pytest.mark.quick

PIXELS = 500


def drawn(chance_of_an_error, images=8):
    """Pixels of images by (image, label, doubt) -> chance; labels by turns, doubt at random."""
    rng = np.random.default_rng(0)
    labels, doubt = np.arange(PIXELS) % 3, rng.beta(1, 4, (images, PIXELS))
    chance = np.stack([chance_of_an_error(i, labels, doubt[i]) for i in range(images)])
    wrong = rng.random((images, PIXELS)) < chance
    table = np.zeros((images, PIXELS, 3 + len(SIGNALS)), np.float32)
    table[:, :, 0], table[:, :, 1], table[:, :, 2], table[:, :, 3] = 1, labels, wrong, doubt
    return DrawnPixels(table, {})


def test_a_calibrator_that_helps_is_kept():
    found = calibrate(drawn(lambda image, label, doubt: np.clip(doubt + 0.2 * label, 0, 1)), 3)
    assert found.helps and found.calibrator.fitted_on == {"images": 8, "pixels": 8 * PIXELS}
    numbers = found.numbers(("a", "b", "c"))
    assert numbers["kept"] and numbers["ECE"] < 0.03
    assert found.calibrator.signals == ("least_confidence",)  # the others are missing
    assert numbers["errors_in_20_percent"] > errors_found(found.before, 0.2)
    assert set(numbers["AUROC_of_predicted"]) == {"a", "b", "c"}
    line = describe_calibration(found, True)
    assert "calibrated on 4,000 pixels of 8 images" in line and "uncalibrated" not in line


def test_what_holds_for_one_half_only_is_not_kept():
    """In the first half of the images one class is mostly wrong, in the other half another one."""

    def chance(image, label, doubt):
        return np.where(label == (0 if image < 4 else 1), 0.9, doubt)

    found = calibrate(drawn(chance), 3)
    assert not found.helps and not found.numbers(())["kept"]
    assert "uncalibrated" in (line := describe_calibration(found, True)) and "worse" in line


def test_pixels_of_one_image_calibrate_nothing():
    assert calibrate(drawn(lambda image, label, doubt: doubt, images=1), 3) is None
    assert "two labelled validation images" in describe_calibration(None, True)
    assert "those of the training" in describe_calibration(None, False)


def test_pixels_without_any_doubt_calibrate():
    """In one half of the images or in all of them, right or wrong."""
    for sure in (slice(4), slice(8)):
        table = drawn(lambda image, label, doubt: doubt).table
        table[sure, :, 3:], table[0, 100:] = 0, 0  # the first image has few labels
        found = calibrate(DrawnPixels(table, {}), 3)
        assert found.before.sum() == found.after.sum() == table[:, :, 0].sum()


def test_images_without_labels_give_no_pixels():
    pixels, mask = draw_none(np.arange(4)), np.full((6, 7), 255)
    labels = np.random.default_rng(0).integers(0, 3, (1, 6, 7), np.int32)
    labels[0, 2, :4] = 2
    doubt = labels / np.float32(4)
    maps = Maps(labels, None, doubt, {"least_confidence": doubt, "spread": doubt})
    pixels.add(0, mask, maps, 0)
    assert not pixels.table.any() and calibrate(pixels, 3) is None
    mask[2:5] = 1
    for index in (3, 1, 9):  # the last one is not drawn from
        pixels.add(index, mask, maps, 0)
    assert [int(row[:, 0].sum()) for row in pixels.table] == [0, 21, 0, 21]
    _, label, wrong, *signals = pixels.table[1, :21].T
    np.testing.assert_array_equal(np.sort(label), np.sort(labels[0, 2:5].ravel()))
    np.testing.assert_array_equal(wrong, label != 1)
    of = dict(zip(SIGNALS, signals, strict=True))
    assert (of["least_confidence"] == label / 4).all() and (of["spread"] == label / 4).all()
    assert not of["entropy"].any()
