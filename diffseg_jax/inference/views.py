"""What every system answers with, and how a picture is cut, mirrored and scaled before it."""

import dataclasses
import enum
import math
from collections.abc import Callable

import numpy as np

from diffseg_jax.data.interpolation import half_pixel_neighbours
from diffseg_jax.data.transforms import keep_ratio_size, resize_image
from diffseg_jax.errors import UserError
from diffseg_jax.metrics.divergence import entropy, normalised


@dataclasses.dataclass(frozen=True)
class Maps:
    """The answer for a batch of pictures of one size.

    labels         i32[B, H, W], 0..K-1
    probs          f32[B, H, W, K], sums to 1
    uncertainty    f32[B, H, W] in [0, 1]
    uncertainties  the same by name, for all MEASURES that there are: the entropy of `probs` divided
                   by ln K, and what the network states besides
    """

    labels: np.ndarray
    probs: np.ndarray
    uncertainty: np.ndarray
    uncertainties: dict[str, np.ndarray]


class View(enum.Enum):
    """How a picture reaches the network."""

    WHOLE = "whole"  # as it is
    SLIDE = "slide"  # windows of one size, averaged where they overlap
    HALVES = "halves"  # a left and a right half: the Cityscapes rule of Brempong et al. (2022)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How pictures are shown to the network and its answers averaged.

    window, stride  (height, width) in pixels, for `View.SLIDE`
    limit, short    sides that the picture is first made to fit, or its shorter side; aspect kept,
                    as in `transforms.augment`; (0, 0) and 0: its own size
    scales          factors by which it is then shown larger or smaller
    multiple        sides that are shown are rounded to multiples of it, by resizing; 1: as they are
    flip            whether the mirrored picture is shown too
    """

    view: View = View.WHOLE
    window: tuple[int, int] = (0, 0)
    stride: tuple[int, int] = (0, 0)
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    limit: tuple[int, int] = (0, 0)
    short: int = 0
    multiple: int = 1

    def sizes(self, own: tuple[int, int]) -> list[tuple[int, int]]:
        """The (height, width) at which a picture of size `own` is shown, one per scale."""
        sizes = [tuple(max(1, int(side * scale + 0.5)) for side in own) for scale in self.scales]
        if self.short:
            sizes = [keep_ratio_size(own, (math.inf, self.short * s)) for s in self.scales]
        elif any(self.limit):
            limits = [tuple(int(side * s) for side in self.limit) for s in self.scales]
            sizes = [keep_ratio_size(own, limit) for limit in limits]
        if self.multiple == 1:
            return sizes
        m = self.multiple
        return [tuple(max(m, int(side / m + 0.5) * m) for side in size) for size in sizes]


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along an axis; the last one ends at the picture's edge.

    max(length - window + stride - 1, 0) // stride + 1 of them, as in mmsegmentation.
    """
    count = max(length - window + stride - 1, 0) // stride + 1
    return [max(min(k * stride, length - window), 0) for k in range(count)]


def predict(forward: Callable, images: np.ndarray, protocol: Protocol) -> Maps:
    """Labels, probabilities and uncertainty of pictures u8[B,H,W,3] of one size.

    forward  (images u8[B,h,w,3], valid i32[B,2]) -> probabilities f32[B,h,w,K], or a dict of maps:
             "probs", "logits" or both, "votes" f32[B,h,w,K], and in [0, 1] "uncertainty" and other
             MEASURES f32[B,h,w]; what lies outside `valid` (height, width) is padding

    Every map is averaged in float32 over windows, brought to the picture's size, and averaged over
    scales and the mirror image; logits become probabilities just before that, or votes where there
    are probabilities besides. A label is the class with most votes, or the highest probability
    where there are none, the smallest among equals. Where the network states no uncertainty, it is
    the entropy.
    """
    own = images.shape[1:3]
    shows = []
    for size in protocol.sizes(own):
        shown = np.stack([resize_image(image, size) for image in images])
        shows.append(_scores(_windows(forward, shown, protocol), own))
        if protocol.flip:
            mirrored = _windows(forward, shown[:, :, ::-1], protocol)
            mirrored = {name: values[:, :, ::-1] for name, values in mirrored.items()}
            shows.append(_scores(mirrored, own))
    return _decided({name: sum(maps[name] for maps in shows) / len(shows) for name in shows[0]}, np)


def predict_whole(answer, xp=np) -> Maps:
    """What `predict` makes of one answer of `forward` to pictures as they are, nothing padded.

    xp  numpy or jax.numpy, whose arrays the answer holds and the prediction will
    """
    return _decided(_normalised(_maps_of(answer), xp), xp)


