"""A run that is killed and started again is the run that was never killed."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from diffseg_jax.data.pipeline import training_batches

SPEC = importlib.util.spec_from_file_location(
    "kill_test", Path(__file__).parent / "benchmarks" / "kill_test.py"
)
kill_test = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(kill_test)


@pytest.mark.timeout(600)
def test_three_kills_change_no_bit(command, tiny_run, tmp_path):
    workdir = tmp_path / "killed"
    total = kill_test.count_records(tiny_run.workdir)
    met = kill_test.run_with_kills(lambda: command.start(workdir), workdir, 3, 0, total)
    assert any(moment.startswith("in a save") for moment in met), met
    assert kill_test.differences(workdir, tiny_run.workdir) == []
    for file in ("results.json", "labelled.json", "config.json"):
        assert (workdir / file).read_bytes() == (tiny_run.workdir / file).read_bytes()
    assert not kill_test.half_written(workdir)


# ---- the order of the data -----------------------------------------------------------------------


class Numbers:
    """A source whose pictures hold their own number, and are of class number + 100 if asked."""

    def __init__(self, count, classes=False):
        self.count, self.classes = count, classes

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        example = {"image": np.full((2, 2, 3), index, np.uint8)}
        return example | {"class": np.int32(index + 100)} if self.classes else example


def augment(image, mask, rng):
    return {"image": image, "draw": rng.integers(0, 2**31, 2)}


def batches(count=7, size=4, start=0, steps=9, classes=False, **options):
    """All batches of a small stream, rows in order."""
    return list(
        training_batches(
            Numbers(count, classes), np.arange(count), augment, seed=3, batch_size=size,
            start=start, steps=steps - start, **options,
        )
    )  # fmt: skip


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("start", [1, 5])
def test_batches_from_a_step_on_are_the_tail_of_all(start, threads):
    assert_same(batches(start=start, threads=threads), batches(threads=2)[start:])


def test_two_processes_read_what_one_reads():
    parts = [batches(process=(index, 2)) for index in range(2)]
    joined = [
        {name: np.concatenate([first[name], second[name]]) for name in first}
        for first, second in zip(*parts)
    ]
    assert_same(joined, batches())


@pytest.mark.slow  # starts an interpreter
def test_worker_processes_read_what_threads_read():
    flags.FLAGS.mark_as_parsed()  # grain reads its own, which the command line parses
    assert_same(batches(start=2, workers=1), batches(start=2))


def test_an_epoch_holds_every_example_once_and_epochs_differ():
    rows = np.concatenate([batch["image"][:, 0, 0, 0] for batch in batches(count=8, steps=8)])
    epochs = rows.reshape(4, 8)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(8), (4, 1)))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_small_set_fills_a_large_batch_with_different_draws():
    batch = batches(count=3, size=12, steps=1)[0]
    assert np.bincount(batch["image"][:, 0, 0, 0]).tolist() == [4, 4, 4]
    assert len(np.unique(batch["draw"], axis=0)) == 12


def test_the_class_of_a_picture_comes_with_it():
    for batch in batches(classes=True, steps=3):
        assert batch["class"].shape == (4,) and batch["class"].dtype == np.int32
        np.testing.assert_array_equal(batch["class"], batch["image"][:, 0, 0, 0] + 100)
    assert "class" not in batches(steps=1)[0]
