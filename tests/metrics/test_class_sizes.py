"""Small and large classes: the area of a class where it occurs, and the split at the median."""

import numpy as np
import pytest

from diffseg_jax.data.few_label_sets import FEW_LABEL_SETS
from diffseg_jax.metrics.class_sizes import class_areas, split_by_area

pytestmark = pytest.mark.quick


def test_an_area_is_the_mean_share_of_labelled_pixels_where_the_class_occurs():
    masks = [np.array([0, 0, 0, 1]), np.array([0, 2, 255, 255]), np.array([255, 255])]
    areas = class_areas(masks, 4)
    np.testing.assert_array_equal(areas, [(0.75 + 0.5) / 2, 0.25, 0.5, np.nan])


def test_ignored_pixels_and_more_images_without_a_class_change_no_area_of_it():
    mask = np.array([0, 0, 1, 1, 1])
    areas = class_areas([mask], 2)
    padded = np.concatenate([mask, np.full(7, 255)])
    np.testing.assert_array_equal(class_areas([padded], 2), areas)
    assert class_areas([mask, np.zeros(5, int)], 2)[1] == areas[1]


def test_groups_are_disjoint_split_at_the_median_and_leave_out_what_has_no_iou():
    areas = np.array([0.9, 0.1, 0.3, np.nan, 0.2])
    assert split_by_area(areas, "abcde") == {"small": [1, 4], "large": [0, 2]}
    assert split_by_area(areas, "abcde", unscored=(0,)) == {"small": [1], "large": [2, 4]}
    assert split_by_area([0.5, 0.5], "ab") == {"small": [], "large": [0, 1]}


@pytest.mark.parametrize("name", ["horse_21", "ffhq_34", "bedroom_28"])
def test_the_background_of_the_published_sets_is_neither_small_nor_large(name):
    labels = FEW_LABEL_SETS[name].labels()
    groups = split_by_area(np.linspace(1, 0.1, len(labels.names)), labels.names, labels.unscored)
    assert sorted(groups["small"] + groups["large"]) == list(range(1, len(labels.names)))
    assert labels.names[0] == "background" and 1 in groups["large"]
