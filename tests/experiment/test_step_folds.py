"""Parts of the validation images that choose the step which the others test."""

import dataclasses
import threading
from types import SimpleNamespace

import numpy as np
import pytest

from diffseg_jax import UserError
from diffseg_jax.data.labels import Labels
from diffseg_jax.experiment import evaluate, gradient_stage
from diffseg_jax.experiment.planned import Evaluation
from diffseg_jax.experiment.step_folds import (
    forget_later_counts,
    keep_step_counts,
    measured_by_folds,
    require_foldable,
    scores_by_folds,
    sums_by_folds,
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
    found = scores_by_folds(np.zeros((3, 2, 4, K), int), lambda sums: next(values))
    assert found == [(1, 0.25)]


def test_sums_by_folds_hold_every_image_once(counts):
    for folds in (2, FOLDS, IMAGES):
        sums = sums_by_folds(counts[0], folds)
        assert sums.shape == (folds + 1, 4, K)
        np.testing.assert_array_equal(sums.sum(0), counts[0].sum(0))
    np.testing.assert_array_equal(sums[:-1], counts[0])
    assert not sums[-1].any()


def test_a_stage_that_goes_on_forgets_the_steps_after_its_checkpoint(counts, tmp_path):
    evaluation = evaluation_of(tmp_path)
    measure(evaluation, counts)
    forget_later_counts(evaluation, 40)
    assert measured_by_folds(evaluation, 10 * STEPS)["step_folds"]["steps_measured"] == 4
    forget_later_counts(evaluation, 0)  # it begins anew
    assert measured_by_folds(evaluation, 10 * STEPS) == {}


def test_a_stage_forgets_them_before_it_is_trained(counts, tmp_path, monkeypatch):
    class Reached(Exception):
        pass

    def trained(*_):
        raise Reached([file.stem for file in tmp_path.glob("step_counts/train/*")])

    evaluation = evaluation_of(tmp_path)
    measure(evaluation, counts)
    for name in ("planned_steps", "steps_without_budget", "make_stage", "announce"):
        monkeypatch.setattr(gradient_stage, name, lambda *_: None)
    monkeypatch.setattr(gradient_stage, "probed", lambda *_: None)
    monkeypatch.setattr(gradient_stage.loop, "train_network", trained)
    plan = SimpleNamespace(evaluation=evaluation, mesh=None, log=None)
    for latest, kept in ((20, ["00000010", "00000020"]), (None, [])):
        with pytest.raises(Reached) as reached:
            checkpoints = SimpleNamespace(latest=lambda step=latest: step)
            gradient_stage.train_stage(plan, checkpoints)
        assert sorted(reached.value.args[0]) == kept


def test_counts_in_several_processes_are_those_of_the_last_evaluation(counts, monkeypatch):
    """Two threads stand in for two processes, whose numbers meet at a barrier."""
    mine, barrier, given = threading.local(), threading.Barrier(2), {}

    def gathered(values):
        given[mine.index] = values
        barrier.wait(20)
        found = np.stack([given[0], given[1]])
        barrier.wait(20)
        return found

    monkeypatch.setattr(evaluate.jax, "process_count", lambda: 2)
    monkeypatch.setattr(evaluate.jax, "process_index", lambda: mine.index)
    monkeypatch.setattr(evaluate.multihost_utils, "process_allgather", gathered)
    indices, found = np.arange(20, 20 + IMAGES), ({}, {})

    def work(process):
        mine.index = process
        for step in counts + 2**33:
            own = list(zip(indices, step, strict=True))[process::2]
            found[process].update((int(index), values) for index, values in own)
            evaluate.share_counts(found[process], indices, K)

    threads = [threading.Thread(target=work, args=(process,)) for process in (0, 1)]
    [thread.start() for thread in threads]
    [thread.join(60) for thread in threads]
    for by_image in found:
        each = np.stack([by_image[int(index)] for index in indices])
        np.testing.assert_array_equal(each, counts[-1] + 2**33)


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
