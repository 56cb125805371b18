"""Colour changes equal the recorded ones and keep what they should."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from augmentation_cases import (
    Constant,
    Scripted,
    largest_difference,
    noise,
    recorded_augmentations,
)
from diffseg_jax.data.colour import hsv_to_rgb, photometric_distortion, rgb_to_hsv

pytestmark = pytest.mark.quick


@pytest.mark.golden
def test_colours_match_the_recorded_ones(golden):
    for cases, arrays in recorded_augmentations(golden):
        image = arrays["img_bgr"][..., ::-1]
        names = [name for name in cases if f"photo/{name}" in arrays]
        assert names
        for name in names:
            rng = Scripted(cases[name])
            result = photometric_distortion(image, rng)
            assert not rng.draws, name
            expected = arrays[f"photo/{name}"][..., ::-1]
            assert largest_difference(result, expected) <= 1, name


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_hsv_and_back_returns_the_same_colours(seed):
    image = noise((30, 40), seed)
    grey = np.repeat(image[..., :1], 3, axis=-1)
    hue, saturation, value = rgb_to_hsv(grey)
    assert not hue.any() and not saturation.any()
    np.testing.assert_array_equal(hsv_to_rgb(hue, saturation, value), grey)
    # Hue has 30 steps for a sixth of the circle, so the middle channel is off by 255 / 60 and
    # rounding; the others by rounding, which is down.
    hue, saturation, value = rgb_to_hsv(image)
    assert hue.max() < 180
    back = hsv_to_rgb(hue, saturation, value)
    assert largest_difference(back.max(-1), image.max(-1)) == 0
    assert largest_difference(back.min(-1), image.min(-1)) <= 1
    assert largest_difference(back, image) <= 6
    drift = back.mean((0, 1)) - image.mean((0, 1))
    assert drift.min() > -0.7 and drift.max() < 0


@pytest.mark.parametrize(
    "rgb, hue",
    [
        ((255, 0, 0), 0),
        ((255, 255, 0), 30),
        ((0, 255, 0), 60),
        ((0, 255, 255), 90),
        ((0, 0, 255), 120),
        ((255, 0, 255), 150),
        ((255, 0, 4), 180),
    ],
)
def test_pure_colours_have_the_expected_hue(rgb, hue):
    image = np.array([[rgb]], np.uint8)
    hsv = rgb_to_hsv(image)
    assert [int(plane[0, 0]) for plane in hsv] == [hue % 180, 255, 255]
    assert largest_difference(hsv_to_rgb(*hsv), image) <= 4


def test_a_full_hue_turn_in_ten_steps_returns():
    image = np.array([[[200, 20, 20], [20, 200, 20], [20, 20, 200]]], np.uint8)
    turn = [("randint", [2], 0)] * 3 + [("randint", [2], 1), ("randint", [-18, 18], -18)]
    turned, differences = image, []
    for _ in range(10):
        turned = photometric_distortion(turned, Scripted([*turn, ("randint", [2], 0)]))
        differences.append(largest_difference(turned, image))
    assert min(differences[:-1]) > 50 and differences[-1] <= 2


def test_closed_gates_leave_the_image_unchanged():
    image = noise((7, 5))
    result = photometric_distortion(image, Constant(integer=0))
    np.testing.assert_array_equal(result, image)


@pytest.mark.parametrize("shift", [0.0, 31.9, -31.9])
def test_brightness_clips_and_rounds_down(shift):
    image = noise((7, 5))
    script = [("randint", [2], 1), ("uniform", [-32.0, 32.0], shift)] + [("randint", [2], 0)] * 4
    result = photometric_distortion(image, Scripted(script))
    np.testing.assert_array_equal(result, np.floor(np.clip(image + shift, 0, 255)))
