"""Mean IoU of the cells of a study on given images, of all classes, or of small or large ones."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from diffseg_jax.data.corruptions import DRAWN_FROST
from diffseg_jax.data.subsets import used_images
from diffseg_jax.errors import UserError
from diffseg_jax.experiment.labelled_images import OpenedData
from diffseg_jax.experiment.study_cells import StudyCell, config_of
from diffseg_jax.experiment.study_file import PAPERS, Study
from diffseg_jax.experiment.targets import target_of
from diffseg_jax.metrics import segmentation
from diffseg_jax.metrics.class_sizes import SIZE_RULE, class_areas, split_by_area
from diffseg_jax.metrics.image_counts import ImageCounts, mean_iou, resampled
from diffseg_jax.storage.paths import read_object, write_json

SIZES = ("small.mIoU", "large.mIoU")  # numbers that a study can collect beside those of results
SIZES_FILE = "class_sizes.json"


def has_counts(path: str) -> bool:
    """Whether the number at a path is a mean IoU that follows from the counts of images."""
    group, _, number = path.rpartition(".")
    return path in SIZES or number == "mIoU" and (not group or group in PAPERS)


def score_on(path: str, counts: ImageCounts, sums: np.ndarray, sizes: Mapping) -> np.ndarray:
    """The number at a path f64[...] of summed counts [..., 4, K]; `has_counts` says of which.

    sizes  {"small", "large"}: names of classes, for SIZES; UserError where they are missing, and
           for one that is not counted
    """
    group = path.rpartition(".")[0]
    absent, ignored, chosen = counts.absent, False, None
    if group in PAPERS:
        absent, ignored = segmentation.CONVENTIONS[group]
    elif path in SIZES:
        if group not in sizes:
            raise UserError(
                f"{path} needs {SIZES_FILE}, which cannot be read. The study's command writes it "
                "again as it starts."
            )
        chosen = [_index_of(name, counts.classes, path) for name in sizes[group]]
    return mean_iou(sums, absent, counts.unscored, ignored, chosen)


def _index_of(name, classes, path):
    if name not in classes:
        raise UserError(
            f"{path} needs the same classes in all cells, but class {name} of {SIZES_FILE} is not "
            f"among those of this cell: {', '.join(classes)}. Collect other numbers, such as mIoU."
        )
    return classes.index(name)


def averaged_corruptions(measured: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """The types and severities of which a cell's number is the mean.

    As in corruptions.md, frost that is drawn does not count, unless it is the only type.
    """
    return [each for each in measured if each[0] != DRAWN_FROST] or list(measured)


def keep_class_sizes(study: Study, cells: Sequence[StudyCell], workdir: Path):
    """class_sizes.json: the small and the large classes of labelled images, and the rule.

    They are the images of all cells that learn from the data set of the first one. Only where the
    study collects one of SIZES, and once. A file that cannot be read is replaced.
    """
    if not set(SIZES) & set(study.collect) or class_sizes(workdir):
        return
    config = config_of(study, cells[0].run.options).copy_and_resolve_references()
    source = OpenedData(config, {}, target_of(config)).train
    indices, names = _images_of_cells(study, cells, config, source), source.labels.names
    areas = class_areas((source[index]["mask"] for index in indices), len(names))
    groups = split_by_area(areas, names, source.labels.unscored)
    write_json(workdir / SIZES_FILE, {
        "rule": SIZE_RULE, "images": len(indices),
        **{group: [names[index] for index in chosen] for group, chosen in groups.items()},
        "areas": {n: segmentation.to_number(area) for n, area in zip(names, areas, strict=True)},
    })  # fmt: skip


def _images_of_cells(study, cells, first, source) -> list[int]:
    """Indices of the labelled images of cells with the data set of a config."""
    found, keys = set(), ("source", "path", "options", "train")
    data_set = lambda config: repr([config.data[key] for key in keys])
    for cell in cells:
        config = config_of(study, cell.run.options)
        if data_set(config) != data_set(first):
            continue
        found |= {*used_images(config.data, source.names).tolist()}
    return sorted(found)


def class_sizes(workdir: Path) -> dict:
    """What `keep_class_sizes` wrote; {} if there is no such file that can be read."""
    found = read_object(workdir / SIZES_FILE)
    groups = [found.get(group) for group in ("small", "large")]
    whole = isinstance(found.get("rule"), str) and all(isinstance(each, list) for each in groups)
    return found if whole else {}


def described_sizes(workdir: Path) -> list[str]:
    """The rule and the two lists, as paragraphs of a table; [] without them."""
    found = class_sizes(workdir)
    if not found:
        return []
    lines = [f"- {group}: {', '.join(found[group])}" for group in ("small", "large")]
    return ["## Small and large classes", found["rule"], "\n".join(lines)]


def resampled_scores(path: str, counts: ImageCounts, draws: int, sizes: Mapping) -> np.ndarray:
    """The number at a path f64[draws] on resamples of the images.

    They are the same resamples for all counts of as many images.
    """
    sums = _weights(len(counts.counts), draws) @ counts.counts.reshape(len(counts.counts), -1)
    return score_on(path, counts, sums.reshape(-1, *counts.counts.shape[1:]), sizes)


@functools.lru_cache(maxsize=1)
def _weights(images, draws):
    return resampled(images, draws, np.random.default_rng(0))
