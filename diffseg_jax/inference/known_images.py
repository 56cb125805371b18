"""The known images of a checkpoint, <directory>/<step>/known_images.npz, beside its arrays.

They are evaluated images, mostly those to which the calibrator is fitted, as it holds for images
like them; and some of the training images, as a validation split may show much less than the
network knows.
"""

import io
import json
import warnings
from pathlib import Path

import numpy as np

from diffseg_jax.inference.calibrators import identity_of
from diffseg_jax.metrics.familiarity import MIN_KNOWN, KnownImages
from diffseg_jax.storage.paths import write_atomically

NPZ_FILE = "known_images.npz"


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
    file = directory / str(step) / NPZ_FILE
    if not file.exists():
        return None
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as content:
            of, descriptors = json.loads(str(content["of"])), content["descriptors"]
        if descriptors.ndim != 2 or len(descriptors) < MIN_KNOWN or descriptors.dtype != np.float16:
            raise ValueError("it holds no descriptors")
        if not np.isfinite(descriptors).all():
            raise ValueError("its descriptors are not finite")
    except Exception as error:  # zipfile raises many kinds
        reason = str(error) or type(error).__name__
        warnings.warn(f"{file} cannot be read ({reason}), so {UNJUDGED}", stacklevel=3)
        return None
    if of != identity_of(meta, ema):
        what = "another network" if ema is None else f"other parameters than ema={ema}"
        warnings.warn(f"{file} belongs to {what}, so {UNJUDGED}", stacklevel=3)
        return None
    return KnownImages(descriptors)


UNJUDGED = "images are not compared with known ones"
