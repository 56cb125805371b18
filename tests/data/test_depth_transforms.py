"""Image and depth are changed together, depth keeps its metres, and 0 comes from outside."""

import numpy as np
import pytest

from depth_files import depth_map
from diffseg_jax.data.depth_transforms import augment_depth, changed_colours, rotated
from diffseg_jax.errors import UserError

pytestmark = pytest.mark.quick

RECIPE = dict(
    crop=(16, 24), rotate=2.5, gamma=(0.9, 1.1), brightness=(0.9, 1.1), channels=(0.9, 1.1)
)


@pytest.fixture
def pair():
    """An image whose red channel is the row and green the column, and a depth that tells both."""
    rows, columns = np.indices((24, 40))
    image = np.stack([rows, columns, rows + columns], -1).astype(np.uint8)
    return image, (100 + 100 * rows + columns).astype(np.float32)


class Script:
    """A generator that returns scripted numbers in order, and fails when asked for more."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def uniform(self, low, high):
        return self.numbers.pop(0)

    def integers(self, low, high):
        assert low <= self.numbers[0] < high
        return self.numbers.pop(0)


def told(depth):
    """(rows, columns) that a depth of `pair` tells."""
    return (depth - 100) // 100, (depth - 100) % 100


def test_image_and_depth_stay_together(pair):
    for seed in range(20):
        options = RECIPE | dict(rotate=0.0, colour_share=0.0)
        found = augment_depth(*pair, np.random.default_rng(seed), **options)
        rows, columns = told(found["depth"])
        np.testing.assert_array_equal(found["image"][..., 0], rows)
        np.testing.assert_array_equal(found["image"][..., 1], columns)
        assert found["valid"].tolist() == [16, 24]


def test_the_order_of_draws_is_that_of_the_recipe(pair):
    """Size, rotation, flip, crop (rows first), colours: gamma, brightness, channels."""
    script = Script(1.0, 0.9, 0.2, 5, 7, 0.1, 1.0, 1.1, 0.9, 1.0, 1.0)
    found = augment_depth(*pair, script, **RECIPE)
    assert not script.numbers
    rows, columns = told(found["depth"])
    np.testing.assert_array_equal(rows[:, 0], np.arange(5, 21))
    np.testing.assert_array_equal(columns[0], 39 - np.arange(7, 31))  # flipped before it is cut
    np.testing.assert_array_equal(found["image"][..., 1], np.rint(1.1 * columns))
    np.testing.assert_array_equal(found["image"][..., 0], np.rint(1.1 * 0.9 * rows))


def test_a_rotation_moves_depth_without_mixing_it(pair):
    image, depth = rotated(*pair, 2.5)
    assert set(np.unique(depth)) <= {0, *np.unique(pair[1])}
    assert (depth == 0).any() and (depth > 0).mean() > 0.8
    inside = depth > 0
    rows, columns = told(depth)
    # Bilinear and nearest sampling of a ramp differ by half a pixel at most.
    inner = inside[2:-2, 2:-2]
    assert np.abs(image[2:-2, 2:-2, 0] - rows[2:-2, 2:-2])[inner].max() <= 1.5
    assert np.abs(image[2:-2, 2:-2, 1] - columns[2:-2, 2:-2])[inner].max() <= 1.5


def test_rotating_back_returns_the_centre(pair):
    depth = np.repeat(np.repeat(depth_map(0, (6, 10)), 8, 0), 8, 1)
    image = np.repeat(depth[..., None], 3, -1).astype(np.uint8)
    back = rotated(*rotated(image, depth, 2.5), -2.5)[1]
    assert (back == depth)[4:-4, 4:-4].mean() > 0.9


@pytest.mark.parametrize("rotate", [0.0, 2.5])
def test_depth_keeps_its_metres(pair, rotate):
    metres = {0.0, *np.unique(pair[1]).tolist()}
    for seed in range(5):
        options = RECIPE | dict(rotate=rotate, scale=(0.7, 1.4))
        found = augment_depth(*pair, np.random.default_rng(seed), **options)
        assert set(found["depth"].ravel().tolist()) <= metres


def test_half_of_the_images_are_rotated_flipped_and_coloured(pair):
    plain = augment_depth(*pair, np.random.default_rng(0), crop=(24, 40), flip=False)
    np.testing.assert_array_equal(plain["image"], pair[0])
    for option in (dict(rotate=2.5), dict(flip=True), dict(gamma=(0.9, 0.95))):
        options = dict(crop=(24, 40), flip=False) | option
        found = [augment_depth(*pair, np.random.default_rng(s), **options) for s in range(200)]
        changed = [not np.array_equal(each["image"], pair[0]) for each in found]
        assert 0.35 < np.mean(changed) < 0.65, option


def test_colours_follow_their_formula():
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)[..., None].repeat(3, -1)
    found = changed_colours(image, 1.1, 0.9, (1.0, 1.1, 0.95))
    levels = image.astype(float) ** 1.1 * 0.9 * [1.0, 1.1, 0.95]
    np.testing.assert_array_equal(found, np.rint(levels.clip(0, 255)))
    assert (found[-1, -1] == 255).all()  # 255 ** 1.1 is 443
    np.testing.assert_array_equal(changed_colours(image, 1.0, 1.0, (1, 1, 1)), image)


def test_smaller_images_are_padded_without_measurements(pair):
    found = augment_depth(*pair, np.random.default_rng(0), crop=(32, 48), flip=False)
    assert found["image"].shape == (32, 48, 3) and found["valid"].tolist() == [24, 40]
    assert not found["depth"][24:].any() and not found["depth"][:, 40:].any()
    np.testing.assert_array_equal(found["depth"][:24, :40], pair[1])


def test_inputs_are_not_changed(pair):
    before = [each.copy() for each in pair]
    augment_depth(*pair, np.random.default_rng(0), **RECIPE)
    for array, copy in zip(pair, before):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(crop=(0, 24)), r"crop is \(0, 24\)"),
        (dict(crop=(8, 8), limit=(0, 9)), r"limit \(0, 9\)"),
        (dict(crop=(8, 8), limit=(9, 9), short=4), "both set a size"),
        (dict(crop=(8, 8), gamma=(1.1, 0.9)), r"gamma is \(1.1, 0.9\), but must be \(low, high\)"),
        (dict(crop=(8, 8), scale=(0, 1)), r"scale is \(0, 1\)"),
    ],
)
def test_options_that_make_no_sense_are_refused(pair, options, sentence):
    with pytest.raises(UserError, match=sentence):
        augment_depth(*pair, np.random.default_rng(0), **options)


def test_a_depth_of_another_size_is_refused(pair):
    with pytest.raises(UserError, match="image of 24x40 pixels came with a depth of 23x40"):
        augment_depth(pair[0], pair[1][1:], np.random.default_rng(0), crop=(8, 8))
