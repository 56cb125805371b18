"""What the numbers are by which images are compared."""

import jax
import numpy as np
import pytest

from diffseg_jax.models.descriptor import MAX_CHANNELS, image_descriptor

pytestmark = pytest.mark.quick

OPTIONS = {"xla_backend_optimization_level": 0}
described = jax.jit(image_descriptor, static_argnums=(2, 3), compiler_options=OPTIONS)
RNG = np.random.default_rng(0)
FULL = np.array([[16, 24], [16, 24]])


def maps_of(*channels):
    """f32[2, 8, 12, C] for images of 16 x 24, one of half the size for each further C."""
    return [RNG.normal(size=(2, 8 >> i, 12 >> i, c)).astype("f") for i, c in enumerate(channels)]


def test_it_holds_the_means_of_all_channels_and_of_their_squares():
    maps = maps_of(3, 2)
    found = described(maps, FULL, (16, 24))
    power = lambda n: np.concatenate([(m**n).mean((1, 2), keepdims=True) for m in maps], -1)
    np.testing.assert_allclose(found, np.concatenate([power(1), power(2)], -1), rtol=1e-5)


def test_padding_changes_nothing():
    maps, valid = maps_of(3, 2), np.array([[8, 24], [16, 12]])
    found = described(maps, valid, (16, 24))
    inside = [[m[:1, : len(m[0]) // 2], m[1:, :, : m.shape[2] // 2]] for m in maps]
    for row, size in enumerate([(8, 24), (16, 12)]):
        alone = described([m[row] for m in inside], np.array([size]), size)
        np.testing.assert_allclose(found[row : row + 1], alone, rtol=1e-5)
    wider = [np.pad(m, ((0, 0), (0, 0), (0, m.shape[2]), (0, 0))) for m in maps]
    covered = ((1.0, 0.5),) * 2
    whole = described(maps, FULL, (16, 24))
    np.testing.assert_allclose(described(wider, FULL, (16, 24), covered), whole, rtol=1e-5)


def test_an_image_smaller_than_a_cell_has_one():
    maps = [RNG.normal(size=(1, 2, 2, 3)).astype(np.float32)]
    found = described(maps, np.array([[1, 1]]), (32, 32))
    np.testing.assert_array_equal(found[0, 0, 0, :3], maps[0][0, 0, 0])


@pytest.mark.parametrize("channels", [(256,), (257,), (7, 300, 5, 211), (8448,), (5,) * 52])
def test_channels_are_thinned_evenly_to_a_limit(channels):
    numbers = np.split(np.arange(sum(channels), dtype=np.float32), np.cumsum(channels)[:-1])
    constant = [np.broadcast_to(n, (1, 1, 1, len(n))) for n in numbers]
    found = np.ravel(described(constant, FULL[:1], (16, 24)))
    read = found[: len(found) // 2]
    assert MAX_CHANNELS / 2 < len(read) <= MAX_CHANNELS
    assert read[0] == 0 and len(set(np.diff(read))) == 1
