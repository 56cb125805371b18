"""The known images of a checkpoint, <directory>/<step>/known_images.npz, beside its arrays.

They are evaluated images, mostly those to which the calibrator is fitted, as it holds for images
like them; and some of the training images, as a validation split may show much less than the
network knows.
"""

import io
import json
from pathlib import Path

import numpy as np

from diffseg_jax.inference.calibrators import identity_of, read_beside
from diffseg_jax.metrics.familiarity import MIN_KNOWN, KnownImages
from diffseg_jax.storage.paths import write_atomically

NPZ_FILE = "known_images.npz"
UNJUDGED = "images are not compared with known ones"


def write_known_images(directory: Path, step: int, meta: dict, known: KnownImages):
    """Writes those of the network that is taken by default; meta: the checkpoint's."""
    content = io.BytesIO()
    of = json.dumps(identity_of(meta), sort_keys=True)
    np.savez_compressed(content, of=of, descriptors=known.descriptors)
    write_atomically(directory / str(step) / NPZ_FILE, content.getvalue())


def read_known_images(
    directory: Path, step: int, meta: dict, ema: float | str | None = None
) -> KnownImages | None:
    """Those of a network, None where there are none; ema: as of `load`.

    Warns of a file that cannot be read, and of one that belongs to another network.
    """

    def parsed(content):
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            of, descriptors = json.loads(str(arrays["of"])), arrays["descriptors"]
        if descriptors.ndim != 2 or len(descriptors) < MIN_KNOWN or descriptors.dtype != np.float16:
            raise ValueError("it holds no descriptors")
        if not np.isfinite(descriptors).all():
            raise ValueError("its descriptors are not finite")
        return KnownImages(descriptors), of

    return read_beside(directory / str(step) / NPZ_FILE, parsed, meta, ema, UNJUDGED)
