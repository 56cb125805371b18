"""Subsets have the sizes of the papers, are nested, repeatable, and independent of order."""

import hashlib
import json

import numpy as np
import pytest

from diffseg_jax.data.subsets import describe_subset, folds_of, subset, subset_size
from diffseg_jax.errors import UserError

pytestmark = pytest.mark.quick

NAMES = [f"town_{i % 7}/image_{i:05d}_leftImg8bit" for i in range(200)]


@pytest.mark.parametrize(
    "total, fraction, count",
    [
        *[(2975, 1 / 30, 100), (2975, 1 / 8, 372), (2975, 1 / 4, 744), (2975, 1, 2975)],
        *[
            (4998, 0.01, 50),
            (4998, 0.05, 250),
            (4998, 0.1, 500),
            (4998, 0.2, 1000),
            (4998, 1.0, 4998),
        ],
        *[(20210, 0.01, 203), (20210, 0.05, 1011), (20210, 0.1, 2021), (20210, 0.2, 4042)],
        *[(20210, 1.0, 20210), (367, 1 / 8, 46), (3, 1e-9, 1)],
    ],
)
def test_fractions_give_the_counts_of_the_papers(total, fraction, count):
    assert subset_size(total, fraction) == count
    names = [f"{i:05d}" for i in range(total)]
    assert len(subset(names, fraction=fraction)) == count


def test_every_count_out_of_every_total_is_reached_exactly():
    for total in range(1, 150):
        assert [subset_size(total, n / total) for n in range(1, total + 1)] == [
            *range(1, total + 1)
        ]


@pytest.mark.parametrize("seed", [0, 1, 2022])
def test_subsets_of_one_seed_are_nested(seed):
    sizes = [subset(NAMES, fraction=f, seed=seed) for f in (0.01, 1 / 30, 1 / 8, 0.25, 0.9, 1.0)]
    sizes += [subset(NAMES, count=n, seed=seed) for n in (1, 5, 77, 200)]
    for small in sizes:
        assert np.all(np.diff(small) > 0)
        for large in sizes:
            assert len(small) > len(large) or set(small) <= set(large)


def test_the_choice_follows_the_names_not_their_order():
    shuffled = list(np.random.default_rng(3).permutation(NAMES))
    chosen = {NAMES[i] for i in subset(NAMES, count=30, seed=5)}
    assert {shuffled[i] for i in subset(shuffled, count=30, seed=5)} == chosen
    assert {NAMES[i] for i in subset(NAMES, count=30, seed=6)} != chosen


def test_the_permutation_is_that_of_older_runs():
    # A change means that numpy draws other numbers, and that published subsets are lost.
    assert subset([f"{i:02d}" for i in range(100)], count=8, seed=7).tolist() == RECORDED


RECORDED = [4, 26, 42, 50, 53, 54, 70, 88]


@pytest.mark.parametrize(("count", "folds"), [(200, 5), (23, 5), (7, 3), (2, 2)])
def test_folds_are_alike_and_follow_the_names(count, folds):
    chosen = subset(NAMES, count=count, seed=4)
    of = folds_of(NAMES, chosen, folds, seed=4)
    sizes = np.bincount(of, minlength=folds)
    assert sizes.sum() == count and sizes.max() - sizes.min() <= 1
    by_name = {NAMES[i]: f for i, f in zip(chosen, of, strict=True)}
    shuffled = list(np.random.default_rng(3).permutation(NAMES))
    again = subset(shuffled, count=count, seed=4)
    found = folds_of(shuffled, again, folds, seed=4)
    assert {shuffled[i]: f for i, f in zip(again, found, strict=True)} == by_name
    every = dict(zip(NAMES, folds_of(NAMES, range(200), folds, seed=4), strict=True))
    assert by_name.items() <= every.items()


