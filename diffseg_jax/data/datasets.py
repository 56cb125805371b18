"""DATASETS: class names, colours and ignore rules of every data set, and how each is opened."""

import inspect
import io
import json
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from PIL import Image

from diffseg_jax.data.few_label_sets import FEW_LABEL_SETS, open_few_label_set
from diffseg_jax.data.folders import (
    IMAGE_ENDINGS,
    FolderSource,
    classes_of_pictures,
    distinct_colours,
    id_table,
    list_files,
    numbered_labels,
    open_pairs,
    read_classes,
    read_ids,
    read_image,
    require_folder,
    require_same_size,
    to_classes,
)
from diffseg_jax.data.labels import IGNORE, Labels
from diffseg_jax.data.transforms import center_square
from diffseg_jax.errors import UserError, choose
from diffseg_jax.storage.paths import in_bucket, open_path, reachable


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
    opener = _open_tfds if prepared else choose(DATASETS, name, "dataset")
    read = set(inspect.signature(opener).parameters)
    given = stated(options)
    if prepared:
        given, square = _still_to_do(rest, given, seed, square)
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


def stated(options):
    """Those of the options that are not empty, as tuples, numbers and text; ids once each."""
    values = {
        key: tuple(value) if isinstance(value, (list, tuple)) else value
        for key, value in options.items()
    }
    if "ignore" in values:  # (0, 0) would read as no size
        values["ignore"] = tuple(dict.fromkeys(values["ignore"]))
    return {key: value for key, value in values.items() if value not in ("", 0, (0, 0), ())}


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


# ---- scenes ------------------------------------------------------------------------------------

# First index of a split: pictures are functions of (seed, index), so the splits never share one.
SCENE_SPLITS = {"train": 0, "val": 10_000_000, "test": 20_000_000}


@dataclass(frozen=True)
class SceneSource:
    """Drawn street scenes, random access; item i is a pure function of (seed, first + i)."""

    seed: int
    first: int
    height: int
    width: int
    names: tuple[str, ...]
    labels: Labels
    report: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        from diffseg_jax.data.scenes import draw_scene

        place = range(len(self))[index]  # also negative; IndexError beyond
        scene = draw_scene(self.seed, self.first + place, self.height, self.width)
        return scene | {"name": self.names[place]}


def _open_scenes(split, *, images=0, size=(0, 0), seed=0):
    from diffseg_jax.data.scenes import NAMES, PALETTE

    first = choose(SCENE_SPLITS, split, "split of scenes")
    if not 0 < images <= SCENE_SPLITS["val"]:
        raise UserError(
            f"images is {images}, but scenes draws 1 to {SCENE_SPLITS['val']} of them. Try "
            "images=1000."
        )
    if len(size) != 2 or min(size) < 1:
        raise UserError(
            f"size is {size}, but scenes needs (height, width) in pixels. Try size=(96, 128)."
        )
    names = tuple(f"{split}_{i:06d}" for i in range(images))
    labels = Labels(tuple(NAMES), tuple(tuple(int(part) for part in colour) for colour in PALETTE))
    return SceneSource(int(seed), first, *size, names, labels)


# ---- folders -----------------------------------------------------------------------------------


def _open_folder(split, *, path="", num_classes=0, ignore=()):
    root = require_folder(path, "folder", "images/<split> and masks/<split>")
    labels, table = read_classes(root / "classes.json", num_classes, ignore)
    named = (root / "classes.json").exists()
    what = "Name it in classes.json" if named else "Raise num_classes"
    hint = f"{what}, or give ignore=(<id>, ...)."
    return open_pairs(root / "images" / split, root / "masks" / split, labels, table, hint=hint)


def _open_unlabelled(split, *, path="", classes=""):
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


# ---- named sets --------------------------------------------------------------------------------

CAMVID_CLASSES = (  # name, colour; the row is the id on disk
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (0, 0, 192)),
    ("tree", (128, 128, 0)),
    ("sign symbol", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)
CAMVID = Labels(*zip(*CAMVID_CLASSES, strict=True))


def _open_camvid(split, *, path=""):
    """CamVid in the 11 classes of SegNet, 255 = void: images/<split>, masks/<split>."""
    root = require_folder(path, "camvid", "images/<split> and masks/<split>")
    hint = "CamVid masks here hold 11 classes, not the 32 of the original colour masks."
    return open_pairs(
        root / "images" / split, root / "masks" / split, CAMVID, id_table(11), hint=hint
    )


