"""Cuts, mirrors and scales images for a network, and averages its outputs."""

import dataclasses
import enum
import functools
import math
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np

from diffseg_jax.data.transforms import keep_ratio_size, resize_image
from diffseg_jax.errors import UserError
from diffseg_jax.inference.bands import DESCRIPTOR, ShownRows, named_maps
from diffseg_jax.metrics.calibrator import Calibrator
from diffseg_jax.metrics.divergence import entropy, normalised
from diffseg_jax.metrics.familiarity import KnownImages

DEFAULT_SIDE = 512  # of a window, in the advice where none is given
STRIP = 2**20  # pixels of images whose probabilities are held at their full size at a time


@dataclasses.dataclass(frozen=True)
class Maps:
    """The maps predicted for a batch of images of one size, or without B for one image.

    labels       i32[B, H, W], 0..K-1
    probs        f32[B, H, W, K], sums to 1; None where `predict` was not to keep it
    uncertainty  f32[B, H, W] in [0, 1], the estimated chance that the label is wrong
    signals      name -> f32[B, H, W] in [0, 1], what it is estimated from: "least_confidence", 1 -
                 the highest probability; "entropy", that of `probs` divided by ln K; and those of
                 SIGNALS that the network returns itself
    calibrated   whether a calibrator estimated the uncertainty; else it is "least_confidence"
    baseline     i32[B, H, W], the labels of a simpler classifier; None where there is none
    descriptor   f32[B, C], means and deviations of features by which images are compared; None
                 where the network gives none
    familiarity  f32[B] and foreign bool[B], see `KnownImages.judge`; None without known images
    """

    labels: np.ndarray
    probs: np.ndarray | None
    uncertainty: np.ndarray
    signals: dict[str, np.ndarray]
    calibrated: bool = False
    baseline: np.ndarray | None = None
    descriptor: np.ndarray | None = None
    familiarity: np.ndarray | None = None
    foreign: np.ndarray | None = None

    def __getitem__(self, row: int) -> "Maps":
        signals = {name: values[row] for name, values in self.signals.items()}
        others = self.probs, self.baseline, self.descriptor, self.familiarity, self.foreign
        probs, *others = (None if each is None else each[row] for each in others)
        maps = self.labels[row], probs, self.uncertainty[row]
        return Maps(*maps, signals, self.calibrated, *others)


    def drawn(self) -> "Maps":
        """The maps without the probabilities, which are large and on no sheet."""
        return dataclasses.replace(self, probs=None)

    def kept(self, names: Collection[str]) -> "Maps":
        """The maps without probabilities and signals that are not among the names."""
        signals = {name: values for name, values in self.signals.items() if name in names}
        probs = self.probs if "probs" in names else None
        return dataclasses.replace(self, probs=probs, signals=signals)


