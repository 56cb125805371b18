"""What is said of networks that predict depth."""

from collections.abc import Mapping

from diffseg_jax.inference.task_report import TaskReport, on_images
from diffseg_jax.metrics.depth import DEPTH_METRICS

IN_THE_HUB = ("abs_rel", "rmse", "a1")


def depth_lines(results: Mapping) -> list[str]:
    """The errors of depth maps, and the number of images."""
    numbers = [f"{name} {results[name]:.4f}" for name in DEPTH_METRICS if results[name] is not None]
    return [", ".join(numbers), on_images(results)]


def measured_depth(results: Mapping, names, shown: str) -> list[str]:
    """The errors, and how the images were shown."""
    if results.get("abs_rel") is None:
        return []
    errors, images = depth_lines(results)
    return [f"{errors}. Measured {images}, {shown}. Depths are in metres."]


DEPTH_REPORT = TaskReport(
    purpose="depth",
    classes=False,
    pipeline="depth-estimation",
    tag="depth-estimation",
    examples="images with measured depth",
    learned=lambda names: "",
    predicted=lambda names: "depth",
    lines=depth_lines,
    measured=measured_depth,
    metrics=lambda results: {
        name: (name, results[name]) for name in IN_THE_HUB if results.get(name) is not None
    },
    limits=lambda learned: (
        f"It estimates the depth of images like the {learned} from which it learned. With other "
        "cameras or places its depth and its uncertainty can be wrong: the scale of a scene cannot "
        "be seen in one image. Measure it on your own data before you rely on it, and do not use "
        "it where an error endangers people."
    ),
)
