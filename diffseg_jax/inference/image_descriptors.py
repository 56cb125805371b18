"""Descriptors by which images are compared where no network of one's own gives them."""

from collections.abc import Callable

import jax
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from diffseg_jax.devices.settings import own_settings
from diffseg_jax.errors import UserError, require_known
from diffseg_jax.inference.views import from_moments
from diffseg_jax.models.descriptor import image_descriptor
from diffseg_jax.sources.feature_source import joined
from diffseg_jax.systems.feature_sources import chosen_sources, source_entries
from diffseg_jax.systems.source_files import load_source, source_sizes

COLOURS, PRETRAINED_NETWORK = "colour", "efficientnet_lite0"
DESCRIBED_BY = (PRETRAINED_NETWORK, COLOURS)
SEEN_SIDE = 256  # pixels of the squares as which the network sees images: one program for all sizes
CELLS = 4  # of an image's side, whose colours are compared
CELL_SIDE = 8  # pixels of a cell


def open_describer(features: str = "") -> tuple[Callable[[np.ndarray], np.ndarray], str, str]:
    """image u8[H,W,3] -> descriptor f32[C]; the features that it is made of; and why, for people.

    features  one of DESCRIBED_BY; "" = EfficientNet-Lite0 if it is installed, else colours

    Raises UserError for other names, and where the package of the named network is missing.
    """
    require_known(features or COLOURS, DESCRIBED_BY, "features")
    why = ""
    if features != COLOURS:
        try:
            return pretrained_describer(), PRETRAINED_NETWORK, why
        except UserError as error:
            if features:
                raise
            why = str(error)
    return colour_descriptor, COLOURS, why


def colour_descriptor(image: np.ndarray) -> np.ndarray:
    """Means and deviations of the colours in CELLS x CELLS cells of an image, f32[6 CELLS^2]."""
    side = CELLS * CELL_SIDE
    small = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BOX))
    cells = small.reshape(CELLS, CELL_SIDE, CELLS, CELL_SIDE, 3).astype(np.float32) / 255
    return np.concatenate([cells.mean((1, 3)).ravel(), cells.std((1, 3)).ravel()])


@own_settings()
def pretrained_describer() -> Callable[[np.ndarray], np.ndarray]:
    """Means and deviations of the features of EfficientNet-Lite0; UserError without its package."""
    options = dict(sources=(PRETRAINED_NETWORK,), dtype="float32", taps=(), scales=(1.0,))
    entry = source_entries(options)[0]
    sizes = source_sizes(entry)
    options["networks"] = {entry.name: sizes}
    config = ConfigDict(dict(dtype="float32", features=options))
    source = joined(chosen_sources(config, (SEEN_SIDE, SEEN_SIDE)))
    network = jax.device_put(load_source(entry, sizes))

    @jax.jit
    def moments(network, images, valid):
        found = source.extract(network, images, valid)
        return image_descriptor(found.maps, valid, found.size, found.covered)

    @own_settings()
    def describe(image):
        square = Image.fromarray(image).resize((SEEN_SIDE, SEEN_SIDE), Image.Resampling.BILINEAR)
        valid = np.full((1, 2), SEEN_SIDE, np.int32)
        return from_moments(np.asarray(moments(network, np.asarray(square)[None], valid)))[0]

    return describe
