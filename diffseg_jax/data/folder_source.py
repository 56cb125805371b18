"""Folders of images, with label maps or without, as sources."""

from dataclasses import dataclass, field

import numpy as np

from diffseg_jax.data.class_ids import to_classes
from diffseg_jax.data.classes_json import read_classes
from diffseg_jax.data.files import (
    IMAGE_ENDINGS,
    MASK_ENDINGS,
    by_stem,
    list_files,
    pair,
    require_folder,
)
from diffseg_jax.data.images import read_ids, read_image, require_same_size
from diffseg_jax.errors import UserError, choose


@dataclass(frozen=True, eq=False)
class FolderSource:
    """Images, with label maps or without, as a random-access sequence; files open when read.

    source[i] is {"image": uint8[H,W,3], "mask": int32[H,W] with 255 = ignored, "name": str},
    without "mask" for unlabelled pictures, with "class": int32 where pictures have one; the arrays
    may be read-only. Bad files raise UserError here, by name.

    images  paths
    masks   paths in the same order, or () for unlabelled pictures
    names   one string per image, the same on every machine; no two are equal
    labels  class names and colours, or None
    table   int32[n], raw id on disk -> class, 255 where ignored, -1 where the id is a mistake
    hint    one sentence for whoever meets such an id
    report  sentences about what opening found: files without partner and choices made
    classes names of the classes that whole pictures belong to, or (); ranks: the class of each
    """

    images: tuple[str, ...] = field(repr=False)
    masks: tuple[str, ...] = field(repr=False)
    names: tuple[str, ...] = field(repr=False)
    labels: object = None
    table: np.ndarray | None = field(default=None, repr=False)
    hint: str = ""
    report: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    ranks: tuple[int, ...] = field(default=(), repr=False)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        item = {"image": read_image(self.images[index]), "name": self.names[index]}
        if self.masks:
            raw = read_ids(self.masks[index])
            require_same_size(item["image"], raw, self.images[index], self.masks[index])
            item["mask"] = to_classes(raw, self.table, self.masks[index], self.hint)
        if self.ranks:
            item["class"] = np.int32(self.ranks[index])
        return item


def open_pairs(
    image_folder, mask_folder, labels, table, *, image_tail="", mask_tail="", keep=None, hint=""
):
    """FolderSource of the stems in both folders; tails such as _leftImg8bit are no part of them.

    keep  stems to open, or None for all; a stem without image is an error
    """
    images = by_stem(list_files(image_folder, IMAGE_ENDINGS), image_folder, image_tail)
    masks = by_stem(list_files(mask_folder, MASK_ENDINGS), mask_folder, mask_tail)
    if keep is not None:
        missing = [stem for stem in keep if stem not in images]
        if missing:
            raise UserError(
                f"{len(missing)} listed images are not in {image_folder}; the first is "
                f"{missing[0]}. Complete the folder or the list."
            )
        # What the list leaves out belongs to other splits and is no finding.
        images = {stem: images[stem] for stem in keep}
        masks = {stem: masks[stem] for stem in keep if stem in masks}
    paths, mask_paths, stems, report = pair(image_folder, images, mask_folder, masks)
    names = tuple(stem + image_tail for stem in stems)
    return FolderSource(paths, mask_paths, names, labels, table, hint, report)


def open_folder(split, *, path="", num_classes=0, ignore=()):
    root = require_folder(path, "folder", "images/<split> and masks/<split>")
    labels, table = read_classes(root / "classes.json", num_classes, ignore)
    named = (root / "classes.json").exists()
    what = "Name it in classes.json" if named else "Raise num_classes"
    hint = f"{what}, or give ignore=(<id>, ...)."
    return open_pairs(root / "images" / split, root / "masks" / split, labels, table, hint=hint)


def open_unlabelled(split, *, path="", classes=""):
    """Every picture below path, or below its subfolder `split` if there is one.

    Where path is a labelled folder (images beside masks), only its images count.
    """
    root = require_folder(path, "unlabelled", "pictures")
    if (root / "images").is_dir() and (root / "masks").is_dir():
        root = root / "images"
    if split and (root / split).is_dir():
        root = root / split
    files = list_files(root, IMAGE_ENDINGS)
    names, ranks = classes_of_pictures(classes, root, files)
    paths = tuple(f"{root}/{file}" for file in files)
    return FolderSource(paths, (), tuple(files), classes=names, ranks=ranks)


def _prefix(file):
    start, underscore, _ = file.rpartition("/")[2].partition("_")
    return start if underscore else ""


def _parent(file):
    return file.rpartition("/")[0].rpartition("/")[2]


CLASSES_OF_PICTURES = {  # option -> (class of a relative path or "", what an example looks like)
    "prefix": (_prefix, 'a name that starts with its class and "_", such as cat_0001.jpg'),
    "folder": (_parent, "a folder named after its class, such as cat/0001.jpg"),
}


def classes_of_pictures(how, folder, files):
    """(class names, sorted; class of each file) that the file names tell, ((), ()) for how = "".

    how    "prefix": the part of the name before the first "_"; "folder": the folder that it is in
    files  paths relative to `folder`, with "/"
    Raises UserError if a file tells none, or all tell the same.
    """
    if not how:
        return (), ()
    class_of, form = choose(CLASSES_OF_PICTURES, how, "classes")
    found = [class_of(file) for file in files]
    if "" in found:
        raise UserError(
            f"classes={how} needs {form}, but {found.count('')} of {len(files)} pictures in "
            f"{folder} have none; the first is {files[found.index('')]}. Rename or move them, or "
            "give classes=''."
        )
    names = sorted(set(found))
    if len(names) == 1:
        raise UserError(
            f"classes={how} finds one class only in {folder}, {names[0]}, so there is nothing to "
            f"tell apart. Give every picture {form}, or give classes=''."
        )
    rank = {name: k for k, name in enumerate(names)}
    return tuple(names), tuple(rank[name] for name in found)
