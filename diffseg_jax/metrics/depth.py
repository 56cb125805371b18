"""Errors of depth maps, and how well an uncertainty orders them: sums per image, means last.

Depths are float[H, W] in metres; in the truth 0 means that nothing was measured. Every metric is a
number per image, and that of a data set the mean over its images, as in the papers: images of which
a metric is undefined are skipped. So sums over images of batches and processes add up.
"""

import numpy as np

from diffseg_jax.errors import UserError, choose
from diffseg_jax.metrics.segmentation import to_number

DEPTH_METRICS = (
    "abs_rel", "sq_rel", "rmse", "rmse_log", "log_10", "silog", "a1", "a2", "a3",
)  # fmt: skip
SPARSIFIED = ("abs_rel", "rmse")  # whose curves are drawn against those of the true order
DEPTH_AREAS = tuple(f"{metric}{order}" for order in ("", "_random") for metric in SPARSIFIED)
REMOVED_SHARES = 50  # shares of pixels at which a sparsification curve is taken
NO_DEPTH = {
    "sums": np.zeros(len(DEPTH_METRICS) + len(DEPTH_AREAS)),
    "images": np.zeros(len(DEPTH_METRICS) + len(DEPTH_AREAS), np.int64),
}
NYU_SIZE = 480, 640


def _shares(top, bottom, left=0.03594771, right=0.96405229):
    return lambda h, w: (int(top * h), int(bottom * h), int(left * w), int(right * w))


def _nyu(h, w):
    if (h, w) != NYU_SIZE:
        raise UserError(
            f"the crop nyu is made for images of 480x640 pixels, but one has {h}x{w}. Try "
            "--config.evaluate.crop=none."
        )
    return 45, 471, 41, 601


DEPTH_CROPS = {  # name -> (height, width) -> first row, end of rows, first column, end of columns
    "none": lambda h, w: (0, h, 0, w),
    "garg": _shares(0.40810811, 0.99189189),  # Garg et al. (ECCV 2016), for KITTI
    "eigen": _shares(0.3324324, 0.91351351, 0.0359477),  # Eigen et al. (NIPS 2014), for KITTI
    "nyu": _nyu,  # Eigen et al. (NIPS 2014), for NYU
}


def depth_mask(truth, low: float, high: float, crop: str = "none") -> np.ndarray:
    """The pixels that count, bool[H,W]: low < truth < high, within the crop of that name.

    Raises UserError for an unknown crop, and for one that is not made for the size.
    """
    truth = np.asarray(truth)
    top, bottom, left, right = choose(DEPTH_CROPS, crop, "crop of a depth map")(*truth.shape)
    mask = np.zeros(truth.shape, bool)
    inside = truth[top:bottom, left:right]
    mask[top:bottom, left:right] = (inside > low) & (inside < high)
    return mask


def depth_errors(depth, truth) -> dict[str, float]:
    """DEPTH_METRICS of measured pixels, float[n] each; NaN without any. Depths above 0.

    Eigen et al. (NIPS 2014), with natural logarithms but in log_10; silog is in percent, and a1 to
    a3 are shares of pixels whose ratio to the truth is below 1.25, 1.25^2 and 1.25^3.
    """
    depth, truth = (np.asarray(each, np.float64) for each in (depth, truth))
    if not truth.size:
        return dict.fromkeys(DEPTH_METRICS, float("nan"))
    ratio = np.maximum(truth / depth, depth / truth)
    log = np.log(depth) - np.log(truth)
    found = {
        "abs_rel": np.mean(np.abs(truth - depth) / truth),
        "sq_rel": np.mean(np.square(truth - depth) / truth),
        "rmse": np.sqrt(np.mean(np.square(truth - depth))),
        "rmse_log": np.sqrt(np.mean(np.square(log))),
        "log_10": np.mean(np.abs(log)) / np.log(10),
        "silog": 100 * np.sqrt(max(np.mean(np.square(log)) - np.mean(log) ** 2, 0)),
    }
    found |= {f"a{power}": np.mean(ratio < 1.25**power) for power in (1, 2, 3)}
    return {name: float(value) for name, value in found.items()}


# ---- sparsification ------------------------------------------------------------------------------


