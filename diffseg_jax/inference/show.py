"""Opens a sheet of the first predictions in the image viewer of the system."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageShow

from diffseg_jax.data.images import read_image
from diffseg_jax.errors import visible
from diffseg_jax.figures import sheets
from diffseg_jax.inference.saved import path_of

MAX_ON_SHEET = 6  # images


def show_predictions(
    folder: Path, names: Sequence[str], shown: str = "overlay.png"
) -> str:
    """Writes sheet.png, the overlays of the first images above the legend, and opens it.

    names  of images whose predictions the folder holds
    shown  as of `OutputKind`
    Returns a sentence that says where the sheet is, and whether it was opened.
    """
    names = list(names)[:MAX_ON_SHEET]
    overlays = [read_image(path_of(folder, name, shown)) for name in names]
    titles, file = [visible(name) for name in names], folder / "sheet.png"
    legend = read_image(folder / "legend.png")
    sheet = sheets.rows([sheets.contact_sheet(overlays, None, None, titles), legend])
    sheets.save_png(file, sheet)
    if _has_display() and ImageShow.show(Image.fromarray(sheet)):
        return f"opened {file}"
    return f"no window can be opened here: look at {file}"


def _has_display() -> bool:
    """Whether windows can appear: on Linux, only where a display is named."""
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
