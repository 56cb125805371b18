"""A network as pure functions of nested dicts with string keys."""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

COMPUTED = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}  # dtypes of a computation


class _Keys:
    """The keys of nnx.Rngs(key), counted by Python.

    The count of nnx.Rngs is an array. Under a trace, each key costs a walk through all equations so
    far: flax asks for the sharding of the count, and jax composes a long error that it has none.
    """

    def __init__(self, key: jax.Array):
        self.key, self.counts = key, itertools.count()

    def params(self) -> jax.Array:
        return jax.random.fold_in(self.key, next(self.counts))


class Network:
    """Builds a module abstractly, once, and binds it to nested dicts of parameters and statistics.

    make  rngs -> module whose attributes have string names only (no lists of modules)
    """

    def __init__(self, make: Callable[[nnx.Rngs], nnx.Module]):
        self.make = make
        abstract = nnx.eval_shape(lambda: make(_Keys(jax.random.key(0))))
        self.graphdef, params, stats = nnx.split(abstract, nnx.Param, nnx.BatchStat)
        self.abstract = {  # shapes and dtypes of the output of `init`
            "params": nnx.to_pure_dict(params),
            "stats": nnx.to_pure_dict(stats),
        }

    def init(self, key: jax.Array) -> dict:
        """{"params", "stats"} with random values; jit-able."""
        _, params, stats = nnx.split(self.make(_Keys(key)), nnx.Param, nnx.BatchStat)
        return {"params": nnx.to_pure_dict(params), "stats": nnx.to_pure_dict(stats)}

    def bind(self, params: dict, stats: dict) -> nnx.Module:
        """The module in training mode; `stats_of` reads its updated statistics."""
        params, stats = jax.tree.map(jnp.asarray, (params, stats))  # copies numpy leaves
        return nnx.merge(self.graphdef, nnx.State(params), nnx.State(stats), copy=True)

    def bind_eval(self, params: dict, stats: dict) -> nnx.Module:
        """The module in evaluation mode, with running averages that do not change."""
        module = self.bind(params, stats)
        return nnx.view(module, raise_if_not_found=False, use_running_average=True)


def stats_of(module: nnx.Module) -> dict:
    """The module's batch statistics as a nested dict."""
    return nnx.to_pure_dict(nnx.state(module, nnx.BatchStat))


def call(module: nnx.Module, remat: bool, *inputs):
    """The module's output, recomputed in the backward pass if `remat` is set."""
    return nnx.remat(lambda m, *rest: m(*rest))(module, *inputs) if remat else module(*inputs)
