"""Cluster maps: named alike over maps, together or image by image."""

import numpy as np
import pytest

from diffseg_jax.experiment import cluster_maps as module
from diffseg_jax.experiment.cluster_maps import Clustering, cluster_maps
from diffseg_jax.figures.cluster_plot import cluster_plot

pytestmark = pytest.mark.quick


def halves(shifts, size, seed):
    """Maps of two images whose halves differ, the more the larger the shift of the image."""
    rng, found = np.random.default_rng(seed), []
    for shift in shifts:
        values = rng.normal(0, 0.1, (*size, 3))
        values[:, size[1] // 2 :] += shift
        found.append(values.astype(np.float32))
    return found


@pytest.mark.parametrize("per_image", (False, True))
def test_maps_of_other_sizes_have_the_same_names_for_the_same_places(per_image):
    features = {
        "output_0@1": halves((5, 5), (4, 6), 0), "output_0@3": halves((-5, -5), (8, 12), 1),
    }  # fmt: skip
    how = Clustering(k=2, images=2, restarts=3, per_image=per_image)
    labels = cluster_maps(features, how, seed=0)
    for coarse, fine in zip(*labels.values(), strict=True):
        np.testing.assert_array_equal(np.kron(coarse, np.ones((2, 2), int)), fine)
        assert set(coarse[:, 0]) != set(coarse[:, -1])
    images = [np.zeros((16, 24, 3), np.uint8)] * 2
    assert cluster_plot(images, labels, 2).std() > 0


@pytest.mark.parametrize(("per_image", "times"), [(False, 1), (True, 2)])
def test_names_are_matched_once_for_clusters_of_all_images_together(monkeypatch, per_image, times):
    real, solved = module.matched, []
    monkeypatch.setattr(module, "matched", lambda *given: solved.append(given) or real(*given))
    features = {name: halves((5, 5), (4, 6), seed) for seed, name in enumerate("ab")}
    cluster_maps(features, Clustering(k=2, images=2, restarts=1, per_image=per_image), seed=0)
    assert len(solved) == times


def test_clusters_of_all_images_together_tell_images_apart_and_own_ones_do_not():
    features = {"output_0@1": [np.zeros((4, 4, 2), np.float32), np.ones((4, 4, 2), np.float32)]}
    how = Clustering(k=2, images=2, restarts=3, per_image=False)
    first, second = cluster_maps(features, how, seed=0)["output_0@1"]
    assert len(np.unique(first)) == len(np.unique(second)) == 1 and first[0, 0] != second[0, 0]
