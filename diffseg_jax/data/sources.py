"""SOURCES: every data set by name, and how each is opened."""

import inspect
from functools import partial

from diffseg_jax.data.few_label_sets import FEW_LABEL_SETS, open_few_label_set
from diffseg_jax.data.folder_source import open_folder, open_unlabelled
from diffseg_jax.data.named_sets import (
    open_ade20k,
    open_camvid,
    open_cityscapes,
    open_pascal_context,
)
from diffseg_jax.data.prepared import stated, still_to_do
from diffseg_jax.data.scene_source import open_scenes
from diffseg_jax.data.tfds import open_tfds
from diffseg_jax.data.transforms import center_square
from diffseg_jax.errors import UserError, choose

DATASETS = {
    "scenes": open_scenes,
    "folder": open_folder,
    "unlabelled": open_unlabelled,
    "camvid": open_camvid,
    "cityscapes": open_cityscapes,
    "ade20k": open_ade20k,
    "pascal_context": open_pascal_context,
    **{name: partial(open_few_label_set, name) for name in FEW_LABEL_SETS},
}


def open_source(
    name,
    split,
    *,
    path="",
    size=(0, 0),
    images=0,
    seed=0,
    num_classes=0,
    raw_459=False,
    image_key="",
    mask_key="",
    label_key="",
    classes="",
    ignore=(),
    square=0,
):
    """A random-access sequence over one split of the data set `name`, picklable, with no file open.

    source[i] is {"image": uint8[H,W,3], "mask": int32[H,W] with 255 = ignored, "name": str}; "mask"
    is absent for unlabelled pictures, "depth" float32[H,W] in metres comes with scenes only, and
    "class" int32 where `classes` or `label_key` say what each picture shows. Attributes: labels
    (Labels or None), names (tuple of str, one per image), report (tuple of sentences about what
    opening found), classes (tuple of str, the names of what "class" counts).

    name         a key of DATASETS, or tfds:<name or folder of a prepared data set>
    split        train or val (test where there is one); unlabelled pictures may have none; the sets
                 of few labels have train, test, and four of them ddpm
    path         folder of the data; scenes need none
    size         (height, width) of scenes, pixels
    images       number of scenes
    seed         of scenes; sets on disk do not read it
    num_classes  folder and tfds sets without class names; pascal_context: 59 or 60
    raw_459      pascal_context: the masks hold the raw 459 ids
    image_key    tfds: name of the image feature, "" finds it; mask_key likewise
    label_key    tfds: name of the feature that becomes "class", "" for none
    classes      unlabelled: "prefix" takes the class from the file name, up to its first "_";
                 "folder" from the folder that the file is in; "" for none
    ignore       folder: ids on disk that become 255; those of classes keep their place, unscored
    square       any set: side of the square that `center_square` makes of each picture, without its
                 mask; 0 leaves pictures as they are

    Raises UserError for unknown names, options that the set does not read, and whatever is wrong on
    disk.
    """
    options = {
        "path": str(path),
        "size": tuple(size),
        "images": images,
        "num_classes": num_classes,
        "raw_459": raw_459,
        "image_key": image_key,
        "mask_key": mask_key,
        "label_key": label_key,
        "classes": classes,
        "ignore": ignore,
    }
    kind, colon, rest = str(name).partition(":")
    prepared = kind == "tfds" and colon
    opener = open_tfds if prepared else choose(DATASETS, name, "dataset")
    read = set(inspect.signature(opener).parameters)
    given = stated(options)
    if prepared:
        given, square = still_to_do(rest, given, seed, square)
    for key, value in given.items():
        if key not in read:
            known = ", ".join(sorted(read & set(options) | {"square"}))
            raise UserError(
                f"{key}={value} was given, but dataset {name} does not read it. Its options: "
                f"{known}."
            )
    if "seed" in read:
        given["seed"] = seed
    source = opener(rest, split, **given) if prepared else opener(split, **given)
    return Squares(source, square) if square else source


class Squares:
    """The pictures of a source as squares of one size, without masks: to learn to draw them from.

    source[i] is {"image": uint8[side,side,3], "name": str}, and "class" where the source has it.
    """

    labels = None

    def __init__(self, source, side: int):
        self.source, self.side = source, side
        self.names, self.report, self.classes = source.names, source.report, source.classes

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        example = self.source[index]
        kept = {key: example[key] for key in ("name", "class") if key in example}
        return {"image": center_square(example["image"], self.side), **kept}