def _decided(mean, xp):
    """The prediction of averaged maps f32[B,H,W,C] without logits."""
    mean = dict(mean)
    probs = mean.pop("probs")
    labels = xp.argmax(mean.pop("votes", probs), -1).astype(xp.int32)
    stated = {name: xp.clip(v[..., 0], 0, 1).astype(xp.float32) for name, v in mean.items()}
    spread_out = normalised(entropy(probs, xp), probs.shape[-1], xp)
    stated["entropy"] = spread_out.astype(xp.float32)
    uncertainty = stated.pop("uncertainty", stated["entropy"])
    return Maps(labels, probs, uncertainty, stated)


def _scores(maps, size):
    """The maps at the picture's size; logits as probabilities."""
    return _normalised({name: _resize_map(values, size) for name, values in maps.items()}, np)


def _normalised(maps, xp):
    """The maps with probabilities, or votes where there are probabilities besides, for logits."""
    maps = dict(maps)
    if "logits" in maps:
        logits = maps.pop("logits")
        powers = xp.exp(logits - xp.max(logits, -1, keepdims=True))
        maps["votes" if "probs" in maps else "probs"] = powers / xp.sum(powers, -1, keepdims=True)
    return maps


def _windows(forward, images, protocol):
    """Every map averaged over the windows of a view: name -> f32[B,H,W,C]."""
    height, width = images.shape[1:3]
    if protocol.view is View.WHOLE:
        return _ask(forward, images, (height, width))
    window, stride = protocol.window, protocol.stride
    if protocol.view is View.HALVES:
        window = stride = (height, (width + 1) // 2)
    total, weight = {}, np.zeros((1, height, width, 1), np.float32)
    for top in window_starts(height, window[0], stride[0]):
        for left in window_starts(width, window[1], stride[1]):
            area = np.s_[:, top : top + window[0], left : left + window[1]]
            for name, values in _ask(forward, images[area], window).items():
                if name not in total:
                    total[name] = np.zeros((*images.shape[:3], values.shape[-1]), np.float32)
                total[name][area] += values
            weight[area] += 1
    return {name: values / weight for name, values in total.items()}


def _ask(forward, images, size):
    """The network's maps f32[B,h,w,C] of pictures padded to `size`, without the padding."""
    height, width = images.shape[1:3]
    padding = ((0, 0), (0, size[0] - height), (0, size[1] - width), (0, 0))
    valid = np.tile(np.array([height, width], np.int32), (len(images), 1))
    maps = _maps_of(forward(np.pad(images, padding), valid))
    return {name: np.asarray(values)[:, :height, :width] for name, values in maps.items()}


def _maps_of(answer):
    """The maps of an answer by name, each f[B,h,w,C]."""
    maps = answer if isinstance(answer, dict) else {"probs": answer}
    return {name: v[..., None] if v.ndim == 3 else v for name, v in maps.items()}


def _resize_map(probs, size):
    """Bilinear, half-pixel centres, f32[B,h,w,C] -> f32[B,*size,C]."""
    for axis, target in ((1, size[0]), (2, size[1])):
        source = probs.shape[axis]
        if source == target:
            continue
        low, high, part = half_pixel_neighbours(source, target)
        part = np.where(low == high, np.float32(0), part)  # values at the edge stay as they are
        part = part.reshape([-1 if a == axis else 1 for a in range(probs.ndim)])
        probs = probs.take(low, axis) * (1 - part) + probs.take(high, axis) * part
    return probs


def protocol_of(options) -> Protocol:
    """How a config's part `evaluate` shows its pictures; raises as `make_protocol`."""
    return make_protocol(
        options.view, options.window, options.stride, options.scales, options.flip, options.limit,
        options.short,
    )  # fmt: skip


def make_protocol(
    view: str, window, stride, scales, flip: bool, limit=(0, 0), short: int = 0
) -> Protocol:
    """The protocol of a config's plain values.

    Raises UserError for a stride that leaves gaps between windows.
    """
    if view == "slide" and not all(0 < s <= w for s, w in zip(stride, window)):
        raise UserError(
            f"evaluate.window is {tuple(window)} and evaluate.stride {tuple(stride)}: each stride "
            'must lie between 1 and its window. Try --config.evaluate.stride="(341, 341)".'
        )
    return Protocol(
        View(view), tuple(window), tuple(stride), tuple(scales), flip, tuple(limit), short
    )
