"""TARGETS_BY_TASK: what stages learn from labels, by the names of tasks."""

from collections.abc import Mapping

from diffseg_jax.config.schema import lacking
from diffseg_jax.experiment.bev_target import BEV_TARGET
from diffseg_jax.experiment.depth_target import DEPTH_TARGET
from diffseg_jax.experiment.label_target import LABEL_TARGET
from diffseg_jax.experiment.target import Target

TARGETS_BY_TASK = {target.name: target for target in (LABEL_TARGET, DEPTH_TARGET, BEV_TARGET)}


def target_of(config: Mapping) -> Target:
    """The target that a config names, or that of one that names none."""
    return TARGETS_BY_TASK[config.get("task", lacking("")["task"])]
