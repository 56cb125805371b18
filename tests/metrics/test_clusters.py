"""k-means finds separate groups whatever its start, and clusters are renamed alike."""

import numpy as np
import pytest

from diffseg_jax.errors import UserError
from diffseg_jax.metrics import clusters
from diffseg_jax.metrics.clusters import enlarged_labels, kmeans, matched

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("seed", range(3))
def test_separate_groups_are_found(seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, 300)
    x = 10 * np.eye(4)[truth] + rng.normal(0, 0.5, (300, 4))
    found = kmeans(x, 4, restarts=5, seed=seed)
    np.testing.assert_array_equal(matched(found, truth, 4), truth)
    np.testing.assert_array_equal(found, kmeans(x, 4, restarts=5, seed=seed))


def test_more_clusters_than_different_vectors_are_refused():
    with pytest.raises(UserError, match="clusters.k is 3, but the features hold 2 different"):
        kmeans(np.repeat(np.eye(2), 9, 0), 3)


def test_equal_vectors_in_front_of_others_hide_none():
    sky, ground = np.zeros((2000, 2)), np.random.default_rng(0).normal(5, 0.1, (3000, 2))
    found = kmeans(np.concatenate([sky, ground]), 2, restarts=2)
    assert len(set(found[:2000])) == len(set(found[2000:])) == 1 and found[0] != found[-1]
    rare = np.zeros((9000, 2))
    rare[4], rare[5] = 1, 2
    assert len(set(kmeans(rare, 3, restarts=2))) == 3


def test_of_many_vectors_centres_are_drawn_and_all_get_the_nearest(monkeypatch):
    monkeypatch.setattr(clusters, "DRAWN_VECTORS", 200)
    truth = np.random.default_rng(0).integers(0, 3, 2500)
    found = kmeans(10 * np.eye(3)[truth], 3, restarts=3)
    np.testing.assert_array_equal(matched(found, truth, 3), truth)


def test_vectors_that_are_all_equal_have_no_number_of_clusters():
    with pytest.raises(UserError, match="1 different vector. Try larger images"):
        kmeans(np.ones((9, 2)), 2)


def test_a_permutation_of_names_is_undone():
    reference = np.array([[0, 1, 2], [2, 2, 0]])
    np.testing.assert_array_equal(matched(np.array([2, 0, 1])[reference], reference, 3), reference)


def test_enlarging_repeats_values():
    small = np.array([[0, 1], [2, 3]])
    large = np.kron(small, np.ones((2, 3), int))
    np.testing.assert_array_equal(enlarged_labels(small, (4, 6)), large)
    np.testing.assert_array_equal(enlarged_labels(large, (2, 2)), small)
