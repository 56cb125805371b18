"""Table rows of PyTorch layers, from the name of a layer there to its name here."""

from collections.abc import Mapping, Sequence

import numpy as np

from diffseg_jax.errors import UserError
from diffseg_jax.weights.tables import Row


def linear_rows(torch: str, ours: str) -> tuple[Row, ...]:
    """The rows of a linear layer, with or without a bias."""
    return ((torch + r"\.weight", ours + ".kernel", "oi->io"), _bias(torch, ours))


def conv(torch: str, ours: str) -> tuple[Row, ...]:
    """The rows of a convolution; a 1x1 kernel may become that of a linear layer."""
    return ((torch + r"\.weight", ours + ".kernel", "oihw->hwio"), _bias(torch, ours))


def norm(torch: str, ours: str) -> tuple[Row, ...]:
    """The rows of a normalisation layer's parameters."""
    return ((torch + r"\.weight", ours + ".scale", "c->c"), _bias(torch, ours))


def statistics(torch: str, ours: str) -> tuple[Row, ...]:
    """The rows of a batch norm's running averages."""
    return (
        (torch + r"\.running_mean", ours + ".mean", "c->c"),
        (torch + r"\.running_var", ours + ".var", "c->c"),
    )


def _bias(torch, ours):
    return (torch + r"\.bias", ours + ".bias", "c->c")


def join_layers(
    arrays: Mapping[str, np.ndarray], parts: Sequence[str], whole: str, source: str
) -> dict[str, np.ndarray]:
    """The arrays with several layers as one, concatenated along the outputs.

    parts  ends of the layers' names, in the order of the outputs;  whole  the end for the one layer

    Raises UserError where one of the layers lacks what another one has.
    """
    result = dict(arrays)
    for name, array in arrays.items():
        stem, _, leaf = name.rpartition(".")
        part = next((part for part in parts if stem.endswith(f".{part}")), None)
        if part is None or name not in result or not array.ndim:
            continue
        before = stem.removesuffix(part)
        names = [f"{before}{other}.{leaf}" for other in parts]
        for other in names:
            if getattr(arrays.get(other), "shape", None) != array.shape:
                raise UserError(
                    f"{source} has {name} of shape {array.shape}, but no {other} like it. "
                    "Give the file as its program saved it."
                )
        result[f"{before}{whole}.{leaf}"] = np.concatenate([result.pop(n) for n in names])
    return result


def joined_qkv(arrays: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """The arrays with Hugging Face's query, key and value as one entry `qkv`; see `join_layers`."""
    for layer in ("attention.self", "attention.attention"):
        parts = [f"{layer}.{part}" for part in ("query", "key", "value")]
        arrays = join_layers(arrays, parts, f"{layer}.qkv", source)
    return arrays
