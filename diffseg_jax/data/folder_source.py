"""Folders of images, with masks or without, as data sets."""

import contextlib
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from diffseg_jax.data.class_ids import MaskRules
from diffseg_jax.data.classes_json import read_classes
from diffseg_jax.data.files import (
    MASK_ENDINGS,
    OTHER_MASK_ENDINGS,
    by_stem,
    ends_with,
    files_below,
    list_masks,
    pair,
    require_folder,
    skipped_note,
    split_files,
)
from diffseg_jax.data.formats import image_endings
from diffseg_jax.data.images import read_image, require_same_size
from diffseg_jax.data.labels import IGNORE
from diffseg_jax.data.mask_files import KEEP_OPTION, is_image_folder, is_mask_folder, without_masks
from diffseg_jax.data.masks import read_ids, read_pair, values_in
from diffseg_jax.data.names import partners
from diffseg_jax.errors import UserError, choose, counted, visible
from diffseg_jax.storage.paths import open_path, reachable, read_object

SOME = 64  # masks that are read for an error about ids
SET_FILE = "synthetic.json"  # of a set that synthesise made
IS_SETTLED = "settled"  # its key: False while images are moved into the set and out of it


@dataclass(frozen=True, eq=False)
class FolderSource:
    """Images, with or without masks, as a random-access sequence that opens files when read.

    source[i] is {"image": uint8[H,W,3], "mask": int32[H,W] with 255 = ignored, "name": str};
    without "mask" for unlabelled images, with "class": int32 for images with a class. Arrays may be
    read-only. Reading a bad file raises UserError with its path.

    images   paths
    masks    paths in the same order, or () for unlabelled images
    names    one unique string per image, the same on every machine
    labels   class names and colours, or None
    rules    how the masks store classes
    report   sentences about what opening found: files without a partner, choices made
    classes  class names of images, or ()
    ranks    index into `classes` of each image, or ()
    mask_root  the folder of the masks of all splits, by which errors advise; "": of these masks
    """

    images: tuple[str, ...] = field(repr=False)
    masks: tuple[str, ...] = field(repr=False)
    names: tuple[str, ...] = field(repr=False)
    labels: object = None
    rules: MaskRules | None = field(default=None, repr=False)
    report: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    ranks: tuple[int, ...] = field(default=(), repr=False)
    mask_root: str = field(default="", repr=False)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        path, item = self.images[index], {"name": self.names[index]}
        if not self.masks:
            item["image"] = read_image(path)
        else:
            item["image"], ids = read_pair(
                path, self.masks[index], self.rules, self.some_colours
            )
            require_same_size(item["image"], ids, path, self.masks[index])
            item["mask"] = self.rules.to_classes(ids, self.masks[index], self.some_ids)
        if self.ranks:
            item["class"] = np.int32(self.ranks[index])
        return item

    def stored_ids(self, index):
        """The ids in the mask of an image, as its file stores them."""
        return read_ids(self.masks[index], rules=self.rules)

    def some_ids(self):
        """{stored id: pixels} of some of the masks; they are read once."""
        return self._some[0]

    def some_colours(self):
        """The colours [r, g, b] in some of the masks; they are read once."""
        return self._some[1]

    @cached_property
    def _some(self):
        masks = all_masks(self.mask_root) if self.mask_root else self.masks
        return values_in_some(masks, self.rules)


def all_masks(folder):
    """The paths of all masks below a folder."""
    return [f"{folder}/{file}" for file in list_masks(open_path(folder))]


def _values_in(masks):
    """As `values_in_some`; the error of the first mask where none can be read."""
    pixels, colours = values_in_some(masks)
    return (pixels, colours) if pixels or colours else values_in(masks[0])