CITYSCAPES_CLASSES = (  # id on disk, name, colour; the row is the train id
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
CITYSCAPES = Labels(*list(zip(*CITYSCAPES_CLASSES, strict=True))[1:])
CITYSCAPES_IDS = 34  # ids 0..33 are in use, and -1 (license plate), which 8-bit files store as 255


def cityscapes_table():
    """int32[256]: label id -> train id, 255 where not evaluated, -1 where no label has the id."""
    table = np.full(256, -1, np.int32)
    table[[*range(CITYSCAPES_IDS), IGNORE]] = IGNORE
    table[[label_id for label_id, *_ in CITYSCAPES_CLASSES]] = np.arange(len(CITYSCAPES_CLASSES))
    return table


def _open_cityscapes(split, *, path=""):
    """leftImg8bit/<split>/<city>, gtFine/<split>/<city>: train ids if complete, else label ids."""
    root = require_folder(path, "cityscapes", "leftImg8bit/ and gtFine/")
    images, masks = root / "leftImg8bit" / split, root / "gtFine" / split
    tail, table = "_gtFine_labelIds", cityscapes_table()
    made = sum(file.endswith("_gtFine_labelTrainIds.png") for file in list_files(masks, (".png",)))
    if made >= len(list_files(images, IMAGE_ENDINGS)):
        tail, table = "_gtFine_labelTrainIds", id_table(len(CITYSCAPES.names))
    return open_pairs(
        images,
        masks,
        CITYSCAPES,
        table,
        image_tail="_leftImg8bit",
        mask_tail=tail,
        hint="Check the file.",
    )


ADE20K = (
    "wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, "
    "person, earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, "
    "shelf, house, sea, mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, "
    "bathtub, railing, cushion, base, box, column, signboard, chest of drawers, counter, sand, "
    "sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool "
    "table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, "
    "flower, book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, "
    "boat, bar, arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning, "
    "streetlight, booth, television receiver, airplane, dirt track, apparel, pole, land, "
    "bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, fountain, conveyer "
    "belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, "
    "minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle, "
    "lake, dishwasher, screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, "
    "ashcan, fan, pier, crt screen, plate, monitor, bulletin board, shower, radiator, glass, "
    "clock, flag"
)


def _open_ade20k(split, *, path=""):
    """Scene parsing release: images/<split>, annotations/<split>; raw 0 is ignored, k is class k-1.

    The colours are generated: the well-known table of this set uses one grey for two classes.
    """
    root = require_folder(
        path, "ade20k", "images/{training,validation} and annotations/{training,validation}"
    )
    names = {"train": "training", "val": "validation"}
    names |= {name: name for name in names.values()}
    folder = choose(names, split, "split of ade20k")
    labels = Labels(tuple(ADE20K.split(", ")), distinct_colours(150))
    hint = "These must be the semantic annotations (values 0..150), not annotations_instance."
    table = id_table(150, zero_is_ignored=True)
    return open_pairs(
        root / "images" / folder, root / "annotations" / folder, labels, table, hint=hint
    )


# Names of the 60 classes, row 0 the background, and the id of each among the raw 459.
PASCAL_CONTEXT = (
    "background, aeroplane, bag, bed, bedclothes, bench, bicycle, bird, boat, book, bottle, "
    "building, bus, cabinet, car, cat, ceiling, chair, cloth, computer, cow, cup, curtain, dog, "
    "door, fence, floor, flower, food, grass, ground, horse, keyboard, light, motorbike, mountain, "
    "mouse, person, plate, platform, potted plant, road, rock, sheep, shelves, sidewalk, sign, "
    "sky, snow, sofa, table, track, train, tree, truck, tv monitor, wall, water, window, wood"
)
# fmt: off
PASCAL_CONTEXT_RAW = (
    0, 2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113,
    115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326,
    347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458,
)
# fmt: on


def pascal_context_table(num_classes, raw_459):
    """int32[n]: id on disk -> class of 60, or of 59: background ignored, the rest shifted by one.

    raw_459  the ids on disk are the 459 of the original labels (0..459); those outside the 60 are
             background
    """
    table = id_table(60)
    if raw_459:
        table = np.zeros(460, np.int32)
        table[list(PASCAL_CONTEXT_RAW)] = np.arange(60)
    if num_classes == 59:
        shifted = np.where((table > 0) & (table < 60), table - 1, table)
        table = np.where(table == 0, IGNORE, shifted)
    return table.astype(np.int32)


def _open_pascal_context(split, *, path="", num_classes=0, raw_459=False):
    """JPEGImages, SegmentationClassContext, ImageSets/SegmentationContext/<split>.txt."""
    root = require_folder(
        path, "pascal_context", "JPEGImages/ and SegmentationClassContext/ (VOC2010)"
    )
    if num_classes not in (59, 60):
        raise UserError(
            f"num_classes is {num_classes}, but pascal_context has 59 classes, or 60 with the "
            "background. Give one of the two."
        )
    file = root / "ImageSets" / "SegmentationContext" / f"{split}.txt"
    if not file.is_file():
        raise UserError(
            f"there is no {file}, which lists the images of split {split}, one name per line."
        )
    keep = sorted(set(file.read_text().split()))
    if not keep:
        raise UserError(f"{file} lists no image. It must hold one name per line.")
    names = tuple(PASCAL_CONTEXT.split(", "))[60 - num_classes :]
    table = pascal_context_table(num_classes, raw_459)
    hint = "" if raw_459 else "If the masks hold the raw 459 ids, set raw_459=True."
    folders = root / "JPEGImages", root / "SegmentationClassContext"
    return open_pairs(
        *folders, Labels(names, distinct_colours(num_classes)), table, keep=keep, hint=hint
    )


# ---- tfds --------------------------------------------------------------------------------------

# Beside TFDS's files in a folder that --mode=prepare wrote: what it was made from and how.
PREPARED = "prepared.json"
NAMES = "names-{split}.json"  # names of the examples of a split in order, a list
NO_SPLIT = "pictures"  # what the split of sources that need none is called there
IMAGE_KEYS = ("image", "image_left")
MASK_KEYS = ("mask", "segmentation_mask", "segmentation_label", "label_map", "label map")


def _pets():
    """Oxford pets trimaps hold 1 pet, 2 background, 3 outline; the classes are 0..2."""
    table = id_table(3, zero_is_ignored=True)
    table[0] = -1
    colours = (220, 60, 40), (60, 90, 160), (240, 200, 60)
    return Labels(("pet", "background", "outline"), colours), table


TFDS_RULES = {  # name of a stock set whose masks hold raw ids -> () -> (Labels, id table)
    "oxford_iiit_pet": _pets,
    "cityscapes": lambda: (CITYSCAPES, cityscapes_table()),
}


@dataclass(frozen=True, eq=False)
class TfdsSource:
    """One split of a prepared TFDS folder, random access; decoded and checked as folders are."""

    examples: object
    image_key: str
    mask_key: str
    names: tuple[str, ...] = field(repr=False)
    labels: Labels | None
    table: np.ndarray | None = field(repr=False)
    label_key: str = ""
    classes: tuple[str, ...] = ()
    depth_key: str = ""
    report: tuple[str, ...] = ()

    def __len__(self):
        return len(self.names)

    def example(self, index):
        """The example as it is stored, pictures encoded; UserError for a damaged file."""
        place = range(len(self))[index]
        try:
            return self.examples[place]
        except (RuntimeError, ValueError, IndexError) as error:
            folder = self.examples.dataset_info.data_dir
            again = "Copy or prepare the folder again."
            if in_bucket(folder):
                again = f"Or read it from a local disk: gcloud storage cp -r {folder} ."
            raise UserError(
                f"cannot read example {self.names[place]} of {folder}: "
                f"{str(error).splitlines()[0]}. {again}"
            ) from None

    def __getitem__(self, index):
        example, name = self.example(index), self.names[index]
        item = {"image": read_image(name, example[self.image_key]), "name": name}
        if self.mask_key:
            raw = read_ids(name, example[self.mask_key])
            require_same_size(item["image"], raw, name, name)
            item["mask"] = to_classes(raw, self.table, name, "Give num_classes as prepared.")
        if self.label_key:
            item["class"] = np.int32(example[self.label_key])
            if item["class"] < 0:  # how TFDS stores what nobody labelled
                raise UserError(
                    f"{name} has no class in {self.label_key}. Take another split, or give "
                    "label_key=''."
                )
        if self.depth_key:
            item["depth"] = decoded_depth(example[self.depth_key])
        return item


def encoded_depth(depth):
    """float32[H,W] as a PNG of its bytes, as TFDS stores pictures of floats."""
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(depth)[..., None].view(np.uint8), "RGBA").save(
        stream, "PNG"
    )
    return stream.getvalue()


