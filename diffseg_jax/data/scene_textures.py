"""Seeded noise and soft edges for the textures of scenes."""

import functools

import numpy as np


@functools.cache
def noise_tile():
    """Noise f32[256,256] in [-1, 1] of several octaves, which tiles without a seam."""
    rng, total = np.random.default_rng(7), np.zeros((256, 256), np.float32)
    for octave, weight in ((1, 0.35), (2, 0.4), (4, 0.45), (16, 0.35)):
        layer = np.kron(rng.normal(size=(256 // octave,) * 2), np.ones((octave, octave)))
        for axis in (0, 1):
            layer = sum(np.roll(layer, k, axis) for k in range(octave)) / octave
        total += (weight * layer / layer.std()).astype(np.float32)
    return np.clip(total / 1.6, -1, 1)


def noise(u, v):
    """Noise in [-1, 1] at coordinates in texels."""
    return noise_tile()[v.astype(np.int32) & 255, u.astype(np.int32) & 255]


def smooth_noise(u, v):
    """`noise`, interpolated linearly between texels."""
    u0, v0 = np.floor(u), np.floor(v)
    fu, fv = u - u0, v - v0
    upper = noise(u0, v0) * (1 - fu) + noise(u0 + 1, v0) * fu
    return upper * (1 - fv) + (noise(u0, v0 + 1) * (1 - fu) + noise(u0 + 1, v0 + 1) * fu) * fv


def soft(inside, width):
    """Share of a sample `width` metres wide that lies within an edge `inside` metres away."""
    return np.clip(inside / width + 0.5, 0, 1)


def band(position, middle, half, width):
    """Share of a sample that lies less than `half` from `middle`."""
    return soft(half - np.abs(position - middle), width)


def mixed(colour, other, share):
    """The colour with a share of the other."""
    return colour + (other - colour) * share
