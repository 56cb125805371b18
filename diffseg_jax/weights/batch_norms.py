"""Batch norms of frozen networks, multiplied into the convolutions before them."""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from diffseg_jax.errors import UserError

ENTRIES = ("weight", "bias", "running_mean", "running_var")


def fold_norms(
    arrays: Mapping[str, np.ndarray], norms: Sequence[tuple[str, str]], epsilon: float, source: str
) -> dict[str, np.ndarray]:
    """The arrays with one convolution with bias for each convolution and its norm.

    norms  (pattern of the name of a convolution, name of its norm with \\1 ... for the groups)

    Entries of norms are used up; all that belongs to no such pair stays as it is. Raises UserError
    for a convolution without its norm.
    """
    folded = dict(arrays)
    for name, kernel in arrays.items():
        layer = name.removesuffix(".weight")
        norm = _norm_of(layer, norms)
        if norm is None or layer == name:
            continue
        scale, shift, mean, var = (
            _entry(arrays, f"{norm}.{entry}", kernel, source) for entry in ENTRIES
        )
        with np.errstate(invalid="ignore"):  # `convert` refuses what is not finite
            factor = scale / np.sqrt(var + epsilon)
        bias = np.asarray(arrays.get(f"{layer}.bias", 0.0), np.float64)
        if kernel.dtype.kind not in "biu":  # these `convert` refuses
            folded[name] = kernel * factor.reshape(-1, *[1] * (kernel.ndim - 1))
        folded[f"{layer}.bias"] = shift + (bias - mean) * factor
        for entry in (*ENTRIES, "num_batches_tracked"):
            folded.pop(f"{norm}.{entry}", None)
    return folded


def _norm_of(layer, norms):
    for pattern, norm in norms:
        if match := re.fullmatch(pattern, layer):
            return match.expand(norm)
    return None


def _entry(arrays, name, kernel, source):
    """f64[out] of a norm, for a kernel [out, ...]; UserError for a missing or other one."""
    array = arrays.get(name)
    if array is None or array.shape != kernel.shape[:1]:
        have = "no entry" if array is None else f"an entry of shape {array.shape}"
        raise UserError(
            f"{source} has {have} for {name}, where {kernel.shape[:1]} is expected. "
            "Give a checkpoint of this network, as its program saved it."
        )
    return np.asarray(array, np.float64)