def test_images_that_have_a_fold_keep_it_when_others_come():
    kept = dict(zip(NAMES[:20], folds_of(NAMES[:20], range(20), 5), strict=True))
    of = folds_of(NAMES[:33], range(33), 5, kept=kept)
    assert of[:20].tolist() == list(kept.values())
    assert sorted(np.bincount(of)) == [6, 6, 7, 7, 7]
    fewer = folds_of(NAMES, range(3), 2, kept={NAMES[0]: 4, NAMES[1]: 0})
    assert fewer.tolist()[:2] == [1, 0]  # what was learned from is never held out as fold 0


def test_wrong_requests_are_refused():
    for fraction in (0.0, -0.5, 1.5, float("nan")):
        with pytest.raises(UserError, match="must lie in"):
            subset(NAMES, fraction=fraction)
    for count in (201, -1):
        with pytest.raises(UserError, match="there are 200 images"):
            subset(NAMES, count=count)
    with pytest.raises(UserError, match="fraction and count are given"):
        subset(NAMES, fraction=0.5, count=3)
    with pytest.raises(UserError, match="count and list_path"):
        subset(NAMES, count=3, list_path="x.txt")


def write(path, lines):
    (path / "list.txt").write_text("".join(f"{line}\n" for line in lines))
    return str(path / "list.txt")


def test_a_list_of_pairs_or_of_paths_selects_by_the_end_of_the_path(tmp_path):
    pairs = [
        f"leftImg8bit/train/{NAMES[i]}.png gtFine/train/{NAMES[i]}_labelTrainIds.png"
        for i in (9, 4, 120)
    ]
    assert subset(NAMES, list_path=write(tmp_path, [*pairs, "", pairs[0]])).tolist() == [4, 9, 120]
    paths = [
        f"/data/{NAMES[3]}.jpg",
        NAMES[8].split("/")[1],
        "train\\" + NAMES[11].replace("/", "\\") + ".png",
    ]
    assert subset(NAMES, list_path=write(tmp_path, paths)).tolist() == [3, 8, 11]


def test_paths_with_spaces_and_dots_match(tmp_path):
    names = ["my photos/a.b", "my photos/a", "c.jpg"]
    lines = ["root/my photos/a.b.png", "elsewhere/c.png masks/c.png"]
    assert subset(names, list_path=write(tmp_path, lines)).tolist() == [0, 2]


def test_the_mask_path_of_a_pair_selects_nothing(tmp_path):
    assert subset(["a", "b"], list_path=write(tmp_path, ["images/a.png masks/b.png"])).tolist() == [
        0
    ]


def test_part_of_a_file_name_does_not_match(tmp_path):
    with pytest.raises(UserError, match="matches no image"):
        subset(["town/image_1"], list_path=write(tmp_path, ["1.png"]))


def test_the_first_line_that_matches_nothing_is_named(tmp_path):
    lines = [NAMES[0], "b/unknown.png x.png", "also_unknown.png"]
    with pytest.raises(
        UserError, match=r'line "b/unknown\.png x\.png" of .*list\.txt matches no image'
    ):
        subset(NAMES, list_path=write(tmp_path, lines))
    with pytest.raises(UserError, match="matches 2 images"):
        subset(["x/a", "y/a"], list_path=write(tmp_path, ["a.png"]))
    with pytest.raises(UserError, match="empty"):
        subset(NAMES, list_path=write(tmp_path, []))
    with pytest.raises(UserError, match="cannot read"):
        subset(NAMES, list_path=str(tmp_path / "nowhere.txt"))


def test_the_description_is_json_with_a_checksum_that_can_be_repeated():
    indices = subset(NAMES, count=3, seed=4)
    record = json.loads(json.dumps(describe_subset(NAMES, indices, seed=4)))
    assert record["names"] == sorted(NAMES[i] for i in indices)
    assert (record["n"], record["of"], record["seed"]) == (3, 200, 4) and "PCG64" in record[
        "generator"
    ]
    text = "".join(f"{name}\n" for name in record["names"])
    assert record["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert describe_subset(NAMES, indices[::-1], seed=4)["sha256"] == record["sha256"]
    assert describe_subset(NAMES, indices, list_path="x.txt")["seed"] is None