def decoded_depth(encoded):
    """float32[H,W] from the bytes of `encoded_depth`."""
    return np.array(Image.open(io.BytesIO(encoded))).view(np.float32)[..., 0]


def _open_tfds(name, split, *, path="", num_classes=0, image_key="", mask_key="", label_key=""):
    """A TFDS set that lies prepared (array_record) in the folder `name`, or as `name` below path.

    Nothing is downloaded or prepared here. Without path the library's own data folder is searched.
    Classes come from the metadata ("names", "palette"; such masks hold class ids), TFDS_RULES, the
    mask feature, or num_classes, in this order. An example's name is its split and place, since
    reading stored names would read the whole set; folders of --mode=prepare list the names beside.
    """
    import tensorflow_datasets as tfds

    builder = _prepared(name, path)
    ours = (builder.info.metadata or {}).get("prepared", False)
    whole, bracket, rest = split.partition("[")
    if whole == "val" and "val" not in builder.info.splits:
        whole = "validation"
    if ours:
        whole = whole or NO_SPLIT
    choose(builder.info.splits, whole, f"split of {name}")
    features = builder.info.features
    image_key = _feature(features, image_key, IMAGE_KEYS, f"image of {name}")
    mask_key = _feature(features, mask_key, MASK_KEYS, f"mask of {name}")
    depth_key = "depth" if ours and "depth" in features else ""
    if ours and "class" in features:
        label_key = label_key or "class"
    if not image_key:
        raise UserError(
            f"{name} has the features {', '.join(sorted(features))}, and none of them is known as "
            "the image. Give image_key."
        )
    labels, table = _tfds_classes(builder, features, mask_key, num_classes)
    classes = _names_of_label(features, label_key, name)
    keys = [key for key in (image_key, mask_key, depth_key) if key]
    try:
        # Encoded bytes come back, so that one decoder (and its checks) serves every source.
        decoders = {key: tfds.decode.SkipDecoding() for key in keys}
        examples = builder.as_data_source(whole + bracket + rest, decoders=decoders)
    except (NotImplementedError, ValueError) as error:
        raise UserError(
            f"cannot open split {split} of {name} for random access: {str(error).splitlines()[0]} "
            "Splits read like train or train[:10%], and file_format must be array_record."
        ) from None
    names = tuple(f"{split}_{i:06d}" for i in range(len(examples)))
    if ours:
        names = _listed_names(builder, whole + bracket + rest, whole)
    return TfdsSource(
        examples, image_key, mask_key, names, labels, table, label_key, classes, depth_key
    )


