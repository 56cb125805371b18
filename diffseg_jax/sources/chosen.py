"""The feature sources that a config names."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
from flax import nnx

from diffseg_jax.models.network import Network
from diffseg_jax.sources.colour import COLOUR
from diffseg_jax.sources.diffusion import adm_source
from diffseg_jax.sources.feature_source import FeatureSource
from diffseg_jax.sources.frozen import frozen_source
from diffseg_jax.systems.inputs import IMAGENET_MEAN, IMAGENET_STD

OLD_NAMES = {"network": "adm"}  # of `features.source`, up to version 0.2


@dataclasses.dataclass(frozen=True)
class FrozenNetwork:
    """A kind of network that is read from a file and not trained.

    settings  dataclass of its sizes, which JSON can hold
    module    (settings, dtype=, rngs=) -> module from (images, taps) to {tap: map}
    taps      settings -> the names of all its maps
    usual     settings -> those that are read by default
    mean, deviation  by which pixels in 0..255 are scaled
    """

    settings: type
    module: Callable[..., nnx.Module]
    taps: Callable[..., Sequence[str]]
    usual: Callable[..., Sequence[str]]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    deviation: tuple[float, float, float] = IMAGENET_STD


FROZEN: dict[str, FrozenNetwork] = {}
SOURCE_NAMES = ("adm", "colour", *FROZEN)


@dataclasses.dataclass(frozen=True)
class Entry:
    """An entry of config.features.sources: "name", or "name=file" with the weights of a network."""

    name: str
    file: str = ""


def source_entries(features: Mapping) -> list[Entry]:
    """The entries of config.features, which names several `sources` or, as before 0.3, a `source`.

    Names are not checked here.
    """
    given = features.get("sources") or (features.get("source", ""),)
    parts = (text.partition("=") for text in given)
    return [Entry(OLD_NAMES.get(name, name), file) for name, _, file in parts]


def source_names(features: Mapping) -> list[str]:
    """The names of the sources of config.features, in the order of their channels."""
    return [entry.name for entry in source_entries(features)]


def chosen_sources(config, crop: tuple[int, int]) -> list[FeatureSource]:
    """The sources of config.features, whose `networks` hold the sizes of networks from files.

    crop  (height, width) of the images of the fit
    Raises UserError for unknown taps.
    """
    features, names = config.features, source_names(config.features)
    shorts = features.get("shorts") or (features.short,) * len(names)
    return [
        _source(config, name, crop, short, _own_taps(features.get("taps", ()), name, len(names)))
        for name, short in zip(names, shorts, strict=True)
    ]


def _own_taps(taps, name, count):
    """Those of the taps that belong to a source: all of a lone one, else those named after it."""
    own = [tap.removeprefix(f"{name}/") for tap in taps if tap.startswith(f"{name}/")]
    return tuple(own) if own or count > 1 else tuple(taps)


def _source(config, name, crop, short, taps) -> FeatureSource:
    if name == "adm":
        return adm_source(config, crop, short)
    if name == "colour":
        return COLOUR
    kind = FROZEN[name]
    settings = settings_from(kind.settings, config.features.networks[name])
    dtype = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}[config.dtype]
    network = Network(lambda rngs: kind.module(settings, dtype=dtype, rngs=rngs))
    return frozen_source(
        name, network, kind.taps(settings), taps or tuple(kind.usual(settings)), settings.stride,
        kind.mean, kind.deviation, short, config.features.dtype,
    )  # fmt: skip


def settings_from(made: type, values: Mapping):
    """A dataclass of sizes from a mapping in which JSON made lists of tuples."""
    listed = (list, tuple)
    return made(**{
        name: tuple(value) if isinstance(value, listed) else value
        for name, value in dict(values).items()
    })  # fmt: skip
