"""OUTPUTS and REPORTS: what predictions are and what is said of networks, by names of tasks."""

from collections.abc import Mapping

from diffseg_jax.config.schema import lacking
from diffseg_jax.errors import UserError
from diffseg_jax.inference.bev_output import BEV_OUTPUT
from diffseg_jax.inference.bev_report import BEV_REPORT
from diffseg_jax.inference.depth_output import depth_output
from diffseg_jax.inference.depth_report import DEPTH_REPORT
from diffseg_jax.inference.label_output import LABEL_OUTPUT
from diffseg_jax.inference.label_report import LABEL_REPORT
from diffseg_jax.inference.output import OutputKind

OUTPUTS = {  # name of a task -> (`Task.meta` -> OutputKind)
    "segmentation": lambda meta: LABEL_OUTPUT,
    "bev": lambda meta: BEV_OUTPUT,
    "depth": lambda meta: depth_output(meta["model"]["low"], meta["model"]["high"]),
}
REPORTS = {"segmentation": LABEL_REPORT, "bev": BEV_REPORT, "depth": DEPTH_REPORT}


def predicts(description: Mapping) -> bool:
    """Whether a described network predicts maps, and not features alone."""
    return bool(description["classes"]) or not REPORTS[description["task"]].classes


def task_in(config: Mapping) -> str:
    """The name of the task in the config of a run or of a checkpoint."""
    return config.get("task", lacking("")["task"])


def output_of(config: Mapping, meta: Mapping) -> OutputKind:
    """What a checkpoint predicts; meta: its `Task.meta`."""
    return OUTPUTS[task_in(config)](meta)


def require_segmentation(config: Mapping, what: str, where) -> None:
    """Raises UserError unless a network predicts labels.

    what   needs them, such as "suggest";  where  the network is
    """
    if (task := task_in(config)) != LABEL_OUTPUT.name:
        raise UserError(
            f"{what} is for segmentation, but {where} is a network for {task}. How it is used, is "
            f"said by python -m diffseg_jax.info --checkpoint={where}."
        )