def _prepared(name, path):
    """The builder of a prepared set, from its files alone: the code that made them is not run."""
    import tensorflow_datasets as tfds

    folder = open_path(name)
    with reachable(folder):
        whole, begun = ((folder / file).exists() for file in ("dataset_info.json", PREPARED))
    if whole:
        try:
            builder = tfds.builder_from_directory(folder)
            _check_metadata(**(builder.info.metadata or {}))
            return builder
        except Exception as error:  # of its readers of JSON, protobuf and features: many kinds
            raise UserError(
                f"cannot open the prepared data set {name} ({type(error).__name__}: "
                f"{str(error).splitlines()[0]}). Copy or prepare the folder again, whole."
            ) from None
    if begun:
        raise UserError(
            f"{name} is not prepared to its end. Run the command with --mode=prepare that began it "
            "again; it goes on where it stopped."
        )
    try:
        return tfds.core.read_only_builder.builder_from_files(name, data_dir=path or None)
    except (tfds.core.DatasetNotFoundError, ValueError):  # ValueError: not a name at all
        raise UserError(
            f"no prepared TFDS data set {name} in {path or 'the default data folder'}, and nothing "
            "is downloaded here. Give the folder that holds dataset_info.json as tfds:<folder>, "
            "or its data_dir as path."
        ) from None


def _still_to_do(folder, given, seed, square):
    """(options, square) without those that --mode=prepare applied when it wrote the folder.

    So a config reads what was prepared from it when nothing but its source is changed. Raises
    UserError for an option that the folder was prepared with another value of.
    """
    file = open_path(folder) / PREPARED
    with reachable(file):
        if not file.exists():
            return given, square
    made = _read_json(file, dict).get("options")
    if not isinstance(made, dict):
        raise UserError(f"{file} has no options. Copy or prepare the folder again, whole.")
    made = stated(made)
    for key, value in (given | stated({"seed": seed, "square": square})).items():
        if key in made and made[key] != value:
            raise UserError(
                f"{folder} was prepared with {key}={made[key]}, but {key}={value} is given. Give "
                "the same value, or prepare another folder."
            )
    left = {key: value for key, value in given.items() if key not in made}
    return left, 0 if "square" in made else square


