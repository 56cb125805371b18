"""The labels of a project as a data set that `main` trains on: images/, masks/ and classes.json."""

import contextlib
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from diffseg_jax.data.labels import IGNORE
from diffseg_jax.data.orientation import stored_orientation
from diffseg_jax.errors import UserError
from diffseg_jax.server.label_store import PREDICTIONS, LabelStore, png_of_map
from diffseg_jax.server.page_classes import CLASSES_FILE
from diffseg_jax.storage.paths import read_bytes, write_json

DATASET = "dataset"  # the folder in that of the project


def export_dataset(store: LabelStore) -> dict:
    """Writes the data set; returns {"folder", "masks", "sparse", "command"}.

    An accepted image has a mask of its prediction with the strokes over it; another one with
    strokes has a sparse mask, in which all other pixels are ignored. The folder is replaced as a
    whole. Raises UserError if no image has either.
    """
    folder, parts = store.folder / DATASET, {"masks": 0, "sparse": 0}
    with _replaced(folder) as new:
        taken = set()
        for index, image in enumerate(store.images):
            mask, part = mask_of(store, index)
            if not part:
                continue
            parts[part] += 1
            name = _flat(image.name, taken)
            _copy_image(image, new / "images", name)
            (new / "masks" / f"{name}.png").write_bytes(png_of_map(mask))
        if not taken:
            raise UserError(
                "there is nothing to export yet. Paint a few strokes, or accept a prediction."
            )
        names, palette = store.classes.names, store.classes.palette
        write_json(new / CLASSES_FILE, {"names": list(names), "palette": [*map(list, palette)]})
    command = (
        "python -m diffseg_jax.main --config=configs/ddpm_seg_folder.py "
        f"--workdir={shlex.quote(f'runs/{store.folder.absolute().name}')} "
        f"--config.data.path={shlex.quote(str(folder))}"
    )
    return {"folder": str(folder), **parts, "command": command}


def mask_of(store: LabelStore, index: int) -> tuple[np.ndarray | None, str]:
    """(mask u8[H,W], "masks" or "sparse") of an image; (None, "") if there is none to export."""
    entry, ids = store.described(index), store.labels(index)[0]
    if entry["accepted"] and entry["fit"]:
        return np.where(ids == IGNORE, store.predicted(index, PREDICTIONS), ids), "masks"
    if sum(entry["counts"]):
        return ids, "sparse"
    return None, ""


@contextlib.contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """A new folder, with images/ and masks/, that takes the place of `folder` when it is full."""
    new, old = (folder.with_name(f".{folder.name}.{each}.{os.getpid()}") for each in ("new", "old"))
    for left in folder.parent.glob(f".{folder.name}.*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    try:
        for part in ("images", "masks"):
            (new / part).mkdir(parents=True)
        yield new
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _flat(name, taken):
    """The name without folders, which the data set would take for splits; different from others."""
    flat, number = name.replace("/", "__"), 1
    while (unique := flat if number == 1 else f"{flat}_{number}").casefold() in taken:
        number += 1
    taken.add(unique.casefold())
    return unique


def _copy_image(image, folder, name):
    """Copies a file as it is if it is stored upright; else writes its upright pixels as PNG."""
    if isinstance(image.source, str):
        content = read_bytes(image.source)
        if stored_orientation(content) == 1:
            ending = os.path.splitext(image.source)[1].rstrip().lower()
            (folder / f"{name}{ending}").write_bytes(content)
            return
    Image.fromarray(image.read()).save(folder / f"{name}.png", compress_level=1)
