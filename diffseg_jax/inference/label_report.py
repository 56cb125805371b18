"""What is said of networks that predict labels."""

from collections.abc import Mapping

from diffseg_jax.inference.task_report import TaskReport, class_rows_of, on_images
from diffseg_jax.metrics.segmentation import format_table


def result_lines(results: Mapping) -> list[str]:
    """The table of IoU, the number of images, and how right the chance of an error is."""
    table = format_table({f"step {results['step']:,}": results}).splitlines()
    images = on_images(results)
    if results.get("AUROC") is not None:
        images += f"; uncertainty predicts errors with an AUROC of {results['AUROC']:.3f}"
    lines = [*table, images]
    keys = ("ECE", "Brier", "AUROC", "AUPR", "AURC")
    for scores in filter(None, (results.get("calibration"), results.get("calibrated"))):
        numbers = [f"{key} {scores[key]:.3f}" for key in keys if scores[key] is not None]
        kept = "" if scores.get("kept", True) else ", which is not kept"
        lines.append(f"{scores['of']}{kept}, as the chance of an error: {', '.join(numbers)}")
    return lines


def measured_labels(results: Mapping, names, shown: str) -> list[str]:
    """The table of classes, the number of images, and how right the uncertainty is."""
    if not names or results.get("mIoU") is None:
        return []
    said = [f"Measured {on_images(results)}, {shown}."]
    scores = results.get("calibrated") or results.get("calibration") or {}
    if None not in (scores.get("AUROC"), scores.get("ECE")):  # there is none without an error
        said.append(
            f"Uncertainty is the chance that a label is wrong: it ranks wrong pixels above right "
            f"ones with an AUROC of {scores['AUROC']:.3f}, and its calibration error (ECE) is "
            f"{scores['ECE']:.3f}."
        )
    return [class_rows_of(results, names, "accuracy", "Acc", "mAcc"), " ".join(said)]


def metrics_of_labels(results: Mapping) -> dict:
    """Those of the whole map; none where it was not measured."""
    if results.get("mIoU") is None:
        return {}
    accuracy = {"accuracy": ("accuracy", results["aAcc"])} if "aAcc" in results else {}
    return {"mean_iou": ("mean IoU", results["mIoU"]), **accuracy}


LABEL_REPORT = TaskReport(
    purpose="",
    classes=True,
    pipeline="image-segmentation",
    tag="semantic-segmentation",
    examples="labelled images",
    learned=lambda names: f"It tells {len(names)} classes apart." if names else "",
    predicted=lambda names: f"{len(names)} classes",
    lines=result_lines,
    measured=measured_labels,
    metrics=metrics_of_labels,
    limits=lambda learned: (
        f"It segments images like the {learned} from which it learned. With other cameras, places, "
        "seasons or sizes, its labels and its uncertainty can be wrong, and every pixel gets one "
        "of its classes, whatever it shows. Measure it on your own labels before you rely on it, "
        "and do not use it where an error endangers people."
    ),
)
