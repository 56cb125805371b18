"""Depth files in metres: 16-bit PNG, .npy or .npz, and the depth.json that says what they store.

Depths are float32[H,W] in metres, 0 where nothing was measured. Whatever is wrong with a file is a
UserError with its path and what to do.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from diffseg_jax.data.images import decode, read_file, require_file
from diffseg_jax.data.json_text import read_user_json
from diffseg_jax.data.npy import is_array, read_npy
from diffseg_jax.data.orientation import stored_orientation
from diffseg_jax.errors import UserError, choose, shown

DEPTH_ENDINGS = (".png", ".npy", ".npz")
DEPTH_KEYS = {"scale": None, "min": 0.0, "max": math.inf, "invalid": []}
EXAMPLE = '{"scale": 0.001}'
USUAL_SCALES = {0.001: "millimetres", 1 / 256: "1/256 m, as KITTI does", 1.0: "metres"}
ODD_MEDIANS = 0.05, 1000.0  # metres; a median beyond them hints at a wrong unit
FURTHEST = 1e9  # metres; no camera measures more
LIKELY_MEDIANS = 0.5, 60.0  # metres, of most photographs


@dataclasses.dataclass(frozen=True)
class DepthRules:
    """How files store depth.

    scale      metres per stored unit
    low, high  metres; what is nearer or further counts as not measured
    invalid    stored values that mean that nothing was measured, besides 0 and NaN
    file       the depth.json that says so; "" where the data set does
    """

    scale: float
    low: float = 0.0
    high: float = math.inf
    invalid: tuple[float, ...] = ()
    file: str = ""


def read_depth_rules(file, stored: Callable[[], np.ndarray]) -> DepthRules:
    """The rules in a depth.json: {"scale": metres per unit}, and "min", "max", "invalid" if needed.

    stored  () -> what a depth file holds, by which an error can advise

    Raises UserError for a missing file, and for one that breaks a rule.
    """
    if not file.exists():
        raise UserError(f"there is no {file}, so the unit of depth is unknown. {_advice(stored)}")
    entries = read_user_json(file, EXAMPLE)
    if not isinstance(entries, dict):
        raise UserError(f'{file} is not an object. It must read {EXAMPLE}.')
    for key in entries:
        choose(DEPTH_KEYS, key, f"key in {file}")
    entries = DEPTH_KEYS | entries
    if entries["scale"] is None:
        raise UserError(f"{file} has no scale, the metres per stored unit. {_advice(stored)}")
    for wrong, sentence in _wrong_rules(**entries):
        if wrong:
            raise UserError(f"{file}: {sentence}.")
    invalid = tuple(map(float, entries["invalid"]))
    return DepthRules(
        float(entries["scale"]), float(entries["min"]), float(entries["max"]), invalid, str(file)
    )


def _wrong_rules(scale, min, max, invalid):  # the keys of the file
    yield (
        not _is_number(scale) or not 0 < scale < math.inf,
        f"scale is {shown(scale)}, but must be a number above 0, such as 0.001 for millimetres",
    )
    are_numbers = _is_number(min) and _is_number(max)
    yield (
        not are_numbers or not 0 <= min < max,
        f"min is {shown(min)} and max {shown(max)}, but they must be metres with 0 <= min < max",
    )
    yield (
        not isinstance(invalid, list) or not all(map(_is_number, invalid)),
        f"invalid is {shown(invalid)}, but must be a list of stored values, such as [65535]",
    )


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _advice(stored):
    """What to write into the file, with the median of what a depth file holds."""
    values = stored()
    measured = values[np.isfinite(values) & (values > 0)]
    found = ""
    if measured.size:
        median = float(np.median(measured))
        found = f" The median of a file is {median:.6g}, so its depth would be " + " or ".join(
            f"{median * scale:.3g} m" for scale in USUAL_SCALES
        )
    choices = ", ".join(
        f'{{"scale": {scale:.6g}}} if they hold {unit}' for scale, unit in USUAL_SCALES.items()
    )
    return f"Write into it: {choices}.{found}{'.' if found else ''}"


# ---- one file ------------------------------------------------------------------------------------


def read_depth(path, rules: DepthRules) -> tuple[np.ndarray, int]:
    """(float32[H,W] in metres, EXIF orientation of the file) of a depth file.

    Raises UserError for damaged files, for other dtypes than those of depth, for negative and
    infinite values, and where no pixel was measured.
    """
    stored, orientation = read_stored(path)
    values = stored.astype(np.float64)
    missing = np.isnan(values) | np.isin(values, rules.invalid)
    values[missing] = 0
    if problem := _problem(values, path, rules):
        raise UserError(problem)
    depth = values * rules.scale
    depth[(depth < rules.low) | (depth > rules.high)] = 0
    if not depth.any():
        beyond = " or lie outside its min and max" if values.any() else ""
        raise UserError(
            f"depth {path} has no measured pixel: all are 0{beyond}. Remove it and its image"
            + (f", or correct {rules.file}." if beyond and rules.file else ".")
        )
    return depth.astype(np.float32), orientation


def _problem(values, path, rules):
    """What is wrong with stored values, as a sentence, or ""."""
    if np.isinf(values).any():
        return (
            f"depth {path} holds infinity, but 0 stands for pixels without a measurement. Save "
            "numpy.nan_to_num(depth, posinf=0, neginf=0)."
        )
    if values.min() < 0:
        negative = np.unique(values[values < 0])
        remedy = "Save numpy.maximum(depth, 0)."
        if len(negative) == 1 and rules.file:
            value = f"{negative[0]:g}"
            remedy = f'If {value} means that nothing was measured, write "invalid": [{value}] into '
            remedy += f"{rules.file}."
        return f"depth {path} holds {negative[0]:g}, but depth is never negative. {remedy}"
    if (furthest := values.max() * rules.scale) > FURTHEST:
        where = rules.file or "the file"
        return f"depth {path} holds a depth of {furthest:.3g} m. Correct the scale in {where}."
    return ""


def read_stored(path) -> tuple[np.ndarray, int]:
    """(numbers [H,W] as stored, EXIF orientation) of a depth file; UserError as `read_depth`."""
    if is_array(path):
        require_file(path)
        return _map_of_numbers(read_npy(path, "depth"), path), 1
    content = read_file(path)
    image = decode(path, content)
    if image.mode[0] not in "IF":
        bits = {"L": "8 bits per pixel", "P": "colours of a palette"}.get(image.mode, "colours")
        raise UserError(
            f"depth {path} has {bits} (mode {image.mode}), but depth is stored as PNG of 16 bits "
            "or as .npy. An image of a depth map does not tell metres: export the numbers "
            "themselves."
        )
    return np.asarray(image), stored_orientation(content, decoded=True)


def _map_of_numbers(array, path):
    """The array as [H,W]; an axis of one channel is dropped."""
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[-1]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    if array.ndim != 2 or array.dtype.kind not in "iuf":
        raise UserError(
            f"depth {path} is {array.dtype}{list(array.shape)}, but must be floats or integers "
            "[height, width]. Save it as float32."
        )
    return array


# ---- units ---------------------------------------------------------------------------------------


def unit_warning(medians: list[float], rules: DepthRules) -> tuple[str, ...]:
    """A sentence where the median depth, in metres, of some files hints at a wrong unit, or ()."""
    median = float(np.median(medians)) if medians else 1.0
    if ODD_MEDIANS[0] <= median <= ODD_MEDIANS[1]:
        return ()
    length = f"{1000 * median:.3g} mm" if median < 1 else f"{median / 1000:.3g} km"
    stored = median / rules.scale
    likely = [
        f'"scale": {scale:.6g} ({unit}, {stored * scale:.3g} m)'
        for scale, unit in USUAL_SCALES.items()
        if LIKELY_MEDIANS[0] <= stored * scale <= LIKELY_MEDIANS[1]
    ]
    remedy = f"write {' or '.join(likely)} into {rules.file}"
    if not likely or not rules.file:
        remedy = f"correct scale in {rules.file}" if rules.file else "give the published files"
    return (
        f"the median depth is {length}, with {rules.scale:.6g} m per stored unit. If that cannot "
        f"be, {remedy}.",
    )
