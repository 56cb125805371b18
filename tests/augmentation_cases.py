"""Images, generators and recorded cases for the tests of augmentation."""

import json

import numpy as np


class Scripted:
    """A generator that returns recorded draws and insists on the recorded arguments."""

    def __init__(self, draws):
        self.draws = list(draws)

    def _next(self, name, low, high):
        recorded, arguments, value = self.draws.pop(0)
        arguments = [0, *arguments] if len(arguments) == 1 else arguments
        assert (recorded, arguments) == (name, [low, high])
        return value

    def integers(self, low, high):
        return self._next("randint", low, high)

    def uniform(self, low, high):
        return self._next("uniform", low, high)


class Constant:
    """A generator that always draws the same values."""

    def __init__(self, integer=0, uniform=0.0):
        self.integer, self.number, self.count = integer, uniform, 0

    def integers(self, low, high):
        self.count += 1
        return self.integer

    def uniform(self, low, high):
        return self.number


def noise(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def largest_difference(a, b):
    assert a.shape == b.shape
    return np.abs(a.astype(int) - b.astype(int)).max(initial=0)


def recorded_augmentations(golden):
    """(cases, arrays) of each recording of the original pipeline, whose images are BGR."""
    for path in golden("ddp/augment*.json"):
        with np.load(path.with_suffix(".npz")) as arrays:
            yield json.loads(path.read_text())["cases"], dict(arrays)
