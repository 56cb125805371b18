"""Images with measured depth: folders of a user's own, and drawn scenes."""

import dataclasses
from collections.abc import Callable
from dataclasses import field

import numpy as np

from diffseg_jax.data.depth_files import (
    DEPTH_ENDINGS,
    DepthRules,
    read_depth,
    read_depth_rules,
    read_stored,
    unit_warning,
)
from diffseg_jax.data.files import by_stem, pair, require_folder, skipped_note, split_files
from diffseg_jax.data.folder_source import SPLITS
from diffseg_jax.data.formats import image_endings
from diffseg_jax.data.images import read_file, read_image, require_same_size
from diffseg_jax.data.orientation import fit_mask, stored_orientation
from diffseg_jax.data.scene_source import SceneSource, open_scenes
from diffseg_jax.data.scenes import SKY_DEPTH
from diffseg_jax.errors import UserError
from diffseg_jax.storage.paths import reachable

DEPTH_LAYOUT = "images/<split>, depth/<split> and depth.json"
SOME_DEPTHS = 8  # files whose median depth is looked at when a set is opened


@dataclasses.dataclass(frozen=True, eq=False)
class DepthSource:
    """Images with depth as a random-access sequence that opens files when read.

    source[i] is {"image": uint8[H,W,3], "depth": float32[H,W] in metres, 0 where nothing was
    measured, "name": str}. Reading a bad file raises UserError with its path.

    images, depths  paths, in the same order
    names    one unique string per image
    rules    how the depth files store metres
    part     (image, depth, path of the image) -> the part of both that is used; None: all
    report   sentences about what opening found
    """

    images: tuple[str, ...] = field(repr=False)
    depths: tuple[str, ...] = field(repr=False)
    names: tuple[str, ...] = field(repr=False)
    rules: DepthRules
    part: Callable | None = None
    report: tuple[str, ...] = ()
    labels: None = None
    classes: tuple[str, ...] = ()

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        path, depth_path = self.images[index], self.depths[index]
        content = read_file(path)
        image = read_image(path, content)
        stored, orientation = read_depth(depth_path, self.rules)
        depth = fit_mask(stored, orientation, image.shape[:2], stored_orientation(content))
        require_same_size(image, depth, path, depth_path, "depth")
        if self.part:
            image, depth = self.part(image, depth, path)
        return {"image": image, "depth": depth, "name": self.names[index]}

    def with_unit_warning(self):
        """The source, whose report warns if the median depth of some files hints at a wrong unit.

        Files that cannot be read are left to those who use them.
        """
        medians = []
        count = len(self.depths)
        for index in np.unique(np.linspace(0, count - 1, min(count, SOME_DEPTHS)).astype(int)):
            try:
                depth, _ = read_depth(self.depths[index], self.rules)
            except UserError:
                continue
            medians.append(float(np.median(depth[depth > 0])))
        return dataclasses.replace(self, report=self.report + unit_warning(medians, self.rules))


def open_depth_folder(split, *, path=""):
    """images/<split> and depth/<split> below path, which pair by name; units from depth.json.

    Where images/ and depth/ hold the files themselves, all of them are the split train.
    """
    root = require_folder(path, "depth_folder", DEPTH_LAYOUT)
    folders = root / "images", root / "depth"
    with reachable(root):
        if split not in SPLITS["train"] or any((folder / split).is_dir() for folder in folders):
            folders = folders[0] / split, folders[1] / split
    try:
        files, others = split_files(folders[0], image_endings())
        depths, _ = split_files(folders[1], DEPTH_ENDINGS)
        images, depths = by_stem(files, folders[0]), by_stem(depths, folders[1])
        images, depths, names, report = pair(folders[0], images, folders[1], depths, "depth map")
    except UserError as error:
        raise UserError(
            f"{error} In data set depth_folder, images/{split} holds images, depth/{split} a depth "
            "map of the same name for each, as PNG of 16 bits or .npy."
        ) from None
    rules = read_depth_rules(root / "depth.json", lambda: read_stored(depths[0])[0])
    report += skipped_note(folders[0], others)
    return DepthSource(images, depths, names, rules, report=report).with_unit_warning()


@dataclasses.dataclass(frozen=True)
class DepthScenes:
    """Drawn street scenes with their depth in place of labels; the sky counts as not measured."""

    scenes: SceneSource
    labels: None = None
    classes: tuple[str, ...] = ()

    @property
    def names(self):
        """One unique string per scene."""
        return self.scenes.names

    @property
    def report(self):
        """Sentences about what opening found."""
        return self.scenes.report

    def __len__(self):
        return len(self.scenes)

    def __getitem__(self, index):
        scene = self.scenes[index]
        depth = np.where(scene["depth"] < SKY_DEPTH, scene["depth"], 0).astype(np.float32)
        return {"image": scene["image"], "depth": depth, "name": scene["name"]}


def open_depth_scenes(split, *, images=0, size=(0, 0), seed=0):
    """DepthScenes of `images` scenes of `size` (height, width), those of `open_scenes`."""
    return DepthScenes(open_scenes(split, images=images, size=size, seed=seed))
