"""The folder that diffseg_jax learns from: images/, masks/ of PNG ids, and classes.json."""

import numpy as np
from PIL import Image

from diffseg_jax.annotations.entries import image_size
from diffseg_jax.annotations.photos import Photos, stem_of
from diffseg_jax.annotations.regions import UNLABELLED, LabelFormat, LabelledImage, LabelledSet
from diffseg_jax.data.classes_json import read_classes
from diffseg_jax.data.files import by_stem, list_masks
from diffseg_jax.data.images import read_file
from diffseg_jax.data.labels import IGNORE
from diffseg_jax.data.masks import read_ids
from diffseg_jax.data.names import partners
from diffseg_jax.data.npy import is_array
from diffseg_jax.data.orientation import fit_mask, stored_orientation, turned
from diffseg_jax.errors import UserError
from diffseg_jax.storage.paths import write_json


def is_mask_set(path) -> bool:
    """Whether a path is a folder with masks/ in it."""
    return (path / "masks").is_dir()


def read_mask_set(path, photos: Photos) -> LabelledSet:
    """The masks below path/masks, with the classes of path/classes.json.

    Images are those of --images, or else those below path/images.
    """
    folder = path / "masks"
    if not folder.is_dir():
        raise UserError(f"{path} has no folder masks, in which the label maps are. Check --input.")
    labels, rules = read_classes(path / "classes.json", 0)
    masks = by_stem(list_masks(folder), folder)
    if photos.folder is None and (path / "images").is_dir():
        photos = Photos(path / "images")
    images = by_stem(sorted(photos.files), photos.folder) if photos.files else {}
    image_of = partners(masks, images)

    def each():
        for stem, file in masks.items():
            photo = photos.find(images[image_of[stem]]) if stem in image_of else None
            ids = _read_mask(folder / file, rules, photo)
            name = images[image_of[stem]] if photo else file
            yield LabelledImage(name, image_size(*ids.shape, file), ids=ids, photo=photo)

    return LabelledSet(labels.names, each(), labels.palette, count=len(masks))


def _read_mask(file, rules, photo):
    """Indices of classes int32[H,W] of a mask, upright, with UNLABELLED for 255."""
    encoded = None if is_array(file) else read_file(file)
    classes = rules.to_classes(read_ids(file, encoded, rules), file)
    orientation = 1 if encoded is None else stored_orientation(encoded, decoded=True)
    if photo is None:
        classes = turned(classes, orientation)
    else:
        classes = fit_mask(classes, orientation, photo.size, photo.orientation)
    return np.where(classes == IGNORE, UNLABELLED, classes)


def write_mask_set(folder, labels, maps, options):
    """Writes masks/<name>.png of 8-bit ids, and classes.json."""
    for each in maps:
        file = folder / "masks" / f"{stem_of(each.name)}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(each.ids).save(file)
    palette = [list(colour) for colour in labels.palette]
    write_json(folder / "classes.json", {"names": list(labels.names), "palette": palette})


MASKS = LabelFormat(
    "a folder with images/, masks/ (PNG of ids) and classes.json, as training reads it",
    is_mask_set, read_mask_set, write_mask_set,
)  # fmt: skip
