"""The maps of a network for images of any size, a band of rows at a time, to bound the memory.

Windows are averaged where they overlap. A band of rows is finished, and its windows are forgotten,
once the next row of windows begins below it.
"""

from collections.abc import Callable, Iterator

import numpy as np

from diffseg_jax.data.interpolation import half_pixel_neighbours

DESCRIPTOR = "descriptor"  # the one map that has no pixels


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along an axis; the last window ends at the edge of the image.

    max(length - window + stride - 1, 0) // stride + 1 of them, as in mmsegmentation.
    """
    count = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(k * stride, length - window), 0) for k in range(count)]


class ShownRows:
    """The averaged maps of images u8[B,H,W,3], read once from top to bottom at any height.

    forward         as of `inference.views.predict`
    window, stride  (height, width) in pixels; None: whole images
    mirrored        whether the network sees the mirror images; the maps are those of the images

    `descriptors` holds those of the windows so far.
    """

    def __init__(self, forward: Callable, images: np.ndarray, window, stride, mirrored: bool):
        self.descriptors = []
        self._height, self._mirrored = images.shape[1], mirrored
        shown = images[:, :, ::-1] if mirrored else images
        self._bands = self._averaged(forward, shown, window, stride)
        self._held, self._first, self._stop = {}, 0, 0  # maps of rows from _first to _stop

    def resized(self, size: tuple[int, int], top: int, bottom: int) -> dict[str, np.ndarray]:
        """Rows top to bottom of the maps at another size, bilinear: name -> f32[B,h,size[1],C].

        Rows are asked for in order: `top` never decreases.
        """
        height, width = size
        rows = half_pixel_neighbours(self._height, height, start=top, stop=bottom)
        first, stop = int(rows[0][0]), int(rows[1][-1]) + 1
        if height == self._height:
            first, stop, rows = top, bottom, None
        self._advance(first, stop)
        found = {}
        for name, values in self._held.items():
            values = values[:, : stop - first, :: -1 if self._mirrored else 1]
            if rows is not None:
                values = _between(values, 1, (rows[0] - first, rows[1] - first, rows[2]))
            found[name] = resize_columns(values, width)
        return found

    def _advance(self, first, stop):
        """Holds rows from `first` to `stop` or further; forgets those above."""
        held = [self._held] if self._held else []
        while self._stop < stop:
            held.append(next(self._bands))
            self._stop += next(iter(held[-1].values())).shape[1]
        self._held = {
            name: np.concatenate([maps[name] for maps in held], 1) if len(held) > 1 else values
            for name, values in held[0].items()
        }
        self._held = {name: v[:, first - self._first :] for name, v in self._held.items()}
        self._first = first

    def _averaged(self, forward, images, window, stride) -> Iterator[dict]:
        """The finished bands of rows in order: name -> f32[B,h,W,C]."""
        height, width = images.shape[1:3]
        if window is None:
            maps = _forward_padded(forward, images, (height, width))
            self.descriptors += [maps.pop(DESCRIPTOR)] if DESCRIPTOR in maps else []
            yield maps
            return
        tops = window_starts(height, window[0], stride[0])
        total, weight = {}, np.zeros((1, min(window[0], height), width, 1), np.float32)
        for top, below in zip(tops, [*tops[1:], height]):
            for left in window_starts(width, window[1], stride[1]):
                columns = np.s_[:, :, left : left + window[1]]
                part = images[:, top : top + window[0], left : left + window[1]]
                maps = _forward_padded(forward, part, window)
                self.descriptors += [maps.pop(DESCRIPTOR)] if DESCRIPTOR in maps else []
                for name, values in maps.items():
                    if name not in total:
                        shape = len(images), *weight.shape[1:3], values.shape[-1]
                        total[name] = np.zeros(shape, np.float32)
                    total[name][columns] += values
                weight[columns] += 1
            done = below - top
            yield {name: values[:, :done] / weight[:, :done] for name, values in total.items()}
            total = {name: _moved_up(values, done) for name, values in total.items()}
            weight = _moved_up(weight, done)


def _moved_up(values, rows):
    """The array without its first rows, and as many of zeros behind the others."""
    return np.concatenate([values[:, rows:], np.zeros_like(values[:, :rows])], 1)


def _forward_padded(forward, images, size):
    """The network's maps f32[B,h,w,C] of images padded to `size`, without the padding."""
    height, width = images.shape[1:3]
    padding = ((0, 0), (0, size[0] - height), (0, size[1] - width), (0, 0))
    valid = np.tile(np.array([height, width], np.int32), (len(images), 1))
    maps = named_maps(forward(np.pad(images, padding), valid))
    return {name: np.asarray(values)[:, :height, :width] for name, values in maps.items()}


def named_maps(output) -> dict:
    """The maps of a network's output by name, each f[B,h,w,C]."""
    maps = output if isinstance(output, dict) else {"probs": output}
    return {name: v[..., None] if v.ndim == 3 else v for name, v in maps.items()}


def resize_columns(maps: np.ndarray, width: int) -> np.ndarray:
    """Bilinear along the width with half-pixel centres, f32[B,h,w,C] -> f32[B,h,width,C]."""
    if maps.shape[2] == width:
        return maps
    return _between(maps, 2, half_pixel_neighbours(maps.shape[2], width))


def _between(maps, axis, neighbours):
    """Along an axis, the values between lower and upper neighbours."""
    low, high, weight = neighbours
    weight = np.where(low == high, np.float32(0), weight)  # edge values are not changed
    weight = weight.reshape([-1 if a == axis else 1 for a in range(maps.ndim)])
    return maps.take(low, axis) * (1 - weight) + maps.take(high, axis) * weight
