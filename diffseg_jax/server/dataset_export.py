"""The labels of a project as a data set that `main` trains on: images/, masks/ and classes.json."""

import contextlib
import hashlib
import io
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from diffseg_jax.data.files import FILES_OF_SYSTEMS, FOLDERS_OF_SYSTEMS, ends_with
from diffseg_jax.data.labels import IGNORE
from diffseg_jax.data.orientation import stored_orientation
from diffseg_jax.errors import UserError, counted, visible
from diffseg_jax.server.label_store import PREDICTIONS, LabelStore, png_of_map
from diffseg_jax.server.page_classes import CLASSES_FILE
from diffseg_jax.server.page_images import PageImage
from diffseg_jax.server.security import storing
from diffseg_jax.storage.paths import read_bytes, write_json

DATASET = "dataset"  # the folder in that of the project
EXPORTED = ("images", "masks")  # folders in it


def export_dataset(store: LabelStore) -> dict:
    """Writes the data set; returns {"folder", "masks", "sparse", "skipped", "command"}.

    An accepted image has a mask of its prediction with the strokes over it; another one with
    strokes has a sparse mask, in which all other pixels are ignored. Images whose files cannot be
    read, or have changed, are skipped: `skipped` holds a sentence for each. The folder is replaced
    as a whole. Raises UserError if nothing can be exported, and where the folder holds files beside
    classes.json or folders in images/ and masks/, and NotStored.
    """
    folder, parts, skipped = store.folder / DATASET, {"masks": 0, "sparse": 0}, []
    if others := _others(folder):
        raise UserError(
            f"an export replaces {visible(str(folder))}, which holds {visible(others[0])}, written "
            "by no export. Move it out of that folder first."
        )
    with storing(folder), _replaced(folder) as new:
        taken = set()
        for index, image in enumerate(store.images):
            try:
                mask, part = mask_of(store, index)
                content, ending = _file_of(image) if part else (b"", "")
            except UserError as error:
                skipped.append(f"{visible(image.name)} is skipped: {error}")
                continue
            if not part:
                continue
            parts[part] += 1
            name = _flat(image.name, taken)
            (new / "images" / f"{name}{ending}").write_bytes(content)
            (new / "masks" / f"{name}.png").write_bytes(png_of_map(mask))
        if not taken:
            raise UserError(
                f"none of {counted(len(skipped), 'image')} can be exported. {skipped[0]}"
                if skipped else
                "there is nothing to export yet. Paint a few strokes, or accept a prediction."
            )  # fmt: skip
        names, palette = store.classes.names, store.classes.palette
        write_json(new / CLASSES_FILE, {"names": list(names), "palette": [*map(list, palette)]})
    command = (
        "python -m diffseg_jax.main --config=configs/ddpm_seg_folder.py "
        f"--workdir={shlex.quote(f'runs/{store.folder.absolute().name}')} "
        f"--config.data.path={shlex.quote(str(folder))}"
    )
    return {"folder": str(folder), **parts, "skipped": skipped, "command": command}


def _others(folder) -> list[str]:
    """Entries beside EXPORTED and classes.json, and folders in EXPORTED; none of a system.

    Files in EXPORTED are taken for those of the last export, which an export replaces.
    """
    found = []
    for place in (folder, *(folder / part for part in EXPORTED)):
        for entry in sorted(place.iterdir()) if place.is_dir() else ():
            name = entry.relative_to(folder).as_posix()
            is_own = name in (CLASSES_FILE, *EXPORTED) or place != folder and entry.is_file()
            if not is_own and not _is_of_system(entry.name):
                found.append(name)
    return found


def _is_of_system(name):
    """Whether file managers and systems write a file or folder of this name by themselves."""
    files = (*FILES_OF_SYSTEMS, ".ds_store")
    return name.startswith("._") or ends_with(name, files) or name.lower() in FOLDERS_OF_SYSTEMS


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
        for part in EXPORTED:
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


def _file_of(image: PageImage) -> tuple[bytes, str]:
    """(content, ending) of a file with the upright image: as it is if stored so, else a PNG.

    Raises UserError if it cannot be read, or is not what it was when the page was opened.
    """
    if isinstance(image.source, str):
        try:
            content = read_bytes(image.source)
        except OSError as error:
            raise UserError(
                f"{visible(image.source)} cannot be read ({error.strerror or error})."
            ) from None
        if hashlib.sha256(content).hexdigest() != image.sha256:
            raise UserError(
                f"{visible(image.source)} has changed since the page was opened. Start the command "
                "again."
            )
        if stored_orientation(content) == 1:
            return content, os.path.splitext(image.source)[1].rstrip().lower()
    file = io.BytesIO()
    Image.fromarray(image.read()).save(file, "PNG", compress_level=1)
    return file.getvalue(), ".png"
