"""Draws clusters of features: a row of maps for each image and block, a column for each step."""

from collections.abc import Mapping, Sequence

import numpy as np

from diffseg_jax.data.palette import distinct_colours
from diffseg_jax.figures.trust import pixels_of


def cluster_plot(images: Sequence, labels: Mapping[str, Sequence], k: int) -> np.ndarray:
    """Clusters of every image at every block and step: u8[h,w,3].

    images  u8[H,W,3]
    labels  name of a map, such as output_5@50 -> clusters i[h,w] of each image, in 0..k-1
    """
    from matplotlib.figure import Figure  # a slow import

    pairs = [name.split("@") for name in labels]
    blocks, steps = (list(dict.fromkeys(each)) for each in zip(*pairs, strict=True))
    colours = np.array(distinct_colours(k), np.uint8)
    rows, columns = len(images) * len(blocks), len(steps) + 1
    aspect = images[0].shape[0] / images[0].shape[1]
    size = (1.5 * columns + 0.6, (1.5 * aspect + 0.12) * rows + 0.5)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for row, panel_row in enumerate(panels):
        image, block = divmod(row, len(blocks))
        for panel in panel_row:
            panel.set_xticks([])
            panel.set_yticks([])
        panel_row[0].imshow(images[image])
        panel_row[0].set_ylabel(blocks[block].replace("_", " "), fontsize=8)
        for panel, step in zip(panel_row[1:], steps, strict=True):
            name = f"{blocks[block]}@{step}"
            panel.imshow(
                colours[labels[name][image]], interpolation="nearest",
                extent=(0, images[image].shape[1], images[image].shape[0], 0),
            )  # fmt: skip
            if not row:
                panel.set_title(f"step {step}", fontsize=9)
    return pixels_of(figure)
