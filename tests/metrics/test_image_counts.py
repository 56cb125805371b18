"""Counts of single images: they add up to the split's IoU, and resamples are of its images."""

import numpy as np
import pytest

from diffseg_jax.metrics.image_counts import (
    ImageCounts,
    class_iou,
    counts_of_image,
    mean_iou,
    read_image_counts,
    resampled,
)
from diffseg_jax.metrics.segmentation import Absent, confusion, scores

pytestmark = pytest.mark.quick
K = 4


@pytest.fixture(scope="module")
def confusions():
    """i64[6, K+1, K] of images in which class 3 is nowhere, and some pixels have no label."""
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, 2, 255], size=(6, 8, 9))
    predicted = rng.integers(0, 3, size=labels.shape)
    pairs = zip(labels, predicted, strict=True)
    return np.stack([confusion(*pair, K, ignored_row=True) for pair in pairs])


@pytest.mark.parametrize("absent", Absent)
@pytest.mark.parametrize("ignored_row", (False, True))
def test_summed_counts_have_the_iou_of_summed_confusions(confusions, absent, ignored_row):
    sums = np.sum([counts_of_image(each) for each in confusions], axis=0)
    whole = confusions.sum(0)
    expected = scores(whole if ignored_row else whole[:-1], absent=absent, left_out=(1,))
    assert mean_iou(sums, absent.value, (1,), ignored_row) == expected["mIoU"]
    iou = class_iou(sums, absent.value, ignored_row)
    np.testing.assert_array_equal(np.delete(iou, 1), np.delete(expected["IoU"], 1))


def test_chosen_classes_alone_count(confusions):
    sums = counts_of_image(confusions.sum(0))
    iou = class_iou(sums, "skip")
    assert mean_iou(sums, "skip", chosen=(0, 2)) == iou[[0, 2]].mean()
    assert np.isnan(mean_iou(sums, "skip", chosen=(3,)))


def test_a_file_returns_what_was_saved(confusions, tmp_path):
    counts = np.stack([counts_of_image(each) for each in confusions])
    kept = ImageCounts(tuple("abcdef"), ("w", "x", "y", "z"), counts, "zero", (2,))
    kept.save(tmp_path / "a.npz")
    found = read_image_counts(tmp_path / "a.npz")
    np.testing.assert_array_equal(found.counts, counts)
    assert (found.names, found.classes, found.absent, found.unscored) == (
        kept.names, kept.classes, kept.absent, kept.unscored
    )  # fmt: skip


def test_a_resample_has_as_many_images_as_the_sample():
    images = resampled(30, 50, np.random.default_rng(0))
    assert images.shape == (50, 30) and (images.sum(1) == 30).all() and images.max() > 1