def values_in_some(masks, rules=None):
    """({stored id: pixels}, colours [r, g, b]) of some of the masks, of those that can be read.

    There are no colours if all of them are grey.
    """
    pixels, colours = Counter(), {}
    for index in np.unique(np.linspace(0, len(masks) - 1, min(len(masks), SOME)).astype(int)):
        with contextlib.suppress(UserError):
            ids, rows = values_in(masks[index], rules)
            pixels.update(ids)
            colours |= dict.fromkeys(map(tuple, rows if len(rows) < IGNORE else ()))
    is_grey = all(red == green == blue for red, green, blue in colours)
    return pixels, [] if is_grey else sorted(map(list, colours))


def open_folder(split, *, path="", num_classes=0, ignore=()):
    """images/<split> and masks/<split> below path; classes from classes.json or num_classes.

    Where images/ and masks/ hold the files themselves, all of them are the split train.
    """
    root = require_folder(path, "folder", "images/<split> and masks/<split>")
    require_settled(root)
    folders = root / "images" / split, root / "masks" / split
    with reachable(root):
        if split in SPLITS["train"] and has_no_splits(root):
            folders = root / "images", root / "masks"
    try:
        pairs = open_pairs(*folders, None, None)
    except UserError as error:
        with reachable(root):
            if all(folder.is_dir() for folder in folders):
                raise
            advice = _layout_advice(root, split)
        layout = (
            f"images/{split} holds images, masks/{split} a mask of the same name for each; without "
            "splits, images and masks hold all of them"
        )
        raise UserError(f"{error} In data set folder, {layout}.{advice}") from None
    mask_root = f"{root}/masks"  # advice looks at all splits, since they share the file
    labels, rules = read_classes(
        root / "classes.json", num_classes, ignore,
        seen=lambda: _values_in(all_masks(mask_root)),
    )  # fmt: skip
    return replace(pairs, labels=labels, rules=rules, mask_root=mask_root)


def require_settled(root):
    """Raises UserError for a set whose images synthesise was moving when it was stopped."""
    if read_object(root / SET_FILE).get(IS_SETTLED) is False:
        raise UserError(
            f"{root} holds only some of the images that synthesise keeps, since it was stopped "
            "while it moved them. Start the same synthesise command again, which takes seconds."
        )


def has_no_splits(root):
    """Whether images/ and masks/ hold files themselves, and no folder of a split."""
    images, masks = root / "images", root / "masks"
    if any((folder / name).is_dir() for folder in (images, masks) for name in SPLIT_NAMES):
        return False
    return images.is_dir() and masks.is_dir() and any(
        ends_with(entry.name, image_endings()) and entry.is_file() for entry in images.iterdir()
    )  # fmt: skip


def lacks_validation(path, split):
    """Whether a folder with masks or depth has no split `val` under any of its usual names."""
    root, folders = open_path(path), ("images", "masks", "depth")
    with reachable(root):
        return split in SPLITS["val"] and bool(path) and (root / "images").is_dir() and not any(
            (root / part / name).is_dir() for part in folders for name in SPLITS["val"]
        )  # fmt: skip


def _layout_advice(root, split):
    """What to rename, to move or to type so that the folder has the split; "" if that is unknown.

    For images and masks in folders of other names, without splits, or below those of the splits.
    """
    if above := _set_around(root):
        return f' Did you mean "{above}"?'
    images, masks = _images_and_masks(root)
    if not images or not masks:
        images, masks = _images_and_masks(root / split)
        if not images or not masks:
            return ""
        return f" Move {images} to {root}/images/{split}, and {masks} to {root}/masks/{split}."
    renamed = "".join(
        f" Rename {folder} to {root}/{name}."
        for name, folder in (("images", images), ("masks", masks))
        if folder.name != name
    )
    splits = sorted({entry.name for entry in images.iterdir() if (masks / entry.name).is_dir()})
    if split in splits:
        return renamed
    if not splits and renamed and split in SPLITS["train"]:
        return renamed  # all of them are the split train
    if not splits:
        return (
            f" Move the files in {images} to {root}/images/train and {root}/images/val, and those "
            f"in {masks} to {root}/masks/train and {root}/masks/val."
        )
    option = "train" if split in SPLITS["train"] else "val"
    other = split_like(option, splits) or splits[0]
    if split not in SPLIT_NAMES:  # a misspelt name of either
        return f"{renamed} Splits there: {', '.join(splits)}."
    return (
        f"{renamed} Try --config.data.{option}={other}, or move some of its files to "
        f"images/{split} and masks/{split}."
    )


