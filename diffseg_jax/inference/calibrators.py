"""The calibrator of a checkpoint, <directory>/<step>/calibrator.json, beside its arrays."""

import hashlib
import json
import warnings
from collections.abc import Callable
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

    def parsed(content):
        content = json.loads(content)
        calibrator = from_json(content)
        if len(calibrator.intercepts) != len(meta["classes"]):
            raise ValueError("it knows other classes")
        return calibrator, content["of"]

    return read_beside(file_of(directory, step), parsed, meta, ema, UNCALIBRATED)


def read_beside(
    file: Path, parsed: Callable[[bytes], tuple], meta: dict, ema: float | str | None, without: str
):
    """What a file beside the arrays of a checkpoint holds, None where there is none or of no use.

    parsed   content -> what it holds, and the `identity_of` the network to which it belongs
    without  what follows where it is of no use, for the warning
    """
    if not file.exists():
        return None
    try:
        found, of = parsed(file.read_bytes())
    except Exception as error:  # damaged files raise many kinds
        reason = str(error) or type(error).__name__
        warnings.warn(f"{file} cannot be read ({reason}), so {without}", stacklevel=4)
        return None
    if of != identity_of(meta, ema):
        what = "another network" if ema is None else f"other parameters than ema={ema}"
        warnings.warn(f"{file} belongs to {what}, so {without}", stacklevel=4)
        return None
    return found


def file_of(directory: Path, step: int) -> Path:
    """Where the calibrator of a checkpoint is."""
    return directory / str(step) / FILE


def identity_of(meta: dict, ema: float | str | None = None) -> dict:
    """What tells networks apart: a hash of the stored arrays, and which of them are taken."""
    arrays = hashlib.sha256(json.dumps(meta["arrays"], sort_keys=True).encode()).hexdigest()
    taken = (meta["ema"][0] if meta["ema"] else "off") if ema is None else ema
    return {"arrays": arrays[:16], "ema": str(taken)}
