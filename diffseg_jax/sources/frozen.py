"""Features of a network that others trained, and that stays as it is."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp

from diffseg_jax.models.inputs import scale_images
from diffseg_jax.models.network import Network
from diffseg_jax.sources.feature_source import FeatureSource, scale_up, scaled_source


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
    look = functools.partial(_maps, name, network, stride, (mean, deviation))

    def init(key):
        network_values = network.init(key)
        return {part: {name: network_values[part]} for part in ("params", "stats")}

    normalisation = f"(v - {_text(mean)}) / {_text(deviation)}"
    return scaled_source(name, init, look, known, chosen, scales, dtype, stride, normalisation)


def _text(numbers):
    return f"({', '.join(f'{number:g}' for number in numbers)})"


def _maps(name, network, stride, scaling, scale, values, images, valid, taps):
    """{tap: f32[B,h,w,C]} of images u8[B,H,W,3], and the fractions that they cover."""
    image, valid = scale_up(images, valid, scale)
    image, seen = scale_images(image, valid, *scaling), image.shape[1:3]
    padding = [(0, -side % stride) for side in seen]
    model = network.bind_eval(values["params"][name], values["stats"].get(name, {}))
    found = model(jnp.pad(image, ((0, 0), *padding, (0, 0))), taps)
    covered = tuple(side / (side + more) for side, (_, more) in zip(seen, padding))
    return {tap: found[tap].astype(jnp.float32) for tap in taps}, covered


