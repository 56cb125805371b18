"""Table rows of PyTorch layers, from the name of a layer there to its name here."""

import re
from collections.abc import Mapping

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


def joined_qkv(arrays: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """The arrays with Hugging Face's query, key and value as one entry `qkv`.

    Raises UserError where one of the three is missing or of another shape.
    """
    joined = {}
    for name, array in arrays.items():
        match = re.fullmatch(r"(.*\.attention\.(?:self|attention)\.)(query|key|value)(\.\w+)", name)
        if match is None or not array.ndim:
            joined[name] = array
            continue
        names = [f"{match[1]}{part}{match[3]}" for part in ("query", "key", "value")]
        for other in names:
            if getattr(arrays.get(other), "shape", None) != array.shape:
                raise UserError(
                    f"{source} has {name} of shape {array.shape}, but no {other} like it. "
                    "Give the file as its program saved it."
                )
        if name == names[0]:
            joined[f"{match[1]}qkv{match[3]}"] = np.concatenate([arrays[n] for n in names])
    return joined
