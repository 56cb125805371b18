"""Which labelled images a run learns from, and which it holds out to measure on.

The validation images are those of the split config.data.val. Where there is none, or where
config.data.folds is given, the labelled images are cut into folds: the fold config.data.fold is
held out, or, for a stage that fits an ensemble, every fold in turn. config.data.validation names
another data set that holds the split config.data.val: real images, where generated ones are learned
from.
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from diffseg_jax.annotations.advice import advised
from diffseg_jax.config.schema import lacking
from diffseg_jax.data.folder_source import lacks_validation
from diffseg_jax.data.labels import Labels
from diffseg_jax.data.pipeline import Cached
from diffseg_jax.data.sources import open_source, require_images
from diffseg_jax.data.subsets import describe_subset, folds_of, used_images
from diffseg_jax.errors import UserError, counted
from diffseg_jax.experiment.target import Target
from diffseg_jax.storage.paths import read_object

USUAL_FOLDS = 5  # where there are no validation images, or the number of images if that is smaller
IN_TURN = -1  # the value of config.data.fold for every fold in turn
OWN_FOLDERS = "folder", "depth_folder"  # sources that may have no validation images
LABELLED_FILE = "labelled.json"  # in the workdir: the images that are learned from, and the folds
CONTINUED = "continued"  # folder in the workdir of a finished run that learns from more labels
SEEN = "the numbers do not say how it does on other images"
SHOWN_NAMES = 8  # images in a sentence


@dataclasses.dataclass(frozen=True)
class Validation:
    """The images on which a stage is measured.

    source     the images;  indices  those of them that are measured
    held_out   whether they are others than those with which the stage learns
    folds      index -> the number of the fold in which it is held out, where that happens in turn;
               None otherwise
    origin     the data set and the split, and "held_out"; JSON values
    note       a sentence about where they come from, or ""
    """

    source: Sequence
    indices: np.ndarray
    held_out: bool
    origin: dict
    folds: Mapping[int, int] | None = None
    note: str = ""


class OpenedData:
    """The data of a config, each part opened when the first stage needs it.

    kept     folds in which images stay, as of `kept_folds`
    target   what the stages learn from labels
    numbers  by which copies of images stay drawn, as of `kept_numbers`
    in_turn  in its methods, whether a stage holds out every fold in turn if the config lets it
    """

    def __init__(
        self, config: ConfigDict, kept: Mapping[str, int], target: Target,
        numbers: Mapping[str, int] | None = None,
    ):  # fmt: skip
        self.config, self.kept, self.target = config, kept, target
        self.kept_numbers = numbers or {}

    @functools.cached_property
    def unlabelled(self) -> Sequence:
        """The images of config.unlabelled."""
        return open_data(self.config, "unlabelled", self.config.unlabelled.split)

    @functools.cached_property
    def train(self) -> Sequence:
        """The labelled images, of which some may be held out."""
        source = open_data(self.config, "data", self.config.data.train)
        self.target.require(source, self.config.data.source)
        return source

    @functools.cached_property
    def val(self) -> Sequence:
        """The source of the validation images."""
        split = validation_split(self.config)
        if not split:
            return self.train
        source, data = open_validation(self.config), self.config.data
        other = data.validation.get("source") if other_validation(self.config) else ""
        self.target.require(source, other or data.source)
        return source

    def validation(self, in_turn: bool) -> Validation:
        """The validation images of a stage; opens the others only if they are held out of them."""
        split = validation_split(self.config)
        if not split:
            _, held, folds = self._sides(in_turn)
            others = len(self._chosen) > 1
            origin = self._origin(self.config.data.train, others)
            return Validation(self.val, held, others, origin, folds, self._note(held, folds))
        same = split == self.config.data.train and not other_validation(self.config)
        origin = self._origin(split, not same)
        note = f"measured on the images that it learns from: data.val is {split}, as data.train"
        everything = np.arange(len(self.val))
        note = f"{note}; {SEEN}" if same else ""
        return Validation(self.val, everything, not same, origin, note=note)

    def _origin(self, split, held_out):
        data = self.config.data
        other = data.get("validation", {}).get("source") if split == data.val else ""
        return {"source": other or data.source, "split": split, "held_out": held_out}

    def learned(self, in_turn: bool) -> tuple[np.ndarray, dict]:
        """Indices in `train` of the images that a stage learns from, and what is recorded of them.

        The record is of JSON values, with the folds if there are any.
        """
        data, indices, folds = self.config.data, self._chosen, {}
        if other_validation(self.config):
            require_classes_of_validation(self.train.labels, self.val.labels)
        if not validation_split(self.config):
            indices, held, each = self._sides(in_turn)
            of, count = self._cut
            names = (self.train.names[index] for index in self._chosen)
            folds["folds"] = {
                "count": count,
                "held_out": [] if each else [self.train.names[index] for index in held],
                "of": dict(zip(names, map(int, of), strict=True)),
            }
        record = describe_subset(
            self.train.names, indices, seed=data.subset_seed, list_path=data.list_path
        )
        return indices, {**record, **folds}

    def numbers(self) -> dict[int, int]:
        """Index in `train` of each labelled image -> the number by which its copies are drawn.

        That is its index, or what it was before other images were added: features of copies that
        stay as they were need not be computed again.
        """
        kept, names = self.kept_numbers, self.train.names
        taken = set(kept.values())
        others = itertools.count(max([len(names) - 1, *taken]) + 1)
        own = lambda index: next(others) if index in taken else index
        return {
            index: kept[names[index]] if names[index] in kept else own(index)
            for index in map(int, self._chosen)
        }

    @functools.cached_property
    def _chosen(self):
        return used_images(self.config.data, self.train.names)

    @functools.cached_property
    def _cut(self):
        return cut_images(self.config, self.train.names, self._chosen, self.kept)

    def _sides(self, in_turn):
        """Indices that are learned from, that are held out, and the folds if that is in turn."""
        chosen, fold = self._chosen, fold_option(self.config, "fold")
        of, count = self._cut
        if len(chosen) == 1:
            return chosen, chosen, None
        if fold == IN_TURN and in_turn:
            return chosen, chosen, dict(zip(map(int, chosen), map(int, of), strict=True))
        learned, held = chosen[of != max(fold, 0)], chosen[of == max(fold, 0)]
        if not len(learned) or not len(held):
            raise UserError(
                f"fold {max(fold, 0)} of {count} cannot be held out: of the images in it, or of "
                "the others, none is left. Take another --workdir, for which they are cut anew."
            )
        return learned, held, None

    def _note(self, held, folds):
        given, count = fold_option(self.config, "folds"), self._cut[1]
        why = f"data.folds is {given}" if given else "no validation images"
        images = counted(len(self._chosen), "labelled image")
        if len(self._chosen) == 1:
            return f"{why}: the {images} is learned from and measured on; {SEEN}"
        if folds:
            return f"{why}: the {images} are cut into {count} folds, each held out in turn"
        fold = fold_option(self.config, "fold")
        names = ", ".join(self.train.names[index] for index in held[:SHOWN_NAMES])
        more = f" and {len(held) - SHOWN_NAMES} others" if len(held) > SHOWN_NAMES else ""
        are, split = "is" if len(held) == 1 else "are", self.config.data.train
        how = f"--config.data.val={split} with --continue, or in another --workdir,"
        advice = "" if given or fold != IN_TURN else f"; at last, {how} learns from all of them"
        return (
            f"{why}: {len(held)} of {images} {are} held out, to measure on "
            f"(fold {max(fold, 0)} of {count}: {names}{more}){advice}"
        )


def validation_split(config: ConfigDict) -> str:
    """The split that holds the validation images; "" where they are held out from the others."""
    data = config.data
    if fold_option(config, "folds") or not has_validation_split(config):
        return ""
    if fold_option(config, "fold") != IN_TURN:
        raise UserError(
            f"data.fold is {data.fold}, but the validation images are those of the split "
            f"{data.val}. Give --config.data.folds={USUAL_FOLDS} too, or leave data.fold out."
        )
    return data.val


def has_validation_split(config: ConfigDict) -> bool:
    """Whether the data have the split config.data.val; of other sources than folders, that is said.

    A folder whose split has another name has it too, which is an error when it is opened.
    """
    data = config.data
    if other_validation(config):
        return _named_split(config)
    return bool(data.val) and not (
        data.source in OWN_FOLDERS and lacks_validation(data.path, data.val)
    )


def other_validation(config: ConfigDict) -> bool:
    """Whether config.data.validation names another data set, which holds the validation images."""
    given = config.data.get("validation", {})
    return bool(given.get("source") or given.get("path"))


def _named_split(config):
    """True; UserError where data.validation is given, but data.val is empty."""
    if not config.data.val:
        raise UserError(
            "data.validation names a data set, but data.val is empty. Try --config.data.val=val, "
            "or the split of it that holds the validation images."
        )
    return True


def open_validation(config: ConfigDict) -> Sequence:
    """The split config.data.val, of the data set config.data.validation if that names one."""
    data = config.data
    if not other_validation(config):
        return open_data(config, "data", data.val)
    part, (source, path, options) = validation_set(config)
    try:
        opened = open_source(source, data.val, path=path, **options)
    except UserError as error:
        raise UserError(f"--config.{part}: {error}") from None
    return Cached(opened) if data.cache else opened


def validation_set(config: ConfigDict) -> tuple[str, tuple[str, str, dict]]:
    """Where the config names the set that holds data.val, and its (source, path, options)."""
    data = config.data
    if not other_validation(config):
        return "data", (data.source, data.path, data.options.to_dict())
    given = data.validation.to_dict()
    source, options = given.get("source") or data.source, given.get("options", {})
    return "data.validation", (source, given.get("path", ""), options)


def require_classes_of_validation(learned: Labels | None, measured: Labels | None):
    """Raises UserError where training images have other classes than the validation images.

    None are the labels of truths without classes.
    """
    here, there = (labels.names if labels else () for labels in (learned, measured))
    if here == there:
        return
    first = next((i for i, pair in enumerate(zip(here, there)) if len({*pair}) > 1), None)
    what = f"{len(here)} and {len(there)} of them"
    if first is not None:
        what = f"class {first} is {here[first]} in the one and {there[first]} in the other"
    raise UserError(
        f"training images of data and validation images of data.validation have other classes: "
        f"{what}. Give both the same names in the same order, by classes.json or options."
    )


def cut_images(
    config: ConfigDict, names: Sequence[str], chosen: np.ndarray, kept: Mapping[str, int]
) -> tuple[np.ndarray, int]:
    """The fold of each chosen image, and the number of folds.

    Raises UserError where the config asks for more folds than there are images, or for one of a
    larger number.
    """
    given, fold = fold_option(config, "folds"), fold_option(config, "fold")
    images = counted(len(chosen), "labelled image")
    if given > len(chosen):
        fewer = min(len(chosen), USUAL_FOLDS)
        advice = f"--config.data.folds={fewer if fewer > 1 else 0}"
        raise UserError(f"data.folds is {given}, more than the {images}. Try {advice}.")
    count = given or min(USUAL_FOLDS, len(chosen))
    if fold >= count:
        raise UserError(
            f"data.fold is {fold}, but {images} {'are' if count > 1 else 'is'} cut into "
            f"{counted(count, 'fold')}, counted from 0. Try --config.data.fold={count - 1}."
        )
    if count == 1:  # once there are more images, this one stays among those that are learned from
        return np.array([USUAL_FOLDS - 1]), 1
    seed = config.data.subset_seed
    return folds_of(names, chosen, count, seed=seed, kept=kept), count


def fold_option(config: ConfigDict, name: str) -> int:
    """The value of config.data.folds or config.data.fold, which a config may lack."""
    return config.data.get(name, lacking("data.")[name])


def check_folds(config: ConfigDict):
    """Raises UserError for options of folds that no data could fit."""
    folds, fold = fold_option(config, "folds"), fold_option(config, "fold")
    if folds == 1:
        raise UserError(
            "data.folds is 1, but one part must be held out and others be learned from. Give 2 or "
            "more, or 0 for the split data.val."
        )
    if folds and fold >= folds:
        raise UserError(
            f"data.fold is {fold}, but data.folds is {folds}, counted from 0. Give "
            f"--config.data.fold=0 to {folds - 1}, or {IN_TURN} for all in turn."
        )


def kept_folds(workdir: Path) -> dict[str, int]:
    """{name: fold} of the images in the workdir's list, so that none changes its side.

    Images of a list without folds were learned from: they get the last fold, which is not the one
    that is held out.
    """
    listed = read_object(workdir / LABELLED_FILE)
    try:
        learned = dict.fromkeys(listed["names"], USUAL_FOLDS - 1)
        return {**learned, **listed.get("folds", {}).get("of", {})}
    except (ValueError, LookupError, TypeError, AttributeError):
        return {}


def kept_numbers(workdir: Path) -> dict[str, int]:
    """{name: number} by which the copies of images in the workdir's list are drawn."""
    found = read_object(workdir / LABELLED_FILE).get("numbers")
    found = found if isinstance(found, dict) else {}
    return {name: n for name, n in found.items() if isinstance(n, int) and n >= 0}


def run_before(workdir: Path) -> Path | None:
    """The run that goes on in a folder CONTINUED of its workdir; None for other workdirs."""
    before = workdir.parent
    return before if workdir.name == CONTINUED and (before / "config.json").exists() else None


def labels_path(config: ConfigDict) -> str:
    """The folder of images and masks of a config, which may hold other labels; "" for none."""
    return config.data.path if "data" in config and config.data.source == "folder" else ""


def open_data(config: ConfigDict, part: str, split: str) -> Sequence:
    """The source that a config's part "data" or "unlabelled" names."""
    data = config[part]
    try:
        if part == "unlabelled":
            require_images(data.source, part)
        with advised(labels_path(config) if part == "data" else ""):
            source = open_source(data.source, split, path=data.path, **data.options.to_dict())
    except UserError as error:
        raise UserError(f"--config.{part}: {error}") from None
    return Cached(source) if data.cache else source
