"""The training state as nested dicts with string keys.

step    i32[]             updates made
params  nested dict       parameters that are trained
frozen  nested dict       parameters that are not: they have no gradient or optimizer state
stats   nested dict       batch statistics
ema     nested dict       moving averages of params, one tree per rate: {"0.9999": {...}}
opt     optax state       of params alone
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict as flatten
from flax.traverse_util import unflatten_dict as unflatten


def split_params(params: dict, trainable: Callable[[tuple[str, ...]], bool]) -> tuple[dict, dict]:
    """The parameters whose path is trainable, and the others; `merge_params` is the inverse."""
    flat = flatten(params)
    trained = {path: leaf for path, leaf in flat.items() if trainable(path)}
    frozen = {path: leaf for path, leaf in flat.items() if path not in trained}
    return unflatten(trained), unflatten(frozen)


def merge_params(trained: dict, frozen: dict) -> dict:
    """One tree from two that share no leaf."""
    return unflatten({**flatten(frozen), **flatten(trained)})


def new_state(
    network: dict,
    trainable: Callable[[tuple[str, ...]], bool],
    optimizer: optax.GradientTransformation,
    ema: tuple[float, ...],
) -> dict:
    """State before the first step; `network` holds "params" and "stats".

    ema  rates of the moving averages, which start as copies of the trained parameters; () = off
    """
    trained, frozen = split_params(network["params"], trainable)
    return {
        "step": jnp.zeros((), jnp.int32),
        "params": trained,
        "frozen": frozen,
        "stats": network["stats"],
        "ema": {str(rate): jax.tree.map(jnp.copy, trained) for rate in ema},
        "opt": optimizer.init(trained),
    }


def network_of(state: dict, ema: tuple[float, ...]) -> dict:
    """{"params", "stats"} to predict with: the moving average of the first rate, if any.

    ema  the rates that the state was made with, whose order the state does not keep
    """
    trained = state["ema"][str(ema[0])] if ema else state["params"]
    return {"params": merge_params(trained, state["frozen"]), "stats": state["stats"]}
