"""What a fit says of its maps, and of things thinner than their cells."""

import numpy as np

from diffseg_jax.experiment.grid_note import describe_grid, thin_shares
from diffseg_jax.models.taps import PixelFeatures


def masks():
    """A plane of class 0 with a pole of class 1, two pixels wide, and a square of class 2."""
    mask = np.zeros((1, 32, 32), np.uint8)
    mask[0, :20, 10:12] = 1
    mask[0, 20:30, 20:30] = 2
    mask[0, :, 31] = 255
    return mask


def test_pixels_in_runs_shorter_than_a_cell_are_thin():
    assert thin_shares(masks(), 2.5)[1] == 1.0
    assert thin_shares(masks(), 2)[1] == 0.0
    assert thin_shares(masks(), 11)[2] == 1.0 and thin_shares(masks(), 10)[2] == 0.0
    assert 255 not in thin_shares(masks(), 4)


def test_the_finest_map_decides_and_thin_classes_are_named():
    coarse, fine = np.zeros((1, 4, 4, 3)), np.zeros((1, 8, 8, 2))
    grid, thin = describe_grid(PixelFeatures((coarse, fine), (32, 32)), masks(), ("a", "b", "c"))
    assert grid == "5 features a pixel, from maps of 8x8, 4x4"
    assert thin.startswith("most of b is thinner than the 4 pixels")
    padded = PixelFeatures((np.zeros((1, 16, 16, 2)),), (32, 32), ((0.5, 1.0),))
    assert "than the 4 pixels" in describe_grid(padded, masks(), ("a", "b", "c"))[1]
    exact = PixelFeatures((np.zeros((1, 32, 32, 2)),), (32, 32))
    assert len(describe_grid(exact, masks(), ("a", "b", "c"))) == 1