def sparsification(depth, truth, uncertainty) -> dict[str, float]:
    """The areas under the sparsification error curves of measured pixels, float[n] each (AUSE).

    A curve shows the error of the pixels that remain when a share of them, the most uncertain ones,
    is removed. Its error is how far it lies above the curve of the true order, by which the worst
    pixels are removed first (Ilg et al., ECCV 2018; Poggi et al., CVPR 2020, whose 50 shares these
    are). 0 is best; "abs_rel_random" and "rmse_random" are the areas of a random order, which are
    those of an uncertainty that is the same everywhere.
    """
    depth, truth = (np.asarray(each, np.float64) for each in (depth, truth))
    if not truth.size:
        return dict.fromkeys(DEPTH_AREAS, float("nan"))
    areas, found = {}, {"abs_rel": np.abs(truth - depth) / truth, "rmse": np.square(truth - depth)}
    for metric, errors in found.items():
        best = _area(errors, errors, metric)
        areas[metric] = _area(errors, np.asarray(uncertainty, np.float64), metric) - best
        areas[f"{metric}_random"] = _area(errors, np.zeros(len(errors)), metric) - best
    return {name: float(areas[name]) for name in DEPTH_AREAS}


def _area(errors, order, metric):
    """The area under the curve of the mean of errors, of rmse its root, by removing from the top.

    Pixels of equal order share their mean error, so that their position does not matter.
    """
    values, group, sizes = np.unique(order, return_inverse=True, return_counts=True)
    means = np.bincount(group, errors, len(values)) / sizes
    total = np.concatenate([[0.0], np.cumsum(means * sizes)])
    ends = np.concatenate([[0], np.cumsum(sizes)])
    left = len(errors) - np.floor(len(errors) * np.arange(REMOVED_SHARES) / REMOVED_SHARES)
    curve = np.interp(left, ends, total) / left  # linear within a group
    curve = np.sqrt(curve) if metric == "rmse" else curve
    return np.trapezoid(np.append(curve, 0.0), dx=1 / REMOVED_SHARES)


# ---- sums over images ----------------------------------------------------------------------------


def add_depth(
    counts: dict, depth, truth, uncertainty=None, *, low: float, high: float, crop: str = "none"
) -> dict:
    """The counts, at first NO_DEPTH, with one more image; those of several parts may be added.

    depth        float[H,W] in metres; below `low` it counts as `low`
    truth        float[H,W] in metres, 0 where nothing was measured
    uncertainty  float[H,W], of which only the order matters; None leaves out its areas
    low, high, crop  as of `depth_mask`

    Raises UserError for unequal shapes, for a depth or an uncertainty that is not finite, and as
    `depth_mask`.
    """
    depth, truth = np.asarray(depth), np.asarray(truth)
    maps = {"depth": depth} if uncertainty is None else {"depth": depth, "uncertainty": uncertainty}
    for name, values in maps.items():
        if np.shape(values) != truth.shape:
            raise UserError(
                f"the {name} has shape {np.shape(values)}, the measured depth {truth.shape}; "
                f"resize the {name} to the measured depth before counting."
            )
    mask = depth_mask(truth, low, high, crop)
    parts = {name: np.asarray(values)[mask] for name, values in maps.items()}
    for name, values in parts.items():
        if not np.isfinite(values).all():
            raise UserError(f"the {name} of an image is not finite. Is the network's output?")
    near = np.maximum(parts["depth"], low)
    errors = depth_errors(near, truth[mask])
    areas = dict.fromkeys(DEPTH_AREAS, float("nan"))
    if uncertainty is not None:
        areas = sparsification(near, truth[mask], parts["uncertainty"])
    values = np.array([*errors.values(), *areas.values()])
    defined = ~np.isnan(values)
    return {
        "sums": counts["sums"] + np.where(defined, values, 0.0),
        "images": counts["images"] + defined,
    }


def depth_scores(counts: dict) -> dict:
    """The mean of every metric over images, JSON values: None where it is undefined.

    Beside DEPTH_METRICS, "images" is the number of those with a measured pixel, and "AUSE" holds
    the areas of `sparsification`.
    """
    images = np.asarray(counts["images"])
    means = np.divide(counts["sums"], images, out=np.full(len(images), np.nan), where=images > 0)
    numbers = [to_number(mean) for mean in means]
    found = dict(zip(DEPTH_METRICS, numbers))
    areas = dict(zip(DEPTH_AREAS, numbers[len(DEPTH_METRICS) :], strict=True))
    return found | {"images": int(images[0]), "AUSE": areas}
