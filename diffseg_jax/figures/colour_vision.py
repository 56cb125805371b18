"""Colours for every type of colour vision: how far apart two are, and those of lines."""

from collections.abc import Sequence

import numpy as np

# Line colours that differ on white in every kind of colour vision (Okabe and Ito 2008).
LINES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")

# What dichromats see, as matrices of linear RGB: severity 1 of Machado, Oliveira and Fernandes,
# "A Physiologically-based Model for Simulation of Color Vision Deficiency" (2009).
VISIONS = {
    "full": np.eye(3),
    "protanopia": np.array([
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ]),
    "deuteranopia": np.array([
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ]),
    "tritanopia": np.array([
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ]),
}  # fmt: skip
RGB_TO_XYZ = np.array(
    [[0.412456, 0.357576, 0.180437], [0.212673, 0.715152, 0.072175], [0.019334, 0.119192, 0.950304]]
)


def smallest_difference(colours: Sequence[Sequence[int]]) -> float:
    """The smallest CIEDE2000 between two of the colours, over all types of colour vision.

    100, that between black and white, for fewer than two.
    """
    pairs = np.triu_indices(len(colours), 1)
    seen = [as_seen(colours, vision) for vision in VISIONS]
    return min(ciede2000(lab[pairs[0]], lab[pairs[1]]).min(initial=100) for lab in seen)


def as_seen(colours: Sequence[Sequence[int]], vision: str) -> np.ndarray:
    """sRGB bytes [N,3] -> CIE Lab (D65) f[N,3] of what people with that vision see."""
    unit = np.reshape(colours, (-1, 3)) / 255
    linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ VISIONS[vision].T, 0, 1)
    ratios = seen @ RGB_TO_XYZ.T / RGB_TO_XYZ.sum(1)
    roots = np.where(ratios > 216 / 24389, np.cbrt(ratios), (24389 / 27 * ratios + 16) / 116)
    x, y, z = np.moveaxis(roots, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def ciede2000(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The colour difference of CIEDE2000 between CIE Lab f[...,3]; 1 is just visible.

    In the notation of Sharma, Wu and Dalal, "The CIEDE2000 color-difference formula" (2005).
    """
    (l1, a1, b1), (l2, a2, b2) = np.moveaxis(first, -1, 0), np.moveaxis(second, -1, 0)
    c7 = ((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2) ** 7
    g = 0.5 * (1 - np.sqrt(c7 / (c7 + 25**7)))
    a1, a2 = (1 + g) * a1, (1 + g) * a2
    c1, c2 = np.hypot(a1, b1), np.hypot(a2, b2)
    h1, h2 = np.arctan2(b1, a1), np.arctan2(b2, a2)
    turn = np.where(c1 * c2 == 0, 0, (h2 - h1 + np.pi) % (2 * np.pi) - np.pi)
    mean_l, mean_c = (l1 + l2) / 2, (c1 + c2) / 2
    mean_h = np.where(c1 * c2 == 0, h1 + h2, h1 + turn / 2)
    t = (
        1 - 0.17 * np.cos(mean_h - np.pi / 6) + 0.24 * np.cos(2 * mean_h)
        + 0.32 * np.cos(3 * mean_h + np.pi / 30) - 0.2 * np.cos(4 * mean_h - 63 * np.pi / 180)
    )  # fmt: skip
    from_blue = (np.degrees(mean_h) % 360 - 275) / 25
    rotation = np.sin(np.pi / 3 * np.exp(-(from_blue**2)))
    rotation = -2 * rotation * np.sqrt(mean_c**7 / (mean_c**7 + 25**7))
    d_l = (l2 - l1) / (1 + 0.015 * (mean_l - 50) ** 2 / np.sqrt(20 + (mean_l - 50) ** 2))
    d_c = (c2 - c1) / (1 + 0.045 * mean_c)
    d_h = 2 * np.sqrt(c1 * c2) * np.sin(turn / 2) / (1 + 0.015 * mean_c * t)
    return np.sqrt(np.maximum(d_l**2 + d_c**2 + d_h**2 + rotation * d_c * d_h, 0))
