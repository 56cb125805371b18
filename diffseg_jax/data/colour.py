"""Colour changes of training images, equal to OpenCV's 8-bit arithmetic.

Images are uint8 RGB [H,W,3]. OpenCV counts hue in steps of two degrees, 0..179, so that a sixth of
the circle has 30; it divides by value and chroma in fixed point with 12 fraction bits.
"""

from functools import cache

import numpy as np

BYTE_VALUES = np.arange(256)
DIVISOR = np.maximum(BYTE_VALUES, 1)  # turns 0 / 0 into 0
SATURATION_FACTOR = np.rint((255 << 12) / DIVISOR).astype(np.int32)  # indexed by the value
HUE_FACTOR = np.rint((30 << 12) / DIVISOR).astype(np.int32)  # indexed by the chroma
HUES = 180


@cache
def _fractions():
    """float32[3, 180, 256]: red, green and blue as fractions of the value, by hue and saturation.

    By sixths of the circle, red falls short of the value by: nothing, a rising ramp, the
    saturation, the saturation, a falling ramp, nothing. Green and blue follow two and four sixths
    later.
    """
    angle = np.arange(HUES, dtype=np.float32) * np.float32(1 / 30)
    sixth = angle.astype(np.intp)
    up = angle - sixth
    none, full = np.zeros_like(up), np.ones_like(up)
    red = np.stack([none, up, full, full, 1 - up, none])
    shortfall = np.stack([red[(sixth - delay) % 6, np.arange(HUES)] for delay in (0, 2, 4)])
    saturation = BYTE_VALUES.astype(np.float32) * np.float32(1 / 255)
    # The result is rounded once, after the subtraction, like OpenCV's fused multiply-add.
    return (1 - shortfall[:, :, None].astype(np.float64) * saturation).astype(np.float32)


def rgb_to_hsv(image):
    """Hue in 0..179, saturation and value in 0..255, each uint8[H,W]; equals OpenCV."""
    planes = np.ascontiguousarray(np.moveaxis(image, -1, 0))
    value = planes.max(axis=0)
    chroma = value - planes.min(axis=0)
    saturation = (chroma * SATURATION_FACTOR.take(value) + (1 << 11)) >> 12

    r, g, b = planes.astype(np.int16)
    chroma_16 = chroma.astype(np.int16)
    # Hue in sixths of the circle, times the chroma; of two equal maxima, red comes first.
    sixths = np.where(value == g, b - r + 2 * chroma_16, r - g + 4 * chroma_16)
    sixths = np.where(value == r, g - b, sixths)
    hue = (sixths * HUE_FACTOR.take(chroma) + (1 << 11)) >> 12
    hue += HUES * (hue < 0)
    return hue.astype(np.uint8), saturation.astype(np.uint8), value


def hsv_to_rgb(hue, saturation, value):
    """The inverse of `rgb_to_hsv`, up to rounding: uint8[H,W,3].

    Like OpenCV's vectorised code, this rounds down in complete blocks of 32 columns, and to the
    nearest level in the remaining columns.
    """
    index = hue.astype(np.uint16) * 256 + saturation
    value = value * np.float32(1 / 255)
    width = hue.shape[1]
    rounding = np.where(np.arange(width) < width // 32 * 32, 0, 0.5).astype(np.float32)
    image = np.empty((*hue.shape, 3), np.uint8)
    for channel, fraction in enumerate(_fractions()):
        image[..., channel] = value * fraction.take(index) * np.float32(255) + rounding
    return image


def _linear(levels, gain=1.0, shift=0.0):
    table = np.clip(BYTE_VALUES.astype(np.float32) * gain + shift, 0, 255).astype(np.uint8)
    return table.take(levels)


def _contrast(image, rng):
    return _linear(image, gain=rng.uniform(0.5, 1.5)) if rng.integers(0, 2) else image


def photometric_distortion(image, rng):
    """Brightness, contrast, saturation and hue, each with probability 1/2, as in DDP's recipe.

    Brightness adds U(-32, 32). Contrast multiplies by U(0.5, 1.5), either before or after the next
    two, with equal probability. Saturation is multiplied by U(0.5, 1.5); hue turns by -18 .. 17 of
    180 steps. Every step clips and rounds down. Draws, in this order: brightness gate [value],
    order of contrast, (if first: contrast gate [value]), saturation gate [value], hue gate [value],
    (if last: contrast gate [value]).

    rng  only its `integers(low, high)` and `uniform(low, high)` are used
    """
    if rng.integers(0, 2):
        image = _linear(image, shift=rng.uniform(-32.0, 32.0))
    contrast_first = rng.integers(0, 2)
    if contrast_first:
        image = _contrast(image, rng)
    if rng.integers(0, 2):
        hue, saturation, value = rgb_to_hsv(image)
        image = hsv_to_rgb(hue, _linear(saturation, gain=rng.uniform(0.5, 1.5)), value)
    if rng.integers(0, 2):
        hue, saturation, value = rgb_to_hsv(image)
        turned = (hue.astype(np.int16) + int(rng.integers(-18, 18))) % HUES
        image = hsv_to_rgb(turned, saturation, value)
    return image if contrast_first else _contrast(image, rng)