class View(enum.Enum):
    """How an image reaches the network."""

    WHOLE = "whole"  # as it is
    SLIDE = "slide"  # windows of one size, averaged where they overlap
    HALVES = "halves"  # a left and a right half: the Cityscapes rule of Brempong et al. (2022)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How images are shown to the network and its outputs averaged.

    window, stride  (height, width) in pixels, for `View.SLIDE`
    limit           (height, width) into which the image is first resized, keeping its aspect ratio
                    as `transforms.augment` does; (0, 0): not resized
    short           the same by the length of its shorter side; 0: not resized
    scales          factors by which the resized image is enlarged; outputs are averaged over them
    multiple        sides are rounded to its multiples by resizing; 1: not rounded
    flip            whether the mirrored image is shown too
    """

    view: View = View.WHOLE
    window: tuple[int, int] = (0, 0)
    stride: tuple[int, int] = (0, 0)
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    limit: tuple[int, int] = (0, 0)
    short: int = 0
    multiple: int = 1

    def __str__(self):
        """Such as "in windows of 512 x 512 at scales 0.5, 1 and mirrored"."""
        height, width = self.window
        windows = f"in windows of {height} x {width}"
        shown = {View.WHOLE: "whole", View.SLIDE: windows, View.HALVES: "in halves"}[self.view]
        scales = ", ".join(f"{scale:g}" for scale in self.scales)
        scaled = f" at scale {scales}" if len(self.scales) == 1 else f" at scales {scales}"
        return shown + (scaled if self.scales != (1.0,) else "") + " and mirrored" * self.flip

    def sizes(self, image_size: tuple[int, int]) -> list[tuple[int, int]]:
        """The (height, width) at which an image of size `image_size` is shown, one per scale."""
        sizes = [
            tuple(max(1, int(side * scale + 0.5)) for side in image_size) for scale in self.scales
        ]
        if self.short:
            sizes = [keep_ratio_size(image_size, (math.inf, self.short * s)) for s in self.scales]
        elif any(self.limit):
            limits = [tuple(int(side * s) for side in self.limit) for s in self.scales]
            sizes = [keep_ratio_size(image_size, limit) for limit in limits]
        if self.multiple == 1:
            return sizes
        m = self.multiple
        return [tuple(max(m, int(side / m + 0.5) * m) for side in size) for size in sizes]


@dataclasses.dataclass(frozen=True)
class Decision:
    """What becomes of the maps of a network, as functions of dicts of maps f32[B,H,W,C].

    of_view  (maps of one view, xp) -> those that are averaged over the views
    decided  (averaged maps, xp, calibrator) -> `Maps`, or those of another task, which have `kept`

    xp is numpy or jax.numpy.
    """

    of_view: Callable
    decided: Callable


def predict(
    forward: Callable, images: np.ndarray, protocol: Protocol, names: Sequence[str] = (),
    calibrator: Calibrator | None = None, known: KnownImages | None = None,
    keep: Collection[str] | None = None, decision: Decision | None = None,
) -> Maps:  # fmt: skip
    """Labels, probabilities and uncertainty of images u8[B,H,W,3] of one size.

    forward     (images u8[B,h,w,3], valid i32[B,2]) -> probabilities f32[B,h,w,K], or a dict of
                maps: "probs", "logits" or both, "votes" and "baseline" f32[B,h,w,K], those of
                SIGNALS f32[B,h,w] that it has, and "descriptor" f32[B,1,1,2C], which is an
                `image_descriptor`; pixels outside `valid` (height, width) are padding
    names       of the images, for a `forward` that reads files
    calibrator  estimates the uncertainty; None: it is 1 - the highest probability
    known       images by which these are judged
    keep        which of the signals and "probs" the result holds, for large images; None: all
    decision    what becomes of the maps; None: labels, as follows

    Every map is averaged in float32 over windows, resized to the size of the image, and averaged
    over scales and the mirror image. Before this last average logits become probabilities, or votes
    if there are probabilities too. A label is the class with most votes, or without votes the one
    of the highest probability; the smallest among equals. Large images are worked through in strips
    of rows, which changes no bit.
    """
    size, decision = images.shape[1:3], decision or LABELS
    height, width = size
    if names:
        forward = functools.partial(forward, names=names)
    shown = list(_shown(forward, images, protocol))
    rows = max(1, STRIP // (len(images) * width))
    strips = []
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        outputs = [decision.of_view(each.resized(size, top, bottom), np) for each in shown]
        mean = {name: sum(maps[name] for maps in outputs) / len(outputs) for name in outputs[0]}
        found = decision.decided(mean, np, calibrator)
        strips.append(found if keep is None else found.kept(keep))
    maps = strips[0] if len(strips) == 1 else stacked_strips(strips)
    if not shown[0].descriptors:
        return maps
    descriptors = [sum(each.descriptors) / len(each.descriptors) for each in shown]
    descriptor = from_moments(sum(descriptors) / len(descriptors))
    maps = dataclasses.replace(maps, descriptor=descriptor)
    if known is None or known.descriptors.shape[1] != descriptor.shape[1]:
        return maps
    familiarity, foreign = known.judge(descriptor)
    return dataclasses.replace(maps, familiarity=familiarity, foreign=foreign)


def _shown(forward, images, protocol) -> Iterator[ShownRows]:
    """The rows of maps at each scale, of the images and of their mirror images."""
    for size in protocol.sizes(images.shape[1:3]):
        shown = np.stack([resize_image(image, size) for image in images])
        window, stride = None, None
        if protocol.view is View.SLIDE:
            window, stride = protocol.window, protocol.stride
        elif protocol.view is View.HALVES:
            window = stride = (size[0], (size[1] + 1) // 2)
        for mirrored in (False, True) if protocol.flip else (False,):
            yield ShownRows(forward, shown, window, stride, mirrored)


def stacked_strips(strips: Sequence[Maps]) -> Maps:
    """The maps of an image of those of strips of its rows, in order."""

    def joined(values):
        if isinstance(values[0], dict):
            return {name: joined([each[name] for each in values]) for name in values[0]}
        return np.concatenate(values, 1) if isinstance(values[0], np.ndarray) else values[0]

    fields = [vars(each) for each in strips]
    return type(strips[0])(**{name: joined([each[name] for each in fields]) for name in fields[0]})


def predict_whole(
    output, xp=np, calibrator: Calibrator | None = None, decision: Decision | None = None
) -> Maps:  # fmt: skip
    """The maps that `predict` makes of one output of `forward`, without padding or averaging.

    xp  numpy or jax.numpy, the module of the arrays that come in and go out
    """
    decision = decision or LABELS
    maps = decision.of_view(named_maps(output), xp)
    maps.pop(DESCRIPTOR, None)
    return decision.decided(maps, xp, calibrator)


def from_moments(moments):
    """Means and standard deviations f32[B,2C] of means and mean squares f32[B,1,1,2C]."""
    mean, square = np.split(moments[:, 0, 0], 2, -1)
    return np.concatenate([mean, np.sqrt(np.maximum(square - mean**2, 0))], -1)


def _decided(mean, xp, calibrator):
    """`Maps` of averaged maps f32[B,H,W,C] without logits."""
    mean = dict(mean)
    probs, baseline = mean.pop("probs"), mean.pop("baseline", None)
    baseline = None if baseline is None else xp.argmax(baseline, -1).astype(xp.int32)
    labels = xp.argmax(mean.pop("votes", probs), -1).astype(xp.int32)
    signals = {name: xp.clip(v[..., 0], 0, 1).astype(xp.float32) for name, v in mean.items()}
    highest = functools.reduce(xp.maximum, xp.moveaxis(probs, -1, 0))  # `max` is slow on short axes
    signals["least_confidence"] = xp.clip(1 - highest, 0, 1).astype(xp.float32)
    relative_entropy = normalised(entropy(probs, xp), probs.shape[-1], xp)
    signals["entropy"] = relative_entropy.astype(xp.float32)
    if calibrator and signals.keys() >= set(calibrator.signals):
        chance = calibrator.chance(signals, labels, xp)
        return Maps(labels, probs, chance, signals, True, baseline)
    return Maps(labels, probs, signals["least_confidence"], signals, False, baseline)


def _with_probs(maps, xp):
    """The maps with probabilities in place of logits, or votes if there are probabilities too."""
    maps = dict(maps)
    if "logits" in maps:
        logits = maps.pop("logits")
        powers = xp.exp(logits - xp.max(logits, -1, keepdims=True))
        maps["votes" if "probs" in maps else "probs"] = powers / xp.sum(powers, -1, keepdims=True)
    return maps


LABELS = Decision(of_view=_with_probs, decided=_decided)


def protocol_of(options) -> Protocol:
    """The protocol of a config's part `evaluate`; raises as `make_protocol`.

    That of images at their own size for a task that knows no views.
    """
    if "view" not in options:
        return Protocol()
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
        sides = tuple(side if side > 0 else DEFAULT_SIDE for side in window)
        steps = tuple(max(2 * side // 3, 1) for side in sides)
        change = "" if sides == tuple(window) else f'--config.evaluate.window="{sides}" '
        raise UserError(
            f"evaluate.window is {tuple(window)} and evaluate.stride {tuple(stride)}: each stride "
            f'must lie between 1 and its window. Try {change}--config.evaluate.stride="{steps}".'
        )
    return Protocol(
        View(view), tuple(window), tuple(stride), tuple(scales), flip, tuple(limit), short
    )
