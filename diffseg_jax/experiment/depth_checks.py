"""What is said of measured depth before a training, and by --mode=check."""

import numpy as np

from diffseg_jax.errors import UserError, counted
from diffseg_jax.figures.depth import shown_range

SPARSE = 0.01  # share of measured pixels below which an image is pointed out
MAX_SPARSE = 10  # of which are named
MOSTLY_OUTSIDE = 0.5  # share of measured pixels outside the range, above which a sentence says so


def count_depth(example: dict) -> dict[str, float]:
    """The share of measured pixels of an example, and its nearest, median and furthest depth."""
    depth = example.get("depth")
    if depth is None:
        return {}
    measured = depth[depth > 0]
    if not measured.size:
        return {"share": 0.0}
    near, middle, far = np.percentile(measured, (0, 50, 100))
    return {"share": measured.size / depth.size, "near": near, "median": middle, "far": far}


def summary_of_depth(source, counts: dict[int, dict]) -> list[str]:
    """Lines about all examples: how much is measured, how deep, and which show next to nothing."""
    known = {index: each for index, each in counts.items() if each}
    measured = [each for each in known.values() if each["share"]]
    if not measured:
        return ["depth: no pixel is measured"]
    share = np.mean([each["share"] for each in known.values()])
    medians = [each["median"] for each in measured]
    lines = [
        f"depth: {share:.1%} of the pixels are measured, {min(e['near'] for e in measured):.3g} to "
        f"{max(e['far'] for e in measured):.3g} m; medians of images {min(medians):.3g} to "
        f"{max(medians):.3g} m, half of them below {np.median(medians):.3g} m"
    ]
    sparse = [source.names[index] for index, each in known.items() if each["share"] < SPARSE]
    if sparse:
        few = ", ".join(sparse[:MAX_SPARSE]) + (", ..." if len(sparse) > MAX_SPARSE else "")
        lines.append(
            f"note: {counted(len(sparse), 'image')} with less than {SPARSE:.0%} measured: {few}"
        )
    return lines


def outside_range(split: str, measured, images: int, low: float, high: float) -> list[str]:
    """A sentence where most measured depths, in metres, are outside the range; else none.

    measured  float[n], depths of so many images, all above 0
    Raises UserError if all are outside, as outputs are limited to the range.
    """
    outside = np.mean((measured <= low) | (measured >= high))
    limits = f"{low:g} to {high:g} metres, which config.depth.low and depth.high give as the range"
    median = f"the median is {np.median(measured):.4g}"
    if outside == 1:
        near, far = shown_range(measured)
        options = [f"--config.depth.low={near:g}"] if near < low else []
        options += [f"--config.depth.high={far:g}"] if far > high else []
        raise UserError(
            f"{split}: all measured pixels of {counted(images, 'image')} lie outside {limits}; "
            f"{median}. Correct the scale in depth.json, 0.001 for files in millimetres; or, if "
            f"these are metres, give their range, as in {' '.join(options)}."
        )
    if outside <= MOSTLY_OUTSIDE:
        return []
    return [f"{split}: {outside:.0%} of the measured pixels lie outside {limits}; {median}."]
