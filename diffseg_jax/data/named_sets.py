"""CamVid, Cityscapes, ADE20K and Pascal Context, in the folder layouts of their publishers."""

import numpy as np

from diffseg_jax.data.class_ids import MaskRules, id_table
from diffseg_jax.data.files import ends_with, list_files, require_folder
from diffseg_jax.data.folder_source import open_pairs
from diffseg_jax.data.formats import image_endings
from diffseg_jax.data.labels import IGNORE, Labels
from diffseg_jax.data.names import read_text
from diffseg_jax.data.palette import distinct_colours
from diffseg_jax.errors import UserError, choose

CAMVID_CLASSES = (  # name, colour; the id on disk is the index
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


def open_camvid(split, *, path=""):
    """CamVid in the 11 classes of SegNet, 255 = void: images/<split>, masks/<split>."""
    root = require_folder(path, "camvid", "images/<split> and masks/<split>")
    hint = "CamVid masks here hold 11 classes, not the 32 of the original colour masks."
    rules = MaskRules(id_table(11), hint)
    return open_pairs(root / "images" / split, root / "masks" / split, CAMVID, rules)


CITYSCAPES_CLASSES = (  # id on disk, name, colour; the train id is the index
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

CITYSCAPES_IDS = 34  # 0..33; 8-bit files store -1 (license plate) as 255


def cityscapes_table():
    """A table from label ids to train ids: 255 if not evaluated, -1 if no label has the id."""
    table = np.full(256, -1, np.int32)
    table[[*range(CITYSCAPES_IDS), IGNORE]] = IGNORE
    table[[label_id for label_id, *_ in CITYSCAPES_CLASSES]] = np.arange(len(CITYSCAPES_CLASSES))
    return table


def open_cityscapes(split, *, path=""):
    """leftImg8bit/<split>/<city>, gtFine/<split>/<city>: train ids if all exist, else label ids."""
    root = require_folder(path, "cityscapes", "leftImg8bit/ and gtFine/")
    images, masks = root / "leftImg8bit" / split, root / "gtFine" / split
    suffix, table = "_gtFine_labelIds", cityscapes_table()
    made = sum(file.endswith("_gtFine_labelTrainIds.png") for file in list_files(masks, (".png",)))
    if made >= len(list_files(images, image_endings())):
        suffix, table = "_gtFine_labelTrainIds", id_table(len(CITYSCAPES.names))
    return open_pairs(
        images,
        masks,
        CITYSCAPES,
        MaskRules(table, "Replace the mask by that of the published gtFine."),
        image_suffix="_leftImg8bit",
        mask_suffix=suffix,
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


def open_ade20k(split, *, path=""):
    """Scene parsing release: images/<split> and annotations/<split>; id 0 is ignored, k is k-1.

    The colours are generated, since the usual palette of ADE20K gives two classes the same grey.
    """
    root = require_folder(
        path, "ade20k", "images/{training,validation} and annotations/{training,validation}"
    )
    names = {"train": "training", "val": "validation"}
    names |= {name: name for name in names.values()}
    folder = choose(names, split, "split of ade20k")
    labels = Labels(tuple(ADE20K.split(", ")), distinct_colours(150))
    hint = "These must be the semantic annotations (values 0..150), not annotations_instance."
    rules = MaskRules(id_table(150, zero_is_ignored=True), hint)
    return open_pairs(root / "images" / folder, root / "annotations" / folder, labels, rules)


# Names of the 60 classes, of which 0 is the background, and the raw id of each.
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
    """A table to 60 classes, or to 59: the background ignored, the others shifted by one.

    raw_459  whether the ids on disk are the raw ones, 0..459; those of no class are background
    """
    table = id_table(60)
    if raw_459:
        table = np.zeros(460, np.int32)
        table[list(PASCAL_CONTEXT_RAW)] = np.arange(60)
    if num_classes == 59:
        shifted = np.where((table > 0) & (table < 60), table - 1, table)
        table = np.where(table == 0, IGNORE, shifted)
    return table.astype(np.int32)


def _listed_stem(line):
    """The name in a line of a list, which may have a folder, an ending and further columns."""
    name = line.split()[0].replace("\\", "/").rpartition("/")[2]
    stem, _, ending = name.rpartition(".")
    return stem if ends_with(f".{ending}", image_endings()) else name


def open_pascal_context(split, *, path="", num_classes=0, raw_459=False):
    """JPEGImages, SegmentationClassContext, ImageSets/SegmentationContext/<split>.txt."""
    root = require_folder(
        path, "pascal_context", "JPEGImages/ and SegmentationClassContext/ (VOC2010)"
    )
    if num_classes not in (59, 60):
        raise UserError(
            f"num_classes is {num_classes}, but pascal_context has 59 classes, or 60 with the "
            "background. Give --config.data.options.num_classes=59 or 60."
        )
    file = root / "ImageSets" / "SegmentationContext" / f"{split}.txt"
    if not file.is_file():
        raise UserError(
            f"there is no {file}, which lists the images of split {split}, one name per line."
        )
    stems = sorted({_listed_stem(line) for line in read_text(file).splitlines() if line.strip()})
    if not stems:
        raise UserError(f"{file} lists no image. It must hold one name per line.")
    names = tuple(PASCAL_CONTEXT.split(", "))[60 - num_classes :]
    table = pascal_context_table(num_classes, raw_459)
    hint = "" if raw_459 else "If the masks hold the raw 459 ids, set raw_459=True."
    folders = root / "JPEGImages", root / "SegmentationClassContext"
    labels = Labels(names, distinct_colours(num_classes))
    return open_pairs(*folders, labels, MaskRules(table, hint), stems=stems)
