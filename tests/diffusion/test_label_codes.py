"""Codes of labels: recorded encodings, ranges, and the way back."""

import json

import jax
import numpy as np
import pytest

from diffseg_jax.diffusion.label_codes import CODES, code_table, code_width
from diffseg_jax.layers.resize import resize_nearest
from diffseg_jax.systems.ddp_segmentation import shrink_labels


@pytest.mark.golden
def test_recorded_encodings(golden):
    for path in golden("ddp/schedules_encodings*.json"):
        record, arrays = json.loads(path.read_text()), np.load(path.with_suffix(".npz"))
        classes, scale = record["num_classes"], record["bit_scale"]
        labels = shrink_labels(arrays["label_full"], record["down_size"], classes)
        whole = resize_nearest(arrays["label_full"][..., None], record["down_size"])[..., 0]
        found = arrays["label_down"]
        assert np.array_equal(labels, np.where(found == 255, classes, found))
        assert np.array_equal(whole == 255, labels == classes)
        for kind, name in zip(CODES, ("class_embedding", "analog_bits", "one_hot")):
            table = code_table(kind, classes, scale, arrays["embedding_table"])
            expected = np.moveaxis(arrays[f"enc_{name}"], 1, -1)
            np.testing.assert_allclose(table[labels], expected, atol=1e-6 * scale)
        bits = code_table("bits", classes, scale)
        decoded = nearest_row(bits, np.moveaxis(arrays["enc_analog_bits"], 1, -1))
        assert np.array_equal(decoded, arrays["enc_analog_bits_decoded"][:, 0])


def nearest_row(table, codes):
    distances = np.sum((np.asarray(codes)[..., None, :] - np.asarray(table)) ** 2, -1)
    return np.argmin(distances, -1)


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("classes", [2, 7, 8, 150])
def test_every_label_has_a_code_of_its_own(kind, classes):
    width = code_width(kind, classes, 16)
    embedding = jax.random.normal(jax.random.key(0), (classes + 1, 16))
    table = np.asarray(code_table(kind, classes, 0.1, embedding))
    assert table.shape == (classes + 1, width)
    assert np.all(np.abs(table) <= 0.1 * (1 + 1e-6))
    labels = np.arange(classes + 1)
    assert np.array_equal(nearest_row(table, table[labels]), labels)


def test_bits_are_no_wider_than_needed():
    widths = [code_width("bits", classes, 0) for classes in (1, 3, 4, 7, 19, 150)]
    assert widths == [1, 2, 3, 3, 5, 8]
    table = code_table("bits", 5, 1.0)
    assert np.array_equal(table[4], [1, -1, -1])  # the most significant one first
