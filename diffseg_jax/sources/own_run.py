"""Features of the network of a run, such as the encoder of DDP or DDeP."""

import re
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from diffseg_jax.errors import UserError
from diffseg_jax.sources.feature_source import FeatureSource, scale_up, scaled_source

STRIDES = {"ddp": 32, "ddep": 16}  # of the coarsest maps of their encoders
DDEP_TAPS = ("block1", "block2", "block3", "encoded")


def run_source(
    system: str, random: Callable, features: Callable, normalisation: str, taps: Sequence[str],
    scales: Sequence[float], dtype: str,
) -> FeatureSource:  # fmt: skip
    """The maps `taps` of a stage of "ddp" or "ddep"; () = those of its encoder's stages.

    random, features  `init` and `features` of the stage's `Task`;  normalisation  in its `meta`
    scales            factors by which images are enlarged first
    dtype             in which the maps are stored

    The network's tree is {"params": {system}, "stats": {system}}. Raises UserError for an unknown
    tap, and for a network without features of single images, whose `features` is None.
    """
    if features is None:
        raise UserError(
            f"this network of {system} reads several images with their calibration, and has no "
            "features of single ones. Give a run that reads single images."
        )
    stride = STRIDES[system]
    known = _known_taps(random, features, stride)

    def look(scale, values, images, valid, taps):
        images, valid = scale_up(images, valid, scale)
        images, seen = jnp.round(images).astype(jnp.uint8), images.shape[1:3]
        padding = [(0, -side % stride) for side in seen]
        padded = jnp.pad(images, ((0, 0), *padding, (0, 0)))
        network = {part: values[part][system] for part in ("params", "stats")}
        covered = tuple(side / (side + more) for side, (_, more) in zip(seen, padding))
        return features(network, padded, valid, taps), covered

    def init(key):
        network = random(key)
        return {part: {system: network[part]} for part in ("params", "stats")}

    chosen = tuple(taps) or _default_taps(system, known)
    return scaled_source(system, init, look, known, chosen, scales, dtype, stride, normalisation)


def _known_taps(random, features, stride: int) -> list[str]:
    network = jax.eval_shape(random, jax.random.key(0))
    image = jax.ShapeDtypeStruct((1, 4 * stride, 4 * stride, 3), jnp.uint8)
    valid = jax.ShapeDtypeStruct((1, 2), jnp.int32)
    return list(jax.eval_shape(features, network, image, valid))


def _default_taps(system, known) -> tuple[str, ...]:
    """The last block of every stage of DDP's backbone; maps of DDeP's encoder."""
    if system == "ddep":
        return DDEP_TAPS
    last = {}
    for name in known:
        if match := re.fullmatch(r"stage(\d+)\.block(\d+)", name):
            last[match[1]] = max(last.get(match[1], (-1, "")), (int(match[2]), name))
    return tuple(name for _, (_, name) in sorted(last.items()))
