"""What is said of networks that predict maps seen from above."""

from collections.abc import Mapping

from diffseg_jax.errors import counted
from diffseg_jax.inference.task_report import TaskReport, class_rows_of


def layer_lines(results: Mapping) -> list[str]:
    """IoU of the layers of maps, each at its best threshold, and the number of rigs."""
    numbers = [f"{name} {100 * value:.2f}" for name, value in results["IoU"].items()]
    mean = f"mean IoU {100 * results['mIoU']:.2f} %"
    mean += f", of a constant map {100 * results['constant']:.2f} %"
    return [mean, ", ".join(numbers), f"on {results['images']:,} rigs of cameras"]


def measured_layers(results: Mapping, names, shown: str) -> list[str]:
    """The table of the layers, and the number of rigs."""
    if results.get("mIoU") is None:
        return []
    table = class_rows_of(
        results, names, "IoU of a constant map", "constant IoU", "constant"
    )  # fmt: skip
    return [table, f"Measured on {counted(results['images'], 'rig')} of cameras, {shown}."]


def learned_layers(names) -> str:
    """That a cell may have several classes."""
    return f"Each cell of a map has any number of its {len(names)} classes."


BEV_REPORT = TaskReport(
    purpose="bev",
    classes=True,
    pipeline="image-segmentation",
    tag="bev-segmentation",
    examples="rigs of cameras with maps",
    learned=learned_layers,
    predicted=lambda names: f"bev maps of {len(names)} classes",
    lines=layer_lines,
    measured=measured_layers,
    metrics=lambda results: (
        {} if results.get("mIoU") is None else {"mean_iou": ("mean IoU", results["mIoU"])}
    ),
    limits=lambda learned: (
        f"It predicts maps for cars whose cameras are like those of the {learned} from which it "
        "learned. With other cameras, places or weather its maps can be wrong. Measure it on your "
        "own maps before you rely on it, and do not use it where an error endangers people."
    ),
    protocol=lambda options: (
        f"split {options['split']}" if options["split"] else "each camera as it was trained"
    ),
)
