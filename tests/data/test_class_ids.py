"""Ids become the classes that the table gives, and other ids are refused."""

import numpy as np
import pytest

from diffseg_jax.data.class_ids import MaskRules, id_table
from diffseg_jax.data.sources import open_source
from diffseg_jax.errors import UserError
from image_files import labelled_folder

pytestmark = pytest.mark.quick


@pytest.mark.parametrize("stored", [np.uint8, np.uint16])
def test_an_unknown_class_id_names_file_and_id(tmp_path, stored):
    mask = np.zeros((4, 6), stored)
    mask[2, 3], mask[0, 0] = 37, 255
    path = labelled_folder(tmp_path, {"a": mask})
    source = open_source("folder", "train", path=path, num_classes=11)
    sentence = r"masks/train/a\.png has class id 37, but classes are 0\.\.10 \(255 is ignored\)"
    with pytest.raises(UserError, match=sentence):
        source[0]


def test_ids_beyond_the_table_or_below_zero_are_refused():
    for bad in (1000, -2):
        with pytest.raises(UserError, match=f"class id {bad},"):
            MaskRules(id_table(4)).to_classes(np.array([[0, bad]], np.int64), "x")


def test_class_counts_that_reach_the_ignore_label_are_refused():
    assert id_table(255)[254] == 254
    for classes, zero in ((256, False), (255, True), (0, False)):
        with pytest.raises(UserError, match="ignore label 255"):
            id_table(classes, zero_is_ignored=zero)
