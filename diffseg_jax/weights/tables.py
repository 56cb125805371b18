"""Conversion of foreign arrays to our names by a table that must match both sides completely.

A table is a tuple of rows (pattern, target, axes):

pattern  regular expression for the full foreign name; the first matching row applies
target   our name, joined by dots; {0}, {1}, ... stand for the groups of the pattern
axes     einsum string that reorders the axes, "..." for those that stay; or a function
         array -> array for what einsum cannot express

After that, an axis may still be split to fit the target (out -> heads, features of a head), and
axes of length one may be added or removed. Axes are never merged and never swapped.
"""

import re
from collections.abc import Callable, Mapping, Sequence

import ml_dtypes
import numpy as np

from diffseg_jax.errors import UserError
from diffseg_jax.weights.formats import forget_pages

Row = tuple[str, str, str | Callable[[np.ndarray], np.ndarray]]

AS_IS = "...->..."


def within(pattern: str, target: str, rows: Sequence[Row]) -> tuple[Row, ...]:
    """The rows with `pattern` and `target` prepended; groups are counted from the left."""
    return tuple((pattern + inner, target + ours, axes) for inner, ours, axes in rows)


def convert(
    arrays: Mapping[str, np.ndarray],
    table: Sequence[Row],
    target_shapes: Mapping,
    *,
    ignore: Sequence[str] = (),
    source: str = "the file",
) -> dict:
    """The arrays as a nested dict with the structure of `target_shapes`, float32, each a copy.

    arrays         foreign name -> floating-point array (numpy dtypes and bfloat16)
    target_shapes  nested dicts; a leaf is the shape as a tuple, in which None leaves one axis
                   free, or None for any shape
    ignore         patterns of foreign names that may lack a counterpart and are then dropped
    source         name of the file in error messages

    Raises UserError that names the first offender and the count: a foreign name without a target,
    two names for one target, a target without a name, a shape or a dtype that does not fit.
    """
    shapes = dict(_leaves(target_shapes))
    names = _names(arrays, table, shapes, ignore, source)
    missing = [target for target in shapes if target not in names]
    if missing:
        raise UserError(
            f"{source} has no entry for {missing[0]} ({len(missing)} missing in all). "
            "Give a checkpoint of this network and size."
        )
    tree: dict = {}
    for target, (name, axes) in names.items():
        *path, leaf = target.split(".")
        branch = tree
        for key in path:
            branch = branch.setdefault(key, {})
        branch[leaf] = _fitted(arrays[name], axes, shapes[target], f"{source}: {name}", target)
        forget_pages(arrays[name])  # avoids having the file and its copy in memory together
    return tree


def differences(
    arrays: Mapping[str, np.ndarray], table: Sequence[Row], target_shapes: Mapping
) -> list[str]:
    """Everything that `convert` would object to, found without copying an array.

    A short clause for every foreign name without a target, every target without a name, and every
    shape that does not fit, given in the order of our axes.
    """
    shapes, clauses, found = dict(_leaves(target_shapes)), [], set()
    for name, array in arrays.items():
        target, axes = _row(name, table)
        if target not in shapes:
            clauses.append(f"{name} has no counterpart")
            continue
        found.add(target)
        ordered = _ordered(array, axes)
        if ordered is None or not _fits(ordered.shape, shapes[target]):
            have = array.shape if ordered is None else ordered.shape
            clauses.append(f"{name} is {have}, where {shapes[target]} is expected")
    return clauses + [f"{target} is missing" for target in shapes if target not in found]


def targets(arrays: Mapping[str, np.ndarray], table: Sequence[Row]) -> dict[str, tuple[int, ...]]:
    """Our name -> shape in the file, for the foreign names that a row is for."""
    found = ((_row(name, table)[0], array.shape) for name, array in arrays.items())
    return {target: shape for target, shape in found if target}


def _leaves(tree: Mapping, prefix: str = ""):
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _names(arrays, table, shapes, ignore, source) -> dict:
    """target -> (foreign name, axes), for all names that have a target."""
    names, unknown = {}, []
    for name in arrays:
        target, axes = _row(name, table)
        if target in names:
            raise UserError(
                f"{source} has both {names[target][0]} and {name} for {target}. Remove one."
            )
        if target in shapes:
            names[target] = (name, axes)
        elif not any(re.fullmatch(pattern, name) for pattern in ignore):
            unknown.append(name)
    if unknown:
        raise UserError(
            f"{source} has {unknown[0]}, which has no counterpart in this network "
            f"({len(unknown)} such entries in all). Give a checkpoint of this network and size."
        )
    return names


def _row(name: str, table: Sequence[Row]):
    """(target, axes) of the first row that matches, or (None, None)."""
    for pattern, target, axes in table:
        match = re.fullmatch(pattern, name)
        if match:
            return target.format(*match.groups()), axes
    return None, None


def _fitted(array: np.ndarray, axes, shape, what: str, target: str) -> np.ndarray:
    """One array in our order and shape. Shapes are compared before anything is copied."""
    if array.dtype.kind != "f" and array.dtype != ml_dtypes.bfloat16:
        raise UserError(f"{what} is {array.dtype}, but {target} takes floating-point numbers.")
    try:
        ordered = _ordered(array, axes)
    except UserError as error:
        raise UserError(f"{what}: {error}") from error
    if ordered is None or not _fits(ordered.shape, shape):
        raise UserError(
            f"{what} has shape {array.shape}, which does not fit {target} of shape {shape}. "
            "Give a checkpoint of this network and size."
        )
    free = shape is None or None in shape
    copy = np.array(ordered, np.float32, order="C")
    if copy.size and not np.isfinite([copy.min(), copy.max()]).all():
        raise UserError(
            f"{what} holds NaN or infinity, so the file is damaged or its training failed. "
            "Give another checkpoint."
        )
    return copy if free else copy.reshape(shape)


def _ordered(array: np.ndarray, axes) -> np.ndarray | None:
    """The array with its axes in our order; None if it has another number of axes."""
    try:
        return axes(array) if callable(axes) else np.einsum(axes, array)
    except UserError:
        raise
    except (ValueError, IndexError):
        return None


def _fits(have: tuple[int, ...], want: tuple[int | None, ...] | None) -> bool:
    """Whether `want` is `have` with axes split, axes of length one aside."""
    if want is None:
        return True
    if None in want:
        free = [h if w is None else w for h, w in zip(have, want, strict=False)]
        return len(have) == len(want) and list(have) == free
    if 0 in (*have, *want):
        return tuple(have) == tuple(want)
    parts = iter(n for n in want if n != 1)
    for axis in (n for n in have if n != 1):
        product = 1
        while product < axis:
            product *= next(parts, axis + 1)
        if product != axis:
            return False
    return next(parts, None) is None
