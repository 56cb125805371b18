"""Which images are chosen to be labelled next, and which regions of them."""

import numpy as np
import pytest

from diffseg_jax.metrics import choice
from diffseg_jax.metrics.choice import choose_images, uncertain_boxes, unpainted_regions

pytestmark = pytest.mark.quick

SIZES = (3, 9, 5, 7)  # of clusters, which lie far from each other


@pytest.fixture
def clusters():
    """Descriptors f[24, 6], and the cluster of each."""
    rng, of = np.random.default_rng(0), np.repeat(np.arange(len(SIZES)), SIZES)
    return rng.normal(size=(len(of), 6)) + 30 * np.eye(6)[of], of


def chosen(points, count, weights=None, covered=()):
    weights = np.ones(len(points)) if weights is None else np.array(weights)
    covered = np.reshape(np.array(covered), (-1, points.shape[1]))
    return [each.index for each in choose_images(points, weights, covered, count)]


def test_every_cluster_is_chosen_from_before_any_is_chosen_from_twice(clusters):
    points, of = clusters
    assert sorted(of[chosen(points, 4)]) == [0, 1, 2, 3]
    first = chosen(points, 1, covered=points[of == 1][:1])
    second = chosen(points, 4, covered=points[of == 1][:1])
    assert sorted(of[second[:3]]) == [0, 2, 3] and first == second[:1]


def test_expected_errors_decide_which_cluster_comes_first(clusters):
    points, of = clusters
    for cluster in range(4):
        weights = np.where(of == cluster, 1, 0.01)
        assert of[chosen(points, 1, weights, points[:0])] == [cluster]


def test_no_image_is_chosen_twice(clusters):
    points, _ = clusters
    assert sorted(chosen(points, 24)) == list(range(24))
    assert sorted(chosen(points, 24, np.zeros(24))) == list(range(24))
    assert chosen(points, 24, np.zeros(24)) == chosen(points, 24)  # none is better known
    assert chosen(points[:1], 1) == [0] and chosen(points, 0) == []


def test_distances_to_many_labelled_images_are_not_all_in_memory(monkeypatch):
    points, covered = np.split(np.random.default_rng(0).normal(size=(340, 6)), [40])
    whole, sizes, distances = chosen(points, 5, covered=covered), [], choice._distances

    def noted(points, others):
        sizes.append(len(points) * len(others))
        return distances(points, others)

    monkeypatch.setattr(choice, "_distances", noted)
    monkeypatch.setattr(choice, "AT_A_TIME", 4)
    assert chosen(points, 5, covered=covered) == whole
    assert max(sizes) == len(points) ** 2 > 4 * len(covered)


def test_copies_come_last(clusters):
    points, of = clusters
    copies = np.concatenate([points, points[:5], points[:5]])
    order = chosen(copies, 34)
    assert {index % 24 if index < 24 else (index - 24) % 5 for index in order[24:]} == set(range(5))
    labelled = chosen(points, 24, covered=points[10:14])
    assert set(labelled[-4:]) == {10, 11, 12, 13}


def test_the_choice_does_not_depend_on_the_order_of_images(clusters):
    points, _ = clusters
    weights = np.random.default_rng(1).uniform(size=24)
    shuffled = np.random.default_rng(2).permutation(24)
    again = chosen(points[shuffled], 10, weights[shuffled])
    assert [shuffled[index] for index in again] == chosen(points, 10, weights)


def test_units_of_descriptors_do_not_matter(clusters):
    points, of = clusters
    units = 10.0 ** np.arange(-3, 3)
    constant = np.concatenate([units * (points + 5), np.full((24, 2), 7.0)], 1)
    one, other = (choose_images(x, np.ones(24), x[:2], 3) for x in (points, constant))
    assert [of[each.index] for each in one] == [of[each.index] for each in other]
    assert [each.score for each in one] == pytest.approx([each.score for each in other], 0.01)


def test_scores_fall_and_distances_are_those_to_what_has_labels(clusters):
    points, _ = clusters
    found = choose_images(points, np.ones(24), points[:0], 24)
    scores = [each.score for each in found]
    assert scores == sorted(scores, reverse=True) and sum(scores) == pytest.approx(1)
    assert found[0].distance is None and all(each.distance > 0 for each in found[1:])


def test_many_images_are_judged_by_some_of_them(clusters, monkeypatch):
    points, of = clusters
    monkeypatch.setattr(choice, "MAX_PAIRS", 24 * 12)
    monkeypatch.setattr(choice, "AT_A_TIME", 7)
    assert sorted(of[chosen(points, 4)]) == [0, 1, 2, 3]
    assert sorted(chosen(points, 24)) == list(range(24))


def test_boxes_lie_on_the_most_uncertain_regions():
    chance = np.full((200, 400), 0.01, np.float32)
    chance[100:150, 300:400] = 0.9
    chance[0:50, 0:100] = 0.5
    (first, mean), (second, _) = uncertain_boxes(chance)
    assert first == [300, 100, 100, 50] and mean == pytest.approx(0.9)
    assert second == [0, 0, 100, 50]


@pytest.mark.parametrize("size", [(1, 1), (5, 200), (33, 31), (90, 130)])
def test_boxes_lie_in_the_image_apart_from_each_other(size):
    chance = np.random.default_rng(0).uniform(size=size).astype(np.float32)
    found, used = uncertain_boxes(chance, 9), np.zeros(size, int)
    assert found
    for (x, y, width, height), mean in found:
        used[y : y + height, x : x + width] += 1
        inside = chance[y : y + height, x : x + width]
        assert inside.shape == (height, width) == tuple(min(max(s // 4, 32), s) for s in size)
        assert mean == pytest.approx(inside.mean(), rel=1e-4)
    assert used.max() == 1 and uncertain_boxes(np.zeros(size, np.float32)) == []


def test_painted_pixels_are_no_reason_to_paint():
    uncertainty = np.zeros((100, 160), np.float32)
    uncertainty[:40, :40], uncertainty[60:, 120:] = 0.9, 0.5
    ids = np.full((100, 160), 255, np.uint8)
    first, second = unpainted_regions(uncertainty, ids)[:2]
    assert (first["x"], first["y"]) == (0, 0) and second["x"] >= 100
    ids[:45, :45] = 0
    regions = unpainted_regions(uncertainty, ids)
    assert regions[0]["x"] >= 100 and regions[0]["uncertainty"] == pytest.approx(0.5)


def test_regions_of_a_large_image_are_those_of_its_means():
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (80, 100), np.uint8)
    ids = np.where(rng.random(small.shape) < 0.3, 0, 255).astype(np.uint8)
    large, large_ids = (np.kron(each, np.ones((11, 11), np.uint8)) for each in (small, ids))
    factor = 2  # 1,100 pixels are more than SEARCHED_SIDE
    means = np.where(large_ids == 255, large / np.float32(255), 0)
    means = means.reshape(440, factor, 550, factor).mean((1, 3))
    boxes = [([factor * side for side in box], mean) for box, mean in uncertain_boxes(means, 4)]
    for values in (large, large / np.float32(255)):
        found = unpainted_regions(values, large_ids, 4)
        assert len(found) == 4
        for region, (box, mean) in zip(found, boxes, strict=True):
            assert [region[key] for key in ("x", "y", "width", "height")] == box
            assert region["uncertainty"] == pytest.approx(mean, abs=1e-5)
