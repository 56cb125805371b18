"""Features of a network that others trained, and that stays as it is."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from diffseg_jax.errors import require_known
from diffseg_jax.models.network import Network
from diffseg_jax.models.taps import PixelFeatures, stack
from diffseg_jax.sources.feature_source import FeatureSource, shown_size
from diffseg_jax.systems.inputs import scale_images


def frozen_source(
    name: str, network: Network, known: Sequence[str], chosen: Sequence[str], stride: int,
    mean: Sequence[float], deviation: Sequence[float], short: int, dtype: str,
) -> FeatureSource:  # fmt: skip
    """The maps `chosen` of a network whose module maps (images, taps) to {tap: f[B,h,w,C]}.

    known            all names of its maps
    stride           images are padded to its multiples, with zeros to the right and below
    mean, deviation  by which pixels in 0..255 are scaled, RGB
    dtype            in which the maps are stored

    The network's tree is {"params": {name}, "stats": {name}}. Raises UserError for an unknown tap.
    """
    for tap in chosen:
        require_known(tap, known, f"feature of {name}")
    look = functools.partial(_maps, name, network, stride, (mean, deviation), short)

    def extract(values, images, valid, other_seed=None) -> PixelFeatures:
        found = look(values, images, valid, chosen)
        seen = shown_size(images.shape[1:3], short)
        covered = tuple(side / (side + -side % stride) for side in seen)
        return stack([found[tap] for tap in chosen], images.shape[1:3], covered, jnp.dtype(dtype))

    def named(values, images, valid, taps=None, seed=0):
        taps = chosen if taps is None else taps
        for tap in taps:
            require_known(tap, known, f"feature of {name}")
        return look(values, images, valid, taps)

    def init(key):
        network_values = network.init(key)
        return {part: {name: network_values[part]} for part in ("params", "stats")}

    return FeatureSource(
        name, init, extract, named, short=short, stride=stride,
        normalisation=f"(v - {_text(mean)}) / {_text(deviation)}",
    )  # fmt: skip


def _text(numbers):
    return f"({', '.join(f'{number:g}' for number in numbers)})"


def _maps(name, network, stride, scaling, short, values, images, valid, taps):
    """{tap: f32[B,h,w,C]} of images u8[B,H,W,3]."""
    size = images.shape[1:3]
    seen = shown_size(size, short)
    image = images
    if seen != size:
        shape = (len(images), *seen, 3)
        image = jax.image.resize(images.astype(jnp.float32), shape, "cubic", antialias=True)
        image = jnp.clip(image, 0, 255)
        valid = jnp.round(valid * jnp.asarray(seen) / jnp.asarray(size)).astype(jnp.int32)
    image = scale_images(image, valid, *scaling)
    padding = [(0, -side % stride) for side in seen]
    model = network.bind_eval(values["params"][name], values["stats"].get(name, {}))
    found = model(jnp.pad(image, ((0, 0), *padding, (0, 0))), taps)
    return {tap: found[tap].astype(jnp.float32) for tap in taps}


