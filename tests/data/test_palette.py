"""Generated colours are distinct."""

import numpy as np
import pytest

from diffseg_jax.data.palette import distinct_colours

pytestmark = pytest.mark.quick


def test_generated_colours_are_distinct():
    colours = distinct_colours(255)
    assert len(set(colours)) == 255 and np.min(colours) >= 0 and np.max(colours) <= 255
    assert all(type(part) is int for colour in colours for part in colour)
