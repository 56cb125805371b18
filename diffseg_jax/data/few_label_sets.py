"""The six small sets that DDPM-Seg learns from, in the folder layout in which they are published.

    <name>/real/train, <name>/real/test, and for the first four <name>/ddpm (drawn by a diffusion
    model, then labelled): NAME.png, .jpg, .jpeg or .gif, at any depth, beside NAME.npy

Published counts are part of each set: of the files sorted by path only the first so many belong.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffseg_jax.data.class_ids import id_table, to_classes
from diffseg_jax.data.files import by_stem, files_below, list_files, require_folder
from diffseg_jax.data.folder_source import FolderSource
from diffseg_jax.data.images import read_ids, read_image
from diffseg_jax.data.labels import Labels
from diffseg_jax.data.palette import distinct_colours
from diffseg_jax.data.transforms import resize_antialiased, resize_mask
from diffseg_jax.errors import UserError, choose
from diffseg_jax.storage.paths import reachable

SIDE = 256  # of every picture and label map, after resizing
ENDINGS = (".png", ".jpg", ".jpeg", ".gif")
LAYOUT = "pictures (.png, .jpg, .jpeg, .gif) and beside each a label map NAME.npy"


@dataclass(frozen=True)
class FewLabelSet:
    """What is published about one set.

    names     of the K classes, in the order of their ids, ", " between
    train     number of images of the splits train and ddpm; test: of the split test
    ddpm      whether there are labelled images that a diffusion model drew
    unscored  ids that no pixel is trained or scored on; 255 is always such an id
    """

    names: str
    train: int
    test: int
    ddpm: bool = True
    unscored: tuple[int, ...] = ()

    def labels(self):
        """Names, generated colours and unscored classes as Labels."""
        names = tuple(self.names.split(", "))
        return Labels(names, distinct_colours(len(names)), self.unscored)

    def splits(self):
        """{split: (folder below the set's own, number of images)}."""
        splits = {"train": ("real/train", self.train), "test": ("real/test", self.test)}
        return splits | {"ddpm": ("ddpm", self.train)} if self.ddpm else splits


FEW_LABEL_SETS = {
    "bedroom_28": FewLabelSet(
        "background, bed, bed footboard, bed headboard, bed side rail, carpet, ceiling, chandelier "
        "or fan blade, curtain, cushion, floor, table/nightstand/dresser, table/nightstand/dresser "
        "top, picture or mirror, pillow, lamp column, lamp shade, wall, window, curtain rod, "
        "window frame, chair, picture or mirror frame, plinth, door or frame, pouf, wardrobe, "
        "plant, things on table",
        train=40,
        test=20,
        unscored=(0,),
    ),
    "ffhq_34": FewLabelSet(
        "background, head, cheek, chin, ear, ear helix, ear lobule, eye bottom lid, eyelashes, "
        "iris, pupil, sclera, tear duct, eye top lid, eyebrow, forehead, frown, hair, sideburns, "
        "jaw, moustache, lower lip, mouth corner, upper lip, teeth, neck, nose, nose wing, nose "
        "bridge, nose tip, nostril, philtrum, temple, wrinkles",
        train=20,
        test=20,
    ),
    "cat_15": FewLabelSet(
        "background, back, belly, chest, leg, paw, head, ear, eye, mouth, tongue, nose, tail, "
        "whiskers, neck",
        train=30,
        test=20,
    ),
    "horse_21": FewLabelSet(
        "background, person, back, barrel, bridle, chest, ear, eye, forelock, head, hoof, leg, "
        "mane, muzzle, neck, nostril, tail, thigh, saddle, shoulder, leg protection",
        train=30,
        test=30,
    ),
    "celeba_19": FewLabelSet(
        "background, cloth, ear ring, eyeglasses, hair, hat, left brow, left ear, left eye, lower "
        "lip, mouth, neck, necklace, nose, right brow, right ear, right eye, skin, upper lip",
        train=20,
        test=500,
        ddpm=False,
    ),
    "ade_bedroom_30": FewLabelSet(
        "wall, bed, floor, table, lamp, ceiling, painting, window pane, pillow, curtain, cushion, "
        "door, chair, cabinet, chest, mirror, rug, armchair, book, sconce, plant, wardrobe, clock, "
        "light, flower, vase, fan, box, shelf, television",
        train=50,
        test=650,
        ddpm=False,
    ),
}


class SquareSource(FolderSource):
    """A FolderSource whose square pictures come at 256x256 pixels, as DDPM-Seg reads them.

    source[i] is {"image": uint8[256,256,3], "mask": int32[256,256] with 255 = ignored, "name":
    str}. Picture and label map may be stored at different sizes. Raises UserError for one that is
    not square, and as FolderSource does.
    """

    def __getitem__(self, index):
        image, raw = read_image(self.images[index]), read_ids(self.masks[index])
        _require_square(image, self.images[index])
        _require_square(raw, self.masks[index])
        # Looked up before resizing, so that a wrong id is found wherever it is; -1 is 255 in here.
        mask = to_classes(raw, self.table, self.masks[index], self.hint)
        return {
            "image": resize_antialiased(image, (SIDE, SIDE)),
            "mask": resize_mask(mask, (SIDE, SIDE)).astype(np.int32),
            "name": self.names[index],
        }


def _require_square(array, path):
    height, width = array.shape[:2]
    if height != width:
        raise UserError(
            f"{path} is {width}x{height} (width x height), but pictures and label maps of this set "
            "are square. Crop both to the same square, or open them as a folder set."
        )


def open_few_label_set(name, split, *, path=""):
    """SquareSource over one split of the published set `name`, a key of FEW_LABEL_SETS.

    split  train, test, or ddpm where the set has generated images
    path   the folder that holds <name>/real (looked at first), or the one that holds real itself

    Names are paths without ending, below the split's folder. A folder with fewer images than are
    published is opened as it is, one with more up to the published number; `report` says so.
    Raises UserError for an unknown split, a folder without pictures, and a picture without label
    map.
    """
    published = choose(FEW_LABEL_SETS, name, "few-label set")
    below, count = choose(published.splits(), split, f"split of {name}")
    root = require_folder(path, name, f"{name}/{below}: {LAYOUT}")
    folder = _folder(root, name, below)
    try:
        found = list_files(folder, ENDINGS)
    except UserError as error:
        raise UserError(
            f"{error} Split {split} of {name} is {below} or {name}/{below} in the folder given as "
            f"path, with {LAYOUT}."
        ) from None
    images = by_stem(found[:count], folder)
    _require_label_maps(folder, images)
    labels = published.labels()
    return SquareSource(
        tuple(f"{folder}/{file}" for file in images.values()),
        tuple(f"{folder}/{stem}.npy" for stem in images),
        tuple(images),
        labels,
        id_table(len(labels.names), ignore=published.unscored),
        f"Check that {folder} belongs to {name}.",
        _counted(folder, len(found), count, f"split {split} of {name}"),
    )


def _folder(root: Path, name, below):
    with reachable(root):
        return next((a / below for a in (root / name, root) if (a / below).is_dir()), root / below)


def _require_label_maps(folder, images):
    with reachable(folder):
        maps = set(files_below(folder, (".npy",)))
    alone = [file for stem, file in images.items() if f"{stem}.npy" not in maps]
    if alone:
        raise UserError(
            f"{len(alone)} of {len(images)} pictures in {folder} have no label map; the first is "
            f"{alone[0]}. Put a .npy of the same name beside each, or move the pictures away."
        )


def _counted(folder, found, count, what):
    """The sentence, in a tuple, that tells a number of images other than the published one."""
    if found == count:
        return ()
    first = f" Only the first {count} by path are used." if found > count else ""
    return (f"{folder} holds {found} images; {what} was published with {count}.{first}",)
