"""Small and large classes, by the area that they cover where they occur.

Baranchuk et al., "Label-Efficient Semantic Segmentation with Diffusion Models" (ICLR 2022), section
3, look at them apart; threshold and average are not stated there, so the rule here is our own.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from diffseg_jax.data.labels import IGNORE

SIZE_RULE = (
    "The area of a class is the mean, over the labelled training images that contain it, of its "
    "share of the labelled pixels. Classes below the median of the areas are small, the others "
    "large; background, classes that are in no such image, and those without an IoU of their own "
    "are neither."
)
BACKGROUND = "background"  # what data sets call the class of everything else


def class_areas(masks: Iterable[np.ndarray], num_classes: int) -> np.ndarray:
    """The area of every class by SIZE_RULE, f64[K] in (0, 1]; NaN for one that is in no mask.

    masks  i[H, W] each, 0..K-1 or 255 = ignored
    """
    total, images = np.zeros(num_classes), np.zeros(num_classes)
    for mask in masks:
        counts = np.bincount(mask[mask != IGNORE].ravel(), minlength=num_classes)
        total += counts / max(counts.sum(), 1)
        images += counts > 0
    return np.divide(total, images, out=np.full(num_classes, np.nan), where=images > 0)


def split_by_area(
    areas: np.ndarray, names: Sequence[str], unscored: Sequence[int] = ()
) -> dict[str, list[int]]:  # fmt: skip
    """{"small", "large"}: the classes of each group by SIZE_RULE.

    names     of all classes;  unscored  those without an IoU of their own
    """
    areas = np.array(areas, np.float64)
    areas[list(unscored)] = np.nan
    areas[[name.strip().lower() == BACKGROUND for name in names]] = np.nan
    known = np.flatnonzero(~np.isnan(areas))
    median = np.median(areas[known]) if len(known) else np.nan
    small = [int(index) for index in known if areas[index] < median]
    return {"small": small, "large": [int(i) for i in known if i not in small]}
