"""Features of a network that others trained, and that stays as it is."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp

from diffseg_jax.errors import choose, require_known
from diffseg_jax.models.network import Network
from diffseg_jax.models.taps import PixelFeatures, side_by_side, stack
from diffseg_jax.sources.feature_source import FeatureSource, scale_up
from diffseg_jax.systems.inputs import scale_images


def frozen_source(
    name: str, network: Network, known: Sequence[str], chosen: Sequence[str], stride: int,
    mean: Sequence[float], deviation: Sequence[float], scales: Sequence[float], dtype: str,
) -> FeatureSource:  # fmt: skip
    """The maps `chosen` of a network whose module maps (images, taps) to {tap: f[B,h,w,C]}.

    known            all names of its maps
    stride           images are padded to its multiples, with zeros to the right and below
    mean, deviation  by which pixels in 0..255 are scaled, RGB
    scales           factors by which images are enlarged first; maps of several stand side by side,
                     and their taps are named as in "block2@1.5"
    dtype            in which the maps are stored

    The network's tree is {"params": {name}, "stats": {name}}. Raises UserError for an unknown tap.
    """
    for tap in chosen:
        require_known(tap, known, f"feature of {name}")
    look = functools.partial(_maps, name, network, stride, (mean, deviation))

    def at_scale(scale, values, images, valid):
        found, covered = look(scale, values, images, valid, chosen)
        return stack([found[tap] for tap in chosen], images.shape[1:3], covered, jnp.dtype(dtype))

    def extract(values, images, valid, other_seed=None) -> PixelFeatures:
        return side_by_side([at_scale(scale, values, images, valid) for scale in scales])

    def named(values, images, valid, taps=None, seed=0):
        several = [f"{tap}@{scale:g}" for scale in scales for tap in chosen]
        usual = chosen if len(scales) == 1 else several
        return {
            tap: look(scale, values, images, valid, [block])[0][block]
            for tap in (usual if taps is None else taps)
            for block, scale in [_block_and_scale(tap, known, scales, name)]
        }

    def init(key):
        network_values = network.init(key)
        return {part: {name: network_values[part]} for part in ("params", "stats")}

    return FeatureSource(
        name, init, extract, named, stride=stride,
        normalisation=f"(v - {_text(mean)}) / {_text(deviation)}",
    )  # fmt: skip


def _text(numbers):
    return f"({', '.join(f'{number:g}' for number in numbers)})"


def _block_and_scale(tap, known, scales, name):
    """("block2", 1.5) of "block2@1.5"; UserError for other names."""
    block, _, scale = tap.partition("@")
    require_known(block, known, f"feature of {name}")
    found = {f"{each:g}": each for each in scales}
    return block, choose(found, scale or next(iter(found)), "scale of features")


def _maps(name, network, stride, scaling, scale, values, images, valid, taps):
    """{tap: f32[B,h,w,C]} of images u8[B,H,W,3], and the fractions that they cover."""
    image, valid = scale_up(images, valid, scale)
    image, seen = scale_images(image, valid, *scaling), image.shape[1:3]
    padding = [(0, -side % stride) for side in seen]
    model = network.bind_eval(values["params"][name], values["stats"].get(name, {}))
    found = model(jnp.pad(image, ((0, 0), *padding, (0, 0))), taps)
    covered = tuple(side / (side + more) for side, (_, more) in zip(seen, padding))
    return {tap: found[tap].astype(jnp.float32) for tap in taps}, covered


