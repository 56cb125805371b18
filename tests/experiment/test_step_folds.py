"""Parts of the validation images that choose the step which the others test."""

import dataclasses

import numpy as np
import pytest

from diffseg_jax import UserError
from diffseg_jax.data.labels import Labels
from diffseg_jax.experiment.planned import Evaluation
from diffseg_jax.experiment.step_folds import (
    keep_step_counts,
    measured_by_folds,
    require_foldable,
    scores_by_folds,
)
from diffseg_jax.metrics.image_counts import counts_of_image
from diffseg_jax.metrics.segmentation import confusion

pytestmark = pytest.mark.quick
K, STEPS, IMAGES, FOLDS = 4, 6, 13, 5


@pytest.fixture(scope="module")
def masks():
    """Label maps i[IMAGES,h,w] with ignored pixels, and predictions i[STEPS,IMAGES,h,w]."""
    rng = np.random.default_rng(3)
    labels = rng.choice([0, 1, 2, 255], size=(IMAGES, 6, 7))
    predicted = rng.integers(0, K, size=(STEPS, *labels.shape))
    right = rng.random((STEPS, IMAGES, 1, 1)) > rng.random(predicted.shape)
    return labels, np.where(right & (labels != 255), labels, predicted)


@pytest.fixture(scope="module")
def counts(masks):
    """Those of all images at all steps, i64[STEPS,IMAGES,4,K]."""
    labels, predicted = masks
    return np.array([
        [
            counts_of_image(confusion(*pair, K, ignored_row=True))
            for pair in zip(labels, step, strict=True)
        ]
        for step in predicted
    ])  # fmt: skip


def published_score(labels, predicted):
    """The mean IoU of the program of DatasetGAN, over images together."""
    ious = []
    for k in range(K):
        hits = ((labels == k) & (predicted == k)).sum()
        ious.append(hits / (1e-8 + ((labels == k) | (predicted == k)).sum()))
    return np.mean(ious)


def evaluation_of(workdir, **changes):
    """Of images whose counts are to be given, in the paper's convention."""

    class Log:
        def say(self, line):
            self.last = line

    class Source:
        names = tuple(f"image{i}" for i in range(IMAGES))
        labels = Labels(tuple("abcd"), ((0, 0, 0),) * K)

    unused = dict.fromkeys(field.name for field in dataclasses.fields(Evaluation))
    mine = dict(
        stage="train", source=Source(), indices=np.arange(IMAGES), absent="zero", log=Log(),
        quick_indices=np.arange(IMAGES), convention="ddpm_seg", workdir=workdir,
        step_folds=FOLDS, image_counts={},
    )  # fmt: skip
    return Evaluation(**(unused | mine | changes))


def measure(evaluation, counts):
    """Keeps the counts of all steps, 10, 20, ..."""
    for row, each in enumerate(counts):
        evaluation.image_counts.update(enumerate(each))
        keep_step_counts(evaluation, 10 * (row + 1))


def test_steps_and_scores_are_those_of_the_published_protocol(masks, counts, tmp_path):
    labels, predicted = masks
    steps, scores, size = [], [], IMAGES // FOLDS
    for fold in range(FOLDS):
        inside = np.isin(np.arange(IMAGES), range(fold * size, (fold + 1) * size))
        best, score = 0, None
        for row, step in enumerate(predicted):
            chosen = published_score(labels[inside], step[inside])
            if chosen > best:
                best, number = chosen, row
                score = published_score(labels[~inside], step[~inside])
        steps.append(10 * (number + 1))
        scores.append(score)
    assert len(set(steps)) > 1  # else a single choice would pass
    evaluation = evaluation_of(tmp_path)
    measure(evaluation, counts)
    found = measured_by_folds(evaluation, 10 * STEPS)["step_folds"]
    assert found["steps"] == steps and found["steps_measured"] == STEPS
    np.testing.assert_allclose(found["scores"], scores, rtol=1e-6)
    np.testing.assert_allclose(found["mIoU"], np.mean(scores), rtol=1e-6)
    np.testing.assert_allclose(found["deviation"], np.std(scores), rtol=1e-6)
    assert "5 folds" in evaluation.log.last


def test_later_steps_than_the_last_and_those_of_other_images_do_not_count(counts, tmp_path):
    evaluation = evaluation_of(tmp_path)
    measure(evaluation, counts)
    assert measured_by_folds(evaluation, 30)["step_folds"]["steps_measured"] == 3
    fewer = dataclasses.replace(evaluation, quick_indices=np.arange(IMAGES - 1))
    assert measured_by_folds(fewer, 10 * STEPS) == {}
    assert measured_by_folds(dataclasses.replace(evaluation, step_folds=0), 10 * STEPS) == {}


def test_without_folds_nothing_is_kept(counts, tmp_path):
    measure(evaluation_of(tmp_path, step_folds=0), counts)
    assert not list(tmp_path.iterdir())


def test_the_first_of_equal_steps_counts_and_one_without_a_number_does_not():
    values = iter([np.nan, 0.5, 0.5, 0.25])  # of three steps on a fold, and of the chosen one
    found = scores_by_folds(np.zeros((3, 4, 4, K), int), 1, lambda sums: next(values))
    assert found == [(1, 0.25)]


@pytest.mark.parametrize(
    ("folds", "images", "sentence"),
    [
        (1, 20, r"is 1, but it must be 0 \(off\) or from 2 to 20, the number of .*folds=5\.$"),
        (5, 3, r"is 5, but it must be 0 \(off\) or from 2 to 3, the number of .*folds=3\.$"),
        (5, 1, r"is 5, but it must be 0 \(off\), as there is only one .*folds=0\.$"),
    ],
)
def test_numbers_of_folds_that_cannot_be_are_refused(folds, images, sentence):
    with pytest.raises(UserError, match=sentence):
        require_foldable(folds, images, "train", True)


def test_a_fit_has_no_steps_to_choose_from():
    require_foldable(5, 5, "train", True)
    require_foldable(0, 0, "fit", False)
    with pytest.raises(UserError, match="the stage fit fits classifiers"):
        require_foldable(5, 5, "fit", False)
