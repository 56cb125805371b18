"""Opens a sheet of the first predictions in the image viewer of the system."""

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from PIL import Image, ImageShow

from diffseg_jax.data.images import read_image
from diffseg_jax.errors import UserError, visible
from diffseg_jax.figures import layout, sheets
from diffseg_jax.inference.output import OutputKind
from diffseg_jax.inference.saved import path_of

MAX_ON_SHEET = 6  # images


def show_predictions(folder: Path, summary: Mapping, output: OutputKind) -> str:
    """Writes sheet.png, the first images to look at above the legend, and opens it.

    folder   of predictions;  summary  what its summary.json holds
    Returns a sentence that says where the sheet is, and whether it was opened.
    """
    names, file = list(summary["by_need"])[:MAX_ON_SHEET], folder / "sheet.png"
    if output.beside:
        body = [_row(folder, name, summary["pictures"][name]["file"], output) for name in names]
    else:
        overlays = [read_image(path_of(folder, name, output.shown)) for name in names]
        body = [sheets.contact_sheet(overlays, None, None, [visible(name) for name in names])]
    sheet = layout.rows([*body, read_image(folder / "legend.png")])
    layout.save_png(file, sheet)
    if _has_display() and ImageShow.show(Image.fromarray(sheet)):
        return f"opened {file}"
    return f"no window can be opened here: look at {file}"


def _row(folder, name, photograph, output):
    """Photograph and predictions side by side; without a frame of a video, which has no file."""
    cells = []
    with contextlib.suppress(UserError):  # a frame, or a file that is gone
        cells.append(("", read_image(photograph)))
    cells += [(title, read_image(path_of(folder, name, end))) for title, end in output.beside]
    first = ": ".join(filter(None, (visible(name), cells[0][0])))
    return layout.panel([(first, cells[0][1]), *cells[1:]])


def _has_display() -> bool:
    """Whether windows can appear: on Linux, only where a display is named."""
    if sys.platform in ("win32", "darwin"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
