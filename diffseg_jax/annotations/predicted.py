"""What `predict` wrote, as labels that another tool can correct, or a test server takes."""

from pathlib import Path

import numpy as np

from diffseg_jax.annotations.colour_masks import ids_of_indices
from diffseg_jax.annotations.entries import (
    begins_with,
    class_name,
    colour_of,
    entry,
    image_size,
    object_in,
    objects,
    of_type,
)
from diffseg_jax.annotations.mask_pairs import indices_or_ignored
from diffseg_jax.annotations.photos import Photo, Photos, safe_name
from diffseg_jax.annotations.regions import (
    IGNORED,
    UNLABELLED,
    LabelFormat,
    LabelledImage,
    LabelledSet,
    Notes,
)
from diffseg_jax.data.files import ends_with
from diffseg_jax.data.formats import image_endings
from diffseg_jax.data.labels import IGNORE
from diffseg_jax.errors import UserError

PREDICTED_FILE, LABELS_ENDING = "summary.json", "_labels.png"


def _recognise(path: Path) -> bool:
    return begins_with(path / PREDICTED_FILE, '"classes"') and begins_with(
        path / PREDICTED_FILE, '"checkpoint"', '"pictures"'
    )


def _read(path: Path, photos: Photos) -> LabelledSet:
    file = path / PREDICTED_FILE
    content = object_in(file)
    classes = {
        class_name(each.get("name"), str(file)): colour_of(each.get("color"))
        for each in objects(content, "classes", str(file))
    }
    pictures = entry(content, "pictures", dict, str(file))
    if not classes or not pictures:
        raise UserError(f"{file} lists no class, or no image. Give the folder of a prediction.")
    names = {
        name: of_type(pictures[name], dict, f"the entry of {name}", str(file)).get("file")
        for name in pictures
    }
    notes = Notes()
    images = (_image(path, file, *each, len(classes), photos, notes) for each in names.items())
    colours = tuple(classes.values()) if all(classes.values()) else ()
    return LabelledSet(tuple(classes), images, colours, notes, count=len(names))


def _image(folder, file, name, source, count, photos, notes):
    """The label map of an image; pixels that were rejected say nothing."""
    source = source if isinstance(source, str) and ends_with(source, image_endings()) else ""
    whole, _ = safe_name(f"{name}{Path(source).suffix or '.png'}", file)
    mask = folder / f"{safe_name(name, file)[0]}{LABELS_ENDING}"
    ids = indices_or_ignored(ids_of_indices(mask), count, IGNORE, mask)
    ids = np.where(ids == IGNORED, UNLABELLED, ids)
    photo = Photo(source) if source and Path(source).is_file() else None
    if photo is None and photos.folder is None:
        rest = (
            "that is not there as a file, such as a page or a frame of one, so only its labels are "
            "written; --images=DIR gives image files"
        )
        notes.add("without image", "label map", rest, name)
    return LabelledImage(whole, image_size(*ids.shape, str(mask)), ids=ids, photo=photo)


PREDICTIONS = LabelFormat(
    "a folder that predict wrote: label maps, to correct them or to send them to a test server",
    _recognise, _read,
)  # fmt: skip
