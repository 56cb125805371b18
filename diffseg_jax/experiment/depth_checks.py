"""What --mode=check says of measured depth."""

import numpy as np

from diffseg_jax.errors import counted

SPARSE = 0.01  # share of measured pixels below which an image is pointed out
MAX_SPARSE = 10  # of which are named


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
