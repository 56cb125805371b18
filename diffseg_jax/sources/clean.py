"""Features of an ADM UNet for images without noise, which a stage of kind "clean" trained."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from diffseg_jax.errors import choose, require_known
from diffseg_jax.models.adm_unet import ADMSettings
from diffseg_jax.models.clean_unet import CleanUNet
from diffseg_jax.models.network import COMPUTED, Network
from diffseg_jax.models.taps import PixelFeatures, stack
from diffseg_jax.sources.diffusion import make_settings, shown_images
from diffseg_jax.sources.feature_source import FeatureSource, shown_size


def clean_network(settings: ADMSettings, dtype: str, remat: bool) -> Network:
    """A CleanUNet as pure functions; dtype "float32" or "bfloat16", else UserError."""
    computed = choose(COMPUTED, dtype, "dtype")
    return Network(lambda rngs: CleanUNet(settings, dtype=computed, remat=remat, rngs=rngs))


def clean_source(config, short: int, chosen: Sequence[str], dtype: str) -> FeatureSource:
    """The outputs of the blocks `chosen` of the network of config.model, in one pass.

    short  images are resized to this shorter side; 0 = as they are
    dtype  in which the maps are stored

    The network's tree is {"params": {"clean"}, "stats": {}}.
    """
    settings = make_settings(config.model)
    network = clean_network(settings, config.dtype, config.remat)
    _require_taps(chosen, settings)
    look = functools.partial(clean_features, network, short)

    def extract(values, images, valid, other_seed=None) -> PixelFeatures:
        found = look(values["params"]["clean"], images, valid, chosen)
        seen = shown_size(images.shape[1:3], short)
        covered = tuple(side / (side + -side % settings.stride) for side in seen)
        return stack([found[tap] for tap in chosen], images.shape[1:3], covered, jnp.dtype(dtype))

    def named(values, images, valid, taps=None, seed=0):
        taps = chosen if taps is None else taps
        return look(values["params"]["clean"], images, valid, taps)

    return FeatureSource(
        "clean", lambda key: {"params": {"clean": network.init(key)["params"]}, "stats": {}},
        extract, named, short=short, stride=settings.stride,
    )  # fmt: skip


def output_names(blocks: Sequence[int]) -> list[str]:
    """Names of output blocks, by rising number."""
    return [f"output_{block}" for block in sorted(blocks)]


def clean_features(
    network: Network, short: int, params: dict, images: jax.Array, valid: jax.Array,
    taps: Sequence[str],
) -> dict[str, jax.Array]:  # fmt: skip
    """Outputs of blocks for images u8[B,h,w,3]: {"output_5": f32[B,h',w',C], ...}.

    Raises UserError for a name that the network does not have.
    """
    model = network.bind(params, {})
    _require_taps(taps, model.settings)
    found = model(shown_images(images, valid, short), taps)
    return {tap: maps.astype(jnp.float32) for tap, maps in found.items()}


def _require_taps(taps, settings):
    for tap in taps:
        require_known(tap, settings.blocks, "feature of clean")
