"""The network whose features a fit reads, and published classifiers in place of fitted ones."""

import zlib

import jax
from flax.traverse_util import flatten_dict as flatten
from flax.traverse_util import unflatten_dict as unflatten
from jax.sharding import Mesh

from diffseg_jax.devices.mesh import place_tree, state_shardings
from diffseg_jax.errors import UserError
from diffseg_jax.experiment.planned import StagePlan
from diffseg_jax.storage.networks import first_has_checkpoint, open_network
from diffseg_jax.systems.task import Task
from diffseg_jax.weights.pixel_mlp import load_ensemble


def read_classifiers(plan: StagePlan) -> dict:
    """Published classifiers, which replace fitted ones: {"params", "stats"}.

    Raises UserError when they read other features, know other classes, or are of other widths.
    """
    task = plan.task
    folder, num_classes = task.fit.classifiers, len(plan.evaluation.source.labels.names)
    given = load_ensemble(folder, task.meta["features_per_pixel"], num_classes)
    for part in given:
        check_shapes(given[part], task.fit.member.abstract[part], folder)
    return {part: {"ensemble": given[part]} for part in ("params", "stats")}


def check_shapes(given: dict, abstract: dict, folder: str):
    """Raises UserError unless every array is that of one member, with a first axis of members."""
    expected = flatten(abstract)
    for path, array in flatten(given).items():
        if array.shape[1:] != expected[path].shape:
            widths = tuple(given["linear2"]["kernel"].shape[1:]) if "linear2" in given else ()
            raise UserError(
                f"the classifiers in {folder} have other hidden layers. "
                f"Try --config.ensemble.widths={widths}."
            )


def open_backbone(plan: StagePlan) -> dict:
    """The network whose features are read, on devices: of this stage's checkpoint, or its start."""
    found = {}
    if first_has_checkpoint(plan.directory):
        found = open_network(plan.directory)[0]
        for part in found.values():
            del part["ensemble"]
    elif plan.loaded:
        found = plan.loaded()
    found = place_tree(found, state_shardings(found, plan.mesh))
    return completed(plan.task, plan.seed, plan.mesh, found)


def completed(task: Task, seed: int, mesh: Mesh, found: dict) -> dict:
    """The network of a fit: the arrays that are found, on devices, and drawn ones for others."""
    found = flatten(found)
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(b"features"))

    def draw_missing(key):
        return {
            path: leaf for path, leaf in flatten(task.init(key)).items() if path not in found
        }

    where = state_shardings(jax.eval_shape(draw_missing, key), mesh)
    drawn = jax.jit(draw_missing, out_shardings=where)(key)
    return {"params": {}, "stats": {}, **unflatten({**found, **drawn})}
