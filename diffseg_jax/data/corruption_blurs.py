"""Blurs, zooms and displacements, by which images are corrupted; draws come in as arrays.

An image is float64[H, W, 3] in [0, 1] and so is the result, if a function says nothing else.
"""

import io
import math

import numpy as np
from PIL import Image

MIRRORED = "mirror"  # scipy's name for a border that is mirrored without repeating the edge


def as_bytes(values: np.ndarray) -> np.ndarray:
    """Values clipped to [0, 1] as uint8, by truncation."""
    return (255 * np.clip(values, 0, 1)).astype(np.uint8)


def gaussian_blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian of `sigma` pixels, cut at four of them; the edge is repeated."""
    from scipy.ndimage import gaussian_filter  # a slow import

    return gaussian_filter(image, (sigma, sigma, 0), mode="nearest", truncate=4)


def glass_blur(image: np.ndarray, sigma: float, reach: int, rounds: int, *, offsets: np.ndarray):
    """Pixels are replaced by near ones, one after the other, between two blurs.

    offsets  int[rounds * rows * columns, 2], steps (right, down) of each, see `glass_indices`
    """
    height, width = image.shape[:2]
    pixels = as_bytes(gaussian_blur(image, sigma)).reshape(-1, 3)
    indices = np.tile(glass_indices(height, width, reach), rounds)
    sources = indices + offsets[:, 1].astype(int) * width + offsets[:, 0]
    order = list(range(height * width))
    for index, source in zip(indices.tolist(), sources.tolist(), strict=True):
        order[index] = order[source]  # a copy: the order of these matters
    return gaussian_blur(pixels[order].reshape(image.shape) / 255, sigma)


def glass_indices(height: int, width: int, reach: int) -> np.ndarray:
    """The pixels that a round replaces, as indices of the flat image, in their order."""
    rows, columns = np.arange(height - reach, reach, -1), np.arange(width - reach, reach, -1)
    return (rows[:, None] * width + columns).ravel()


def defocus_blur(image: np.ndarray, radius: float, alias: float) -> np.ndarray:
    """A disk of `radius` pixels, whose edge is smoothed by a Gaussian of `alias` pixels.

    The smoothed disk is cut where it leaves its grid, and sums to as much as 1.013.
    """
    from scipy.ndimage import correlate

    reach, smoothing = (8, 1) if radius <= 8 else (int(radius), 2)
    axis = np.arange(-reach, reach + 1)
    disk = (axis[:, None] ** 2 + axis**2 <= radius**2).astype(float)
    bell = np.exp(-(np.arange(-smoothing, smoothing + 1) ** 2) / (2 * alias**2))
    bell /= bell.sum()
    kernel = correlate(disk / disk.sum(), np.outer(bell, bell), mode=MIRRORED)
    channels = [_correlated(image[..., channel], kernel) for channel in range(3)]
    return np.stack(channels, -1)


def _correlated(plane, kernel):
    """A plane f64[H, W] with mirrored borders, by the Fourier transform: kernels are large."""
    from scipy.signal import fftconvolve

    reach = len(kernel) // 2
    padded = np.pad(plane, reach, mode="reflect")
    return fftconvolve(padded, kernel[::-1, ::-1], mode="valid")


def motion_blur(values: np.ndarray, radius: int, sigma: float, *, angle: float) -> np.ndarray:
    """The trace of a camera that moves at `angle` degrees, from each pixel to one side.

    values  uint8[H, W] or uint8[H, W, 3];  out  float64 of the same shape, whole numbers in 0..255
    """
    height, width = values.shape[:2]
    steps = np.arange(2 * radius + 1)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    total, theta = np.zeros(values.shape), math.radians(angle)
    for step, weight in zip(steps, weights, strict=True):
        right, down = (math.ceil(step * part(theta) - 0.5) for part in (math.cos, math.sin))
        rows = np.clip(np.arange(height) + down, 0, height - 1)
        columns = np.clip(np.arange(width) + right, 0, width - 1)
        total += weight * values[rows[:, None], columns]
    return np.floor(np.rint(257 * total) / 257)


def zoom_blur(image: np.ndarray, last: float, step: float) -> np.ndarray:
    """The mean of the image and of its enlargements by 1, 1 + step and so on, before `last`."""
    image = image.astype(np.float32)
    factors = np.arange(1, last, step)
    total = image + sum(enlarged(image, factor) for factor in factors)
    return (total / (len(factors) + 1)).astype(np.float64)


def enlarged(values: np.ndarray, factor: float) -> np.ndarray:
    """The middle of [H, W, ...], enlarged by linear interpolation to the same size."""
    from scipy.ndimage import zoom

    sides = values.shape[:2]
    crops = [math.ceil(side / factor) for side in sides]
    tops = [(side - crop) // 2 for side, crop in zip(sides, crops, strict=True)]
    middle = values[tuple(np.s_[top : top + crop] for top, crop in zip(tops, crops, strict=True))]
    large = zoom(middle, (factor, factor) + (1,) * (values.ndim - 2), order=1)
    trims = [(got - side) // 2 for got, side in zip(large.shape, sides, strict=False)]
    return large[tuple(np.s_[trim : trim + side] for trim, side in zip(trims, sides, strict=True))]


def pixelate(image: np.ndarray, share: float) -> np.ndarray:
    """uint8 -> uint8: made smaller to that share of its sides, and large again, by boxes."""
    height, width = image.shape[:2]
    small = int(width * share), int(height * share)
    boxes = Image.fromarray(image).resize(small, Image.Resampling.BOX)
    return np.asarray(boxes.resize((width, height), Image.Resampling.BOX))


def jpeg_compression(image: np.ndarray, quality: int) -> np.ndarray:
    """uint8 -> uint8: as a JPEG file of that quality shows it."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def elastic_transform(
    values: np.ndarray, strength: float, sigma: float, shift: float, *, corners: np.ndarray,
    right: np.ndarray, down: np.ndarray, order: int = 1,
) -> np.ndarray:  # fmt: skip
    """Values [H, W, ...] moved by an affine map, then by a smooth field of displacements.

    strength, sigma, shift  in pixels: of the field, its smoothness, how far three corners move
    corners, right, down    f[3, 2], f[H, W] and f[H, W], uniform in [0, 1)
    order                   1 interpolates linearly, 0 takes the nearest pixel, as for labels
    """
    from scipy.ndimage import gaussian_filter, map_coordinates

    height, width = values.shape[:2]
    rows, columns = np.mgrid[:height, :width].astype(float)
    matrix = _inverse_affine(height, width, shift * (2.0 * corners - 1))
    x, y = np.einsum("ij,jyx->iyx", matrix, np.stack([columns, rows, np.ones_like(rows)]))
    moves = [
        gaussian_filter(2.0 * field - 1, sigma, mode="reflect", truncate=3) * strength
        for field in (right, down)
    ]

    def sampled(plane):
        plane = map_coordinates(plane, (y, x), order=order, mode=MIRRORED)
        moved = rows + moves[1], columns + moves[0]
        return map_coordinates(plane, moved, order=order, mode="reflect")

    if values.ndim == 2:
        return sampled(values)
    return np.stack([sampled(values[..., channel]) for channel in range(values.shape[2])], -1)


def _inverse_affine(height, width, moved):
    """f64[2, 3] from (x, y, 1) of the result to (x, y) of the image, as three corners moved."""
    centre, reach = np.array([width // 2, height // 2]), min(height, width) // 3
    corners = centre + reach * np.array([[1, 1], [1, -1], [-1, -1]])
    to = np.concatenate([corners + moved, np.ones((3, 1))], 1)
    return np.linalg.solve(to, corners).T