def _listed_names(builder, split, whole):
    """The names of the examples of `split`, which is `whole` or a slice of it, as prepared."""
    import tensorflow_datasets as tfds

    file = open_path(builder.data_dir) / NAMES.format(split=whole)
    names, count = _read_json(file, list), builder.info.splits[whole].num_examples
    if not all(isinstance(name, str) for name in names) or len(set(names)) != count:
        raise UserError(
            f"{file} does not list the different names of {count} examples. Copy or prepare the "
            "folder again, whole."
        )
    parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(builder.info.splits)
    return tuple(name for part in parts for name in names[part.from_ : part.to])


def _read_json(file, kind):
    """The list or dict in a file of a prepared folder; UserError for anything else."""
    with reachable(file):
        try:
            content = json.loads(file.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(
                f"cannot read {file}: {error}. Copy or prepare the folder again, whole."
            ) from None
    if not isinstance(content, kind):
        raise UserError(
            f"{file} holds no {kind.__name__}. Copy or prepare the folder again, whole."
        )
    return content


def _feature(features, asked, usual, what):
    """The name of the feature asked for, else of the first usual one that is there, else "".

    Only features that are stored as pictures count; asking for another one is a UserError.
    """
    import tensorflow_datasets as tfds

    pictures = {key: key for key in features if isinstance(features[key], tfds.features.Image)}
    if asked:
        return choose(pictures, asked, what)
    return next((key for key in usual if key in pictures), "")


def _names_of_label(features, label_key, name):
    """The class names of the feature that says what a picture shows, () for label_key = ""."""
    import tensorflow_datasets as tfds

    if not label_key:
        return ()
    known = {
        key: feature
        for key, feature in features.items()
        if isinstance(feature, tfds.features.ClassLabel)
    }
    return tuple(choose(known, label_key, f"class label of {name}").names)


def _tfds_classes(builder, features, mask_key, num_classes):
    """(Labels, id table) of the masks, (None, None) without masks."""
    if not mask_key:
        return None, None
    metadata, feature = builder.info.metadata or {}, features[mask_key]
    names = metadata.get("names")
    if not names and builder.name in TFDS_RULES:
        return TFDS_RULES[builder.name]()
    if not names and getattr(feature, "num_classes", None):
        names = feature.names
    if not names and num_classes < 1:
        raise UserError(
            f"{builder.name} does not say how many classes its masks hold. Give num_classes."
        )
    if names and num_classes not in (0, len(names)):
        raise UserError(
            f"{builder.name} names {len(names)} classes, but num_classes is {num_classes}. Leave "
            "num_classes at 0."
        )
    labels = (
        Labels(tuple(names), distinct_colours(len(names)))
        if names
        else numbered_labels(num_classes)
    )
    if metadata.get("palette"):
        labels = replace(labels, palette=tuple(tuple(colour) for colour in metadata["palette"]))
    labels = replace(labels, unscored=tuple(metadata.get("unscored", ())))
    return labels, id_table(len(labels.names))


def _check_metadata(names=(), palette=(), unscored=(), **_):
    """ValueError for metadata that cannot be the names, colours and unscored ids of classes."""
    rows = [names, palette, unscored, *palette]
    if not all(isinstance(row, (list, tuple)) for row in rows):
        raise ValueError("names, palette and unscored must be lists")
    ids = [(part, 256) for row in palette for part in row] + [(k, len(names)) for k in unscored]
    if (
        not all(isinstance(name, str) and name for name in names)
        or len(set(names)) != len(names)
        or (palette and [len(row) for row in palette] != [3] * len(names))
        or not all(type(value) is int and 0 <= value < end for value, end in ids)
    ):
        raise ValueError("names, palette and unscored must describe the same classes")


DATASETS = {
    "scenes": _open_scenes,
    "folder": _open_folder,
    "unlabelled": _open_unlabelled,
    "camvid": _open_camvid,
    "cityscapes": _open_cityscapes,
    "ade20k": _open_ade20k,
    "pascal_context": _open_pascal_context,
    **{name: partial(open_few_label_set, name) for name in FEW_LABEL_SETS},
}