def _set_around(root):
    """The folder with images and masks of which root is a part, such as its images; or None."""
    for above in root.parents[:2]:
        parts = above / "images", above / "masks"
        if all(part.is_dir() for part in parts) and any(map(root.is_relative_to, parts)):
            return above
    return None


def _images_and_masks(root):
    """The folders of images and of masks in root, "" for one that there is not, or holds none."""
    masks = _alike(root, "masks", is_mask_folder)
    if masks and not files_below(masks, MASK_ENDINGS + OTHER_MASK_ENDINGS):
        masks = ""  # such as the text files of YOLO
    return _alike(root, "images", is_image_folder), masks


def _alike(root, name, is_alike):
    """root/<name>, or the first folder there that has such a name; "" if there is none."""
    if not root.is_dir() or (root / name).is_dir():
        return root / name if root.is_dir() else ""
    folders = [entry for entry in root.iterdir() if entry.is_dir() and is_alike(entry.name)]
    return min(folders, key=lambda folder: folder.name, default="")


def open_pairs(
    image_folder,
    mask_folder,
    labels,
    rules,
    *,
    image_suffix="",
    mask_suffix="",
    stems=None,
):
    """FolderSource of the stems in both folders; suffixes such as _leftImg8bit are removed first.

    stems  those to open, or None for all; a stem without image is an error
    """
    files, others = split_files(image_folder, image_endings())
    images = by_stem(files, image_folder, image_suffix)
    masks = by_stem(list_masks(mask_folder), mask_folder, mask_suffix)
    if stems is not None:
        image_of = partners(stems, images)
        if missing := [stem for stem in stems if stem not in image_of]:
            raise UserError(
                f"{len(missing)} listed images are not in {image_folder}; the first is "
                f"{missing[0]}. Complete the folder or the list."
            )
        # Files that are not listed belong to other splits and are not reported.
        images = {stem: images[stem] for stem in image_of.values()}
        masks = {stem: masks[stem] for stem in partners(images, masks).values()}
    paths, mask_paths, paired, report = pair(image_folder, images, mask_folder, masks)
    names = tuple(stem + image_suffix for stem in paired)
    report += skipped_note(image_folder, others)
    return FolderSource(paths, mask_paths, names, labels, rules, report)


def open_unlabelled(split, *, path="", classes="", keep_masks=False):
    """All images below path, or below its subfolder `split` if there is one; masks are left out.

    Of a labelled folder (images/ beside masks/, JPEGImages/ beside SegmentationClass/, ...) only
    the images are read.
    keep_masks  whether files that look like masks are taken as images, see `without_masks`
    """
    given = require_folder(path, "unlabelled", "images")
    with reachable(given):
        root, notes = _images_of_split(given, split, keep_masks)
    files, others = split_files(root, image_endings())
    notes += skipped_note(root, others)
    if not keep_masks:
        files, sentences = without_masks(root, files, by_name=not classes)
        notes += sentences
    names, ranks = classes_of_images(classes, root, files)
    paths = tuple(f"{root}/{file}" for file in files)
    return FolderSource(paths, (), tuple(files), report=notes, classes=names, ranks=ranks)


SPLITS = {"train": ("train", "training"), "val": ("val", "validation", "valid"), "test": ("test",)}
SPLIT_NAMES = sum(SPLITS.values(), ())


def split_like(split, names):
    """The first of the names that looks like a split, such as train2017; "" if none does."""
    return next((name for name in names if name.startswith(split)), "")


