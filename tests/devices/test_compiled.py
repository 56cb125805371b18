"""How many compiled programs stay in memory."""

import numpy as np
import pytest

from diffseg_jax.devices.compiled import BoundedPrograms

pytestmark = pytest.mark.quick


def test_a_shape_too_many_drops_all_programs():
    twice = BoundedPrograms(lambda tree: 2 * tree["x"], most=2)
    counts = []
    for size in (1, 2, 1, 3, 1, 3, 2):
        np.testing.assert_array_equal(twice({"x": np.ones(size)}), np.full(size, 2.0))
        counts.append(twice.compiled._cache_size())
    assert counts == [1, 2, 2, 1, 2, 2, 1]
