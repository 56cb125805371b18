"""Street scenes that are drawn into a folder, to try the page without images of one's own."""

import os
import shutil
from pathlib import Path

from PIL import Image

from diffseg_jax.data.scenes import draw_scene
from diffseg_jax.figures.layout import png_of
from diffseg_jax.storage.paths import write_atomically

SCENES = "scenes"  # what to give as --images
COUNT, HEIGHT, WIDTH = 20, 360, 480
FIRST = 30_000_000  # no split of the data set of drawn scenes has these


def draw_scenes(folder: str | Path) -> bool:
    """Draws images into a folder; returns False if there is one, which is then taken as it is.

    The folder appears when all are drawn.
    """
    folder = Path(folder)
    if folder.exists():
        return False
    for left in folder.parent.glob(f".{folder.name}.*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    partial = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        for index in range(COUNT):
            image = draw_scene(0, FIRST + index, HEIGHT, WIDTH)["image"]
            write_atomically(partial / f"scene_{index:02d}.png", png_of(Image.fromarray(image)))
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True