def _images_of_split(root, split, keep_masks):
    """(the folder of the images of a split, sentences about others that are read or not).

    The folder of the split may be in that of the images, or the other way round.
    """
    is_found, notes = False, ()
    for _ in range(2):
        if not keep_masks:
            root, unread = _images_beside_masks(root, "" if is_found else split)
            notes += unread
        found = None if is_found else _of_split(root, split)
        root, is_found = found or root, is_found or found is not None
    return root, notes + (_other_splits(root, split) if split and not is_found else ())


def _of_split(folder, split):
    """The subfolder of a split, perhaps of another name such as valid; None if there is none."""
    names = SPLITS.get(split, (split,)) if split else ()
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _images_beside_masks(root, split):
    """(the only folder of images in root, or root, a sentence about others that are not read).

    Root itself is read unless there is a folder of masks beside that of the images. Masks are
    counted, those of the split if they have a folder for it.
    """
    folders = [entry for entry in root.iterdir() if entry.is_dir() and entry.name[0] != "."]
    images = [folder for folder in folders if is_image_folder(folder.name)]
    masks = [folder for folder in folders if is_mask_folder(folder.name)]
    if len(images) != 1 or not masks:
        return root, ()
    masks.sort(key=lambda folder: folder.name)
    known = {images[0].name, *(folder.name for folder in masks), "ImageSets"}
    unread = sorted(folder.name for folder in folders if folder.name not in known)
    count = sum(len(files_below(_of_split(m, split) or m, image_endings())) for m in masks)
    if not unread and not count:
        return images[0], ()
    sentence = f"of {root} only {images[0].name} is read, since it lies beside {masks[0].name}"
    sentence += f"; not read: {', '.join(unread)}." if unread else "."
    if count:
        skipped = f"{counted(count, 'mask')} in {', '.join(folder.name for folder in masks)}"
        sentence += f" {skipped} {'is' if count == 1 else 'are'} left out. {KEEP_OPTION}"
    return images[0], (sentence,)


def _other_splits(root, split):
    """A sentence if the folder has other splits, all of which are read."""
    others = sorted(name for name in SPLIT_NAMES if (root / name).is_dir())
    if not others:
        return ()
    return (
        f"there is no folder {split} in {root}, so all images below it are used, also those of "
        f"{', '.join(others)}.",
    )


def _prefix(file):
    start, underscore, _ = file.rpartition("/")[2].partition("_")
    return start if underscore else ""


def _parent(file):
    return file.rpartition("/")[0].rpartition("/")[2]


CLASS_RULES = {  # option -> (relative path -> class or "", what paths with a class have)
    "prefix": (_prefix, 'a name that starts with its class and "_", such as cat_0001.jpg'),
    "folder": (_parent, "a folder named after its class, such as cat/0001.jpg"),
}


def classes_of_images(rule, folder, files):
    """(sorted class names, class index of each file) by their paths; ((), ()) for rule "".

    rule   "prefix": the part of the file name before the first "_"; "folder": the parent folder
    files  paths relative to `folder`, with "/"
    Raises UserError if a file has no class, or all files have the same.
    """
    if not rule:
        return (), ()
    class_of, description = choose(CLASS_RULES, rule, "classes")
    found = [class_of(file) for file in files]
    if "" in found:
        raise UserError(
            f"classes={rule} needs {description}, but {found.count('')} of {len(files)} images in "
            f"{folder} have none; the first is {files[found.index('')]}. Rename or move them, or "
            "give classes=''."
        )
    names = sorted(set(found))
    if len(names) == 1:
        raise UserError(
            f"classes={rule} finds only one class in {folder}, {names[0]}. Give every image "
            f"{description}, or give classes=''."
        )
    rank = {name: k for k, name in enumerate(names)}
    return tuple(map(visible, names)), tuple(rank[name] for name in found)
