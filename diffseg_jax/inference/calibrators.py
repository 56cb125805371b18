"""The calibrator of a checkpoint, <directory>/<step>/calibrator.json, beside its arrays."""

import hashlib
import json
import warnings
from pathlib import Path

from diffseg_jax.metrics.calibrator import Calibrator, from_json
from diffseg_jax.storage.paths import write_json

FILE = "calibrator.json"
UNCALIBRATED = "the uncertainty is 1 - the highest probability, uncalibrated"


def write_calibrator(directory: Path, step: int, meta: dict, calibrator: Calibrator):
    """Writes the calibrator of the network that is taken by default; meta: the checkpoint's."""
    write_json(file_of(directory, step), {"of": identity_of(meta), **calibrator.to_json()})


def read_calibrator(
    directory: Path, step: int, meta: dict, ema: float | str | None = None
) -> Calibrator | None:
    """The calibrator of a network, None where there is none; ema: as of `load`.

    Warns of one that cannot be read, and of one that belongs to another network.
    """
    file = file_of(directory, step)
    if not file.exists():
        return None
    try:
        content = json.loads(file.read_text())
        calibrator, of = from_json(content), content["of"]
        if len(calibrator.intercepts) != len(meta["classes"]):
            raise ValueError("it knows other classes")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = str(error) or type(error).__name__
        warnings.warn(f"{file} cannot be read ({reason}), so {UNCALIBRATED}", stacklevel=3)
        return None
    if of != identity_of(meta, ema):
        what = "another network" if ema is None else f"other parameters than ema={ema}"
        warnings.warn(f"{file} belongs to {what}, so {UNCALIBRATED}", stacklevel=3)
        return None
    return calibrator


def file_of(directory: Path, step: int) -> Path:
    """Where the calibrator of a checkpoint is."""
    return directory / str(step) / FILE


def identity_of(meta: dict, ema: float | str | None = None) -> dict:
    """What tells networks apart: a hash of the stored arrays, and which of them are taken."""
    arrays = hashlib.sha256(json.dumps(meta["arrays"], sort_keys=True).encode()).hexdigest()
    taken = (meta["ema"][0] if meta["ema"] else "off") if ema is None else ema
    return {"arrays": arrays[:16], "ema": str(taken)}
