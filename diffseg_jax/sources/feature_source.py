"""A feature source: how an image becomes named maps, as a value that the pixel ensemble takes."""

import dataclasses
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from diffseg_jax.errors import choose, require_known
from diffseg_jax.models.taps import side_by_side, stack
from diffseg_jax.sources.map_files import MapFiles


@dataclasses.dataclass(frozen=True)
class FeatureSource:
    """Pure functions of a network that is not trained.

    name     as in `config.features.sources`
    init     key -> the network, {"params", "stats"}, with random values; jit-able
    extract  (network, images u8[B,H,W,3], valid i32[B,2], *maps, other_seed=None) ->
             PixelFeatures; maps are those of `files`; that of a diffusion model also takes `steps`
    named    (network, images, valid, taps, seed=0) -> {name: f32[B,h,w,C]} of those taps, of the
             default ones for None; None for a source without a network
    short    pixels: images are resized to this shorter side; 0 = as they are
    stride   pixels of an image per value of its coarsest map
    normalisation  how pixels reach the network, for people
    files    the files whose maps `extract` takes; None where it computes them
    """

    name: str
    init: Callable
    extract: Callable
    named: Callable | None
    short: int = 0
    stride: int = 1
    normalisation: str = "v / 127.5 - 1"
    files: MapFiles | None = None


def joined(sources: Sequence[FeatureSource]) -> FeatureSource:
    """The features of several sources as those of one, side by side in their order.

    Taps of a source are named "source/tap".
    """
    if len(sources) == 1:
        return sources[0]
    by_name = {source.name: source for source in sources}

    def init(key):
        networks = [source.init(jax.random.fold_in(key, i)) for i, source in enumerate(sources)]
        return {
            part: {name: tree for network in networks for name, tree in network[part].items()}
            for part in ("params", "stats")
        }

    def extract(network, images, valid, *maps, other_seed=None):
        found = [
            source.extract(
                network, images, valid, *(maps if source.files else ()), other_seed=other_seed
            )
            for source in sources
        ]
        return side_by_side(found)

    def named(network, images, valid, taps=None, seed=0):
        with_names = [source for source in sources if source.named]
        wanted = {source.name: None if taps is None else [] for source in with_names}
        for tap in taps or ():
            name, _, inner = tap.partition("/")
            choose(wanted, name, "feature source").append(inner)
        found = {}
        for name, inner in wanted.items():
            if inner is None or inner:
                maps = by_name[name].named(network, images, valid, inner, seed=seed)
                found |= {f"{name}/{tap}": values for tap, values in maps.items()}
        return found

    return FeatureSource(
        name="+".join(by_name), init=init, extract=extract,
        named=named if any(source.named for source in sources) else None,
        short=max(source.short for source in sources),
        stride=max(source.stride for source in sources),
        files=next((source.files for source in sources if source.files), None),
        normalisation="; ".join(f"{each.name}: {each.normalisation}" for each in sources),
    )  # fmt: skip


def scaled_source(
    name: str, init: Callable, look: Callable, known: Sequence[str], chosen: Sequence[str],
    scales: Sequence[float], dtype: str, stride: int, normalisation: str,
) -> FeatureSource:  # fmt: skip
    """The maps `chosen` of images at several scales, side by side.

    look    (scale, network, images, valid, taps) -> {tap: f32[B,h,w,C]}, and the (height, width)
            fractions of the maps that images fill
    known   all names of maps; those of several scales are named as in "block2@1.5", and a name in
            `chosen` without a scale stands for all of them
    scales  factors by which images are enlarged first
    dtype   in which the maps are stored

    Channels are in the order of the scales, and in each in that of `chosen`. Raises UserError for
    an unknown tap.
    """
    pairs = [pair for tap in chosen for pair in _maps_of(tap, known, scales, name)]
    ordered = [(block, scale) for scale in scales for block, own in pairs if own == scale]

    def at_scale(scale, network, images, valid):
        blocks = [block for block, own in ordered if own == scale]
        found, covered = look(scale, network, images, valid, blocks)
        maps = [found[block] for block in blocks]
        return stack(maps, images.shape[1:3], covered, jnp.dtype(dtype))

    def extract(network, images, valid, other_seed=None):
        read = [scale for scale in scales if any(own == scale for _, own in ordered)]
        return side_by_side([at_scale(scale, network, images, valid) for scale in read])

    def named(network, images, valid, taps=None, seed=0):
        several = len(scales) > 1
        names = [f"{block}@{scale:g}" if several else block for block, scale in ordered]
        names = names if taps is None else list(taps)
        wanted = {tap: _maps_of(tap, known, scales, name)[0] for tap in names}
        found = {}
        for scale in {scale for _, scale in wanted.values()}:
            blocks = [block for block, own in wanted.values() if own == scale]
            found[scale] = look(scale, network, images, valid, blocks)[0]
        return {tap: found[scale][block] for tap, (block, scale) in wanted.items()}

    return FeatureSource(name, init, extract, named, stride=stride, normalisation=normalisation)


def _maps_of(tap, known, scales, name):
    """[("block2", 1.5)] of "block2@1.5"; one pair for each scale where none is named."""
    block, _, given = tap.partition("@")
    require_known(block, known, f"feature of {name}")
    if not given:
        return [(block, scale) for scale in scales]
    found = {f"{scale:g}": scale for scale in scales}
    return [(block, choose(found, given, "scale of features"))]


def scale_up(images: jax.Array, valid: jax.Array, scale: float) -> tuple[jax.Array, jax.Array]:
    """Images u8[B,H,W,3] by a factor, in 0..255, and their valid (height, width) i32[B,2].

    Cubic interpolation with antialiasing, f32; by 1 the images as they are.
    """
    size = images.shape[1:3]
    seen = enlarged_size(size, scale)
    if seen == size:
        return images, valid
    shape = (len(images), *seen, 3)
    image = jax.image.resize(images.astype(jnp.float32), shape, "cubic", antialias=True)
    valid = jnp.round(valid * jnp.asarray(seen) / jnp.asarray(size)).astype(jnp.int32)
    return jnp.clip(image, 0, 255), valid


def enlarged_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(height, width) times a factor, at least 1."""
    return tuple(max(1, round(side * scale)) for side in size)


def shown_size(size: tuple[int, int], short: int) -> tuple[int, int]:
    """(height, width) at which the network sees images of `size`; short = 0 keeps the size."""
    if not short:
        return tuple(size)
    return tuple(max(1, round(side * short / min(size))) for side in size)
