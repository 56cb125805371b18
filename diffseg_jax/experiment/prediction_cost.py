"""What a prediction of a network takes: parameters, operations, and time on this machine."""

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from diffseg_jax.errors import counted
from diffseg_jax.experiment.planned import Evaluation
from diffseg_jax.experiment.steps_study import batch_prediction, milliseconds
from diffseg_jax.training.operations import Products, products_of


def cost_of_prediction(
    evaluation: Evaluation, network: dict, known: Iterable[Mapping] = ()
) -> dict:  # fmt: skip
    """The cost of the prediction of one image under the whole protocol, JSON values.

    parameters         of the whole network
    operations         dtype -> FLOP of matrix products and convolutions, see `products_of`
    bytes              that those read and write if each does so in memory
    image              [height, width] of the first validation image, which is predicted; None of
                       rigs of cameras
    batch              images of a batch;  device  that predicts
    ms                 of an image alone
    images_per_second  in batches

    known  costs of other networks: one that agrees in all but the times is of the same
           architecture, and is returned without another measurement
    """
    size, example = evaluation.batch_size, evaluation.first_example
    products = products_of_batch(evaluation, network)
    leaves = jax.tree.leaves(network["params"])
    found = {
        "parameters": sum(math.prod(np.shape(leaf)) for leaf in leaves),
        "operations": {dtype: count / size for dtype, count in products.operations.items()},
        "bytes": products.bytes / size,
        "image": list(example["image"].shape[:2]) if "image" in example else None,
        "batch": size,
        "device": name_of_devices(evaluation.mesh),
    }  # fmt: skip
    for each in known:
        if all(key in each and each[key] == value for key, value in found.items()):
            return dict(each)
    alone = dataclasses.replace(evaluation, batch_size=1)
    return {
        **found,
        "ms": milliseconds(alone, network),
        "images_per_second": 1000 / milliseconds(evaluation, network),
    }


def gflop_of(cost: Mapping) -> float:
    """The GFLOP of all dtypes of a `cost_of_prediction`."""
    return sum(cost["operations"].values()) / 1e9


def products_of_batch(evaluation: Evaluation, network: dict) -> Products:
    """The products of a batch of the evaluation, in all of its views; the batch is predicted."""
    products = Products()
    counted = counting(evaluation.task.predict, products)
    task = dataclasses.replace(evaluation.task, predict=counted)
    batch_prediction(dataclasses.replace(evaluation, task=task), network)()
    return products


def counting(predict: Callable, products: Products) -> Callable:
    """A function that predicts the same, and adds the products of each call."""
    known = {}

    def predict_and_count(*inputs):
        shapes = str(jax.tree.map(np.shape, inputs[1:]))  # the network is the same in all calls
        if shapes not in known:
            known[shapes] = products_of(jax.make_jaxpr(predict)(*inputs).jaxpr)
        products.add(known[shapes])
        return predict(*inputs)

    return predict_and_count


def name_of_devices(mesh: Mesh) -> str:
    """Such as "2 CPU cores", of those that this process may use, or "8 × NVIDIA H100"."""
    device = mesh.devices.flat[0]
    if device.platform == "cpu":
        return counted(_usable_cores(), "CPU core")
    return f"{mesh.size} × {device.device_kind}"


def _usable_cores():
    if hasattr(os, "sched_getaffinity"):  # as a job of a cluster has fewer than its host
        return len(os.sched_getaffinity(0))
    return os.cpu_count()
