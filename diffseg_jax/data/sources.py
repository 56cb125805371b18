"""SOURCES: every data set by name; open_source opens one split of a data set."""

import inspect
from collections.abc import Mapping
from functools import partial

from diffseg_jax.config.options import SOURCE_OPTIONS
from diffseg_jax.data.bev_source import open_bev_scenes
from diffseg_jax.data.depth_sets import open_kitti, open_nyu
from diffseg_jax.data.depth_source import open_depth_folder, open_depth_scenes
from diffseg_jax.data.few_label_sets import FEW_LABEL_SETS, open_few_label_set
from diffseg_jax.data.folder_source import open_folder, open_unlabelled
from diffseg_jax.data.generated_sets import open_generated
from diffseg_jax.data.named_sets import (
    ADE20K,
    CAMVID,
    CITYSCAPES,
    open_ade20k,
    open_camvid,
    open_cityscapes,
    open_pascal_context,
)
from diffseg_jax.data.nuscenes_maps import MAP_LAYERS
from diffseg_jax.data.nuscenes_source import open_nuscenes
from diffseg_jax.data.prepared import non_empty, without_applied
from diffseg_jax.data.scene_rig import LAYERS_ABOVE
from diffseg_jax.data.scene_source import open_scenes
from diffseg_jax.data.scenes import NAMES as SCENE_NAMES
from diffseg_jax.data.tfds import open_tfds
from diffseg_jax.data.transforms import center_square
from diffseg_jax.errors import UserError, choose, require_known

SOURCES = {  # name -> (split, *, options that it reads) -> source
    "scenes": open_scenes,
    "bev_scenes": open_bev_scenes,
    "nuscenes": open_nuscenes,
    "folder": open_folder,
    "unlabelled": open_unlabelled,
    "camvid": open_camvid,
    "cityscapes": open_cityscapes,
    "ade20k": open_ade20k,
    "pascal_context": open_pascal_context,
    "depth_scenes": open_depth_scenes,
    "depth_folder": open_depth_folder,
    "kitti": open_kitti,
    "nyu": open_nyu,
    "generated": open_generated,
    **{name: partial(open_few_label_set, name) for name in FEW_LABEL_SETS},
}
TFDS = "tfds:"
NUM_CLASSES = {  # name -> classes of the labels, where they are known without reading; 0: none
    "scenes": len(SCENE_NAMES),
    "bev_scenes": len(LAYERS_ABOVE),
    "nuscenes": len(MAP_LAYERS),
    "camvid": len(CAMVID.names),
    "cityscapes": len(CITYSCAPES.names),
    "ade20k": len(ADE20K.split(", ")),
    **dict.fromkeys(("unlabelled", "depth_scenes", "depth_folder", "kitti", "nyu"), 0),
    **{name: len(published.names.split(", ")) for name, published in FEW_LABEL_SETS.items()},
}
RIGS = ("bev_scenes", "nuscenes")  # whose examples are several images with calibration and a map


def open_source(name, split, *, path="", square=0, **options):
    """One split of the data set `name`: a random-access sequence, picklable, without open files.

    source[i] is {"image": uint8[H,W,3], "mask": int32[H,W] with 255 = ignored, "name": str}.
    Unlabelled images have no "mask". Sources for maps seen from above have "images", calibration
    and "bev" instead, see `bev_source`. Sets of depth have "depth" instead, float32[H,W] in metres
    with 0 where nothing was measured; scenes have both, with a depth for the sky as well. "class",
    int32, is there if `classes` or `label_key` tell the class of an image. Attributes: labels
    (Labels or None), names (tuple of str, one per image), report (tuple of sentences about what
    opening found), classes (tuple of str, the names of the values of "class").

    name     a key of SOURCES, or tfds:<name or folder of a prepared data set>
    split    train or val (test where there is one), or "" for unlabelled images without splits; the
             few-label sets have train and test, and four of them ddpm
    path     folder of the data; scenes need none
    square   side of the square that `center_square` makes of each image, without its mask; 0 leaves
             images and masks as they are
    options  those of config.options.SOURCE_OPTIONS that the data set reads

    Raises UserError for unknown names, options that the data set does not read, and whatever is
    wrong on disk.
    """
    for key in options:
        require_known(key, SOURCE_OPTIONS, "option of a data set")
    seed = options.pop("seed", 0)
    options = non_empty({"path": str(path), **options})
    if str(name).startswith(TFDS):
        folder = name.removeprefix(TFDS)
        options, square = without_applied(folder, options, seed, square)
        opener = partial(open_tfds, folder)
    else:
        opener = choose(SOURCES, name, "data set")
    if square:
        require_images(name, "square")
    reads = set(inspect.signature(opener).parameters) - {"split"}
    for key, value in options.items():
        if key not in reads:
            raise UserError(
                f"{key}={value} was given, but data set {name} does not read it. Its options: "
                f"{', '.join(sorted(reads | {'square'}))}."
            )
    source = opener(split, **options, **({"seed": seed} if "seed" in reads else {}))
    return CroppedSquares(source, square) if square else source


def known_classes(name: str, options: Mapping) -> int:
    """The number of classes of a data set, without reading it; 0 where it has none.

    options  those of config.data.options
    Raises UserError where only its files say.
    """
    if not name.startswith(TFDS):
        require_known(name, SOURCES, "data set")
    named = options.get("classes") if name == "generated" else ""  # a set whose classes it has
    given = options.get("num_classes", 0) or NUM_CLASSES.get(named or name)
    if given is None:
        raise UserError(
            f"the number of classes of data set {name} stands in its files, which are not read "
            "here. Try --config.data.options.num_classes=19, with their number."
        )
    return given


def require_images(name: str, what: str):
    """Raises UserError for a data set of rigs of cameras, where `what` needs single images."""
    if name in RIGS:
        raise UserError(
            f"{what} needs single images, but data set {name} holds rigs of several cameras with "
            "maps seen from above, which only a run with task=bev reads, from where they are. "
            f"Leave {what} out, or give another data set."
        )


class CroppedSquares:
    """The images of a source as squares of one size, without masks, for training image models.

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
        rest = {key: example[key] for key in ("name", "class") if key in example}
        return {"image": center_square(example["image"], self.side), **rest}
