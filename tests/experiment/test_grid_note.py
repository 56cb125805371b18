"""What a fit says of its maps, and of things thinner than their cells."""

from types import SimpleNamespace

import numpy as np

from diffseg_jax.experiment.grid_note import describe_grid, thin_shares
from diffseg_jax.models.taps import PixelFeatures


def task(short=0, files=None):
    return SimpleNamespace(short=short, fit=SimpleNamespace(files=files))


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
    names, maps = ("a", "b", "c"), PixelFeatures((coarse, fine), (32, 32))
    grid, thin = describe_grid(maps, masks(), names, task())
    assert grid == "5 features a pixel, from maps of 8x8, 4x4"
    assert thin.startswith("most of b is thinner than the 4 pixels")
    padded = PixelFeatures((np.zeros((1, 16, 16, 2)),), (32, 32), ((0.5, 1.0),))
    assert "than the 4 pixels" in describe_grid(padded, masks(), names, task())[1]
    exact = PixelFeatures((np.zeros((1, 32, 32, 2)),), (32, 32))
    assert len(describe_grid(exact, masks(), names, task())) == 1


def test_the_advice_is_an_option_that_the_sources_have():
    maps = PixelFeatures((np.zeros((1, 8, 8, 2)),), (32, 32))
    cases = (
        (task(), "raise features.scales, or"), (task(short=128), "features.short, which is 128"),
        (task(files=object()), "compute their maps again"),
    )  # fmt: skip
    for case, advice in cases:
        assert advice in describe_grid(maps, masks(), ("a", "b", "c"), case)[1]
