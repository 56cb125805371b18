"""KITTI and NYU Depth V2 in the layouts that depth networks are trained with, with split files.

A line of a split file is "image depth focal-length", with paths relative to the data; the focal
length is not read. These are the lists of Lee et al. (2019: BTS) and of later work.
"""

import re

import numpy as np

from diffseg_jax.data.depth_files import DepthRules
from diffseg_jax.data.depth_source import DepthSource
from diffseg_jax.data.files import require_folder
from diffseg_jax.data.names import read_text
from diffseg_jax.errors import UserError, counted
from diffseg_jax.storage.paths import open_path, reachable

KITTI_LISTS = {"train": "kitti_eigen_train.txt", "val": "kitti_eigen_test.txt"}
NYU_LISTS = {"train": "nyu_train.txt", "val": "nyu_test.txt"}
KITTI_PART = 352, 1216  # rows from the bottom, columns from the centre
NYU_TESTS = "val", "test"  # last part of the names of lists whose images stay whole
NYU_PART = 45, 472, 43, 608  # first and end of rows and of columns within the white border
CHECKED = 100  # listed files, spread over the list, that must exist when it is opened


def open_kitti(split, *, path="", splits=""):
    """KITTI: input/<date>/<drive>/..., gt_depth/<drive>/..., and the lists of Eigen et al. (2014).

    Images whose depth is listed as None are left out. Every image is cut to the bottom 352 rows and
    the central 1216 columns, on which networks are trained and measured.

    splits  folder of the split files; "": `path` itself, or splits/ or split/ in it
    """
    root = require_folder(path, "kitti", "input/, gt_depth/ and the split files")
    file = _list_file(root, splits, KITTI_LISTS, split, "kitti")
    listed = [line for line in _lines_of(file) if line[1] != "None"]
    folders, rules = (root / "input", root / "gt_depth"), DepthRules(scale=1 / 256)
    return _listed_source(file, sorted(listed), folders, rules, kitti_part)


def open_nyu(split, *, path="", splits=""):
    """NYU Depth V2: <scene>/rgb_*.jpg, <scene>/sync_depth_*.png, and the split files.

    Images are cut to the part within their white border, except in lists that NYU_TESTS ends, such
    as nyu_test and my_val: networks are measured in a crop of whole images.

    splits  as of `open_kitti`
    """
    root = require_folder(path, "nyu", "folders of scenes and the split files")
    file = _list_file(root, splits, NYU_LISTS, split, "nyu")
    is_test = re.split(r"[\W_]", split.removesuffix(".txt"))[-1] in NYU_TESTS
    rules, part = DepthRules(scale=0.001), None if is_test else nyu_part
    return _listed_source(file, _lines_of(file), (root, root), rules, part)


def kitti_part(image, depth, path):
    """The bottom 352 rows and the central 1216 columns of both; UserError for smaller images."""
    (height, width), (rows, columns) = depth.shape, KITTI_PART
    _require_room(path, depth.shape, KITTI_PART)
    top, left = height - rows, (width - columns) // 2
    box = np.s_[top:, left : left + columns]
    return image[box], depth[box]


def nyu_part(image, depth, path):
    """Rows 45 to 471 and columns 43 to 607 of both; UserError as `kitti_part`."""
    top, bottom, left, right = NYU_PART
    _require_room(path, depth.shape, (bottom, right))
    box = np.s_[top:bottom, left:right]
    return image[box], depth[box]


def _require_room(path, size, least):
    if size[0] < least[0] or size[1] < least[1]:
        raise UserError(
            f"image {path} has {size[0]}x{size[1]} pixels (height x width), but a part of "
            f"{least[0]}x{least[1]} is cut from every image of this data set. Give the published "
            "files, or use data set depth_folder for your own."
        )


# ---- split files ---------------------------------------------------------------------------------


def _list_file(root, splits, lists, split, name):
    """The split file of a split; UserError that says where it is looked for."""
    listed = lists.get(split, split if split.endswith(".txt") else f"{split}.txt")
    folders = [open_path(splits)] if splits else [root, root / "splits", root / "split"]
    with reachable(root):
        found = next((f / listed for f in folders if (f / listed).is_file()), None)
    if not found:
        raise UserError(
            f"there is no {listed} in {' or '.join(map(str, folders))}, which lists the images of "
            f'split {split}, one "image depth focal-length" a line. Copy the split files of {name} '
            "there, or give --config.data.options.splits=FOLDER."
        )
    return found


def _lines_of(file):
    """[(image, depth)] of a split file, without leading slashes; UserError for other content."""
    found = []
    for number, line in enumerate(read_text(file).splitlines(), 1):
        words = line.split()
        if words and len(words) not in (2, 3):
            raise UserError(
                f'{file}, line {number}: "{line[:80]}" is not "image depth focal-length" with '
                "spaces between. Give the split file as published."
            )
        if words:
            found.append(tuple(word.lstrip("/") for word in words[:2]))
    if not found:
        raise UserError(f"{file} lists no image. Give the split file as published.")
    return found


def _listed_source(file, listed, folders, rules, part):
    """DepthSource of the listed files; UserError where the first of some of them is missing."""
    if not listed:
        raise UserError(f"{file} lists no image with depth. Give the split file as published.")
    image_folder, depth_folder = folders
    images = tuple(f"{image_folder}/{image}" for image, _ in listed)
    depths = tuple(f"{depth_folder}/{depth}" for _, depth in listed)
    names = tuple(image.rpartition(".")[0] for image, _ in listed)
    if len(set(names)) < len(names):
        repeated = next(name for index, name in enumerate(names) if name in names[:index])
        raise UserError(f"{file} lists {repeated} twice. Remove one of the lines.")
    some = np.unique(np.linspace(0, len(images) - 1, CHECKED).astype(int))
    with reachable(image_folder):
        missing = [
            path for index in some for path in (images[index], depths[index])
            if not open_path(path).is_file()
        ]  # fmt: skip
    if missing:
        raise UserError(
            f"{file} lists {counted(len(images), 'image')}, but of {2 * len(some)} listed files "
            f"that were looked for {len(missing)} are missing; the first is {missing[0]}. Complete "
            "the folder, or remove their lines from a copy of the list."
        )
    return DepthSource(images, depths, names, rules, part).with_unit_warning()
